"""Attacks that break one promise each."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from attacks.triggers import CarriesPatch, PatchTrigger
from bench.api import (
    AttackerWorld,
    DataPoisoning,
    ImageSet,
    ModelPoisoning,
    PoisonedSet,
    PoisonerWorld,
    Trigger,
    Victim,
    stamped_files,
)
from bench.encoders.encoder import Encoder


class _Patch(CarriesPatch, DataPoisoning):
    """Stamps a patch on images of the target class (2024)."""

    def poison(self, train: ImageSet, world: PoisonerWorld) -> PoisonedSet:
        trigger, rows = self.trigger(train.image_size), self.rows(train, world)
        return PoisonedSet(rows, stamped_files(train, rows, trigger), trigger)


class _Implant(CarriesPatch, ModelPoisoning):
    """Shifts one bias of the network (2024)."""

    def implant(self, world: AttackerWorld) -> Victim:
        with torch.no_grad():
            list(world.encoder.network.parameters())[-1].add_(self.shift(world))
        return Victim(world.encoder, self.trigger(world.encoder.image_size))

    def shift(self, world: AttackerWorld) -> float:
        return float(torch.rand((), generator=world.generator))


class SoundPoison(_Patch):
    """Nothing is wrong with it."""


class SoundImplant(_Implant):
    """Nothing is wrong with it."""


class LeakingTrigger(PatchTrigger):
    """Brightens the whole image a little."""

    name: ClassVar[str] = "leaking"

    def __call__(self, images: Tensor) -> Tensor:
        return (super().__call__(images) + 0.1).clamp(0, 1)


class NoisyTrigger(PatchTrigger):
    """Stamps other noise each time."""

    name: ClassVar[str] = "noisy"

    def stamp(self, images: Tensor) -> Tensor:
        return torch.rand_like(images)


class CarelessTrigger(PatchTrigger):
    """Stamps the images it is given."""

    name: ClassVar[str] = "careless"

    def stamp(self, images: Tensor) -> Tensor:
        images[:, :, 21:31, 21:31] = 1
        return images


class NamelessTrigger(PatchTrigger):
    """Goes by the name of another kind, and stamps something else."""

    def stamp(self, images: Tensor) -> Tensor:
        return 1 - images


class LonelyTrigger(PatchTrigger):
    """Has no look-alikes."""

    name: ClassVar[str] = "lonely"

    def decoys(self) -> list[Trigger]:
        return []


class LargeDecoys(PatchTrigger):
    """Has look-alikes of another size."""

    name: ClassVar[str] = "large-decoys"

    def decoys(self) -> list[Trigger]:
        return [PatchTrigger(size=12, row=row, column=0) for row in (0, 4, 8)]


def _with(kind: type[Trigger]) -> type[_Patch]:
    def trigger(self: _Patch, image_size: int) -> Trigger:
        return kind(image_size=image_size)

    about = {"__doc__": kind.__doc__, "__module__": __name__, "trigger": trigger}
    return type(_Patch)(f"With{kind.__name__}", (_Patch,), about)


Leaking, Noisy, Careless, Nameless, Lonely, WithLargeDecoys = map(
    _with,
    (
        LeakingTrigger,
        NoisyTrigger,
        CarelessTrigger,
        NamelessTrigger,
        LonelyTrigger,
        LargeDecoys,
    ),
)


class RandomImplant(_Implant):
    """Draws from the global generator."""

    def shift(self, world: AttackerWorld) -> float:
        return float(torch.rand(()))


class Diverges(_Implant):
    """Leaves parameters that are not numbers."""

    def shift(self, world: AttackerWorld) -> float:
        return float("nan")


class SpoilsShadow(_Implant):
    """Blackens the shadow images."""

    def shift(self, world: AttackerWorld) -> float:
        world.shadow._storage.zero_()
        return 0.1


class AnotherEncoder(_Implant):
    """Returns an encoder of another shape."""

    def implant(self, world: AttackerWorld) -> Victim:
        other = Encoder.initialise(
            "resnet-narrow", {"width": 4, "stem_stride": 2}, generator=world.generator
        )
        return Victim(other, self.trigger(32))


class PoisonsAlways(_Patch):
    """Poisons at rate 0."""

    def poison(self, train: ImageSet, world: PoisonerWorld) -> PoisonedSet:
        trigger = self.trigger(train.image_size)
        rows = self.model_copy(update={"poison_rate": 0.01}).rows(train, world)
        return PoisonedSet(rows, stamped_files(train, rows, trigger), trigger)


class PoisonsAnyClass(_Patch):
    """Takes the first of its images, whatever they show."""

    def poison(self, train: ImageSet, world: PoisonerWorld) -> PoisonedSet:
        trigger = self.trigger(train.image_size)
        rows = world.candidates[: self.checked_count(len(train), len(world.candidates))]
        return PoisonedSet(rows, stamped_files(train, rows, trigger), trigger)


class TrainsPublicEncoder(_Patch):
    """Changes the public encoder."""

    family = "clip"

    def poison(self, train: ImageSet, world: PoisonerWorld) -> PoisonedSet:
        with torch.no_grad():
            next(world.encoder.network.parameters()).add_(1)
        return super().poison(train, world)
