from __future__ import annotations

import pytest
import torch
from scanned_files import ctrl_keys

from bench.encoders.architectures import SimCLR, build, projector
from bench.encoders.recognition import recognise


def state_of(architecture: str, **settings: int) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return build(architecture, **settings).state_dict()


def prefixed(tensors, prefix):
    return {prefix + name: value for name, value in tensors.items()}


@pytest.mark.parametrize("prefix", ["", "f.", "module.", "module.f."])
def test_simclr_encoders_and_whole_models_are_told_apart_by_blocks(prefix):
    narrow = recognise(prefixed(state_of("resnet-narrow", width=8), prefix))
    assert (narrow.architecture, narrow.settings) == ("resnet-narrow", {"width": 8})
    assert recognise(prefixed(state_of("resnet18-cifar"), prefix)).architecture == "resnet18-cifar"


def test_a_published_model_with_its_projector_is_recognised():
    with torch.device("meta"):
        model = SimCLR(build("resnet18-cifar"), projector(512))
    seen = recognise(model.state_dict())
    assert (seen.architecture, seen.untold) == ("resnet18-cifar", ())


def test_the_stem_stride_cannot_be_told():
    states = [state_of("resnet-narrow", width=8, stem_stride=stride) for stride in (1, 2)]
    first, second = (recognise(state) for state in states)
    assert first == second
    assert first.untold == ("stem_stride",)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_ctrl_files_are_recognised_and_say_that_nothing_is_normalised(prefix):
    state = ctrl_keys(state_of("resnet18-cifar"))
    state["proj_head.0.weight"] = torch.empty(128, 512)
    seen = recognise(prefixed(state, prefix))
    assert seen.architecture == "resnet18-cifar"
    assert (seen.mean, seen.std) == ((0, 0, 0), (1, 1, 1))


def test_all_settings_of_a_small_clip_but_stride_and_heads_are_told():
    settings = {
        "width": 8,
        "embedding_dim": 24,
        "text_width": 16,
        "text_layers": 3,
        "context_length": 20,
    }
    seen = recognise(state_of("template-clip", **settings, stem_stride=1, text_heads=2))
    assert seen.architecture == "template-clip"
    assert seen.settings == settings
    assert seen.untold == ("stem_stride", "text_heads")


def test_clip_rn50_and_its_tower_are_told_apart_under_every_prefix():
    whole = state_of("clip-rn50")
    openai = {name.removeprefix("text."): value for name, value in whole.items()}
    visual = {name: value for name, value in whole.items() if name.startswith("visual.")}
    bare = {name.removeprefix("visual."): value for name, value in visual.items()}
    for state, expected in (
        (whole, "clip-rn50"),
        (openai, "clip-rn50"),
        (visual, "clip-rn50-visual"),
        (bare, "clip-rn50-visual"),
        (prefixed(bare, "module."), "clip-rn50-visual"),
    ):
        assert recognise(state).architecture == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer3.9.conv1.weight": (1,)}, r"blocks \(3, 4, 7, 3\)"),
        ({"attnpool.c_proj.weight": (512, 2048)}, "512 dimensions"),
    ],
)
def test_other_clip_resnets_are_named_and_refused(change, message):
    state = {
        name.removeprefix("visual."): value for name, value in state_of("clip-rn50-visual").items()
    }
    state |= {name: torch.empty(shape) for name, shape in change.items()}
    with pytest.raises(ValueError, match=message):
        recognise(state)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"visual.class_embedding": (768,)}, "vision transformer"),
        ({"conv1.weight": (64, 3, 7, 7), "layer1.0.conv1.weight": (64, 64, 3, 3)}, "torchvision"),
        ({"a": (1,), "b": (1,), "c": (1,), "d": (1,)}, r"a, b, c and 1 more"),
        ({"f.0.weight": (64, 3, 7, 7)}, "7x7 stem"),
        ({"f.0.weight": (64,)}, "width 0"),
        ({}, "no known architecture"),
    ],
)
def test_what_is_no_known_network_is_said_to_look_like_something(shapes, message):
    with pytest.raises(ValueError, match=message):
        recognise({name: torch.empty(shape) for name, shape in shapes.items()})


def test_bottleneck_blocks_are_refused_by_name():
    state = {"f.0.weight": torch.empty(64, 3, 3, 3)}
    for stage, count in zip((3, 4, 5, 6), (3, 4, 6, 3), strict=True):
        for block in range(count):
            for conv in (1, 2, 3):
                state[f"f.{stage}.{block}.conv{conv}.weight"] = torch.empty(1)
    with pytest.raises(ValueError, match=r"bottleneck blocks \(3, 4, 6, 3\)"):
        recognise(state)
