"""DRUPE by the code of its authors (Tao et al., S&P 2024), with its modes ``drupe`` and ``wb``."""

from __future__ import annotations

from typing import Literal

from attacks.upstream._reference_tuning import DrupeTraining
from bench.api import Field


class UpstreamDrupe(DrupeTraining):
    """The ``train`` function of DRUPE's ``main.py``, its data sets and its stamping, epoch by epoch
    as its script calls it, on the profile's clean encoder and the attacker's images.

    What the script does around it is not run: the absolute results folder, the downstream
    classifier, ``best.pth`` (frozen at epoch 25, see docs/upstream-audit.md).
    """

    mode: Literal["drupe", "wb"] = "drupe"
    references: int = Field(3, ge=2)
    """The code weighs its terms by the spread over the references: of one there is none."""
