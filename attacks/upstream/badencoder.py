"""BadEncoder by the code in DRUPE's repository, its mode ``badencoder``."""

from __future__ import annotations

from typing import Literal

from attacks.upstream._reference_tuning import DrupeTraining


class UpstreamBadEncoder(DrupeTraining):
    """DRUPE's baseline: BadEncoder's losses (Jia et al., S&P 2022) with the closest of the
    references for every image, where BadEncoder's own code takes the mean over them.

    That branch of DRUPE's code compares a string with a list and is never taken
    (docs/upstream-audit.md); ``l0_reduce: max`` is the same reading of the native attack.
    """

    mode: Literal["badencoder"] = "badencoder"
