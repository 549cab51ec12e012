from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import torchvision

from bench.encoders.architectures import ARCHITECTURES, SimCLR, build, find, projector

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "encoders.json").read_text())


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_resnet18_has_the_published_parameter_counts():
    golden = GOLDEN["simclr_resnet18"]
    assert count(build("resnet18-cifar")) == golden["encoder_parameters"]
    assert count(projector(512)) == golden["projector_parameters"]


def test_simclr_state_dict_has_the_published_keys_and_shapes():
    # Written from the published key list: torchvision's ResNet-18 with index-named children.
    names = {"conv1": "0", "bn1": "1", "layer1": "3", "layer2": "4", "layer3": "5", "layer4": "6"}
    expected = {}
    for key, value in torchvision.models.resnet18().state_dict().items():
        child, _, rest = key.partition(".")
        if child in names:
            expected[f"f.f.{names[child]}.{rest}"] = tuple(value.shape)
    expected["f.f.0.weight"] = (64, 3, 3, 3)
    expected["g.0.weight"] = (512, 512)
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        expected[f"g.1.{leaf}"] = (512,)
    expected["g.1.num_batches_tracked"] = ()
    expected["g.3.weight"] = (128, 512)
    expected["g.3.bias"] = (128,)

    state = SimCLR(build("resnet18-cifar"), projector(512)).state_dict()

    assert {key: tuple(value.shape) for key, value in state.items()} == expected
    assert list(state) == list(expected)
    assert len(state) == GOLDEN["simclr_resnet18"]["tensors"]


def test_resnet18_forward_equals_the_published_one_on_formula_weights():
    golden = GOLDEN["simclr_base_forward"]
    network = build("resnet18-cifar").eval()
    golden_ratio, plastic_ratio = (math.sqrt(5) - 1) / 2, 0.7548776662466927
    for index, parameter in enumerate(network.parameters()):
        if parameter.ndim == 4:
            phase = golden_ratio * torch.arange(parameter.numel(), dtype=torch.float64)
            value = 2 * math.sqrt(3 / parameter[0].numel()) * ((phase + 0.1 * index) % 1 - 0.5)
            parameter.data = value.float().view(parameter.shape)
    phase = plastic_ratio * torch.arange(4 * 3 * 32 * 32, dtype=torch.float64)
    with torch.no_grad():
        output = network((phase % 1 * 4 - 2).float().view(4, 3, 32, 32))
    tolerance = golden["relative_tolerance"]
    assert float(output.sum()) == pytest.approx(golden["sum"], rel=tolerance)
    assert output[0, :4].tolist() == pytest.approx(golden["first_row"], rel=tolerance)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_declared_dimension_and_layers_are_those_of_the_network(name):
    entry = find(name)
    network = build(name).eval()
    with torch.no_grad():
        output = network(torch.rand(2, 3, entry.image_size, entry.image_size))
    assert output.shape == (2, network.embedding_dim)
    assert tuple(network.feature_modules()) == entry.layers


def test_narrow_resnet_has_about_a_million_parameters_and_scales_with_its_settings():
    assert 1.1e6 < count(build("resnet-narrow")) < 1.3e6
    assert build("resnet-narrow", width=8).embedding_dim == 64
    fine = build("resnet-narrow", width=8, stem_stride=1)
    with torch.no_grad():
        assert fine.f[:3](torch.rand(1, 3, 32, 32)).shape[-1] == 32


def test_unknown_architecture_is_named_with_the_nearest_one():
    with pytest.raises(ValueError, match=r"'resnet18-cifr'; did you mean 'resnet18-cifar'"):
        build("resnet18-cifr")


def test_unknown_setting_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="has no setting 'widht'; it has: width, stem_stride"):
        build("resnet-narrow", widht=3)


@pytest.mark.parametrize("settings", [{"width": 0}, {"stem_stride": 3}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="width must be at least 1 and stem_stride 1 or 2"):
        build("resnet-narrow", **settings)


@pytest.mark.parametrize("width", [2, 4, 8])
def test_gradients_of_a_thin_shortcut_are_those_of_double_precision(width):
    """oneDNN's kernels for few channels went wrong on some processors."""
    network = build("resnet-narrow", width=width, stem_stride=2)
    images = torch.rand(64, width, 16, 16, generator=torch.Generator().manual_seed(0))
    gradients = []
    for precision in (torch.float64, torch.float32):
        shortcut = copy.deepcopy(network.f[4][0].downsample[0]).to(precision)
        shortcut.to(memory_format=torch.channels_last)
        batch = images.to(precision).contiguous(memory_format=torch.channels_last)
        shortcut(batch).square().sum().backward()
        gradients.append(shortcut.weight.grad.double())
    exact, single = gradients
    assert (single - exact).abs().max() < 1e-5 * exact.abs().max()
