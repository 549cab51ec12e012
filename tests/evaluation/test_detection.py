"""Detection metrics: conventions, ties, thresholds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from bench.evaluation.detection import (
    auroc,
    average_precision,
    calibrated_threshold,
    detection_metrics,
    fpr_at_tpr,
    median_rule,
    rates,
    threshold_at_fpr,
    tpr_at_fpr,
)

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "evaluation.json").read_text(encoding="utf-8")
)["median_rule"]


def tied_scores(seed: int, clean: int = 300, triggered: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Scores on a grid of tenths, so that most values are shared within and between groups."""
    generator = np.random.default_rng(seed)
    return (
        generator.normal(0, 1, clean).round(1),
        generator.normal(0.7, 1.3, triggered).round(1),
    )


def golden_groups() -> tuple[np.ndarray, np.ndarray]:
    scores, triggered = np.array(GOLDEN["scores"]), np.array(GOLDEN["triggered"], dtype=bool)
    return scores[~triggered], scores[triggered]


def test_median_rule_reproduces_the_published_figures():
    clean, triggered = golden_groups()
    found = median_rule(clean, triggered)
    assert (found.threshold, found.fpr, found.tpr) == (
        GOLDEN["threshold"],
        GOLDEN["fpr"],
        GOLDEN["tpr"],
    )
    assert auroc(clean, triggered) == GOLDEN["auroc"]


def test_median_rule_does_not_flag_a_score_equal_to_the_median():
    found = median_rule([0.0, 1.0, 1.0], [1.0, 2.0])
    assert found.threshold == 1.0
    assert (found.fpr, found.tpr) == (0.0, 0.5)


def test_median_rule_pools_triggered_target_images_but_leaves_them_out_of_the_tpr():
    found = median_rule([0.0, 1.0], [2.0, 3.0], triggered_target=[4.0, 5.0, 6.0])
    assert found.threshold == 3.0
    assert (found.fpr, found.tpr) == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_and_aupr_equal_sklearn_with_ties(seed: int):
    clean, triggered = tied_scores(seed)
    truth = np.repeat([0, 1], [len(clean), len(triggered)])
    scores = np.concatenate([clean, triggered])
    assert auroc(clean, triggered) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert average_precision(clean, triggered) == average_precision_score(truth, scores)


def test_auroc_counts_every_pair_with_ties_half():
    clean, triggered = tied_scores(7, clean=40, triggered=30)
    wins = (triggered[:, None] > clean).sum() + 0.5 * (triggered[:, None] == clean).sum()
    assert auroc(clean, triggered) == wins / (40 * 30)


def test_constant_scores_win_nothing():
    metrics = detection_metrics(np.zeros(100), np.zeros(50))
    assert metrics["auroc"] == metrics["auroc_all"] == 0.5
    assert metrics["tpr_at_1fpr"] == metrics["tpr_at_5fpr"] == 0.0
    assert metrics["fpr_at_95tpr"] == 1.0


def test_perfect_and_reversed_scores_are_the_extremes():
    low, high = np.linspace(0, 1, 50), np.linspace(2, 3, 40)
    good, bad = detection_metrics(low, high), detection_metrics(high, low)
    assert (good["auroc"], good["aupr"], good["tpr_at_1fpr"], good["fpr_at_95tpr"]) == (1, 1, 1, 0)
    assert (bad["auroc"], bad["tpr_at_5fpr"], bad["fpr_at_95tpr"]) == (0, 0, 1)


@pytest.mark.parametrize("transform", [lambda s: 3 * s + 7, np.exp, np.arctan])
def test_metrics_do_not_change_under_increasing_transforms(transform):
    clean, triggered = tied_scores(3, clean=1200)
    before = detection_metrics(clean, triggered, triggered[:20])
    after = detection_metrics(transform(clean), transform(triggered), transform(triggered[:20]))
    assert after == before
    assert not any(math.isnan(value) for value in before.values())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.05, 0.2, 1.0])
def test_tpr_at_fpr_is_the_best_over_all_thresholds(seed: int, fpr: float):
    clean, triggered = tied_scores(seed)
    candidates = np.concatenate([[-np.inf], clean, triggered])
    allowed = [t for t in candidates if (clean > t).mean() <= fpr]
    assert tpr_at_fpr(clean, triggered, fpr) == max((triggered > t).mean() for t in allowed)
    assert (clean > threshold_at_fpr(clean, fpr)).mean() <= fpr
    false_rates, true_rates, _ = roc_curve(
        np.repeat([0, 1], [len(clean), len(triggered)]),
        np.concatenate([clean, triggered]),
        drop_intermediate=False,
    )
    assert tpr_at_fpr(clean, triggered, fpr) == true_rates[false_rates <= fpr].max()


def test_fpr_at_tpr_is_the_smallest_that_reaches_the_tpr():
    clean, triggered = np.arange(10.0), np.arange(20) / 2 + 0.25
    # 19 of 20 positives lie above 0.5: the clean scores 1..9 lie above it too.
    assert fpr_at_tpr(clean, triggered, 0.95) == 0.9
    assert fpr_at_tpr([0, 1, 2, 3], [2, 2, 2, 2], 0.95) == 0.5


def test_a_rate_that_means_a_whole_number_of_images_is_not_rounded_down():
    clean = np.arange(100.0)
    assert (clean > threshold_at_fpr(clean, 0.29)).sum() == 29


def test_tpr_at_a_tenth_of_a_percent_needs_a_thousand_clean_images():
    clean = np.arange(1000.0)
    assert math.isnan(detection_metrics(clean[:999], [2000.0])["tpr_at_01fpr"])
    assert detection_metrics(clean, [998.5, 997.5])["tpr_at_01fpr"] == 0.5


def test_target_class_images_count_in_auroc_all_alone():
    clean, triggered = tied_scores(1)
    alone = detection_metrics(clean, triggered)
    joined = detection_metrics(clean, triggered, triggered_target=np.full(50, -9.0))
    assert alone["auroc_all"] == alone["auroc"] == joined["auroc"]
    assert joined["auroc_all"] == pytest.approx(alone["auroc"] * 200 / 250, abs=1e-12)
    assert all(joined[name] == alone[name] for name in ("aupr", "tpr_at_5fpr", "fpr_at_95tpr"))


def test_calibrated_threshold_is_the_conformal_order_statistic():
    # k = floor(0.05 * 100) = 5: the fifth largest of 99.
    assert calibrated_threshold(np.arange(1.0, 100.0), 0.05) == 95.0
    # k = floor(0.05 * 20) = 1: the largest of 19, and no number vouches for 5 % with 18.
    assert calibrated_threshold(np.arange(19.0), 0.05) == 18.0
    assert calibrated_threshold(np.arange(18.0), 0.05) == math.inf


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.3])
def test_calibrated_threshold_keeps_its_rate_on_the_calibration_set_with_ties(seed, fpr):
    clean, _ = tied_scores(seed, clean=257)
    assert (clean > calibrated_threshold(clean, fpr)).mean() <= fpr
    few_values = clean.round(0)
    assert (few_values > calibrated_threshold(few_values, fpr)).mean() <= fpr
    assert calibrated_threshold(np.full(100, 2.5), fpr) == 2.5


def test_calibrated_threshold_keeps_its_rate_on_unseen_images():
    generator = np.random.default_rng(0)
    calibration, unseen = generator.exponential(size=(4000, 39)), generator.exponential(size=4000)
    flagged = [
        new > calibrated_threshold(old, 0.05) for new, old in zip(unseen, calibration, strict=True)
    ]
    # Exactly 2/40 in expectation; the standard error is 0.0034.
    assert np.mean(flagged) == pytest.approx(0.05, abs=0.012)


def test_rates_are_strict_and_nan_where_nothing_was_measured():
    found = rates(1.0, [0.0, 1.0, 2.0, 3.0], [1.0, 5.0], decoy=[1.0, 2.0, 2.0, 0.0])
    assert (found.tpr, found.fpr, found.fpr_decoy) == (0.5, 0.5, 0.5)
    assert math.isnan(found.fpr_target_class)
    assert rates(1.0, [0.0, 2.0], [5.0], clean_target=[2.0]).fpr_target_class == 1.0
    nothing, everything = (rates(at, [0.0, 1.0], [5.0, 6.0]) for at in (math.inf, -math.inf))
    assert (nothing.tpr, nothing.fpr) == (0.0, 0.0)
    assert (everything.tpr, everything.fpr) == (1.0, 1.0)


def test_scores_that_are_not_finite_or_missing_are_refused():
    with pytest.raises(ValueError, match="1 of 2 triggered scores are not finite"):
        auroc([0.0], [1.0, math.nan])
    with pytest.raises(ValueError, match="clean scores must be a non-empty vector"):
        detection_metrics([], [1.0])
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\]"):
        tpr_at_fpr([0.0], [1.0], 5)
