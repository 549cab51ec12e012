"""Data-poisoning attacks that break their contract in one way each."""

from __future__ import annotations

import torch

from attacks.triggers import CarriesPatch
from bench.api import DataPoisoning, Field, ImageSet, PoisonedSet, PoisonerWorld, stamped_files


class _Patch(CarriesPatch, DataPoisoning):
    """Stamps the rows that :meth:`chosen` names."""

    poison_rate: float = Field(0.005, ge=0, le=1)

    def chosen(self, train: ImageSet, world: PoisonerWorld) -> torch.Tensor:
        return world.candidates[:3]

    def poison(self, train: ImageSet, world: PoisonerWorld) -> PoisonedSet:
        trigger, rows = self.trigger(train.image_size), self.chosen(train, world)
        return PoisonedSet(rows, stamped_files(train, rows, trigger), trigger)


class TouchesOthers(_Patch):
    """Changes an image that the attacker does not supply."""

    def chosen(self, train: ImageSet, world: PoisonerWorld) -> torch.Tensor:
        owned = set(world.candidates.tolist())
        other = next(row for row in range(len(train)) if row not in owned)
        return torch.tensor([int(world.candidates[0]), other])


class TouchesTwice(_Patch):
    """Says twice what replaces one image."""

    def chosen(self, train: ImageSet, world: PoisonerWorld) -> torch.Tensor:
        return world.candidates[:1].repeat(2)


class ReturnsFloats(_Patch):
    """Returns pixels in [0, 1] instead of levels."""

    def poison(self, train: ImageSet, world: PoisonerWorld) -> PoisonedSet:
        result = super().poison(train, world)
        return PoisonedSet(result.rows, result.images.float() / 255, result.trigger)


class ReturnsOneImage(_Patch):
    """Returns one image for three rows."""

    def poison(self, train: ImageSet, world: PoisonerWorld) -> PoisonedSet:
        result = super().poison(train, world)
        return PoisonedSet(result.rows, result.images[:1], result.trigger)


class ReturnsOneCaption(_Patch):
    """Returns one caption for three rows."""

    def poison(self, train: ImageSet, world: PoisonerWorld) -> PoisonedSet:
        result = super().poison(train, world)
        return PoisonedSet(result.rows, result.images, result.trigger, ("a photo",))
