from __future__ import annotations

import gc

import pytest
import torch

from bench.encoders.defender import DefenderEncoder


def test_a_defense_sees_images_in_embeddings_out_and_nothing_else(encoder):
    view = DefenderEncoder(encoder)
    assert {name for name in dir(view) if not name.startswith("_")} == {
        "device",
        "embed",
        "embedding_dim",
        "features",
        "forward",
        "hits",
        "network",
        "normalise",
        "forward_normalised",
        "image_size",
        "layers",
        "remember",
        "shown",
        "text",
    }
    assert "narrow" not in repr(view)
    assert (view.image_size, view.embedding_dim) == (encoder.image_size, encoder.embedding_dim)
    assert (view.device, view.layers) == (encoder.device, encoder.layers)


def test_embed_is_that_of_the_encoder(encoder, images):
    assert torch.equal(DefenderEncoder(encoder).embed(images), encoder.embed(images))


def test_embeddings_can_be_shown_at_one_length(encoder, images):
    view = DefenderEncoder(encoder, frozenset({"gradients"}), equal_length=True)
    plain = encoder.embed(images)
    expected = plain / plain.norm(dim=1, keepdim=True) * encoder.embedding_dim**0.5
    for seen in (
        view.embed(images),
        view.forward(images),
        view.forward_normalised(view.normalise(images)),
        view.shown(plain),
    ):
        torch.testing.assert_close(seen, expected)
    view.remember(images, 3 * plain)
    torch.testing.assert_close(view.embed(images), expected)
    assert view.hits == len(images)


def test_undeclared_gradients_are_refused_in_a_sentence(encoder, images):
    with pytest.raises(PermissionError, match=r"encoder\.forward needs 'gradients'"):
        DefenderEncoder(encoder, frozenset({"features"})).forward(images)
    declared = DefenderEncoder(encoder, frozenset({"gradients"}))
    assert torch.equal(declared.forward(images), encoder.forward(images))


def test_undeclared_features_are_refused_in_a_sentence(encoder, images):
    with pytest.raises(PermissionError, match=r"encoder\.features needs 'features'"):
        DefenderEncoder(encoder, frozenset({"gradients"})).features(images, ["stem"])
    declared = DefenderEncoder(encoder, frozenset({"features"}))
    assert declared.features(images, ["stem"])["stem"].shape == (6, 4, 8, 8)


@pytest.fixture
def remembering(encoder, images) -> tuple[DefenderEncoder, torch.Tensor]:
    view = DefenderEncoder(encoder)
    # Recognisably not what the encoder would compute.
    view.remember(images, torch.full((6, encoder.embedding_dim), 7.0))
    return view, images


def test_the_very_same_tensor_is_answered_from_memory(remembering):
    view, images = remembering
    assert torch.all(view.embed(images) == 7)
    assert view.hits == 6
    view.embed(images)
    assert view.hits == 12


def test_what_a_defense_does_to_a_remembered_answer_stays_with_it(remembering):
    view, images = remembering
    view.embed(images).zero_()
    assert torch.all(view.embed(images) == 7)


def test_an_equal_tensor_is_computed(remembering, encoder):
    view, images = remembering
    assert torch.equal(view.embed(images.clone()), encoder.embed(images))
    assert torch.equal(view.embed(images[:]), encoder.embed(images))
    assert view.hits == 0


def test_a_tensor_changed_in_place_is_computed(remembering, encoder):
    view, images = remembering
    images.mul_(0.5)
    assert torch.equal(view.embed(images), encoder.embed(images))
    assert view.hits == 0


def test_a_wrong_image_is_refused_although_memory_is_full(remembering):
    view, _ = remembering
    with pytest.raises(ValueError, match="images must be float32"):
        view.embed(torch.zeros(1, 3, 8, 8))


def test_the_entry_goes_with_its_images(encoder):
    view = DefenderEncoder(encoder)
    for value in range(5):
        images = torch.rand(2, 3, 16, 16)
        view.remember(images, torch.full((2, encoder.embedding_dim), float(value)))
        assert torch.all(view.embed(images) == value)
        del images
    gc.collect()
    (memory,) = [held for held in vars(view).values() if isinstance(held, dict)]
    assert memory == {}


def test_embeddings_of_another_shape_cannot_be_remembered(encoder, images):
    with pytest.raises(ValueError, match=r"embeddings must be float32 \(6, 32\), got"):
        DefenderEncoder(encoder).remember(images, torch.zeros(5, 32))


def test_inference_tensors_cannot_be_remembered_but_are_embedded(encoder, images):
    view = DefenderEncoder(encoder)
    with torch.inference_mode():
        untracked = images.clone()
    with pytest.raises(ValueError, match="inference mode cannot be remembered"):
        view.remember(untracked, torch.zeros(6, 32))
    assert torch.equal(view.embed(untracked), encoder.embed(images))


@pytest.mark.parametrize("door", ["normalise", "forward_normalised"])
def test_normalisation_is_for_who_requires_gradients(encoder, images, door):
    with pytest.raises(PermissionError, match=rf"encoder\.{door} needs 'gradients'"):
        getattr(DefenderEncoder(encoder), door)(images)
    declared = DefenderEncoder(encoder, frozenset({"gradients"}))
    assert torch.equal(getattr(declared, door)(images), getattr(encoder, door)(images))
    through = declared.forward_normalised(declared.normalise(images))
    assert torch.equal(through, encoder.forward(images))


def test_the_network_is_a_copy_for_who_requires_it(encoder, images):
    with pytest.raises(PermissionError, match=r"encoder\.network needs 'network'"):
        DefenderEncoder(encoder, frozenset({"gradients"})).network()
    before = encoder.embed(images)
    network, architecture, settings = DefenderEncoder(encoder, frozenset({"network"})).network()
    assert (architecture, settings) == (encoder.architecture, encoder.settings)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(encoder.embed(images), before)
