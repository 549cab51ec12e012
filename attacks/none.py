"""The control: no attack, the same patch trigger. Its AUROC is a placebo by construction."""

from __future__ import annotations

from attacks.triggers import CarriesPatch
from bench.api import Control


class NoAttack(CarriesPatch, Control):
    """Leaves the encoder alone and carries BadEncoder's patch.

    Whatever a detector sees on this row it sees without a backdoor.
    """
