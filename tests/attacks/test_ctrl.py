"""CTRL: the published poisoned set (probe P9), its trigger and its recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from poisoner import poisoner_world, training_set
from pydantic import ValidationError

from attacks.ctrl import CTRL, CTRLRecipe
from attacks.triggers import SpectralTrigger
from bench.api import ImageSet
from bench.encoders.objectives import nt_xent
from bench.encoders.ssl import pretrain

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ctrl.json").read_text())


def test_poisoned_rows_are_the_first_of_the_class_as_published():
    golden = GOLDEN["poisoned_set"]
    total, target = golden["training_images"], golden["target"]
    labels = torch.randint(10, (total,), generator=torch.Generator().manual_seed(0))
    # One grey image in every row: what is stamped plays no part here.
    pixels = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8).expand(total, -1, -1, -1)
    train = ImageSet(pixels, labels=labels, class_names=tuple("abcdefghij"))
    world = poisoner_world(train, target, candidates=torch.arange(total), class_name="a")
    result = CTRL(poison_rate=golden["poison_rate"]).poison(train, world)
    expected = [row for row, label in enumerate(labels.tolist()) if label == target]
    assert len(result.rows) == golden["poisoned"]
    assert result.rows.tolist() == expected[: golden["poisoned"]]


def test_only_the_attackers_images_of_the_class_are_poisoned():
    train = training_set(80)
    candidates = torch.tensor([3, 4, 8, 9, 12, 40, 41, 60])
    world = poisoner_world(train, candidates=candidates)
    result = CTRL(poison_rate=0.05).poison(train, world)
    assert result.rows.tolist() == [4, 8, 12, 40]


def test_images_are_stamped_and_all_else_stays_bit_exact():
    train = training_set(80)
    before = train.uint8()
    attack = CTRL(poison_rate=0.05)
    result = attack.poison(train, poisoner_world(train))
    assert torch.equal(train.uint8(), before), "the attack wrote into the training set"
    stamped = attack.trigger(32)(before[result.rows].float() / 255)
    assert result.images.dtype == torch.uint8
    assert torch.equal(result.images, stamped.mul(255).round().to(torch.uint8))
    assert (result.images != before[result.rows]).any(1).float().mean() > 0.9
    assert result.captions is None


@pytest.mark.parametrize("transport", ["8bit", "float", "jpeg-75"])
def test_training_images_are_8_bit_files_whatever_the_transport(transport):
    train = training_set(40)
    attack = CTRL(poison_rate=0.05, transport=transport)
    result = attack.poison(train, poisoner_world(train))
    assert result.trigger.transport == transport
    file = result.trigger.model_copy(update={"transport": "8bit"})(train.float(result.rows))
    assert torch.equal(result.images, file.mul(255).round().to(torch.uint8))


def test_trigger_is_the_published_spectral_one():
    golden = GOLDEN["trigger"]
    trigger = CTRL().trigger(32)
    assert isinstance(trigger, SpectralTrigger)
    assert (trigger.magnitude, trigger.window) == (golden["magnitude"], golden["window"])
    assert [list(position) for position in trigger.positions] == golden["positions"]
    assert list(trigger.channels) == golden["channels"]
    image = training_set(40).float(slice(0, 1))
    assert torch.equal(trigger(image), SpectralTrigger(image_size=32)(image))


def test_recipe_has_the_published_values():
    golden = GOLDEN["recipe"]["parameters"]
    recipe = CTRL().recipe
    assert type(recipe) is CTRLRecipe
    assert {name: recipe.parameters()[name] for name in golden} == golden
    assert CTRL().poison_rate == GOLDEN["poisoned_set"]["poison_rate"]


def test_factor_on_the_loss_makes_it_the_published_supcon_loss():
    golden, recipe = GOLDEN["recipe"]["supcon_loss"], CTRL().recipe
    torch.manual_seed(0)
    views = F.normalize(torch.randn(6, 2, 16), dim=-1).unbind(1)
    value = recipe.loss_scale * float(nt_xent(*views, recipe.temperature))
    assert value == pytest.approx(golden["value"], abs=golden["absolute_tolerance"])


def test_byol_is_the_other_recipe_and_keeps_the_rest_of_ctrls():
    published = {"projector_out": 256, "loss_scale": 1.0, "target_initialisation": "random"}
    attack = CTRL(recipe={"ssl": "byol", "epochs": 1, **published})
    assert (attack.recipe.ssl, attack.recipe.projector_out) == ("byol", 256)
    assert (attack.recipe.learning_rate, attack.recipe.normalise_input) == (0.06, False)
    recipe = attack.recipe.model_copy(update={"batch_size": 16, "warmup_epochs": 0})
    encoder, metrics = pretrain(
        recipe,
        "resnet-narrow",
        {"width": 4},
        training_set(32),
        generator=torch.Generator().manual_seed(0),
        progress=poisoner_world(training_set(4)).progress,
    )
    assert metrics["steps"] == 2
    assert encoder.std == (1.0, 1.0, 1.0)


def test_same_images_are_poisoned_whatever_the_seed():
    train = training_set(80)
    results = [CTRL(poison_rate=0.05).poison(train, poisoner_world(train, seed=s)) for s in (0, 1)]
    assert torch.equal(results[0].rows, results[1].rows)
    assert torch.equal(results[0].images, results[1].images)


def test_rate_zero_poisons_nothing():
    train = training_set(80)
    result = CTRL(poison_rate=0).poison(train, poisoner_world(train))
    assert (len(result.rows), tuple(result.images.shape)) == (0, (0, 3, 32, 32))


@pytest.mark.parametrize(("rate", "count"), [(0.0124, 0), (0.0125, 1), (0.0249, 1), (0.1, 8)])
def test_count_is_the_integer_part_of_the_rate(rate, count):
    train = training_set(80)
    assert len(CTRL(poison_rate=rate).poison(train, poisoner_world(train)).rows) == count


def test_whole_products_are_not_rounded_down():
    assert CTRL(poison_rate=0.29).checked_count(100, 100) == 29


def test_rate_above_what_the_class_gives_is_refused_in_a_sentence():
    train = training_set(80)
    with pytest.raises(
        ValueError,
        match=r"poison_rate 0\.2 of 80 training images is 16; among the attacker's images 10 are "
        r"of the target class: lower poison_rate or raise splits\.shadow",
    ):
        CTRL(poison_rate=0.2).poison(train, poisoner_world(train))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"recipe": {"learning_rat": 1}}, "learning_rat"),
        ({"recipe": {"ssl": "moco"}}, "'simclr' or 'byol'"),
        ({"poison_rate": 1.5}, "less than or equal to 1"),
        ({"magnitude": 0}, "greater than 0"),
    ],
)
def test_impossible_parameters_are_refused(parameters, message):
    with pytest.raises(ValidationError, match=message):
        CTRL(**parameters)


def test_image_that_the_windows_do_not_tile_is_refused_early():
    with pytest.raises(ValueError, match="windows of 32 pixels do not tile a 48-pixel image"):
        CTRL().check(48)
