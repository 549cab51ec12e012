"""The control: no attack, the same patch trigger. Its AUROC is a placebo by construction."""

from __future__ import annotations

from attacks.triggers import PatchTrigger
from bench.api import Control, Field, Trigger


class NoAttack(Control):
    """Leaves the encoder alone and carries BadEncoder's patch.

    Whatever a detector sees on this row it sees without a backdoor.
    """

    patch_size: int = Field(10, ge=1)
    patch_row: int = Field(21, ge=0)
    patch_column: int = Field(21, ge=0)

    def trigger(self, image_size: int) -> Trigger:
        return PatchTrigger(
            size=self.patch_size,
            row=self.patch_row,
            column=self.patch_column,
            image_size=image_size,
        )
