from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from bench.encoders.encoder import Encoder
from bench.encoders.weights import CheckpointError


def manual(encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(encoder.mean).view(3, 1, 1)
    std = torch.tensor(encoder.std).view(3, 1, 1)
    return encoder.network((images - mean) / std)


def test_embed_is_the_network_after_normalisation(encoder, images):
    embeddings = encoder.embed(images)
    assert embeddings.shape == (6, encoder.embedding_dim)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, manual(encoder, images).detach())


def test_embed_does_not_depend_on_batching(encoder, monkeypatch):
    images = torch.rand(50, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = encoder.embed(images)
    monkeypatch.setattr("bench.encoders.encoder._PIXELS_PER_BATCH", 7 * 16 * 16)
    torch.testing.assert_close(encoder.embed(images), whole, rtol=1e-4, atol=1e-6)
    assert encoder.embed(images[:0]).shape == (0, encoder.embedding_dim)


def test_embeddings_can_be_trained_on(encoder, images):
    head = torch.nn.Linear(encoder.embedding_dim, 1)
    head(encoder.embed(images)).sum().backward()
    assert head.weight.grad.abs().sum() > 0


def test_embed_stays_float32_under_autocast(encoder, images):
    expected = encoder.embed(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.embed(images), expected)
        assert torch.equal(encoder.forward(images), expected)


def test_forward_gradient_is_that_of_the_network_and_leaves_parameters_alone(encoder, images):
    mine, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    for parameter in encoder.network.parameters():
        parameter.requires_grad_(True)
    encoder.forward(mine).square().sum().backward()
    assert all(parameter.grad is None for parameter in encoder.network.parameters())
    assert all(parameter.requires_grad for parameter in encoder.network.parameters())
    manual(encoder, theirs).square().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    assert mine.grad.abs().sum() > 0


def test_a_network_in_training_is_evaluated_and_left_in_its_modes(encoder, images):
    expected = encoder.embed(images)
    before = encoder.state_hash()
    encoder.network.train()
    encoder.network.f[1].eval()
    torch.testing.assert_close(encoder.embed(images), expected)
    torch.testing.assert_close(encoder.forward(images).detach(), expected)
    assert encoder.state_hash() == before, "batch-norm statistics moved"
    assert encoder.network.training
    assert not encoder.network.f[1].training


def test_features_are_the_named_intermediate_outputs(encoder, images, monkeypatch):
    wanted = encoder.features(images, ["layer1", "layer4"])
    assert {name: tuple(value.shape) for name, value in wanted.items()} == {
        "layer1": (6, 4, 8, 8),
        "layer4": (6, 32, 1, 1),
    }
    torch.testing.assert_close(wanted["layer4"].mean((2, 3)), encoder.embed(images))
    monkeypatch.setattr("bench.encoders.encoder._PIXELS_PER_BATCH", 4 * 16 * 16)
    torch.testing.assert_close(encoder.features(images, ["layer1"])["layer1"], wanted["layer1"])
    assert not wanted["layer1"].requires_grad
    assert not any(module._forward_hooks for module in encoder.network.modules())


def test_features_are_differentiable_when_the_images_ask_for_it(encoder, images):
    images.requires_grad_()
    encoder.features(images, ["stem"])["stem"].sum().backward()
    assert images.grad.abs().sum() > 0


def test_unknown_layer_is_named_with_the_valid_ones(encoder, images):
    with pytest.raises(ValueError, match="no layer 'layer9'; this encoder has: stem, layer1"):
        encoder.features(images, ["layer9"])


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
        torch.zeros(2, 3, 16, 16, dtype=torch.float64),
        torch.zeros(3, 16, 16),
        torch.zeros(2, 1, 16, 16),
        torch.zeros(2, 3, 16, 15),
        torch.zeros(2, 3, 32, 32),
    ],
)
@pytest.mark.parametrize("method", ["embed", "forward", "features"])
def test_images_of_another_type_or_shape_are_refused(encoder, bad, method):
    arguments = (bad, ["stem"]) if method == "features" else (bad,)
    with pytest.raises(ValueError, match=r"float32 \(N, 3, 16, 16\) in \[0, 1\], got \w+ \("):
        getattr(encoder, method)(*arguments)


def test_save_and_load_keep_every_bit(encoder, images, tmp_path):
    encoder.mean, encoder.std = (0.0, 0.25, 1 / 3), (1.0, 0.5, 0.1)
    encoder.save(tmp_path / "a.safetensors")
    loaded = Encoder.load(tmp_path / "a.safetensors")
    assert loaded.state_hash() == encoder.state_hash()
    assert (loaded.architecture, loaded.settings) == (encoder.architecture, encoder.settings)
    assert (loaded.mean, loaded.std, loaded.image_size) == (encoder.mean, encoder.std, 16)
    assert torch.equal(loaded.embed(images), encoder.embed(images))
    loaded.save(tmp_path / "b.safetensors")
    first, second = (tmp_path / f"{name}.safetensors" for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_memory_format_changes_neither_hash_nor_file(encoder, tmp_path):
    before = encoder.state_hash()
    encoder.save(tmp_path / "a.safetensors")
    encoder.network.to(memory_format=torch.channels_last)
    encoder.save(tmp_path / "b.safetensors")
    assert encoder.state_hash() == before
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_clone_is_independent(encoder):
    before = encoder.state_hash()
    copy = encoder.clone()
    assert copy.state_hash() == before
    with torch.no_grad():
        copy.network.f[0].weight.zero_()
    assert encoder.state_hash() == before
    assert copy.state_hash() != before


def test_initialisation_comes_from_the_generator_alone():
    def made(seed: int) -> str:
        generator = torch.Generator().manual_seed(seed)
        settings = {"width": 4}
        return Encoder.initialise("resnet-narrow", settings, generator=generator).state_hash()

    state = torch.get_rng_state()
    first = made(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert made(1) == first
    assert made(2) != first


def test_loading_a_file_without_metadata_says_what_to_use(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors: no encoder metadata .*import_ch"):
        Encoder.load(tmp_path / "x.safetensors")


def test_loading_a_file_of_an_unknown_architecture_names_the_file(encoder, tmp_path):
    metadata = {"architecture": "resnet-narow", "settings": {}, "image_size": 16}
    metadata |= {"mean": encoder.mean, "std": encoder.std}
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"bench": json.dumps(metadata)})
    with pytest.raises(CheckpointError, match=r"x\.safetensors: unknown arch.*'resnet-narrow'"):
        Encoder.load(path)


def test_bad_normalisation_is_refused(encoder):
    with pytest.raises(ValueError, match="3 means and 3 positive deviations"):
        Encoder(encoder.network, "resnet-narrow", {"width": 4}, std=(1, 1, 0))
