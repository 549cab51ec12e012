"""DeDe's decoder against values computed by the authors' code, and its own invariants."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from defenses._dede_model import (
    DecoderModel,
    keep_count,
    load_published,
    model_from_state,
    patch_mask,
    patchify,
    random_order,
    reconstruction_loss,
    unpatchify,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/dede.json").read_text())
GOLDEN_RATIO = (5**0.5 - 1) / 2
PLASTIC = 0.7548776662466927, 0.5698402909980532
"""1/p and 1/p**2 of the plastic number p: the formula data want these in full precision."""


def sequence(count, ratio, start=0.0):
    position = ratio * np.arange(count, dtype=np.float64) + start
    return torch.from_numpy(position - np.floor(position))


@pytest.fixture(scope="module")
def formula_model():
    """Weights of the probes: parameter ``i`` of ``named_parameters`` is, at flat index ``j``,
    ``.08 * (frac(golden * j + .1 * i) - .5)``; weights of every norm are 1, their biases follow
    the formula. The fraction is taken in float64 with the golden ratio in full precision."""
    model = DecoderModel().eval()
    with torch.no_grad():
        for i, (name, parameter) in enumerate(model.named_parameters()):
            values = 0.08 * (sequence(parameter.numel(), GOLDEN_RATIO, 0.1 * i) - 0.5)
            parameter.copy_(values.reshape(parameter.shape))
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1)
    return model


@pytest.fixture(scope="module")
def formula_batch():
    images = (sequence(4 * 3 * 32 * 32, PLASTIC[0]) * 4 - 2).float().reshape(4, 3, 32, 32)
    return patchify(images, 4), sequence(4 * 512, PLASTIC[1]).float().reshape(4, 512)


def published_shapes(tokens=64, patch=4, width=192, dim=512, encoder_depth=12, decoder_depth=4):
    """Keys and shapes of a published checkpoint, written out from its description."""

    def blocks(part, depth):
        return {
            f"{part}.transformer.{i}.{key}": shape
            for i in range(depth)
            for key, shape in block.items()
        }

    block = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    }
    return {
        "encoder.cls_token": (1, 1, width),
        "encoder.pos_embedding": (tokens, 1, width),
        "encoder.patchify.weight": (width, 3, patch, patch),
        "encoder.patchify.bias": (width,),
        **{
            f"encoder.transformer.{i}.{k}": s
            for i in range(encoder_depth)
            for k, s in block.items()
        },
        "encoder.layer_norm.weight": (width,),
        "encoder.layer_norm.bias": (width,),
        "decoder.mask_token": (1, 1, width),
        "decoder.pos_embedding": (tokens + 1, 1, width),
        **{
            f"decoder.transformer.{i}.{k}": s
            for i in range(decoder_depth)
            for k, s in block.items()
        },
        "decoder.head.weight": (3 * patch**2, width),
        "decoder.head.bias": (3 * patch**2,),
        "mlp.0.weight": (width, dim),
    }


def published_state(**sizes):
    return {key: torch.randn(shape) * 0.02 for key, shape in published_shapes(**sizes).items()}


SMALL = {"tokens": 16, "patch": 2, "width": 128, "dim": 24, "encoder_depth": 3, "decoder_depth": 2}


def test_with_nothing_visible_the_output_is_the_authors(formula_model, formula_batch):
    patches, embeddings = formula_batch
    order = random_order(4, 64, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        predicted = formula_model(patches, embeddings, order, keep_count(64, 0.99))
    image, golden = unpatchify(predicted, 4), GOLDEN["nothing_visible"]
    assert image.mean().item() == pytest.approx(golden["mean"], rel=1e-3)
    assert image.std().item() == pytest.approx(golden["std"], rel=1e-3)
    assert image.flatten()[:3].tolist() == pytest.approx(golden["first_pixels"], rel=1e-3)
    scores = (predicted - patches).square().sum(dim=(1, 2))
    assert scores.tolist() == pytest.approx(golden["scores"], rel=1e-5)


@pytest.mark.parametrize("golden", GOLDEN["fixed_permutation"], ids=lambda g: str(g["mask_ratio"]))
def test_with_a_fixed_permutation_loss_mask_and_errors_are_the_authors(
    formula_model, formula_batch, golden
):
    patches, embeddings = formula_batch
    order = ((37 * torch.arange(64) + 11) % 64).expand(4, -1)
    kept = keep_count(64, golden["mask_ratio"])
    with torch.inference_mode():
        predicted = formula_model(patches, embeddings, order, kept)
    mask = patch_mask(order, kept)
    assert mask.mean().item() == golden["mask_mean"]
    pixels = unpatchify(mask[:, :, None].expand(-1, -1, 48), 4).to(torch.uint8).contiguous()
    digest = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
    assert digest.startswith(golden["mask_sha256"])
    loss = reconstruction_loss(predicted, patches, mask, golden["mask_ratio"])
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-5)
    scores = ((predicted - patches).square().sum(dim=2) * mask).sum(dim=1)
    assert scores.tolist() == pytest.approx(golden["scores"], rel=1e-5)


def test_patches_are_row_major_and_channel_first():
    image = unpatchify(torch.arange(48).reshape(1, 4, 12), 2)
    assert image.shape == (1, 3, 4, 4)
    assert image[0, 0].tolist() == GOLDEN["channel_0_of_patch_layout"]


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
def test_patchify_and_unpatchify_are_inverse(patch_size):
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(unpatchify(patchify(images, patch_size), patch_size), images)


@pytest.mark.parametrize(("tokens", "ratio", "kept"), GOLDEN["keep_count"])
def test_keep_count_truncates_as_published(tokens, ratio, kept):
    assert keep_count(tokens, ratio) == kept


def test_default_model_has_the_published_tensors():
    model = DecoderModel()
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert shapes == published_shapes()
    assert len(shapes) == GOLDEN["tensors"]
    assert sum(p.numel() for p in model.parameters()) == GOLDEN["parameters"]


def test_normalisation_epsilons_are_the_published_ones():
    model = DecoderModel(encoder_depth=1, decoder_depth=1)
    block = model.decoder.transformer[0]
    assert (block.norm1.eps, block.norm2.eps, model.encoder.layer_norm.eps) == (1e-6, 1e-6, 1e-5)


def test_skipping_the_encoder_changes_nothing_when_nothing_is_visible():
    torch.manual_seed(0)
    model = DecoderModel(8, 2, 6, 16, 2, 2, 2).eval()
    patches, embeddings = torch.randn(3, 16, 12), torch.randn(3, 6)
    order = random_order(3, 16, torch.Generator().manual_seed(1))
    slots = model.encoder(patches[:, :0], order[:, :0]).clone()
    slots[:, 0] = model.mlp(embeddings)
    full = model.decoder(slots[:, 0], slots[:, 1:], order[:, :0])
    torch.testing.assert_close(model(patches, embeddings, order, 0), full, rtol=0, atol=0)


def test_hidden_patches_are_never_looked_at():
    torch.manual_seed(0)
    model = DecoderModel(8, 2, 6, 16, 2, 2, 2).eval()
    patches, embeddings = torch.randn(3, 16, 12), torch.randn(3, 6)
    order = random_order(3, 16, torch.Generator().manual_seed(1))
    hidden = patch_mask(order, 5)[:, :, None] > 0
    other = torch.where(hidden, torch.randn_like(patches), patches)
    before, after = (model(p, embeddings, order, 5) for p in (patches, other))
    assert torch.equal(before, after)
    shown = torch.where(hidden, patches, torch.randn_like(patches))
    assert not torch.allclose(before, model(shown, embeddings, order, 5))


def test_order_of_the_visible_patches_does_not_matter():
    torch.manual_seed(0)
    model = DecoderModel(8, 2, 6, 16, 2, 2, 2).eval()
    patches, embeddings = torch.randn(2, 16, 12), torch.randn(2, 6)
    order = random_order(2, 16, torch.Generator().manual_seed(1))
    swapped = torch.cat([order[:, :5].flip(1), order[:, 5:].flip(1)], dim=1)
    torch.testing.assert_close(
        model(patches, embeddings, order, 5), model(patches, embeddings, swapped, 5)
    )


def test_every_patch_is_kept_equally_often_and_exactly_k_are_kept():
    draws, tokens, kept = 20_000, 64, 6
    order = random_order(draws, tokens, torch.Generator().manual_seed(3))
    assert torch.equal(order.sort(dim=1).values, torch.arange(tokens).expand(draws, -1))
    mask = patch_mask(order, kept)
    assert torch.equal(mask.sum(dim=1), torch.full((draws,), float(tokens - kept)))
    times_kept = (1 - mask).sum(dim=0)
    share = kept / tokens
    deviation = (draws * share * (1 - share)) ** 0.5
    assert (times_kept - draws * share).abs().max() < 5 * deviation


def test_masks_follow_their_generator_and_no_other():
    first, again, other = (
        random_order(8, 64, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_loss_is_the_published_formula():
    rng = np.random.default_rng(0)
    predicted, target = rng.normal(size=(2, 3, 8, 8)), rng.normal(size=(2, 3, 8, 8))
    order = random_order(2, 16, torch.Generator().manual_seed(2))
    kept, ratio, total = keep_count(16, 0.75), 0.75, 0.0
    for n in range(2):
        visible = set(order[n, :kept].tolist())
        for channel in range(3):
            for row in range(8):
                for column in range(8):
                    if (row // 2) * 4 + column // 2 not in visible:
                        at = n, channel, row, column
                        total += (predicted[at] - target[at]) ** 2
    naive = total / predicted.size / ratio
    loss = reconstruction_loss(
        patchify(torch.from_numpy(predicted), 2),
        patchify(torch.from_numpy(target), 2),
        patch_mask(order, kept),
        ratio,
    )
    assert loss.item() == pytest.approx(naive, rel=1e-5)


def test_materialised_attention_gives_the_same_gradients():
    torch.manual_seed(0)
    model = DecoderModel(8, 2, 6, 16, 2, 2, 2)
    patches, embeddings = torch.randn(3, 16, 12), torch.randn(3, 6)
    order = random_order(3, 16, torch.Generator().manual_seed(1))
    gradients = []
    for on in (False, True):
        model.materialise_attention(on)
        assert {b.attn.fused_attn for b in model.decoder.transformer} == {not on}
        model.zero_grad()
        model(patches, embeddings, order, 4).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrapped", [True, False])
def test_published_checkpoint_loads_strictly_with_sizes_read_off_it(tmp_path, wrapped):
    state = published_state(**SMALL)
    content = {"epoch": 3, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}
    torch.save(content if wrapped else state, tmp_path / "final.pth")
    model = load_published(tmp_path / "final.pth")
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert (model.image_size, model.patch_size, model.embedding_dim) == (8, 2, 24)
    assert model.decoder.transformer[0].attn.num_heads == 2


def test_default_sized_published_checkpoint_loads(tmp_path):
    torch.save({"state_dict": published_state()}, tmp_path / "final.pth")
    model = load_published(tmp_path / "final.pth")
    assert (model.image_size, model.patch_size, model.embedding_dim) == (32, 4, 512)
    assert model.encoder.transformer[0].attn.num_heads == 3


def test_checkpoint_with_wrong_keys_and_shapes_names_them_all(tmp_path):
    state = published_state(**SMALL)
    del state["decoder.mask_token"]
    state["decoder.norm.weight"] = torch.ones(3)
    state["decoder.head.bias"] = torch.zeros(5)
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(ValueError) as caught:
        load_published(tmp_path / "bad.pth")
    message = str(caught.value)
    assert "bad.pth" in message
    assert "missing keys ['decoder.mask_token']" in message
    assert "unexpected keys ['decoder.norm.weight']" in message
    assert "decoder.head.bias has shape (5,), expected (12,)" in message


def test_checkpoint_without_a_block_names_its_keys(tmp_path):
    state = {k: v for k, v in published_state(**SMALL).items() if ".transformer.1." not in k}
    with pytest.raises(ValueError, match=r"missing keys .*encoder\.transformer\.1\.attn\.qkv"):
        model_from_state(state)


@pytest.mark.parametrize(
    "content", [{"weight": torch.zeros(2)}, {"state_dict": [1, 2]}, {"state_dict": {"epoch": 3}}, 7]
)
def test_file_that_is_no_decoder_is_refused_in_a_sentence(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: .*(DeDe decoder|no state dict)"):
        load_published(tmp_path / "other.pth")


def test_checkpoint_with_objects_is_refused(tmp_path):
    torch.save({"state_dict": published_state(**SMALL), "args": Path("x")}, tmp_path / "args.pth")
    with pytest.raises(ValueError, match="a pickle of more than tensors, which is never loaded"):
        load_published(tmp_path / "args.pth")


def test_file_of_noise_is_refused_and_a_missing_file_says_so(tmp_path):
    (tmp_path / "noise.pth").write_bytes(b"no checkpoint at all")
    with pytest.raises(ValueError, match=r"noise\.pth"):
        load_published(tmp_path / "noise.pth")
    with pytest.raises(ValueError, match=r"absent\.pth: no such file"):
        load_published(tmp_path / "absent.pth")


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="image_size 30 is not divisible by patch_size 4"):
        DecoderModel(image_size=30)
    with pytest.raises(ValueError, match="width 100 is not divisible by heads 3"):
        DecoderModel(width=100)
