"""The networks an encoder may have, by name, with what each knows about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import nearest

__all__ = [
    "ARCHITECTURES",
    "CIFAR_MEAN",
    "CIFAR_STD",
    "CLIP_MEAN",
    "CLIP_STD",
    "Architecture",
    "SimCLR",
    "SimCLRBase",
    "build",
    "find",
    "projector",
]

# The normalisation of the published SimCLR and BadEncoder code; its deviation is the mean of the
# per-image deviations, not that of all pixels (0.247, ...).
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MOST_SETTING = 2**20
"""Of any setting of an architecture: no layer is wider."""


class SimCLRBase(nn.Module):
    """ResNet trunk with a 3x3 stem and no max-pooling, children index-named inside ``f``.

    The layout of the published SimCLR encoder (Chen et al. 2020, appendix B.9, as BadEncoder and
    DRUPE distribute it), so that their state dicts load without renaming. Features are averaged
    after a ReLU and therefore never negative.

    Parameters
    ----------
    blocks
        Basic blocks in each of the four stages.
    width
        Channels of the stem and the first stage; doubled by every later stage.
    stem_stride
        1, or 2 for a quarter of the work.
    """

    def __init__(self, blocks: tuple[int, int, int, int], width: int, stem_stride: int) -> None:
        super().__init__()
        if width < 1 or stem_stride not in (1, 2):
            raise ValueError(
                f"width must be at least 1 and stem_stride 1 or 2, got {width} and {stem_stride}"
            )
        stages = [
            _stage(width << max(i - 1, 0), width << i, count, stride=1 if i == 0 else 2)
            for i, count in enumerate(blocks)
        ]
        self.f = nn.Sequential(
            nn.Conv2d(3, width, 3, stem_stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            *stages,
            nn.AdaptiveAvgPool2d(1),
        )
        self.embedding_dim = width << 3
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> features (N, ``embedding_dim``)."""
        return self.f(images).flatten(1)

    def feature_modules(self) -> dict[str, nn.Module]:
        """The modules whose outputs are the intermediate features, input to output."""
        return {"stem": self.f[2], **{f"layer{i}": self.f[2 + i] for i in range(1, 5)}}


class SimCLR(nn.Module):
    """Encoder ``f`` and projector ``g``: the module that the published checkpoints hold."""

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f = f
        self.g = g

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> projections (N, P), not yet of unit length."""
        return self.g(self.f(images))


def projector(
    embedding_dim: int,
    hidden: int | None = None,
    out: int = 128,
    *,
    batch_norm: bool = True,
    bias: bool = False,
) -> nn.Sequential:
    """The published SimCLR head: linear without bias, batch norm, ReLU, linear.

    ``hidden`` is ``embedding_dim`` unless given. Without ``batch_norm`` the first layer has a bias
    (CTRL's head); with ``bias`` it has one in any case (BYOL's).
    """
    hidden = embedding_dim if hidden is None else hidden
    return nn.Sequential(
        nn.Linear(embedding_dim, hidden, bias=bias or not batch_norm),
        *([nn.BatchNorm1d(hidden)] if batch_norm else []),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, out),
    )


@dataclass(frozen=True)
class Architecture:
    """A named network.

    Attributes
    ----------
    make
        Called with every setting; its result has ``embedding_dim`` and ``feature_modules()``.
    settings
        Accepted settings with their defaults, JSON-ready.
    mean, std
        Default normalisation, per channel, for images in [0, 1].
    image_size
        Default side of the input in pixels.
    layers
        Names of the intermediate features, input to output.
    text
        Whether the network has a text tower: ``encode_text``, ``tokenize`` and ``logit_scale``.
    fixed_size
        Whether images must have ``image_size``.
    published
        Whether published attacks and defenses use it; the others are surrogates for a CPU.
    """

    name: str
    make: Callable[..., nn.Module]
    settings: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, float, float] = CIFAR_MEAN
    std: tuple[float, float, float] = CIFAR_STD
    image_size: int = 32
    layers: tuple[str, ...] = ("stem", "layer1", "layer2", "layer3", "layer4")
    text: bool = False
    fixed_size: bool = False
    published: bool = False

    def complete(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """``settings`` with the defaults filled in.

        Raises
        ------
        ValueError
            When a setting is unknown.
        """
        for name in settings:
            if name not in self.settings:
                known = ", ".join(self.settings) or "none"
                raise ValueError(f"{self.name} has no setting {name!r}; it has: {known}")
        return {**self.settings, **settings}

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuse an impossible setting, as :meth:`skeleton` does."""
        self.skeleton(settings)

    def skeleton(self, settings: Mapping[str, Any]) -> nn.Module:
        """The network without memory: names, shapes and types of its tensors.

        Raises
        ------
        ValueError
            When a setting is unknown, of the wrong type or out of range.
        """
        complete = self.complete(settings)
        for name, value in complete.items():
            if type(value) is not type(self.settings[name]):
                raise ValueError(f"{name} should be like {self.settings[name]!r}, got {value!r}")
            if type(value) is int and value > MOST_SETTING:
                raise ValueError(f"{name} should be at most {MOST_SETTING:,}, got {value:.3g}")
        try:
            with torch.device("meta"):
                return self.make(**complete)
        except RuntimeError as error:  # sizes that no memory could have
            why = str(error).partition("\n")[0]  # torch's own stack follows
            raise ValueError(f"{self.name}: {complete} cannot be: {why}") from None


def build(architecture: str, **settings: Any) -> nn.Module:
    """A freshly initialised network.

    Weights are drawn from torch's global generator, as all torch initialisers do; callers that
    must not touch it use :meth:`bench.encoders.encoder.Encoder.initialise`.

    Raises
    ------
    ValueError
        When the name or a setting is unknown.
    """
    entry = find(architecture)
    return entry.make(**entry.complete(settings))


def find(architecture: str) -> Architecture:
    """The entry of that name.

    Raises
    ------
    ValueError
        When there is none; names the nearest one.
    """
    if architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture]
    raise ValueError(f"unknown architecture {architecture!r}{nearest(architecture, ARCHITECTURES)}")


class _ThinShortcut(nn.Conv2d):
    """A 1x1 convolution with a stride, of few channels: the stride is taken before it.

    oneDNN as torch 2.15 brings it writes past a buffer in the backward pass of such a convolution,
    when channels lie last and are fewer than :data:`FEWEST_CHANNELS`; seen on a processor with AVX2
    and without AVX-512: gradients off by 0.25 %, and a heap that ends the process.
    """

    def forward(self, input: Tensor) -> Tensor:
        rows, columns = self.stride
        return functional.conv2d(input[..., ::rows, ::columns], self.weight)


FEWEST_CHANNELS = 8


def _stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
    # Here, because torchvision takes longer to import than a finished run takes to look up.
    from torchvision.models.resnet import BasicBlock

    downsample = None
    shortcut = nn.Conv2d if channels_in >= FEWEST_CHANNELS else _ThinShortcut
    if stride != 1:
        downsample = nn.Sequential(
            shortcut(channels_in, channels_out, 1, stride, bias=False),
            nn.BatchNorm2d(channels_out),
        )
    first = BasicBlock(channels_in, channels_out, stride, downsample)
    return nn.Sequential(
        first, *(BasicBlock(channels_out, channels_out) for _ in range(blocks - 1))
    )


def _resnet18_cifar() -> nn.Module:
    return SimCLRBase((2, 2, 2, 2), width=64, stem_stride=1)


def _resnet_narrow(width: int, stem_stride: int) -> nn.Module:
    return SimCLRBase((1, 1, 1, 1), width=width, stem_stride=stem_stride)


def _template_clip(**settings: int) -> nn.Module:
    from bench.encoders.clip import template_clip

    return template_clip(**settings)


def _clip_rn50() -> nn.Module:
    from bench.encoders.clip import clip_rn50

    return clip_rn50()


def _clip_rn50_visual() -> nn.Module:
    from bench.encoders.clip import clip_rn50_visual

    return clip_rn50_visual()


_CLIP_STATISTICS: dict[str, Any] = {"mean": CLIP_MEAN, "std": CLIP_STD}
_RN50: dict[str, Any] = {**_CLIP_STATISTICS, "image_size": 224, "fixed_size": True}

ARCHITECTURES: dict[str, Architecture] = {
    entry.name: entry
    for entry in (
        Architecture("resnet18-cifar", _resnet18_cifar, published=True),
        Architecture("resnet-narrow", _resnet_narrow, {"width": 32, "stem_stride": 2}),
        Architecture(
            "template-clip",
            _template_clip,
            {
                "width": 32,
                "stem_stride": 2,
                "embedding_dim": 128,
                "text_width": 128,
                "text_layers": 2,
                "text_heads": 4,
                "context_length": 32,
            },
            text=True,
            **_CLIP_STATISTICS,
        ),
        Architecture("clip-rn50", _clip_rn50, text=True, published=True, **_RN50),
        Architecture("clip-rn50-visual", _clip_rn50_visual, published=True, **_RN50),
    )
}
