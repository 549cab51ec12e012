"""SSL-Backdoor: patches on the attacker's images of one class, everything else as it was."""

from __future__ import annotations

import pytest
import torch
from experiment import real_images
from poisoner import poisoner_world, training_set
from pydantic import ValidationError

from attacks.sslbkd import SSLBackdoor
from attacks.triggers import PatchTrigger
from bench.api import SSLRecipe


def test_patch_stands_on_the_first_of_the_attackers_images_of_the_class():
    train = training_set(80)
    result = SSLBackdoor(poison_rate=0.05).poison(train, poisoner_world(train, target=1))
    assert result.rows.tolist() == [41, 45, 49, 53]
    assert (train.labels[result.rows] == 1).all()
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[21:31, 21:31] = True
    assert (result.images[:, :, inside] == 255).all()
    assert torch.equal(result.images[:, :, ~inside], train.uint8(result.rows)[:, :, ~inside])
    assert result.captions is None


def test_training_set_itself_stays_as_it_was():
    train = training_set(80)
    before = train.uint8()
    SSLBackdoor(poison_rate=0.1).poison(train, poisoner_world(train))
    assert torch.equal(train.uint8(), before)


def test_trigger_of_the_result_is_the_one_that_was_stamped():
    train = training_set(80)
    attack = SSLBackdoor(poison_rate=0.05, patch_size=4, patch_row=2, patch_column=3)
    result = attack.poison(train, poisoner_world(train))
    assert isinstance(result.trigger, PatchTrigger)
    assert result.trigger == attack.trigger(32)
    assert (result.images[:, :, 2:6, 3:7] == 255).all()
    stamped = result.trigger(train.float(result.rows)).mul(255).round().to(torch.uint8)
    assert torch.equal(result.images, stamped)


def test_victim_is_trained_as_the_profile_pretrains_unless_told_otherwise():
    assert SSLBackdoor().recipe is None
    assert SSLBackdoor().poison_rate == 0.01
    recipe = SSLBackdoor(recipe={"ssl": "byol", "epochs": 3}).recipe
    assert recipe == SSLRecipe(ssl="byol", epochs=3)


def test_published_patch_file_can_be_used():
    path = real_images("upstream") / "trigger_white_21_10.npz"
    train = training_set(80)
    from_file = SSLBackdoor(poison_rate=0.05, patch_file=path).poison(train, poisoner_world(train))
    usual = SSLBackdoor(poison_rate=0.05).poison(train, poisoner_world(train))
    assert torch.equal(from_file.images, usual.images)
    with pytest.raises(ValidationError, match="patch_size comes from patch_file; leave it out"):
        SSLBackdoor(patch_file=path, patch_size=8)


def test_same_images_are_poisoned_whatever_the_seed():
    train = training_set(80)
    attack = SSLBackdoor(poison_rate=0.05)
    first, second = (attack.poison(train, poisoner_world(train, seed=seed)) for seed in (0, 1))
    assert torch.equal(first.rows, second.rows)
    assert torch.equal(first.images, second.images)


def test_rate_zero_poisons_nothing():
    train = training_set(80)
    result = SSLBackdoor(poison_rate=0).poison(train, poisoner_world(train))
    assert (len(result.rows), tuple(result.images.shape)) == (0, (0, 3, 32, 32))


def test_rate_above_what_the_class_gives_is_refused_in_a_sentence():
    train = training_set(80)
    with pytest.raises(ValueError, match="among the attacker's images 10 are of the target class"):
        SSLBackdoor(poison_rate=0.5).poison(train, poisoner_world(train))


def test_patch_that_does_not_fit_is_refused_early():
    with pytest.raises(ValueError, match="does not fit a 24-pixel image"):
        SSLBackdoor().check(24)
