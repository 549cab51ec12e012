from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from bench.encoders.architectures import SimCLR, build, projector
from bench.encoders.checkpoints import CheckpointError, import_checkpoint

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
