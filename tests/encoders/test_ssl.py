from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from bench.data.imageset import ImageSet
from bench.encoders.architectures import build
from bench.encoders.encoder import Encoder
from bench.encoders.objectives import BYOL, SimCLR, byol_loss, nt_xent
from bench.encoders.ssl import SSLRecipe, pretrain

GOLDEN_FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((GOLDEN_FOLDER / "encoders.json").read_text())
PUBLISHED = json.loads((GOLDEN_FOLDER / "clip.json").read_text())["ctrl_simclr"]


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


def changed(**update) -> SSLRecipe:
    return SSLRecipe.model_validate({**RECIPE.parameters(), **update})


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


def test_byol_loss_has_the_golden_value_of_the_published_negcos():
    golden = GOLDEN["byol_loss"]
    torch.manual_seed(1)
    features = [torch.randn(4, 8) for _ in range(4)]
    value = float(byol_loss(*features))
    assert value == pytest.approx(golden["value"], abs=golden["absolute_tolerance"])


def test_byol_loss_compares_each_prediction_with_the_target_of_the_other_view():
    one, other = torch.eye(4)[:1], torch.eye(4)[1:2]
    assert float(byol_loss(one, other, other, one)) == pytest.approx(-1)
    assert float(byol_loss(one, other, one, other)) == pytest.approx(0)


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
    joint, _ = trained(images, changed(joint_batch_norm=True))
    assert int(apart.network.f[1].num_batches_tracked) == 2
    assert int(joint.network.f[1].num_batches_tracked) == 24


def test_projector_and_crop_settings_are_used(images):
    narrow = changed(projector_hidden=5, projector_out=3)
    assert trained(images, narrow, progress=Steps(1))[1] != trained(images, progress=Steps(1))[1]
    tight = changed(crop_scale=0.1)
    assert trained(images, tight, progress=Steps(1))[1] != trained(images, progress=Steps(1))[1]


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


def test_epoch_cosine_has_the_golden_rates_and_is_constant_within_an_epoch():
    golden = GOLDEN["epoch_cosine"]
    names = ("epochs", "warmup_epochs", "learning_rate")
    recipe = SSLRecipe(schedule="epoch-cosine", **{name: golden[name] for name in names})
    rates = [recipe.learning_rate_at(97 * epoch, 97) for epoch in range(golden["epochs"])]
    tolerance = golden["absolute_tolerance"]
    warmup = [golden["warmup_step"] * epoch for epoch in range(11)]
    assert rates[:11] == pytest.approx(warmup, abs=1e-12)
    for epoch, value in golden["values"].items():
        assert rates[int(epoch)] == pytest.approx(value, abs=tolerance), epoch
    assert rates[12:] == sorted(rates[12:], reverse=True)
    assert [recipe.learning_rate_at(97 * epoch + 96, 97) for epoch in range(100)] == rates
    without = SSLRecipe(schedule="epoch-cosine", learning_rate=1.0)
    assert without.learning_rate_at(0, 97) == 1.0


def test_epoch_cosine_learns_nothing_in_its_first_epoch(images):
    slow = changed(schedule="epoch-cosine", warmup_epochs=4)
    first, whole, next_ = (
        dict(trained(images, slow, progress=Steps(limit))[0].network.named_parameters())
        for limit in (1, 3, 4)
    )
    assert all(torch.equal(first[name], value) for name, value in whole.items())
    assert any(not torch.equal(first[name], value) for name, value in next_.items())


def weights_after_one_step(images, **update) -> torch.Tensor:
    encoder, _ = trained(images, changed(weight_decay=0.0, **update), progress=Steps(1))
    return torch.cat([parameter.flatten() for parameter in encoder.network.parameters()])


def test_steps_of_sgd_grow_with_the_rate_and_with_the_factor_on_the_loss(images):
    sgd = {"optimizer": "sgd", "momentum": 0.0}
    start = weights_after_one_step(images, **sgd, learning_rate=1e-30)
    small = weights_after_one_step(images, **sgd, learning_rate=0.01)
    large = weights_after_one_step(images, **sgd, learning_rate=0.03)
    scaled = weights_after_one_step(images, **sgd, learning_rate=0.01, loss_scale=3.0)
    assert float((small - start).norm()) > 0
    torch.testing.assert_close(large - start, 3 * (small - start), rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(scaled, large, rtol=1e-5, atol=1e-6)
    # Adam's do not grow with the factor.
    adam, adam_scaled = (weights_after_one_step(images, loss_scale=scale) for scale in (1.0, 3.0))
    torch.testing.assert_close(adam_scaled, adam, rtol=1e-3, atol=1e-3)


def test_momentum_and_weight_decay_reach_sgd():
    recipe = SSLRecipe(optimizer="sgd", momentum=0.7, weight_decay=0.3, learning_rate=0.2)
    optimiser = recipe.optimiser([torch.zeros(1, requires_grad=True)])
    assert type(optimiser) is torch.optim.SGD
    (group,) = optimiser.param_groups
    assert (group["momentum"], group["weight_decay"], group["lr"]) == (0.7, 0.3, 0.2)
    assert type(SSLRecipe().optimiser([torch.zeros(1, requires_grad=True)])) is torch.optim.Adam


@pytest.mark.parametrize("ssl", ["simclr", "byol"])
def test_input_without_normalisation_gives_an_encoder_of_mean_0_and_deviation_1(
    images, tmp_path, ssl
):
    raw, metrics = trained(images, changed(ssl=ssl, normalise_input=False), progress=Steps(1))
    assert (raw.mean, raw.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert torch.equal(raw.normalise(images.float()), images.float())
    raw.save(tmp_path / "raw.safetensors")
    assert Encoder.load(tmp_path / "raw.safetensors").std == (1.0, 1.0, 1.0)
    usual, others = trained(images, changed(ssl=ssl), progress=Steps(1))
    assert usual.std != raw.std
    assert others != metrics, "training saw the same pixels"


def model_of(recipe, seed=0):
    generator = torch.Generator().manual_seed(seed)
    encoder = Encoder.initialise("resnet-narrow", {"width": 8}, generator=generator, image_size=16)
    kind = BYOL if recipe.ssl == "byol" else SimCLR
    return kind.around(encoder.network, recipe, generator).train()


def test_projector_without_batch_norm_has_a_bias():
    usual = model_of(changed()).g
    assert [type(layer).__name__ for layer in usual] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert usual[0].bias is None
    bare = model_of(changed(projector_batch_norm=False)).g
    assert [type(layer).__name__ for layer in bare] == ["Linear", "ReLU", "Linear"]
    assert bare[0].bias is not None


def test_models_of_ctrl_have_the_published_tensors():
    network = build("resnet18-cifar")
    generator = torch.Generator().manual_seed(0)
    simclr = SimCLR.around(network, SSLRecipe(projector_batch_norm=False), generator)
    assert len(simclr.state_dict()) == PUBLISHED["tensors"]
    assert sum(value.numel() for value in simclr.parameters()) == PUBLISHED["parameters"]
    byol = BYOL.around(network, SSLRecipe(ssl="byol", projector_out=256), generator)
    # The published module holds both encoders with their projectors twice, under two names.
    aliases = 2 * len(byol.target.state_dict())
    assert len(byol.state_dict()) + aliases == PUBLISHED["byol_tensors"]


BYOL_RECIPE = changed(ssl="byol", projector_hidden=32, projector_out=16, target_momentum=0.9)


@pytest.mark.parametrize("initialisation", ["online", "random"])
def test_byol_is_deterministic_and_its_loss_falls(images, initialisation):
    recipe = BYOL_RECIPE.model_copy(update={"target_initialisation": initialisation})
    state = torch.get_rng_state()
    first, metrics = trained(images, recipe)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    torch.rand(5)
    second, again = trained(images, recipe)
    assert (first.state_hash(), metrics) == (second.state_hash(), again)
    assert -1 <= metrics["loss_last"] < metrics["loss_first"] - 0.05
    assert trained(images, recipe, seed=1)[1] != metrics


def test_result_of_byol_is_the_online_encoder_alone(images):
    encoder, _ = trained(images, BYOL_RECIPE, progress=Steps(2))
    simclr, _ = trained(images, progress=Steps(2))
    assert encoder.network.state_dict().keys() == simclr.network.state_dict().keys()
    assert not encoder.network.training
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())
    # The online network saw both views of both steps; the target has statistics of its own.
    assert int(encoder.network.f[1].num_batches_tracked) == 4


def test_target_of_byol_follows_the_online_network_by_the_momentum(images):
    model = model_of(BYOL_RECIPE)
    online = [*model.f.parameters(), *model.g.parameters()]
    before = [value.clone() for value in model.target.parameters()]
    with torch.no_grad():
        for value in online:
            value.add_(1.0)
    model.loss([images.float()] * 2, contextlib.nullcontext())
    for old, new, value in zip(before, model.target.parameters(), online, strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * value)
    fixed = model_of(BYOL_RECIPE.model_copy(update={"target_momentum": 1.0}))
    before = [value.clone() for value in fixed.target.parameters()]
    fixed.loss([images.float()] * 2, contextlib.nullcontext())
    assert all(map(torch.equal, before, fixed.target.parameters()))


def test_target_of_byol_starts_as_a_copy_or_from_a_draw_of_its_own():
    copied = model_of(BYOL_RECIPE)
    drawn = model_of(BYOL_RECIPE.model_copy(update={"target_initialisation": "random"}))

    def online(model: BYOL) -> list[torch.Tensor]:
        return [*model.f.parameters(), *model.g.parameters()]

    assert all(map(torch.equal, online(copied), copied.target.parameters()))
    # Weights differ; what every draw leaves at 0 or 1 (batch norm) does not.
    pairs = list(zip(online(drawn), drawn.target.parameters(), strict=True))
    assert all(not torch.equal(*pair) for pair in pairs if pair[0].ndim > 1)
    assert all(map(torch.equal, online(copied), online(drawn))), "the choice moved another draw"
    assert all(map(torch.equal, copied.predictor.parameters(), drawn.predictor.parameters()))


def test_no_gradient_reaches_the_target_of_byol(images):
    model = model_of(BYOL_RECIPE)
    model.loss([images.float(), images.float().flip(-1)], contextlib.nullcontext()).backward()
    assert all(value.grad is None for value in model.target.parameters())
    for part in (model.f, model.g, model.predictor):
        assert all(value.grad is not None for value in part.parameters())
        assert any(float(value.grad.abs().sum()) > 0 for value in part.parameters())
    features = [torch.randn(4, 8, requires_grad=True) for _ in range(4)]
    byol_loss(*features).backward()
    assert [value.grad is None for value in features] == [False, False, True, True]


def test_published_hyper_parameters_are_the_defaults():
    assert SSLRecipe().parameters() == {
        "ssl": "simclr",
        "epochs": 1000,
        "batch_size": 256,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "momentum": 0.9,
        "weight_decay": 1e-6,
        "temperature": 0.5,
        "schedule": "constant",
        "warmup_epochs": 0,
        "projector_hidden": None,
        "projector_out": 128,
        "projector_batch_norm": True,
        "crop_scale": 0.08,
        "loss_scale": 1.0,
        "joint_batch_norm": False,
        "normalise_input": True,
        "target_momentum": 0.996,
        "target_initialisation": "online",
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
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step"):
        trained(images, changed(learning_rate=1e38))
