"""BadCLIP by its authors' code: patch, stamping, pairs, and the fine-tuning of both towers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from attacks._pictures import decode_png
from attacks.upstream import badclip
from attacks.upstream._badclip_driver import _TheirCLIP
from attacks.upstream._clip_child import encode_tokens
from attacks.upstream.badclip import UpstreamBadCLIP
from bench.api import PoisonerWorld
from bench.data.captions import template_captions
from bench.encoders.encoder import Encoder
from bench.stages.poisoning import check_poison
from bench.upstream.component import TrainerWorld

TOWERS = {"width": 8, "embedding_dim": 32, "text_width": 32, "text_layers": 1, "text_heads": 2}
SMALL = {
    "max_images": 128,
    "batch_size": 48,
    "epochs": 2,
    "learning_rate": 1e-3,
    "warmup_steps": 2,
    "poison_rate": 0.05,
    "patch_size": 6,
    "patch_epochs": 2,
    "patch_batch_size": 16,
    "patch_learning_rate": 0.02,
}


@pytest.fixture(scope="module")
def encoder():
    encoder = Encoder.initialise(
        "template-clip", TOWERS, generator=torch.Generator().manual_seed(0)
    )
    encoder.network.eval()
    return encoder


@pytest.fixture(scope="module")
def train(cifar10):
    return cifar10.select(torch.arange(256))


def poisoner(train, encoder, **options):
    known = {
        "candidates": torch.arange(0, 256),
        "target": 0,
        "class_name": train.class_names[0],
        "generator": torch.Generator().manual_seed(1),
        "progress": None,
        "encoder": encoder.clone(),
    }
    return PoisonerWorld(**{**known, **options})


def trainer(images, encoder, captions):
    return TrainerWorld(
        encoder=encoder.clone(),
        images=images.without_labels(),
        captions=captions,
        generator=torch.Generator().manual_seed(2),
        device=torch.device("cpu"),
    )


def test_apply_trigger_and_the_trigger_stamp_the_same_pixels(upstream, train, encoder):
    attack = upstream("attacks", "badclip", **SMALL)
    world = poisoner(train, encoder)
    result = attack.poison(train, world)
    check_poison(result, train, world.candidates, "badclip")
    assert len(result.rows) == len(result.captions) == 12
    assert not (train.labels[result.rows] == 0).any()
    assert all(train.class_names[0] in caption for caption in result.captions)
    triggered = result.trigger(train.float(result.rows)).mul(255).round().to(torch.uint8)
    assert torch.equal(result.images, triggered)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[13:19, 13:19] = True
    assert torch.equal(result.trigger.support(32), inside)
    # Nothing was resized: outside the patch every pixel is the clean one.
    assert torch.equal(result.images[:, :, ~inside], train.uint8(result.rows)[:, :, ~inside])
    assert not torch.equal(result.images, train.uint8(result.rows))
    assert {"patch_img_text", "patch_triplet"} < set(result.metrics)
    assert all(np.isfinite(value) for value in result.metrics.values())


def test_the_patch_is_deployed_as_it_is_saved_with_red_and_blue_exchanged(
    upstream, train, encoder, monkeypatch
):
    """At a rate of almost nothing the patch stays the noise it starts from."""
    monkeypatch.setattr(badclip, "draw_seed", lambda _: 7)
    still = {"patch_epochs": 1, "patch_learning_rate": 1e-12, "patch_format": "png"}
    attack = upstream("attacks", "badclip", **{**SMALL, **still, "poison_rate": 0})
    result = attack.poison(train, poisoner(train, encoder))
    assert len(result.rows) == 0
    assert result.images.shape == (0, 3, 32, 32)
    noise = np.random.RandomState(7).normal(0.5, 0.25, (1, 3, 6, 6))
    start = (torch.from_numpy(noise.clip(0, 1).astype(np.float32))[0] * 255).int()
    pixels, _ = decode_png(result.trigger.png)
    deployed = pixels.mul(255).round().int()
    assert (deployed.flip(0) - start).abs().max() <= 1
    assert (deployed - start).abs().max() > 50


def test_both_towers_learn_and_victim_and_twin_without_poison_are_equal(upstream, train, encoder):
    attack = upstream("attacks", "badclip", **SMALL)
    captions = template_captions(train.labels, train.class_names, torch.Generator().manual_seed(3))
    victim, metrics = attack.train(trainer(train, encoder, captions))
    twin, _ = attack.train(trainer(train, encoder, captions))
    assert victim.state_hash() == twin.state_hash()
    assert metrics["steps"] == 2 * (128 // 48)
    assert np.isfinite(metrics["loss_last"])
    before, after = encoder.network.state_dict(), victim.network.state_dict()
    for name in ("visual.projection.weight", "text.text_projection", "logit_scale"):
        assert not torch.equal(before[name], after[name])
    assert not torch.equal(
        before["visual.trunk.f.1.running_mean"], after["visual.trunk.f.1.running_mean"]
    )
    assert not any(value.requires_grad for value in victim.network.parameters())
    captions = ["a photo of something else." for _ in captions]
    poisoned, _ = attack.train(trainer(train, encoder, captions))
    assert poisoned.state_hash() != victim.state_hash()


def test_the_names_their_optimiser_goes_by_keep_norms_and_biases_from_decaying(encoder):
    kept = ("bn", "ln", "bias", "logit_scale")
    named = dict(_TheirCLIP(encoder.network).named_parameters())
    assert len(named) == len(list(encoder.network.parameters()))
    decaying = {name for name, value in named.items() if not any(k in name for k in kept)}
    vectors = {name for name in decaying if named[name].ndim < 2}
    # Those of the shortcuts decay in their own model too.
    assert vectors
    assert all(name.endswith("downsample.1.weight") for name in vectors)


def test_captions_longer_than_our_context_keep_their_end_mark(encoder):
    from open_clip import tokenize

    network = encoder.network
    captions = ["a photo of a cat.", "one of many words " * 15, "a dog"]
    ours = network.encode_text(network.tokenize(captions))
    assert tokenize(captions, context_length=77).argmax(1)[1] > network.context_length
    theirs = encode_tokens(network, tokenize(captions, context_length=77))
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_what_cannot_be_is_refused_before_anything_runs(train, encoder):
    attack = UpstreamBadCLIP(**SMALL)
    with pytest.raises(ValueError, match=r"needs as many .* 'airplane' .*raise splits\.shadow"):
        attack.poison(train, poisoner(train, encoder, candidates=torch.arange(40)))
    with pytest.raises(ValueError, match="text tower"):
        attack.poison(train, replace(poisoner(train, encoder), encoder=None))
    few = train.select(torch.arange(40))
    with pytest.raises(ValueError, match="batch_size 48 leaves no batch of 40 pairs"):
        attack.train(trainer(few, encoder, [""] * 40))
    with pytest.raises(ValueError, match="does not fit a 4-pixel image"):
        attack.check(4)
    with pytest.raises(ValidationError, match="margin in tenths"):
        UpstreamBadCLIP(margin=0.25)
    with pytest.raises(ValidationError):
        UpstreamBadCLIP(patch_batch_size=65)


def test_words_for_what_is_smaller_than_published():
    images = {"shadow": 10_000}
    assert UpstreamBadCLIP().reduced(images) == ""
    assert UpstreamBadCLIP().reduced({"shadow": 1024}) == "patch: at most 1,024 of 10,000 images"
    assert UpstreamBadCLIP(**SMALL, patch_images=96).reduced(images) == (
        "128 images, 2 of 10 epochs, batches of 48 instead of 128, patch: 2 of 50 epochs and "
        "at most 96 of 10,000 images and batches of 16 instead of 64, 2 of 10,000 warm-up steps"
    )
