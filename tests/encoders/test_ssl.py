from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from bench.data.imageset import ImageSet
from bench.encoders.objectives import nt_xent
from bench.encoders.ssl import SSLRecipe, pretrain

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "encoders.json").read_text())


class Steps:
    """Progress that stops after ``limit`` steps and counts what it was offered."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.offered = 0

    def track(self, items, what, total=None):
        items = list(items)
        self.offered = len(items)
        yield from items[: self.limit]


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """48 images that differ by their colours and coarse shapes."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(48, 3, 4, 4, generator=generator)
    return ImageSet(F.interpolate(coarse, size=16).mul(255).to(torch.uint8))


# Wide crops and a high rate, so that few steps show what many would.
RECIPE = SSLRecipe(epochs=8, batch_size=16, learning_rate=1e-2, crop_scale=0.9)


def trained(images, recipe=RECIPE, seed=0, progress=None, **options):
    return pretrain(
        recipe,
        "resnet-narrow",
        {"width": 8},
        images,
        generator=torch.Generator().manual_seed(seed),
        progress=progress or Steps(),
        **options,
    )


def test_nt_xent_has_the_golden_value_and_the_supcon_factor():
    golden = GOLDEN["nt_xent"]
    torch.manual_seed(0)
    first, second = F.normalize(torch.randn(6, 2, 16), dim=-1).unbind(1)
    value = float(nt_xent(first, second, 0.5))
    tolerance = golden["absolute_tolerance"]
    assert value == pytest.approx(golden["value"], abs=tolerance)
    assert value * 0.5 / 0.07 == pytest.approx(golden["supcon_value"], abs=tolerance)
    assert golden["supcon_factor"] == pytest.approx(0.5 / 0.07, abs=1e-6)


def test_nt_xent_ignores_length_and_the_order_of_the_views():
    first, second = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(1))
    value = nt_xent(first, second, 0.2)
    torch.testing.assert_close(nt_xent(3 * first, second, 0.2), value)
    torch.testing.assert_close(nt_xent(second, first, 0.2), value)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_runs_are_bit_equal_and_their_loss_falls(images, precision):
    state = torch.get_rng_state()
    first, metrics = trained(images, precision=precision)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    torch.rand(5)
    second, again = trained(images, precision=precision)
    assert first.state_hash() == second.state_hash()
    assert metrics == again
    assert metrics["steps"] == 24
    assert metrics["loss_last"] < metrics["loss_first"] - 0.2
    assert trained(images, seed=1, precision=precision)[1] != metrics


def test_the_result_is_a_frozen_encoder_at_the_size_of_the_images(images):
    encoder, _ = trained(images, progress=Steps(2))
    assert encoder.image_size == 16
    assert encoder.embed(images.float()).shape == (48, 64)
    assert not encoder.network.training
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())
    weights = {name: value.dtype for name, value in encoder.network.named_parameters()}
    assert set(weights.values()) == {torch.float32}


def test_incomplete_batches_are_dropped_and_training_may_end_early(images):
    steps = Steps(limit=3)
    _, metrics = trained(images.select(torch.arange(47)), progress=steps)
    assert steps.offered == 8 * 2
    assert metrics["steps"] == 3


def test_runs_that_differ_in_one_image_share_initialisation_order_and_views(images):
    altered = ImageSet(images.uint8())
    altered._storage[0] ^= 255
    same = []
    for seed in range(6):
        clean = trained(images, seed=seed, progress=Steps(1))[1]
        poisoned = trained(altered, seed=seed, progress=Steps(1))[1]
        same.append(clean == poisoned)
    # Bit-equal wherever the first batch of 16 of 48 does not hold the altered image.
    assert set(same) == {True, False}


def test_batch_norm_statistics_are_per_view_unless_asked_for_jointly(images):
    apart, _ = trained(images, progress=Steps(1))
    joint, _ = trained(images, RECIPE.model_copy(update={"joint_batch_norm": True}))
    assert int(apart.network.f[1].num_batches_tracked) == 2
    assert int(joint.network.f[1].num_batches_tracked) == 24


def test_projector_and_crop_settings_are_used(images):
    changed = RECIPE.model_copy(update={"projector_hidden": 5, "projector_out": 3})
    assert trained(images, changed, progress=Steps(1))[1] != trained(images, progress=Steps(1))[1]
    narrow = RECIPE.model_copy(update={"crop_scale": 0.1})
    assert trained(images, narrow, progress=Steps(1))[1] != trained(images, progress=Steps(1))[1]


def test_schedules_warm_up_and_fall_to_zero():
    constant = SSLRecipe(epochs=10, learning_rate=1.0)
    assert {constant.learning_rate_at(step, 5) for step in range(50)} == {1.0}
    cosine = SSLRecipe(epochs=10, learning_rate=1.0, schedule="cosine", warmup_epochs=2)
    rates = [cosine.learning_rate_at(step, 5) for step in range(50)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[30] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.01


def test_published_hyper_parameters_are_the_defaults():
    assert SSLRecipe().parameters() | {"epochs": 1000} == {
        "epochs": 1000,
        "batch_size": 256,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "weight_decay": 1e-6,
        "temperature": 0.5,
        "schedule": "constant",
        "warmup_epochs": 0,
        "projector_hidden": None,
        "projector_out": 128,
        "crop_scale": 0.08,
        "loss_scale": 1.0,
        "joint_batch_norm": False,
    }


def test_unknown_hyper_parameters_are_refused():
    with pytest.raises(ValidationError, match="tempreature"):
        SSLRecipe(tempreature=0.5)


def test_a_batch_larger_than_the_set_is_refused(images):
    with pytest.raises(ValueError, match="batch_size 64 exceeds the 48 images"):
        trained(images, SSLRecipe(batch_size=64))


def test_an_unknown_precision_is_refused(images):
    with pytest.raises(ValueError, match="float32 or bfloat16, got 'float16'"):
        trained(images, precision="float16")


def test_a_diverging_run_is_an_error_not_a_result(images):
    with pytest.raises(FloatingPointError, match="SimCLR loss is"):
        trained(images, RECIPE.model_copy(update={"learning_rate": 1e38}))
