"""Everything of a cell, counted by hand on eight images."""

import math

import numpy as np
import pytest

from bench.evaluation.bootstrap import Sample
from bench.evaluation.comparisons import CellScores
from bench.evaluation.measurement import measure

LABELS = np.array([0, 0, 1, 1, 1, 2, 2, 2])  # class 0 is the target
CLEAN = np.array([0.1, 0.9, 0.2, 0.3, 0.4, 0.5, 0.6, 0.05])
TRIGGERED = np.array([0.0, 1.0, 0.55, 0.7, 0.8, 0.35, 0.95, 0.65])
PREDICTIONS = {
    "victim_knn_clean": np.array([0, 0, 1, 1, 2, 2, 2, 1]),
    "victim_knn_triggered": np.array([0, 0, 0, 0, 0, 2, 0, 0]),
    "twin_knn_clean": LABELS,
    "twin_knn_triggered": LABELS,
    "victim_linear_clean": LABELS,
    "victim_linear_triggered": np.zeros(8, int),
}
CALIBRATION = {
    "clean-id": np.linspace(0, 1, 101),  # its highest twentieth lies above 0.95
    "own-auxiliary": np.linspace(0, 0.5, 101),
}


def flagged(scores, threshold):
    return scores > threshold


def share_above(scores, threshold):
    return np.mean(flagged(scores, threshold))


@pytest.fixture(scope="module")
def measured():
    cell = CellScores(LABELS, 0, clean=Sample.of_all(CLEAN), triggered=Sample.of_all(TRIGGERED))
    protocol = {
        "bootstrap_draws": 200,
        "calibration_fpr": 0.4,
        "threshold_source": "own-auxiliary",
    }
    return measure(cell, CALIBRATION, PREDICTIONS, ["knn", "linear"], protocol, seed=0)


def test_positives_leave_the_target_class_out(measured):
    assert measured.counts == {"n_clean": 8, "n_triggered": 6}
    pairs = [(p > n) + 0.5 * (p == n) for p in TRIGGERED[2:] for n in CLEAN]
    assert measured.metrics["auroc"] == pytest.approx(np.mean(pairs))


def test_the_chosen_threshold_is_the_protocols(measured):
    chosen = measured.chosen
    assert (chosen["rule"], chosen["nominal_fpr"]) == ("own-auxiliary", 0.4)
    threshold = chosen["threshold"]
    assert share_above(CALIBRATION["own-auxiliary"], threshold) <= 0.4
    assert chosen["tpr"] == share_above(TRIGGERED[2:], threshold)
    assert chosen["fpr"] == share_above(CLEAN, threshold)
    rules = {(row["rule"], row["nominal_fpr"]) for row in measured.thresholds}
    rates = (0.01, 0.05, 0.4)
    assert rules == {(rule, rate) for rule in CALIBRATION for rate in rates} | {
        ("median-test", None)
    }


def test_the_median_rule_looks_at_every_test_score(measured):
    threshold = np.median(np.concatenate([CLEAN, TRIGGERED]))
    assert measured.median["tpr"] == share_above(TRIGGERED[2:], threshold)
    assert measured.median["fpr"] == share_above(CLEAN, threshold)


def test_downstream_by_probe_and_behind_the_first_probes_filter(measured):
    found = {(r["encoder"], r["probe"], r["metric"]): r for r in measured.downstream}
    values = {name: row["value"] for name, row in found.items()}
    assert values["victim", "knn", "clean_accuracy"] == 6 / 8
    assert values["victim", "knn", "attack_success_rate"] == 5 / 6
    assert values["victim", "knn", "attack_success_rate_all"] == 7 / 8
    assert values["twin", "knn", "attack_success_rate"] == 0
    assert values["victim", "linear", "attack_success_rate"] == 1
    assert ("twin", "linear", "clean_accuracy") not in values
    threshold = measured.chosen["threshold"]
    right = (PREDICTIONS["victim_knn_clean"] == LABELS) & ~flagged(CLEAN, threshold)
    hit = (PREDICTIONS["victim_knn_triggered"] == 0) & ~flagged(TRIGGERED, threshold)
    assert values["victim", "knn", "ca_filtered"] == right.mean()
    assert values["victim", "knn", "asr_filtered"] == hit[2:].mean()
    assert ("victim", "linear", "ca_filtered") not in values
    interval = found["victim", "knn", "clean_accuracy"]
    assert interval["low"] < 6 / 8 < interval["high"]
    assert math.isnan(found["victim", "knn", "ca_passing"]["low"])
