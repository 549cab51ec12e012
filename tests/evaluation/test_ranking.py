"""Ranks over blocks and the tests that need ten of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import friedmanchisquare, wilcoxon

from bench.evaluation.ranking import FEWEST_BLOCKS, compare_over_blocks, mean_ranks


def blocks(count, shifts=(0.2, 0.1, 0.0), seed=0):
    random = np.random.default_rng(seed)
    values = random.normal(0.6, 0.05, (count, 1)) + np.array(shifts)
    values = values + random.normal(0, 0.02, values.shape)
    return pd.DataFrame(values, columns=list("abc")[: len(shifts)])


def test_ranks_of_a_hand_worked_case_with_a_tie():
    scores = pd.DataFrame({"a": [0.9, 0.5], "b": [0.8, 0.5], "c": [0.7, 0.6]})
    assert mean_ranks(scores).to_dict() == {"a": 1.75, "b": 2.25, "c": 2.0}


def test_a_gap_is_an_error():
    with pytest.raises(ValueError, match="every defense on every block"):
        mean_ranks(pd.DataFrame({"a": [0.9, np.nan], "b": [0.8, 0.5]}))


def test_below_ten_blocks_there_are_ranks_and_a_reason():
    found = compare_over_blocks(blocks(FEWEST_BLOCKS - 1))
    assert found.ranks.to_dict() == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert (found.friedman_p, found.p_values) == (None, None)
    assert found.reason == "9 blocks, and the tests need 10"


def test_tests_agree_with_scipy_and_holm_by_hand():
    scores = blocks(12)
    found = compare_over_blocks(scores)
    columns = [scores[name] for name in "abc"]
    assert found.friedman_p == pytest.approx(friedmanchisquare(*columns).pvalue)
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    raw = sorted((wilcoxon(scores[x], scores[y]).pvalue, (x, y)) for x, y in pairs)
    highest = 0.0
    for place, (p, (x, y)) in enumerate(raw):
        highest = max(highest, min(1.0, (len(raw) - place) * p))
        assert found.p_values.loc[x, y] == pytest.approx(highest)
        assert found.p_values.loc[y, x] == pytest.approx(highest)
    assert found.reason == ""


def test_two_equal_defenses_among_three_do_not_break_the_tests():
    scores = blocks(12).assign(b=lambda frame: frame["a"])
    found = compare_over_blocks(scores)
    assert found.p_values.loc["a", "b"] == 1
    assert found.p_values.loc["a", "c"] < 0.05


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (blocks(12, (0.1, 0.0)), "three defenses or more"),
        (blocks(12).assign(a=0.5, b=0.5, c=0.5), "equal on every block"),
    ],
)
def test_where_the_tests_do_not_apply_the_reason_is_given(scores, reason):
    found = compare_over_blocks(scores)
    assert found.p_values is None
    assert reason in found.reason
