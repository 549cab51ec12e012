from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from bench.encoders.architectures import SimCLR, build, projector
from bench.encoders.checkpoints import CheckpointError, import_checkpoint

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "clip.json").read_text())
NARROW = ("resnet-narrow", {"width": 4})


@pytest.fixture
def tensors(encoder) -> dict[str, torch.Tensor]:
    return dict(encoder.network.state_dict())


def prefixed(tensors, prefix):
    return {prefix + name: value for name, value in tensors.items()}


def refused(path, *parts: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(path, *NARROW)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message


def test_published_resnet18_layout_imports(tmp_path):
    model = SimCLR(build("resnet18-cifar"), projector(512))
    content = {"epoch": 1000, "state_dict": model.state_dict(), "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "model_1000.pth")
    imported = import_checkpoint(tmp_path / "model_1000.pth", "resnet18-cifar")
    for name, value in model.f.state_dict().items():
        assert torch.equal(imported.network.state_dict()[name], value)
    assert not imported.network.training


@pytest.mark.parametrize("prefix", ["", "f.", "module.", "module.f."])
@pytest.mark.parametrize("nested", [True, False])
def test_every_known_prefix_imports(encoder, tensors, tmp_path, prefix, nested):
    state = prefixed(tensors, prefix)
    torch.save({"state_dict": state} if nested else state, tmp_path / "x.pth")
    imported = import_checkpoint(tmp_path / "x.pth", *NARROW, image_size=16)
    assert imported.state_hash() == encoder.state_hash()


def test_foreign_safetensors_import_with_their_own_normalisation(encoder, tensors, tmp_path):
    save_file(prefixed(tensors, "f."), tmp_path / "x.safetensors")
    imported = import_checkpoint(
        tmp_path / "x.safetensors", *NARROW, mean=(0, 0, 0), std=(1, 1, 1), image_size=16
    )
    assert imported.state_hash() == encoder.state_hash()
    assert (imported.mean, imported.std) == ((0, 0, 0), (1, 1, 1))


def test_saved_encoder_imports_again_bit_for_bit(encoder, tmp_path):
    path = tmp_path / "x.safetensors"
    encoder.save(path)
    assert import_checkpoint(path, *NARROW, image_size=16).state_hash() == encoder.state_hash()


def constant(shape, value: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor of one number, which takes a file no room."""
    return torch.tensor(value, dtype=dtype).expand(shape)


def ctrl_backbone(prefix: str = "backbone.", first: int = 1) -> dict[str, torch.Tensor]:
    """Written from CTRL's published key list: torchvision's, with ``shortcut`` for downsample.

    Every tensor has a number of its own.
    """
    with torch.device("meta"):
        reference = torchvision.models.resnet18().state_dict()
    tensors = {}
    for number, (name, value) in enumerate(reference.items(), first):
        if not name.startswith("fc."):
            shape = (64, 3, 3, 3) if name == "conv1.weight" else value.shape
            key = prefix + name.replace("downsample", "shortcut")
            tensors[key] = constant(shape, number, value.dtype)
    return tensors


def linear(name: str, inputs: int, outputs: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": constant((outputs, inputs), 0), f"{name}.bias": constant(outputs, 0)}


def test_ctrl_simclr_imports_by_name_without_its_head(tmp_path):
    backbone = ctrl_backbone()
    state = {**backbone, **linear("proj_head.0", 512, 512), **linear("proj_head.2", 512, 128)}
    golden = GOLDEN["ctrl_simclr"]
    assert len(state) == golden["tensors"]
    trained = {name: value for name, value in state.items() if "running" not in name}
    parameters = sum(value.numel() for name, value in trained.items() if "num_b" not in name)
    assert parameters == golden["parameters"]
    # Back to front: positions must not matter.
    torch.save(
        {"epoch": 1, "state_dict": dict(reversed(state.items())), "optimizer": {}},
        tmp_path / "last.pth.tar",
    )
    imported = import_checkpoint(
        tmp_path / "last.pth.tar", "resnet18-cifar", mean=(0, 0, 0), std=(1, 1, 1)
    )
    ours = imported.network.state_dict()
    assert (imported.mean, imported.std) == ((0, 0, 0), (1, 1, 1))
    for theirs, name in (
        ("conv1.weight", "f.0.weight"),
        ("bn1.running_var", "f.1.running_var"),
        ("layer1.0.conv1.weight", "f.3.0.conv1.weight"),
        ("layer3.0.shortcut.0.weight", "f.5.0.downsample.0.weight"),
        ("layer4.0.shortcut.1.bias", "f.6.0.downsample.1.bias"),
        ("layer4.1.bn2.running_mean", "f.6.1.bn2.running_mean"),
    ):
        assert torch.equal(ours[name], backbone[f"backbone.{theirs}"]), theirs


def test_ctrl_imports_compute_what_the_published_network_computes(tmp_path):
    reference = torchvision.models.resnet18()
    reference.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    reference.maxpool, reference.fc = torch.nn.Identity(), torch.nn.Identity()
    state = {
        f"backbone.{name.replace('downsample', 'shortcut')}": value
        for name, value in reference.eval().state_dict().items()
    }
    torch.save(state, tmp_path / "x.pth")
    imported = import_checkpoint(
        tmp_path / "x.pth", "resnet18-cifar", mean=(0, 0, 0), std=(1, 1, 1)
    )
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(imported.embed(images), reference(images))


def mlp(name: str, inputs: int) -> dict[str, torch.Tensor]:
    """A BYOL head: linear, batch norm, ReLU, linear."""
    norm = dict(torch.nn.BatchNorm1d(2048).state_dict())
    return {
        **linear(f"{name}.0", inputs, 2048),
        **prefixed(norm, f"{name}.1."),
        **linear(f"{name}.3", 2048, 256),
    }


def test_ctrl_byol_imports_its_online_backbone_alone(tmp_path):
    online, target = ctrl_backbone(), ctrl_backbone("backbone_k.", first=500)
    state = {
        **target,
        **online,
        **mlp("projector_q", 512),
        **mlp("projector_k", 512),
        **mlp("predictor", 256),
        **prefixed(ctrl_backbone(""), "encoder_q.0."),
        **mlp("encoder_q.1", 512),
        **prefixed(ctrl_backbone(""), "encoder_k.0."),
        **mlp("encoder_k.1", 512),
    }
    assert len(state) == GOLDEN["ctrl_simclr"]["byol_tensors"]
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    torch.save({"state_dict": online}, tmp_path / "y.pth")
    imported, alone = (
        import_checkpoint(tmp_path / name, "resnet18-cifar") for name in ("x.pth", "y.pth")
    )
    assert imported.state_hash() == alone.state_hash()


def test_an_unknown_part_of_a_ctrl_backbone_is_refused(tmp_path):
    torch.save({**ctrl_backbone(), "backbone.layer5.weight": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"backbone\.layer5\.weight unexpected"):
        import_checkpoint(tmp_path / "x.pth", "resnet18-cifar")


def test_the_drupe_key_list_has_the_published_length():
    model = SimCLR(build("resnet18-cifar"), projector(512))
    assert len(model.state_dict()) == GOLDEN["drupe_simclr"]["tensors"]


@pytest.fixture(scope="module")
def clip() -> dict[str, torch.Tensor]:
    """A state of our CLIP RN50; every tensor has a number of its own that half precision holds."""
    with torch.device("meta"):
        state = build("clip-rn50").state_dict()
    return {
        name: constant(value.shape, number, value.dtype)
        for number, (name, value) in enumerate(state.items(), 1)
    }


@pytest.fixture
def visual(clip) -> dict[str, torch.Tensor]:
    return {name: value for name, value in clip.items() if name.startswith("visual.")}


def openai_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published names: those of the text tower stand without a prefix."""
    return {
        name.removeprefix("text."): value.half() if value.is_floating_point() else value
        for name, value in state.items()
    }


def has_state(network: torch.nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    state = network.state_dict()
    return state.keys() == expected.keys() and all(
        state[name].dtype == value.dtype and torch.equal(state[name], value)
        for name, value in expected.items()
    )


@pytest.mark.parametrize("prefix", ["", "module."])
def test_openai_and_badclip_files_import_with_both_towers(clip, tmp_path, prefix):
    state = openai_keys(clip)
    assert "token_embedding.weight" in state
    assert "transformer.resblocks.11.ln_2.bias" in state
    sizes = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    state |= {name: torch.tensor(value) for name, value in sizes.items()}
    torch.save({"epoch": 10, "state_dict": prefixed(state, prefix)}, tmp_path / "epoch_10.pt")
    imported = import_checkpoint(tmp_path / "epoch_10.pt", "clip-rn50")
    assert has_state(imported.network, clip)
    assert imported.text is not None


def test_the_image_tower_is_cut_out_of_a_whole_clip(clip, visual, tmp_path):
    torch.save(openai_keys(clip), tmp_path / "openai.pt")
    torch.save(clip, tmp_path / "ours.pt")
    for name in ("openai.pt", "ours.pt"):
        imported = import_checkpoint(tmp_path / name, "clip-rn50-visual")
        assert has_state(imported.network, visual)
        assert imported.text is None


@pytest.mark.parametrize("prefix", ["", "visual.", "module.visual."])
def test_decree_files_import_as_image_towers(visual, tmp_path, prefix):
    bare = {name.removeprefix("visual."): value for name, value in visual.items()}
    assert "attnpool.positional_embedding" in bare
    torch.save({"state_dict": prefixed(bare, prefix)}, tmp_path / "x.pth")
    imported = import_checkpoint(tmp_path / "x.pth", "clip-rn50-visual")
    assert has_state(imported.network, visual)


def test_an_image_tower_is_no_whole_clip(visual, tmp_path):
    torch.save(visual, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"logit_scale, text\.positional_embedding"):
        import_checkpoint(tmp_path / "x.pth", "clip-rn50")


def test_a_stranger_among_clip_keys_is_refused(clip, tmp_path):
    torch.save({**openai_keys(clip), "visual.head.weight": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"visual\.head\.weight unexpected"):
        import_checkpoint(tmp_path / "x.pt", "clip-rn50-visual")


def test_key_errors_list_missing_unexpected_and_misshapen(tensors, tmp_path):
    del tensors["f.0.weight"]
    tensors["f.99.weight"] = torch.zeros(1)
    tensors["f.1.bias"] = torch.zeros(9)
    torch.save(tensors, tmp_path / "x.pth")
    refused(
        tmp_path / "x.pth",
        "f.0.weight missing",
        "f.99.weight unexpected",
        "f.1.bias (9,) instead of (4,) misshapen",
    )


def test_key_errors_show_at_most_five_of_a_kind(tensors, tmp_path):
    torch.save({"f.0.weight": tensors["f.0.weight"]}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", f"and {len(tensors) - 6} more missing")


class Stranger:
    """Stands for code that unpickling would run."""


@pytest.mark.parametrize("content", [Stranger(), {"state_dict": {"f.0.weight": Stranger()}}])
def test_a_pickle_of_more_than_tensors_is_never_loaded(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "never loaded")
    (tmp_path / "y.pth").write_bytes(pickle.dumps(content, protocol=2))
    refused(tmp_path / "y.pth", "never loaded")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_refused(tmp_path, content, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    refused(path)


def test_a_state_dict_with_other_things_in_it_is_refused(tensors, tmp_path):
    torch.save({**tensors, "epoch": 3}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "'epoch' is not a tensor")


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": []}, torch.zeros(3)])
def test_a_file_without_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "holds no state dict")


def test_missing_and_misnamed_files_are_refused(tmp_path):
    refused(tmp_path / "none.pth", "no such file")
    (tmp_path / "x.onnx").write_bytes(b"x")
    refused(tmp_path / "x.onnx", "not a .safetensors or .pth file")
