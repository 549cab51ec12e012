"""Who is a positive and who is a negative in each column."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from bench.evaluation.bootstrap import Bootstrap, Sample, percentile_interval
from bench.evaluation.comparisons import (
    CellScores,
    comparisons,
    control_metrics,
    detection_draws,
    detection_intervals,
)
from bench.evaluation.detection import detection_metrics

LABELS = np.arange(120) % 6
TARGET = 2


def cell(decoy_shift: float = 0.0) -> CellScores:
    """A defense that reacts to the backdoor (shift 1.5), and by ``decoy_shift`` to any stamp."""
    content = np.random.default_rng(0).normal(size=len(LABELS))
    noise = np.random.default_rng(1).normal(0, 0.1, size=(4, len(LABELS)))
    return CellScores(
        labels=LABELS,
        target=TARGET,
        clean=Sample.of_all(content),
        triggered=Sample.of_all(content + noise[0] + 1.5 + decoy_shift),
        placebo_clean=Sample.of_all(content + noise[1]),
        placebo_triggered=Sample.of_all(content + noise[2] + decoy_shift),
        decoy=Sample.of_all(content + noise[3] + decoy_shift),
        placebo_decoy=Sample.of_all(content + noise[1] + decoy_shift),
    )


def test_a_detector_of_the_backdoor_wins_against_placebo_and_decoy():
    values = control_metrics(cell())
    assert values["auroc"] > 0.8
    assert abs(values["auroc_decoy"] - 0.5) < 0.05
    assert abs(values["auroc_placebo"] - 0.5) < 0.05
    assert values["auroc_vs_decoy"] > 0.8
    assert values["auroc_delta"] == values["auroc"] - values["auroc_placebo"]


def test_a_detector_of_any_stamp_loses_against_placebo_and_decoy():
    stamped = cell(decoy_shift=4)
    seen = dataclasses.replace(stamped, triggered=stamped.decoy)
    values = control_metrics(seen)
    assert values["auroc"] > 0.95
    assert values["auroc_vs_decoy"] == 0.5
    assert abs(values["auroc_delta"]) < 0.02


def test_decoy_that_is_odder_than_the_trigger_shows_on_the_twin():
    fair = dataclasses.replace(cell(), placebo_decoy=cell().placebo_triggered)
    assert control_metrics(fair)["auroc_vs_decoy_placebo"] == 0.5
    odd = Sample.of_all(fair.placebo_triggered.scores + 5)
    values = control_metrics(dataclasses.replace(fair, placebo_decoy=odd))
    assert values["auroc_vs_decoy_placebo"] < 0.05
    without = dataclasses.replace(fair, placebo_decoy=None)
    assert math.isnan(control_metrics(without)["auroc_vs_decoy_placebo"])


def test_target_class_images_are_negatives_but_not_positives():
    scores = cell()
    target_images = LABELS == TARGET
    raised = scores.triggered.scores + 100.0 * target_images
    changed = dataclasses.replace(scores, triggered=Sample.of_all(raised))
    before, after = control_metrics(scores), control_metrics(changed)
    assert after["auroc_all"] > before["auroc_all"]
    for name in ("auroc", "auroc_delta", "auroc_vs_decoy", "auroc_decoy"):
        assert after[name] == before[name]
    lowered = Sample.of_all(scores.clean.scores - 100.0 * target_images)
    assert control_metrics(dataclasses.replace(scores, clean=lowered))["auroc"] > before["auroc"]


def test_a_defense_blind_to_stamps_is_not_judged_by_its_view_of_the_target_class():
    by_class = Sample.of_all(100.0 * (LABELS == TARGET) + np.arange(len(LABELS)))
    blind = dataclasses.replace(cell(), triggered=by_class, decoy=by_class)
    assert control_metrics(blind)["auroc_vs_decoy"] == 0.5


def test_point_values_agree_with_the_detection_metrics():
    scores = cell()
    other = LABELS != TARGET
    metrics = detection_metrics(
        scores.clean.scores, scores.triggered.scores[other], scores.triggered.scores[~other]
    )
    values = control_metrics(scores)
    assert values["auroc"] == metrics["auroc"]
    assert values["auroc_all"] == metrics["auroc_all"]


def test_intervals_hold_their_point_values():
    scores = cell()
    intervals = detection_intervals(detection_draws(Bootstrap(LABELS, draws=400), scores))
    values = control_metrics(scores)
    other = LABELS != TARGET
    values |= {
        name: value
        for name, value in detection_metrics(
            scores.clean.scores, scores.triggered.scores[other]
        ).items()
        if name in ("aupr", "tpr_at_1fpr", "tpr_at_5fpr", "fpr_at_95tpr")
    }
    assert set(intervals) == set(values)
    for name, value in values.items():
        low, high = intervals[name]
        assert low <= value <= high, name
    bootstrap = Bootstrap(LABELS, draws=400)
    of_victim = bootstrap.auroc_draws(scores.clean, scores.triggered.where(other))
    of_twin = bootstrap.auroc_draws(scores.placebo_clean, scores.placebo_triggered.where(other))
    assert intervals["auroc_delta"] == percentile_interval(of_victim - of_twin)


def test_without_a_decoy_its_columns_are_empty():
    scores = dataclasses.replace(cell(), decoy=None)
    values = control_metrics(scores)
    assert math.isnan(values["auroc_decoy"])
    assert math.isnan(values["auroc_vs_decoy"])
    intervals = detection_intervals(detection_draws(Bootstrap(LABELS, draws=20), scores))
    assert "auroc_vs_decoy" not in intervals
    assert "auroc" in intervals


def without_twin(**changes) -> CellScores:
    nothing = dict.fromkeys(("placebo_clean", "placebo_triggered", "placebo_decoy"))
    return dataclasses.replace(cell(), **nothing, **changes)


def test_without_a_twin_placebo_and_delta_are_empty_and_the_rest_is_as_with_one():
    scores = without_twin()
    of_the_twin = {"auroc_placebo", "auroc_delta", "auroc_vs_decoy_placebo"}
    values, complete = control_metrics(scores), control_metrics(cell())
    assert set(values) == set(complete)
    assert {name for name, value in values.items() if math.isnan(value)} == of_the_twin
    intervals, with_twin = (
        detection_intervals(detection_draws(Bootstrap(LABELS, draws=50), some))
        for some in (scores, cell())
    )
    assert set(intervals) == set(with_twin) - of_the_twin
    for name in intervals:
        assert intervals[name] == with_twin[name]
    for name in set(values) - of_the_twin:
        assert values[name] == complete[name]


def test_without_twin_and_decoy_the_victim_alone_is_compared():
    assert set(comparisons(without_twin(decoy=None))) == {"auroc", "auroc_all"}


def test_half_a_twin_gives_no_placebo():
    half = dataclasses.replace(cell(), placebo_clean=None)
    assert math.isnan(control_metrics(half)["auroc_placebo"])
    assert "auroc_placebo" not in comparisons(half)
