"""Invariant 1: clean and stamped images take one path; outside the trigger nothing changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from experiment import real_images
from torch import Tensor
from torch.nn import functional
from trigger_kinds import KINDS, TRANSPORTS, trigger_of

from attacks.triggers import PatchTrigger
from bench.api import ImageSet, Trigger
from bench.config import DatasetConfig
from bench.data.parquet import Parquet
from bench.stages import detecting
from bench.stages.bundle import as_float, build_bundle, stamp_images
from bench.stages.detecting import Scorer, restore


class EmptyTrigger(PatchTrigger):
    """Stamps nothing and supports nothing."""

    def stamp(self, images: Tensor) -> Tensor:
        return images.clone()

    def support(self, image_size: int) -> Tensor:
        return torch.zeros(image_size, image_size, dtype=torch.bool)


class ResizingTrigger(PatchTrigger):
    """A mutation: the stamped path resizes once more than the clean one."""

    def __call__(self, images: Tensor) -> Tensor:
        side = images.shape[-1]
        larger = functional.interpolate(super().__call__(images), size=side + 7, mode="bilinear")
        return functional.interpolate(larger, size=side, mode="bilinear").clamp(0, 1)


def sample(image_size: int, count: int = 40) -> ImageSet:
    generator = torch.Generator().manual_seed(image_size)
    storage = torch.randint(
        256, (count, 3, image_size, image_size), generator=generator, dtype=torch.uint8
    )
    return ImageSet(storage, labels=torch.arange(count) % 4, class_names=tuple("abcd"))


def by_condition(images: ImageSet, trigger: Trigger) -> dict[str, Tensor]:
    """Condition -> images by source position, as a score stage would build them."""
    bundle = build_bundle(images, images, {"clean": None, "triggered": trigger}, seed=3)
    sorted_images = {}
    for condition in ("clean", "triggered"):
        chosen = np.flatnonzero((bundle.condition == condition) & (bundle.split == "test"))
        sorted_images[condition] = bundle.images[chosen[np.argsort(bundle.image[chosen])]]
    return sorted_images


def untouched_outside(images: ImageSet, trigger: Trigger) -> bool:
    shown = by_condition(images, trigger)
    outside = ~trigger.support(images.image_size).expand(3, -1, -1)
    assert torch.equal(as_float(shown["clean"]), images.float())
    return torch.equal(shown["triggered"][:, outside], shown["clean"][:, outside])


@pytest.mark.parametrize("image_size", [32, 224])
def test_pixels_outside_the_support_equal_the_clean_twins(image_size):
    trigger = PatchTrigger(size=10, row=1, column=image_size - 11, image_size=image_size)
    for stamp in (trigger, *trigger.decoys()):
        assert untouched_outside(sample(image_size, 12), stamp)


@pytest.mark.parametrize("image_size", [32, 224])
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_outside_the_support_survive_every_transport(kind, transport, image_size):
    assert untouched_outside(sample(image_size, 3), trigger_of(kind, image_size, transport))


def test_bundle_with_a_float_trigger_rounds_nothing_and_keeps_clean_pixels():
    images, trigger = sample(32), trigger_of("spectral", 32, "float")
    shown = by_condition(images, trigger)
    assert shown["triggered"].dtype == shown["clean"].dtype == torch.float32
    assert torch.equal(shown["triggered"], trigger.stamp(images.float()).clamp(0, 1))
    levels = shown["triggered"] * 255
    assert (levels - levels.round()).abs().max() > 0.4
    assert torch.equal(shown["clean"], images.float())


def test_bundle_of_rounded_triggers_is_the_same_in_either_type():
    images = sample(32)
    rounded, exact = (trigger_of("patch", 32, transport) for transport in ("8bit", "float"))
    stamps = {"clean": None, "triggered": rounded}
    small = build_bundle(images, images, stamps, seed=3)
    large = build_bundle(images, images, {**stamps, "decoy": exact}, seed=3)
    assert small.images.dtype == torch.uint8
    assert large.images.dtype == torch.float32
    for condition in stamps:
        first, second = (
            as_float(bundle.images[chosen[np.argsort(bundle.image[chosen])]])
            for bundle in (small, large)
            for chosen in [
                np.flatnonzero((bundle.condition == condition) & (bundle.split == "test"))
            ]
        )
        assert torch.equal(first, second)


def test_defense_that_changes_float_images_does_not_change_the_bundle():
    stored = torch.rand(2, 3, 32, 32)
    before = stored.clone()
    as_float(stored).zero_()
    assert torch.equal(stored, before)


def test_one_more_resize_on_the_stamped_path_is_caught():
    assert not untouched_outside(sample(32), ResizingTrigger())


def test_stamp_changes_exactly_the_supported_pixels_of_real_images():
    folder = real_images("cifar10")
    source = Parquet("cifar10", DatasetConfig(max_images=50), folder)
    images = source.load("test")
    trigger = PatchTrigger()
    shown = by_condition(images, trigger)
    changed = (shown["clean"] != shown["triggered"]).any(dim=0).any(dim=0)
    assert torch.equal(changed, trigger.support(32))
    assert untouched_outside(images, trigger)


def test_stamped_images_are_eight_bit():
    images = sample(32)
    trigger = PatchTrigger(colour=(0.3, 0.77, 0.123))
    stamped = trigger(images.float())
    assert torch.equal(stamp_images(images, trigger).float() / 255, stamped)


def test_empty_trigger_gives_equal_scores_element_by_element(tiny_run, monkeypatch):
    """Through the harness; the contract suite holds every built-in defense to it."""
    workspace = tiny_run.workspace()
    checked = set()
    for cell in tiny_run.cells:
        stage = cell.stage.inputs["victim"]
        test = detecting.evaluation_images(stage, workspace)
        fitted = restore(stage, workspace)
        bundle = build_bundle(test, test, {"clean": None, "triggered": EmptyTrigger()}, seed=1)
        scorer = Scorer(fitted, cell.identity["defense"])
        scores = np.concatenate([scorer.score(bundle.images[c]) for c in bundle.chunks(16)])
        of = {
            condition: scores[chosen[np.argsort(bundle.image[chosen])]]
            for condition in ("clean", "triggered")
            for chosen in [
                np.flatnonzero((bundle.condition == condition) & (bundle.split == "test"))
            ]
        }
        np.testing.assert_allclose(of["clean"], of["triggered"], rtol=1e-5, atol=1e-7)
        checked.add(stage.spec["component"]["name"])
    assert checked == {entry.defense for entry in tiny_run.defenses}
