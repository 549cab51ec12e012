"""Critical-difference diagrams."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.report.style import INK, new_figure, shortened

__all__ = ["critical_difference_figure"]

ALPHA = 0.05


def critical_difference_figure(ranks: pd.Series, p_values: pd.DataFrame, title: str) -> Figure:
    """Mean ranks on a line; a bar joins those that cannot be told apart at 5 %.

    Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets" (JMLR 2006), with
    cliques of adjusted pairwise p-values in place of one critical distance.

    Parameters
    ----------
    ranks
        Label -> mean rank, 1 is best; at least two.
    p_values
        Adjusted pairwise p-values, symmetric, with the labels of ``ranks`` on both sides; the
        diagonal is not read.

    Raises
    ------
    ValueError
        When there are fewer than two ranks, or a p-value is missing or not symmetric.
    """
    labels = list(ranks.index)
    p_array = _checked(labels, p_values)
    from scikit_posthocs import critical_difference_diagram  # it imports pyplot: only who draws

    side = max(len(shortened(label, 40)) for label in labels) * 0.075 + 0.4
    figure = new_figure(4.2 + 2 * side, 0.19 * len(labels) + 1.35)
    axis = figure.subplots()
    axis.grid(False)
    # Numbers in place of labels: the order of the cliques, which are sets, is then the same in
    # every process, and no label is taken for a format.
    numbers = pd.RangeIndex(len(labels))
    drawn = critical_difference_diagram(
        pd.Series(ranks.to_numpy(dtype=float), index=numbers),
        pd.DataFrame(p_array, index=numbers, columns=numbers),
        alpha=ALPHA,
        ax=axis,
        label_fmt_left="{label}",
        label_fmt_right="{label}",
        label_props={"size": 8.5},
        elbow_props={"color": "#777777", "linewidth": 0.9},
        marker_props={"color": INK, "s": 16},
        crossbar_props={"color": INK, "linewidth": 3, "solid_capstyle": "round"},
        text_h_margin=0.02 * len(labels),
    )
    for text in drawn["labels"]:
        place = int(text.get_text())
        name, rank = shortened(str(labels[place]), 40), f"{ranks.iloc[place]:.2f}"
        left = text.get_horizontalalignment() == "right"
        text.set(text=f"{name}  {rank} " if left else f" {rank}  {name}", color=INK)
    last = max(len(labels), math.ceil(ranks.max()))
    axis.set_xlim(1, last)
    axis.set_xticks(range(1, last + 1))
    axis.tick_params(axis="x", length=3, pad=2, labeltop=True)
    figure.suptitle(title, weight="bold", size=10)
    note = "mean rank, 1 is best; a bar joins defenses that do not differ at 5 %"
    figure.supxlabel(note, size=7.5)
    return figure


def _checked(labels: list, p_values: pd.DataFrame) -> np.ndarray:
    """``p_values`` in the order of ``labels``, with ones on the diagonal."""
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise ValueError(f"a critical-difference diagram needs two distinct labels, got {labels}")
    p_array = p_values.reindex(index=labels, columns=labels).to_numpy(dtype=float, copy=True)
    np.fill_diagonal(p_array, 1.0)
    if np.isnan(p_array).any() or not np.allclose(p_array, p_array.T):
        raise ValueError("pairwise p-values are missing or not symmetric")
    return p_array
