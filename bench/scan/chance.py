"""How many images score above a clean one's score when all of them are clean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom

CONFIDENCE = 0.99
"""Of one count. A scan makes two per detector, so one in a few dozen clean scans exceeds some."""


@dataclass(frozen=True)
class Count:
    """Images above a threshold, beside what chance alone gives.

    Attributes
    ----------
    observed
        Images above it.
    expected
        Their mean number if all images were clean.
    highest
        Not exceeded in :data:`CONFIDENCE` of the scans of clean images.
    """

    observed: int
    expected: float
    highest: int

    @property
    def more_than_chance(self) -> bool:
        return self.observed > self.highest


def rank_at(fpr: float, held_out: int) -> int:
    """k of :func:`bench.evaluation.detection.calibrated_threshold`, floor(fpr (n + 1))."""
    return math.floor(fpr * (held_out + 1) + 1e-9)


def count_above(scores: NDArray, clean: NDArray, rank: int) -> Count:
    """How many ``scores`` (N,) exceed the ``rank``-th largest of n ``clean`` ones.

    When all N + n images are exchangeable and scores do not tie, the probability that an unseen
    image exceeds it is itself drawn, from Beta(k, n + 1 - k), so the count is beta-binomial,
    exactly; ties only lower it. Few clean images make it spread far more than a binomial does.

    Raises
    ------
    ValueError
        When there is no clean score of that rank.
    """
    if not 1 <= rank <= len(clean):
        raise ValueError(f"there are {len(clean)} clean scores, none of rank {rank}")
    threshold = np.partition(clean, len(clean) - rank)[len(clean) - rank]
    distribution = betabinom(len(scores), rank, len(clean) + 1 - rank)
    return Count(
        int((scores > threshold).sum()),
        float(distribution.mean()),
        int(distribution.ppf(CONFIDENCE)),
    )
