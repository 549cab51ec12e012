"""The patch trigger and its decoys."""

from __future__ import annotations

import pytest
import torch

from attacks.none import NoAttack
from attacks.triggers import PatchTrigger
from bench.workspace import restore_trigger, trigger_record


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (5, 3, 32, 32), generator=generator).float() / 255


def energy(trigger: PatchTrigger) -> float:
    """Squared distance of the stamped pixels to mid-grey."""
    grey = torch.full((1, 3, 32, 32), 0.5)
    stamped = trigger.stamp(grey)
    return float((stamped - grey).square().sum())


def test_patch_covers_its_square_and_nothing_else(images):
    trigger = PatchTrigger(size=10, row=21, column=21)
    stamped = trigger(images)
    assert torch.equal(stamped[:, :, 21:31, 21:31], torch.ones(5, 3, 10, 10))
    outside = ~trigger.support(32)
    assert int(trigger.support(32).sum()) == 100
    assert torch.equal(stamped[:, :, outside], images[:, :, outside])


def test_stamp_leaves_its_input_alone_and_is_deterministic(images):
    before = images.clone()
    trigger = PatchTrigger(pattern="checkerboard")
    assert torch.equal(trigger(images), trigger(images))
    assert torch.equal(images, before)


@pytest.mark.parametrize("colour", [(1.0, 1.0, 1.0), (1.0, 0.0, 0.0)])
def test_decoys_have_the_size_and_energy_of_the_trigger_and_differ_from_it(colour):
    trigger = PatchTrigger(size=8, row=3, column=20, colour=colour)
    decoys = trigger.decoys()
    assert len(decoys) >= 3
    assert len({str(decoy) for decoy in [trigger, *decoys]}) == len(decoys) + 1
    for decoy in decoys:
        assert int(decoy.support(32).sum()) == 64
        assert energy(decoy) == pytest.approx(energy(trigger))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"size": 40}, "does not fit"),
        ({"row": 25}, "does not fit a 32-pixel image"),
        ({"colour": (2.0, 0.0, 0.0)}, "colour channels"),
        ({"sise": 3}, "sise"),
        ({"row": -1}, "row"),
        ({"size": 9, "row": 8, "corners": True}, "overlap in a 32-pixel image"),
    ],
)
def test_impossible_patch_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        PatchTrigger(**parameters)


def test_patch_of_another_image_size_is_refused(images):
    with pytest.raises(ValueError, match="made for 64-pixel images, not 32"):
        PatchTrigger(image_size=64)(images)


def test_record_restores_the_same_trigger(images):
    for trigger in (PatchTrigger(), *PatchTrigger().decoys()):
        again = restore_trigger(trigger_record(trigger))
        assert torch.equal(again(images), trigger(images))
    assert restore_trigger(None) is None


def test_control_carries_the_patch_of_the_attack(images):
    stamped = NoAttack().trigger(32)(images)
    assert torch.equal(stamped, PatchTrigger()(images))


def test_corners_are_the_place_and_its_three_mirror_images(images):
    trigger = PatchTrigger(size=4, row=2, column=3, colour=(1, 1, 0), corners=True)
    inside = trigger.support(32)
    assert int(inside.sum()) == 64
    assert inside[2:6, 3:7].all()
    for axes in ([0], [1], [0, 1]):
        assert torch.equal(inside.flip(axes), inside)
    assert (trigger(images)[:, :2, inside] == 1).all()
    assert (trigger(images)[:, 2, inside] == 0).all()


@pytest.mark.parametrize("row", [0, 2, 12])
def test_decoys_of_corners_are_four_patches_elsewhere_first(row):
    trigger = PatchTrigger(size=4, row=row, column=row, corners=True)
    decoys = trigger.decoys()
    assert len(decoys) >= 3
    assert not (decoys[0].support(32) & trigger.support(32)).any()
    for decoy in decoys:
        assert int(decoy.support(32).sum()) == 64
        assert energy(decoy) == pytest.approx(energy(trigger))


def test_default_decoys_keep_their_order():
    """Stored results name them; the first that does not activate the backdoor is used."""
    first = [(decoy.row, decoy.column) for decoy in PatchTrigger().decoys()]
    assert first == [(1, 1), (1, 21), (21, 1), (21, 21), (21, 21), (21, 21), (21, 21)]
    others = [(decoy.colour, decoy.pattern) for decoy in PatchTrigger().decoys()[3:]]
    white, black = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
    assert others == [
        ((1.0, 1.0, 0.0), "solid"),
        (black, "solid"),
        (white, "stripes"),
        (white, "checkerboard"),
    ]


class CornerDot(PatchTrigger):
    """A trigger of a third party: no entry in any table, found by its name."""

    name = "corner-dot"

    def support(self, image_size: int) -> torch.Tensor:
        return PatchTrigger(size=1, row=0, column=0, image_size=image_size).support(image_size)


def test_trigger_that_an_attack_brings_along_is_restored_by_its_name(images):
    again = restore_trigger(trigger_record(CornerDot()))
    assert type(again) is CornerDot
    assert torch.equal(again(images), CornerDot()(images))
    with pytest.raises(ValueError, match="unknown trigger 'corner-dott'"):
        restore_trigger({"kind": "corner-dott", "parameters": {}})
