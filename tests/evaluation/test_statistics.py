"""Intervals over seeds."""

from __future__ import annotations

import math

import pytest
from scipy.stats import ttest_1samp

from bench.evaluation.statistics import SeedInterval, seed_interval


def test_seed_interval_is_students_t():
    values = [0.81, 0.86, 0.79, 0.9]
    found = seed_interval(values)
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.n == 4
    assert found.mean == pytest.approx(0.84)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_three_seeds_by_hand():
    # deviation 1, half width 4.302653 / sqrt(3)
    found = seed_interval([1.0, 2.0, 3.0])
    assert found.high - found.mean == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)


def test_fewer_than_three_seeds_give_no_interval():
    assert seed_interval([0.5, 0.7]) == SeedInterval(2, pytest.approx(0.6), None, None)
    assert seed_interval([0.5]) == SeedInterval(1, 0.5, None, None)
    assert seed_interval([]) == SeedInterval(0, None, None, None)


def test_a_missing_value_is_refused():
    with pytest.raises(ValueError, match="must be finite"):
        seed_interval([0.5, math.nan, 0.6])
