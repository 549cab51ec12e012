"""Comparing defenses over many blocks: mean ranks, Friedman's test, Wilcoxon's with Holm's bound.

A block is one (attack, data set, encoder recipe), seeds averaged beforehand: seeds of one block
are no independent data sets (Demsar, JMLR 2006; Benavoli et al., JMLR 2016, for Wilcoxon's test in
place of Nemenyi's).
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from scipy.stats import friedmanchisquare

__all__ = ["FEWEST_BLOCKS", "Ranking", "compare_over_blocks", "mean_ranks"]

FEWEST_BLOCKS = 10
"""Below this many blocks only mean ranks are given: the tests would have no power."""


@dataclass(frozen=True)
class Ranking:
    """Defenses over blocks.

    Attributes
    ----------
    ranks
        Defense -> mean rank over the blocks, 1 the best; ties share.
    blocks
        Number of blocks.
    friedman_p
        Of the hypothesis that all are alike; None where the tests do not apply.
    p_values
        Wilcoxon's signed-rank test of every pair, two-sided, adjusted by Holm's method, 1 on the
        diagonal; None where the tests do not apply.
    reason
        Why there are no tests; empty when there are.
    """

    ranks: pd.Series
    blocks: int
    friedman_p: float | None = None
    p_values: pd.DataFrame | None = None
    reason: str = ""


def mean_ranks(scores: pd.DataFrame) -> pd.Series:
    """Defense -> mean rank over blocks, 1 the best, ties share.

    Parameters
    ----------
    scores
        Blocks in rows, defenses in columns, higher is better, no gaps.

    Raises
    ------
    ValueError
        When a value is missing: ranks over incomplete blocks are not comparable.
    """
    if scores.isna().any(axis=None):
        raise ValueError("ranks need every defense on every block")
    return scores.rank(axis=1, ascending=False, method="average").mean()


def compare_over_blocks(scores: pd.DataFrame) -> Ranking:
    """Mean ranks, and from :data:`FEWEST_BLOCKS` blocks on the tests.

    Parameters and errors are those of :func:`mean_ranks`.
    """
    ranks, blocks = mean_ranks(scores), len(scores)
    if blocks < FEWEST_BLOCKS:
        have = "1 block" if blocks == 1 else f"{blocks} blocks"
        return Ranking(ranks, blocks, reason=f"{have}, and the tests need {FEWEST_BLOCKS}")
    if scores.shape[1] < 3:
        return Ranking(ranks, blocks, reason="Friedman's test compares three defenses or more")
    if (scores.nunique(axis=1) == 1).all():
        return Ranking(ranks, blocks, reason="all defenses are equal on every block")
    from scikit_posthocs import posthoc_wilcoxon

    p_values = posthoc_wilcoxon(
        scores.melt(var_name="defense", value_name="score"),
        val_col="score",
        group_col="defense",
        p_adjust="holm",
        zero_method="zsplit",
    ).loc[scores.columns, scores.columns]
    friedman = friedmanchisquare(*(scores[name] for name in scores.columns))
    return Ranking(ranks, blocks, float(friedman.pvalue), p_values)
