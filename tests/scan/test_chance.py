from __future__ import annotations

import numpy as np
import pytest

from bench.evaluation.detection import calibrated_threshold
from bench.scan.chance import CONFIDENCE, count_above, rank_at


@pytest.mark.parametrize("held_out", [19, 20, 200, 399])
def test_the_count_is_that_of_the_calibrated_threshold(held_out):
    random = np.random.default_rng(0)
    clean, scores = random.normal(size=held_out), random.normal(size=500)
    counted = count_above(scores, clean, rank_at(0.05, held_out))
    assert counted.observed == (scores > calibrated_threshold(clean, 0.05)).sum()


def test_what_chance_gives_agrees_with_drawn_clean_scans():
    random = np.random.default_rng(1)
    counts = [
        count_above(random.normal(size=300), random.normal(size=100), rank=5) for _ in range(4000)
    ]
    observed = np.array([one.observed for one in counts])
    assert observed.mean() == pytest.approx(counts[0].expected, rel=0.05)
    share = (observed > counts[0].highest).mean()
    assert 0.4 * (1 - CONFIDENCE) < share <= 1.4 * (1 - CONFIDENCE)


def test_triggered_images_above_all_clean_ones_are_more_than_chance():
    random = np.random.default_rng(2)
    scores = np.concatenate([random.normal(size=1900), np.full(100, 9.0)])
    counted = count_above(scores, random.normal(size=200), rank=1)
    assert counted.more_than_chance


def test_ties_are_not_above():
    assert count_above(np.ones(10), np.ones(30), rank=1).observed == 0


def test_a_rank_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="none of rank 0"):
        count_above(np.ones(10), np.ones(10), rank_at(0.05, 10))
