"""Which scores stand against which: the comparisons of a cell, in one place.

Point values and intervals are both taken from :func:`comparisons`, so they cannot disagree about
who is a positive and who is a negative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.evaluation.bootstrap import Bootstrap, Interval, Sample, percentile_interval
from bench.evaluation.detection import auroc

__all__ = [
    "CellScores",
    "Comparison",
    "comparisons",
    "control_metrics",
    "detection_draws",
    "detection_intervals",
]


@dataclass(frozen=True)
class Comparison:
    """Two groups of scores, of which the positives should be the higher."""

    negatives: Sample
    positives: Sample


@dataclass(frozen=True)
class CellScores:
    """The scores of one defense on the test images of one cell.

    Attributes
    ----------
    labels
        int (n,): classes of the test images; a :class:`Sample` names images by position in it.
    target
        Target class.
    clean, triggered
        Scores under the victim, all classes.
    placebo_clean, placebo_triggered
        The same images under the clean twin; None for a victim without one.
    decoy, placebo_decoy
        Decoy-stamped images under the victim and under the clean twin; None when no decoy was
        found.
    """

    labels: NDArray[np.integer]
    target: int
    clean: Sample
    triggered: Sample
    placebo_clean: Sample | None = None
    placebo_triggered: Sample | None = None
    decoy: Sample | None = None
    placebo_decoy: Sample | None = None


def comparisons(cell: CellScores) -> dict[str, Comparison]:
    """The AUROCs of a cell by column name.

    ========================  =================================  ==============================
    name                      negatives                          positives
    ========================  =================================  ==============================
    ``auroc``                 clean, all classes                 triggered, non-target
    ``auroc_all``             clean, all classes                 triggered, all classes
    ``auroc_placebo``         clean on the twin, all classes     triggered on the twin, non-target
    ``auroc_decoy``           clean, all classes                 decoy-stamped, non-target
    ``auroc_vs_decoy``        decoy-stamped, non-target          triggered, non-target
    ``auroc_vs_decoy_placebo``  the last one on the twin: near 0.5 where the decoy is a fair one
    ========================  =================================  ==============================

    In ``auroc_vs_decoy`` both sides leave the target class out: they then show the same source
    images, and a defense that sees neither stamp nor backdoor gets 0.5, not a reward or a penalty
    for how it scores the target class.
    """
    other = np.asarray(cell.labels) != cell.target
    triggered = cell.triggered.where(other)
    named = {
        "auroc": Comparison(cell.clean, triggered),
        "auroc_all": Comparison(cell.clean, cell.triggered),
    }
    if cell.placebo_clean is not None and cell.placebo_triggered is not None:
        named["auroc_placebo"] = Comparison(cell.placebo_clean, cell.placebo_triggered.where(other))
    if cell.decoy is not None:
        decoy = cell.decoy.where(other)
        named["auroc_decoy"] = Comparison(cell.clean, decoy)
        named["auroc_vs_decoy"] = Comparison(decoy, triggered)
        if cell.placebo_decoy is not None and cell.placebo_triggered is not None:
            named["auroc_vs_decoy_placebo"] = Comparison(
                cell.placebo_decoy.where(other), cell.placebo_triggered.where(other)
            )
    return named


def control_metrics(cell: CellScores) -> dict[str, float]:
    """Point values of :func:`comparisons` and ``auroc_delta`` = auroc - auroc_placebo.

    nan where the cell has no decoy or no clean twin to measure on.
    """
    controls = ("auroc_placebo", "auroc_decoy", "auroc_vs_decoy", "auroc_vs_decoy_placebo")
    values = dict.fromkeys(controls, math.nan)
    for name, compared in comparisons(cell).items():
        values[name] = auroc(compared.negatives.scores, compared.positives.scores)
    values["auroc_delta"] = values["auroc"] - values["auroc_placebo"]
    return values


def detection_draws(bootstrap: Bootstrap, cell: CellScores) -> dict[str, NDArray[np.float64]]:
    """:func:`control_metrics`, ``aupr`` and the ROC read-offs in every draw, (draws,) each.

    ``bootstrap`` must come from ``cell.labels``. Draws follow from the labels and the protocol's
    seed: differences between two defenses on one test set are paired draw by draw. What the cell
    has no decoy or no clean twin for is absent.
    """
    pairs = comparisons(cell)
    draws = {
        name: bootstrap.auroc_draws(compared.negatives, compared.positives)
        for name, compared in pairs.items()
    }
    if "auroc_placebo" in draws:
        draws["auroc_delta"] = draws["auroc"] - draws["auroc_placebo"]
    draws["aupr"] = bootstrap.aupr_draws(pairs["auroc"].negatives, pairs["auroc"].positives)
    detection = (pairs["auroc"].negatives, pairs["auroc"].positives)
    for name, fpr in (("tpr_at_1fpr", 0.01), ("tpr_at_5fpr", 0.05)):
        draws[name] = bootstrap.tpr_at_fpr_draws(*detection, fpr)
    draws["fpr_at_95tpr"] = bootstrap.fpr_at_tpr_draws(*detection, 0.95)
    return draws


def detection_intervals(draws: Mapping[str, NDArray[np.float64]]) -> dict[str, Interval]:
    """95 % test-sampling intervals of :func:`detection_draws`."""
    return {name: percentile_interval(values) for name, values in draws.items()}
