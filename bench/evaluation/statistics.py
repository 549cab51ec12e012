"""Intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

__all__ = ["FEWEST_SEEDS", "SeedInterval", "interval_over_seeds", "seed_interval"]

FEWEST_SEEDS = 3
"""Below this many seeds no interval is given."""


@dataclass(frozen=True)
class SeedInterval:
    """Mean over seeds with its t interval.

    Attributes
    ----------
    n
        Number of seeds: state it beside the figures.
    mean
        None without any seed.
    low, high
        Ends of the interval, not clipped to the metric's range; None below :data:`FEWEST_SEEDS`.
    """

    n: int
    mean: float | None
    low: float | None
    high: float | None


def seed_interval(values: Sequence[float], confidence: float = 0.95) -> SeedInterval:
    """Student's t interval of the mean of one value per seed.

    Parameters
    ----------
    values
        One finite value per seed.
    confidence
        Coverage, in (0, 1).

    Raises
    ------
    ValueError
        When a value is not finite: a seed without a result makes the average incomplete.
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"a value per seed must be finite, got {array.tolist()}")
    n = len(array)
    if n == 0:
        return SeedInterval(0, None, None, None)
    mean = float(array.mean())
    if n < FEWEST_SEEDS:
        return SeedInterval(n, mean, None, None)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * float(array.std(ddof=1)) / math.sqrt(n)
    return SeedInterval(n, mean, mean - half, mean + half)


def interval_over_seeds(
    values: Sequence[float], lows: Sequence[float], highs: Sequence[float], independent: bool
) -> tuple[float, float]:
    """Of a mean over seeds: where it may lie, or a range where that cannot be said.

    Parameters
    ----------
    values, lows, highs
        Of each seed, its value and the ends of its test-sampling interval; finite, at least one.
    independent
        Whether no two seeds share anything that was trained or imported.

    Returns
    -------
    low, high
        From :data:`FEWEST_SEEDS` independent seeds on the t interval between them and the mean
        test-sampling interval, added in quadrature: all are judged on the same test images, and
        what sampling those does to every seed alike is not in how far seeds lie apart. Otherwise
        from the lowest to the highest end of their intervals. Not clipped to a metric's range.
    """
    if len(values) < FEWEST_SEEDS or not independent:
        return min(lows), max(highs)
    between = seed_interval(values)
    half = between.high - between.mean
    below = between.mean - math.fsum(lows) / len(lows)
    above = math.fsum(highs) / len(highs) - between.mean
    return between.mean - math.hypot(half, below), between.mean + math.hypot(half, above)
