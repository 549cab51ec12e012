"""DRUPE and BadEncoder by DRUPE's code: a short fine-tuning of encoders of several widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from attacks.upstream._reference_tuning import CIFAR_MEAN, CIFAR_STD
from attacks.upstream.badencoder import UpstreamBadEncoder
from attacks.upstream.drupe import UpstreamDrupe
from bench.api import AttackerWorld
from bench.encoders.encoder import Encoder
from bench.upstream.formats import read_arrays, write_trigger

CASES = [("drupe", 16), ("drupe", 80), ("badencoder", 16)]
"""Widths whose embeddings have 128 and 640 numbers, where the code counts on 512."""


def world(images, width: int, references: int = 3, seed: int = 1) -> AttackerWorld:
    encoder = Encoder.initialise(
        "resnet-narrow",
        {"width": width, "stem_stride": 2},
        generator=torch.Generator().manual_seed(0),
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
    )
    encoder.network.eval()
    return AttackerWorld(
        encoder=encoder,
        shadow=images.select(torch.arange(100)),
        references=images.select(torch.arange(100, 100 + references)),
        target=0,
        generator=torch.Generator().manual_seed(seed),
        progress=None,
    )


def weights(encoder: Encoder) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in encoder.network.parameters()])


@pytest.mark.parametrize(("name", "width"), CASES)
def test_it_trains_encoders_of_any_width(upstream, cifar10, name, width):
    attack = upstream("attacks", name, epochs=1, batch_size=50, learning_rate=0.01)
    given = world(cifar10, width)
    before = weights(given.encoder)
    victim = attack.implant(given)
    assert not torch.equal(weights(victim.encoder), before)
    assert weights(victim.encoder).isfinite().all()
    assert {"loss", "cost", "cost_1"} <= set(victim.metrics)
    assert all(np.isfinite(value) for value in victim.metrics.values())


def test_equal_under_one_seed_and_another_under_another(upstream, cifar10):
    attack = upstream("attacks", "drupe", epochs=2, batch_size=50, learning_rate=0.01)
    found = [weights(attack.implant(world(cifar10, 8, seed=seed)).encoder) for seed in (1, 1, 2)]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


@pytest.mark.parametrize("transport", ["8bit", "float", "jpeg-50"])
def test_the_patch_reaches_the_code_as_it_was_before_any_encoding(transport, tmp_path):
    trigger = UpstreamDrupe(transport=transport).trigger(32)
    write_trigger(tmp_path / "trigger.npz", trigger, 32)
    found = read_arrays(tmp_path / "trigger.npz")
    inside = found["tm"][0, ..., 0] == 0
    assert inside.sum() == 100
    assert (found["t"][0][inside] == 255).all()


def test_what_is_smaller_than_published_is_said():
    assert UpstreamDrupe().reduced({"shadow": 10_000}) == ""
    assert UpstreamBadEncoder(epochs=10, max_images=500).reduced({"shadow": 1024}) == (
        "500 of 10,000 shadow images, 10 of 120 epochs"
    )


def test_it_refuses_what_the_code_cannot_take(upstream, cifar10):
    with pytest.raises(ValidationError, match="references"):
        UpstreamDrupe(references=1)
    with pytest.raises(ValidationError, match="batch_size"):
        UpstreamDrupe(batch_size=2)
    attack = upstream("attacks", "drupe", batch_size=101)
    with pytest.raises(ValueError, match="batch_size 101 leaves no batch of 100 images"):
        attack.implant(world(cifar10, 8))
