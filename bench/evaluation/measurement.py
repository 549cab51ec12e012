"""What the protocol measures in one cell, from scores and predictions alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.evaluation import detection, downstream
from bench.evaluation.bootstrap import Bootstrap
from bench.evaluation.comparisons import (
    CellScores,
    control_metrics,
    detection_draws,
    detection_intervals,
)

__all__ = ["MEDIAN_RULE", "Measurement", "downstream_row", "measure"]

MEDIAN_RULE = "median-test"
"""The published rule: the median of all test scores."""


@dataclass(frozen=True)
class Measurement:
    """Every figure of a cell.

    Attributes
    ----------
    metrics
        Metrics without a threshold, of the detector and of its controls, by column name.
    counts
        ``n_clean`` and ``n_triggered``: test images, the latter without those of the target class.
    draws
        Bootstrap draws by column name, each float64 (draws,).
    intervals
        (low, high) by column name.
    thresholds
        One dictionary per threshold rule and nominal rate: realised rates and their intervals.
    chosen
        The one of ``thresholds`` that the protocol names.
    downstream
        Accuracy and attack success by encoder and probe, and behind the chosen threshold's filter.
    """

    metrics: dict[str, float]
    counts: dict[str, int]
    draws: Mapping[str, NDArray[np.float64]]
    intervals: dict[str, tuple[float, float]]
    thresholds: list[dict[str, Any]]
    chosen: dict[str, Any]
    downstream: list[dict[str, Any]]

    @property
    def median(self) -> dict[str, Any]:
        """The one of ``thresholds`` by the published rule."""
        return next(row for row in self.thresholds if row["rule"] == MEDIAN_RULE)


def measure(
    cell: CellScores,
    calibration: Mapping[str, NDArray[np.float64]],
    predictions: Mapping[str, NDArray[np.integer]],
    probes: Sequence[str],
    protocol: Mapping[str, Any],
    seed: int,
) -> Measurement:
    """Everything that is measured in a cell.

    Parameters
    ----------
    cell
        Scores of the test images.
    calibration
        Threshold rule -> the victim's scores of the clean images it chooses on.
    predictions
        ``<role>_<probe>_<clean|triggered>`` -> predicted classes of the test images, (n,).
    probes
        Classifiers; the first is the one behind the filter.
    protocol
        ``bootstrap_draws``, ``calibration_fpr`` and ``threshold_source`` of the experiment.
    seed
        Of the bootstrap.
    """
    bootstrap = Bootstrap(cell.labels, protocol["bootstrap_draws"], seed)
    others = cell.labels != cell.target
    metrics = detection.detection_metrics(
        cell.clean.scores,
        cell.triggered.scores[others],
        triggered_target=cell.triggered.scores[~others],
    )
    draws = detection_draws(bootstrap, cell)
    thresholds = _thresholds(calibration, cell, protocol["calibration_fpr"], bootstrap)
    wanted = (protocol["threshold_source"], protocol["calibration_fpr"])
    chosen = next(row for row in thresholds if (row["rule"], row["nominal_fpr"]) == wanted)
    return Measurement(
        metrics=metrics | control_metrics(cell),
        counts={"n_clean": len(cell.labels), "n_triggered": int(others.sum())},
        draws=draws,
        intervals=detection_intervals(draws),
        thresholds=thresholds,
        chosen=chosen,
        downstream=[
            *_unfiltered(predictions, probes, cell, bootstrap),
            *_filtered(predictions, probes[0], cell, chosen["threshold"], bootstrap),
        ],
    )


def _thresholds(
    calibration: Mapping[str, NDArray[np.float64]],
    cell: CellScores,
    nominal_fpr: float,
    bootstrap: Bootstrap,
) -> list[dict[str, Any]]:
    """Every rule with its realised rates and their intervals at that threshold.

    TPR over non-target triggered images. The threshold is held fixed: the intervals say how the
    rates vary with the test images, not with the calibration images.
    """
    others = cell.labels != cell.target
    groups = {
        "clean": cell.clean.scores,
        "triggered": cell.triggered.scores[others],
        "clean_target": cell.clean.scores[~others],
    }
    decoy = None if cell.decoy is None else cell.decoy.scores[others]
    rows = []
    for rule, clean in calibration.items():
        for fpr in sorted({nominal_fpr, 0.01, 0.05}):
            threshold = detection.calibrated_threshold(clean, fpr)
            rates = detection.rates(threshold, **groups, decoy=decoy)
            rows.append(_threshold_row(rule, fpr, rates, cell, bootstrap))
    pooled = detection.median_rule(
        groups["clean"],
        groups["triggered"],
        cell.triggered.scores[~others],
        groups["clean_target"],
    )
    return [*rows, _threshold_row(MEDIAN_RULE, None, pooled, cell, bootstrap)]


def _threshold_row(
    rule: str,
    nominal_fpr: float | None,
    rates: detection.Rates,
    cell: CellScores,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    others = cell.labels != cell.target
    intervals = {}
    for name, sample in (("tpr", cell.triggered.where(others)), ("fpr", cell.clean)):
        low, high = bootstrap.mean(sample.images, sample.scores > rates.threshold)
        intervals |= {f"{name}_low": low, f"{name}_high": high}
    return {
        "rule": rule,
        "nominal_fpr": nominal_fpr,
        "threshold": rates.threshold,
        "tpr": rates.tpr,
        "fpr": rates.fpr,
        "fpr_target_class": rates.fpr_target_class,
        "fpr_decoy": rates.fpr_decoy,
        **intervals,
    }


def downstream_row(
    encoder: str,
    probe: str,
    metric: str,
    value: float | None,
    interval: tuple[float, float] = (math.nan, math.nan),
) -> dict[str, Any]:
    """One figure of an encoder under a probe, as a cell stores it."""
    return {
        "encoder": encoder,
        "probe": probe,
        "metric": metric,
        "value": value,
        "low": interval[0],
        "high": interval[1],
    }


def _unfiltered(
    predictions: Mapping[str, NDArray[np.integer]],
    probes: Sequence[str],
    cell: CellScores,
    bootstrap: Bootstrap,
) -> list[dict[str, Any]]:
    """CA and ASR of victim and twin by probe, with intervals."""
    labels, target = cell.labels, cell.target
    images, others = np.arange(len(labels)), np.flatnonzero(labels != target)
    rows = []
    for role in ("victim", "twin"):
        for probe in probes:
            if f"{role}_{probe}_clean" not in predictions:
                continue
            clean = predictions[f"{role}_{probe}_clean"]
            triggered = predictions[f"{role}_{probe}_triggered"]
            success = downstream.attack_success_rate(triggered, labels, target)
            right, hit = (clean == labels).astype(float), (triggered == target).astype(float)
            for metric, value, interval in (
                ("clean_accuracy", right.mean(), bootstrap.mean(images, right)),
                ("attack_success_rate", success.non_target, bootstrap.mean(others, hit[others])),
                ("attack_success_rate_all", success.all, bootstrap.mean(images, hit)),
            ):
                rows.append(downstream_row(role, probe, metric, float(value), interval))
    return rows


def _filtered(
    predictions: Mapping[str, NDArray[np.integer]],
    probe: str,
    cell: CellScores,
    threshold: float,
    bootstrap: Bootstrap,
) -> list[dict[str, Any]]:
    """CA and ASR of the victim behind a filter that drops scores above ``threshold``."""
    labels, target = cell.labels, cell.target
    images, others = np.arange(len(labels)), np.flatnonzero(labels != target)
    clean_predictions = predictions[f"victim_{probe}_clean"]
    triggered_predictions = predictions[f"victim_{probe}_triggered"]
    filtered = downstream.filtered_rates(
        threshold,
        target,
        clean_scores=cell.clean.scores,
        clean_predictions=clean_predictions,
        clean_labels=labels,
        triggered_scores=cell.triggered.scores,
        triggered_predictions=triggered_predictions,
        triggered_labels=labels,
    )
    kept = (cell.clean.scores <= threshold) & (clean_predictions == labels)
    taken = (cell.triggered.scores <= threshold) & (triggered_predictions == target)
    measured = (
        ("ca_filtered", filtered.ca_filtered, bootstrap.mean(images, kept.astype(float))),
        (
            "asr_filtered",
            filtered.asr_filtered,
            bootstrap.mean(others, taken[others].astype(float)),
        ),
        ("ca_passing", filtered.ca_passing, (math.nan, math.nan)),
    )
    return [downstream_row("victim", probe, *figure) for figure in measured]
