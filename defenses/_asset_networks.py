"""The detector networks M of ASSET: image -> logits."""

from __future__ import annotations

from typing import Literal

from torch import nn

from bench.api import seeded_with

NetworkKind = Literal["resnet18", "small"]
SMALL_WIDTH, GROUPS = 32, 8


def detector_network(kind: NetworkKind, logits: int, seed: int) -> nn.Module:
    """A freshly initialised M, (N, 3, H, W) -> (N, ``logits``); the same on every device.

    ``resnet18`` is the published one, ResNet-18 with a 3x3 stem and no max-pooling, 11,173,962
    parameters for ten logits. ``small`` has three strided convolutions, for less than a hundredth
    of the work; its normalisation is over groups of channels of one image, because M sees clean
    and suspicious images in separate batches, whose statistics would tell one from the other.
    """
    with seeded_with(seed):
        return _resnet18(logits) if kind == "resnet18" else _small(logits)


def _resnet18(logits: int) -> nn.Module:
    # Here, because torchvision takes long to import.
    from torchvision.models import resnet18

    network = resnet18(num_classes=logits)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()  # torch's own initialisation, as in the published class
    return network


def _small(logits: int) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width in (SMALL_WIDTH, 2 * SMALL_WIDTH, 4 * SMALL_WIDTH):
        layers += [
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(GROUPS, width),
            nn.ReLU(inplace=True),
        ]
        channels = width
    head = nn.Linear(channels, logits)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
