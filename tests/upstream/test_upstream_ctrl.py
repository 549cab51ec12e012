"""CTRL by its authors' code: the poisoned set against ours and probe P6, and the training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from poisoner import poisoner_world, training_set
from pydantic import ValidationError

from attacks.ctrl import CTRL, CTRLRecipe
from attacks.upstream.ctrl import UpstreamCTRL, _encoder
from bench.api import ImageSet
from bench.encoders.encoder import Encoder
from bench.encoders.weights import CheckpointError
from bench.stages.poisoning import check_poison
from bench.upstream.component import TrainerWorld
from bench.upstream.formats import read_arrays

P6 = json.loads((Path(__file__).parents[1] / "golden" / "triggers.json").read_text())["P6"]
SHORT = {"epochs": 2, "warmup_epochs": 4, "batch_size": 32}


def fresh(width: int = 4) -> Encoder:
    generator = torch.Generator().manual_seed(0)
    return Encoder.initialise(
        "resnet-narrow", {"width": width, "stem_stride": 2}, generator=generator
    )


def trained(attack: UpstreamCTRL, images: ImageSet) -> tuple[Encoder, dict[str, float]]:
    return attack.train(
        TrainerWorld(
            encoder=fresh(),
            images=images.without_labels(),
            captions=None,
            generator=torch.Generator().manual_seed(1),
            device=torch.device("cpu"),
        )
    )


def test_stamping_gives_the_published_figures_whatever_kornia_is_installed(upstream):
    """Probe P6, through ``PoisonAgent``: grey is between two 8-bit levels, hence the floats."""
    attack = upstream("attacks", "ctrl")
    ramp = (torch.arange(3 * 32 * 32) % 256).float().view(1, 3, 32, 32)
    images = torch.cat([torch.full_like(ramp, 127.5), ramp])
    with attack.job("cpu") as job:
        np.savez(
            job.inputs / "train.npz", x=images.permute(0, 2, 3, 1), y=np.zeros((2, 1), np.int64)
        )
        job.run(attack._poisoning(2, 2, target=0))
        stamped = read_arrays(job.output("poisoned.npz"))
    assert stamped["rows"].tolist() == [0, 1]
    grey, ramp = torch.from_numpy(stamped["images"])
    golden = P6["grey"]
    assert float(grey.double().mean()) == pytest.approx(golden["mean"], abs=2e-6)
    assert float(grey.min()) == pytest.approx(golden["min"], abs=2e-6)
    assert float(grey.max()) == pytest.approx(golden["max"], abs=2e-6)
    assert float((grey - 0.5).norm()) == pytest.approx(golden["norm"], abs=2e-6)
    np.testing.assert_allclose(grey[:, 0, :4], golden["first_row"], atol=6e-5)
    golden = P6["ramp"]
    assert float(ramp.double().sum()) == pytest.approx(golden["sum"], abs=2e-4)
    np.testing.assert_allclose(ramp[:, 0, 0], golden["first_pixel"], atol=2e-6)
    np.testing.assert_allclose(ramp[:, -1, -1], golden["last_pixel"], atol=2e-6)


@pytest.mark.parametrize("labelled", [True, False])
def test_the_authors_code_chooses_and_stamps_as_ours_does(upstream, labelled):
    attack = upstream("attacks", "ctrl", poison_rate=0.05)
    train = training_set(80)
    train = train if labelled else train.without_labels()
    world = poisoner_world(train, target=2)
    result = attack.poison(train, world)
    check_poison(result, train, world.candidates, "ctrl@upstream")
    native = CTRL(poison_rate=0.05).poison(train, world)
    assert result.rows.tolist() == native.rows.tolist()
    assert result.rows.tolist() == ([42, 46, 50, 54] if labelled else [40, 41, 42, 43])
    difference = (result.images.int() - native.images.int()).abs()
    # Values that lie between two levels up to the last bits may be rounded either way.
    assert difference.max() <= 1
    assert difference.float().mean() < 1e-3
    assert result.trigger == native.trigger


def test_parameters_of_the_trigger_reach_the_authors_code(upstream):
    changed = {"magnitude": 40.0, "positions": (3, 7), "channels": (1,), "window": 16}
    attack = upstream("attacks", "ctrl", poison_rate=0.05, **changed)
    train = training_set(40)
    result = attack.poison(train, poisoner_world(train))
    ours = CTRL(poison_rate=0.05, **{**changed, "positions": ((3, 3), (7, 7))})
    native = ours.poison(train, poisoner_world(train))
    assert (result.images.int() - native.images.int()).abs().max() <= 1


def test_victim_and_twin_differ_by_the_poison_alone(upstream):
    attack = upstream("attacks", "ctrl", **SHORT)
    train = training_set(64)
    twin, metrics = trained(attack, train)
    nothing = attack.model_copy(update={"poison_rate": 0.0}).poison(train, poisoner_world(train))
    pixels = train.uint8()
    pixels[nothing.rows] = nothing.images
    assert trained(attack, ImageSet(pixels))[0].state_hash() == twin.state_hash()
    pixels[:8] = 255 - pixels[:8]
    assert trained(attack, ImageSet(pixels))[0].state_hash() != twin.state_hash()

    assert twin.state_hash() != fresh().state_hash(), "nothing was trained"
    assert (twin.mean, twin.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert not twin.network.training
    assert twin.embed(train.float(slice(0, 3))).isfinite().all()
    # Half of the warm-up of four epochs; SupCon's factor on the loss, little below chance.
    assert metrics["learning_rate"] == pytest.approx(0.06 * 2 / 4)
    chance = 0.5 / 0.07 * math.log(2 * 32 - 1)
    assert 0.5 * chance < metrics["loss"] < 1.2 * chance


def test_rate_zero_asks_the_authors_code_nothing():
    train = training_set(80)
    result = UpstreamCTRL(poison_rate=0).poison(train, poisoner_world(train))
    assert (len(result.rows), tuple(result.images.shape)) == (0, (0, 3, 32, 32))
    check_poison(result, train, torch.arange(80), "ctrl@upstream")


def test_rate_above_what_the_class_gives_is_refused_in_a_sentence():
    train = training_set(80)
    with pytest.raises(ValueError, match=r"poison_rate 0\.2 of 80 training images is 16"):
        UpstreamCTRL(poison_rate=0.2).poison(train, poisoner_world(train))


@pytest.mark.parametrize(("count", "total"), [(1, 49), (450, 10_000), (29, 100), (7, 7)])
def test_ratio_asks_for_exactly_the_count(count, total):
    ratio = UpstreamCTRL()._poisoning(count, total, target=0)["poison_ratio"]
    assert int(total * ratio) == count


def test_images_that_fill_no_batch_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match="batch_size 32 leaves no batch of 16 images"):
        trained(UpstreamCTRL(**SHORT, max_images=16), training_set(64))


def test_images_of_another_size_are_refused_early():
    with pytest.raises(ValueError, match="CTRL's code takes 32-pixel images, not 64"):
        UpstreamCTRL().check(64)
    with pytest.raises(ValueError, match="positions are at most 16 different"):
        UpstreamCTRL(window=16).check(32)


def test_defaults_are_the_published_values_of_the_native_attack():
    native, recipe, attack = CTRL(), CTRLRecipe(), UpstreamCTRL()
    assert attack.trigger(32) == native.trigger(32)
    assert attack.poison_rate == native.poison_rate
    for name in ("epochs", "warmup_epochs", "batch_size", "learning_rate", "weight_decay"):
        assert getattr(attack, name) == getattr(recipe, name), name
    assert attack.temperature == recipe.temperature
    assert attack.reduced({}) == ""


def test_what_is_smaller_than_published_is_said_in_words():
    attack = UpstreamCTRL(max_images=2048, epochs=60, warmup_epochs=5, batch_size=256)
    assert attack.reduced({}) == (
        "2,048 images, 60 of 800 epochs, 5 of 10 warm-up epochs, batches of 256 instead of 512"
    )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epochs": 1}, "greater than or equal to 2"),
        ({"warmup_epochs": 0}, "greater than or equal to 1"),
        ({"positions": [15, 20, 31]}, "positions"),
        ({"magnitude": 0}, "greater than 0"),
    ],
)
def test_impossible_parameters_are_refused(parameters, message):
    with pytest.raises(ValidationError, match=message):
        UpstreamCTRL(**parameters)


def test_a_checkpoint_of_other_keys_or_of_no_numbers_is_refused():
    start = fresh()
    state = {f"backbone.{name}": value for name, value in start.network.state_dict().items()}
    projection = {"proj_head.0.weight": torch.zeros(1)}
    assert _encoder(fresh(), {**state, **projection}).state_hash() == start.state_hash()
    missing = dict(list(state.items())[1:])
    with pytest.raises(CheckpointError, match=r"CTRL's last\.pth\.tar"):
        _encoder(fresh(), missing)
    name = next(iter(state))
    with pytest.raises(FloatingPointError, match="CTRL's training diverged"):
        _encoder(fresh(), {**state, name: state[name] * float("nan")})
