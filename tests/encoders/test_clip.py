"""Towers of CLIP encoders, and the way from captions to embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch

from bench.encoders.architectures import ARCHITECTURES, build, find
from bench.encoders.clip import trimmed
from bench.encoders.defender import DefenderEncoder
from bench.encoders.encoder import Encoder
from bench.encoders.weights import CheckpointError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "clip.json").read_text())
SMALL = {"width": 4, "embedding_dim": 12, "text_width": 16, "text_layers": 2, "text_heads": 2}
CAPTIONS = ["a photo of a cat.", "a dog", "a photo of a cat.", "art of the frog."]


@pytest.fixture
def small() -> Encoder:
    generator = torch.Generator().manual_seed(5)
    made = Encoder.initialise("template-clip", SMALL, generator=generator, image_size=16)
    made.network.eval()
    return made


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(6))


@pytest.fixture
def encoded_batches(small, monkeypatch) -> list[int]:
    """How many captions each pass through the text tower held."""
    sizes: list[int] = []
    whole = type(small.network).encode_text

    def counting(network, tokens):
        sizes.append(len(tokens))
        return whole(network, tokens)

    monkeypatch.setattr(type(small.network), "encode_text", counting)
    return sizes


@pytest.mark.parametrize(
    ("name", "probe"),
    [("clip-rn50-visual", "clip_rn50_visual"), ("resnet18-cifar", "simclr_resnet18")],
)
def test_published_towers_have_the_golden_tensors_and_parameters(name, probe):
    network = build(name)
    assert len(network.state_dict()) == GOLDEN["architectures"][probe]["tensors"]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert parameters == GOLDEN["architectures"][probe]["parameters"]


def test_tokens_are_those_of_the_published_tokenizer(small):
    golden = GOLDEN["tokenizer"]
    tokens = small.text.tokenize([golden["caption"]])
    wanted = [golden["start"], *golden["tokens"], golden["end"]]
    assert tokens.shape == (1, 32)
    assert tokens[0].tolist() == wanted + [0] * (32 - len(wanted))


def test_rn50_is_open_clips_model_tower_by_tower():
    torch.manual_seed(0)
    theirs = open_clip.create_model("RN50-quickgelu", pretrained=None, force_custom_text=True)
    ours = build("clip-rn50").eval()
    ours.load_state_dict(theirs.eval().state_dict())
    tokens = ours.tokenize(CAPTIONS)
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs.encode_image(images))
        torch.testing.assert_close(ours.encode_text(trimmed(tokens)), theirs.encode_text(tokens))
    assert tokens.shape == (4, 77)


def test_text_of_the_small_tower_is_open_clips_with_and_without_padding(small):
    tokens = small.network.tokenize(CAPTIONS)
    assert trimmed(tokens).shape[1] == 8
    with torch.no_grad():
        whole = small.network.text(tokens)
        torch.testing.assert_close(small.network.encode_text(tokens), whole)
        torch.testing.assert_close(small.network.encode_text(trimmed(tokens)), whole)


@pytest.mark.parametrize("name", ["template-clip", "clip-rn50", "clip-rn50-visual"])
def test_settings_are_checked_without_memory_and_text_is_declared(name):
    entry = ARCHITECTURES[name]
    entry.check({})
    with torch.device("meta"):
        network = entry.make(**entry.settings)
    assert entry.text == hasattr(network, "encode_text") == (name != "clip-rn50-visual")
    assert entry.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert entry.std == pytest.approx((0.26862954, 0.26130258, 0.27577711))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_heads": 3}, "text_width 128 is no multiple of text_heads 3"),
        ({"embedding_dim": 0}, "must be at least 1"),
        ({"context_length": 2}, r"context_length must be in \[3, 77\], got 2"),
        ({"context_length": 78}, r"context_length must be in \[3, 77\], got 78"),
        ({"width": 0}, "width must be at least 1"),
        ({"text_width": "x"}, "text_width should be like 128, got 'x'"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        find("template-clip").check(settings)


def test_rn50_refuses_other_sizes_than_its_own():
    with pytest.raises(ValueError, match="clip-rn50-visual takes images of 224 pixels only, got"):
        Encoder(build("clip-rn50-visual"), "clip-rn50-visual", image_size=32)


def test_image_embeddings_have_a_length_and_features_have_names(small, pixels):
    embeddings = small.embed(pixels)
    assert embeddings.shape == (4, 12)
    assert not torch.allclose(embeddings.norm(dim=1), torch.ones(4), atol=1e-2)
    features = small.features(pixels, small.layers)
    assert [tuple(value.shape[1:]) for value in features.values()] == [
        (4, 8, 8),
        (4, 8, 8),
        (8, 4, 4),
        (16, 2, 2),
        (32, 1, 1),
    ]
    images = pixels.clone().requires_grad_()
    small.forward(images).sum().backward()
    assert float(images.grad.abs().sum()) > 0


def test_a_saved_encoder_has_the_same_two_towers(small, pixels, tmp_path):
    with torch.no_grad():
        small.network.logit_scale.fill_(1.5)
    small.save(tmp_path / "x.safetensors")
    loaded = Encoder.load(tmp_path / "x.safetensors")
    assert loaded.state_hash() == small.state_hash()
    assert torch.equal(loaded.embed(pixels), small.embed(pixels))
    assert torch.equal(loaded.text.encode_text(CAPTIONS), small.text.encode_text(CAPTIONS))
    assert loaded.text.logit_scale == small.text.logit_scale == pytest.approx(4.4816890)


def test_hash_and_copy_cover_the_text_tower(small):
    copy = small.clone()
    before = small.text.encode_text(CAPTIONS)
    with torch.no_grad():
        copy.network.text.text_projection.add_(0.1)
    assert copy.state_hash() != small.state_hash()
    assert torch.equal(small.text.encode_text(CAPTIONS), before)
    assert not torch.equal(copy.text.encode_text(CAPTIONS), before)


def test_a_file_of_other_towers_is_refused(small, tmp_path):
    small.save(tmp_path / "x.safetensors")
    tensors = dict(small.network.state_dict())
    del tensors["text.text_projection"]
    from safetensors.torch import save_file

    metadata = open_metadata(tmp_path / "x.safetensors")
    save_file(tensors, tmp_path / "y.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=r"text\.text_projection missing"):
        Encoder.load(tmp_path / "y.safetensors")


def open_metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_encoders_without_a_text_tower_have_no_text(encoder):
    assert encoder.text is None
    with torch.device("meta"):
        visual = build("clip-rn50-visual")
    assert Encoder(visual, "clip-rn50-visual").text is None


def test_text_embeddings_are_float32_rows_in_caption_order(small):
    embeddings = small.text.encode_text(CAPTIONS)
    assert (embeddings.shape, embeddings.dtype) == ((4, 12), torch.float32)
    assert torch.equal(embeddings[0], embeddings[2])
    alone = torch.cat([small.clone().text.encode_text([caption]) for caption in CAPTIONS])
    torch.testing.assert_close(embeddings, alone, rtol=1e-4, atol=1e-6)
    assert small.text.encode_text([]).shape == (0, 12)
    embeddings.requires_grad_().sum().backward()


def test_each_distinct_caption_is_encoded_once(small, encoded_batches):
    first = small.text.encode_text(CAPTIONS)
    assert encoded_batches == [3]
    again = small.text.encode_text([*CAPTIONS[::-1], "a new one"])
    assert encoded_batches == [3, 1]
    assert torch.equal(again[:4], first.flip(0))


def test_many_captions_are_encoded_in_batches(small, encoded_batches):
    embeddings = small.text.encode_text([f"photo {number}" for number in range(300)])
    assert encoded_batches == [256, 44]
    assert embeddings.shape == (300, 12)


def test_no_change_of_the_weights_is_missed(small):
    captions = CAPTIONS[:2]
    seen = [small.text.encode_text(captions)]
    optimizer = torch.optim.AdamW(small.network.parameters(), lr=0.1, fused=True)
    small.network.encode_text(small.network.tokenize(captions)).square().sum().backward()
    optimizer.step()
    seen.append(small.text.encode_text(captions))
    small.network.text.ln_final.bias.data.add_(1)
    seen.append(small.text.encode_text(captions))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    expected = small.network.encode_text(small.network.tokenize(captions))
    torch.testing.assert_close(seen[2], expected.detach(), rtol=1e-4, atol=1e-6)


def test_text_is_encoded_in_full_precision_whatever_surrounds_it(small):
    plain = small.clone().text.encode_text(CAPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(small.text.encode_text(CAPTIONS), plain)


def test_one_string_is_no_sequence_of_captions(small):
    with pytest.raises(TypeError, match="got the string 'a cat'"):
        small.text.encode_text("a cat")


def test_long_captions_are_cut_and_keep_their_end(small):
    tokens = small.text.tokenize(["cat " * 50])
    assert tokens[0, -1] == GOLDEN["tokenizer"]["end"]


def test_a_defense_needs_to_require_text(small):
    with pytest.raises(PermissionError, match=r"encoder\.text needs 'text'"):
        DefenderEncoder(small, frozenset({"gradients", "features"})).text  # noqa: B018
    tower = DefenderEncoder(small, frozenset({"text"})).text
    assert torch.equal(tower.encode_text(CAPTIONS), small.text.encode_text(CAPTIONS))
    shown = {name for name in dir(tower) if not name.startswith("_")}
    assert shown == {"encode_text", "logit_scale", "tokenize"}


def test_a_defense_learns_that_an_encoder_has_no_text(encoder):
    assert DefenderEncoder(encoder, frozenset({"text"})).text is None
