"""SSL-Backdoor (Saha et al., CVPR 2022): a patch on some training images of one class."""

from __future__ import annotations

from typing import ClassVar, Literal

from attacks.triggers import CarriesPatch
from bench.api import (
    DataPoisoning,
    ImageSet,
    PoisonedSet,
    PoisonerWorld,
    SSLRecipe,
    stamped_files,
)


class SSLBackdoor(CarriesPatch, DataPoisoning):
    """Saha et al., section 3: patches pasted on images of the target category alone, so that the
    patch co-occurs with the category in the views that the victim pulls together.

    The simplest poisoning baseline. Victim and twin are trained as the profile pretrains unless
    ``recipe`` says otherwise. The paper pastes at random places of large images; here the patch
    stands where the other attacks put theirs, so that one trigger serves all of them.
    """

    poisons: ClassVar[Literal["target-class", "other-classes"]] = "target-class"
    recipe: SSLRecipe | None = None

    def poison(self, train: ImageSet, world: PoisonerWorld) -> PoisonedSet:
        trigger, rows = self.trigger(train.image_size), self.rows(train, world)
        return PoisonedSet(rows, stamped_files(train, rows, trigger), trigger)
