"""Detection metrics and thresholds: how well do scores tell triggered images from clean ones?

Scores are higher for more suspicious images. Positives are triggered images whose class is not
the target (a triggered image of the target class has nothing to hide), negatives are the clean
test images of all classes. An image is flagged when its score is strictly above the threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_curve

__all__ = [
    "SMALLEST_N_FOR_01FPR",
    "SPLIT_OF_RULE",
    "Rates",
    "auroc",
    "average_precision",
    "calibrated_threshold",
    "checked_scores",
    "detection_metrics",
    "fpr_at_tpr",
    "median_rule",
    "rates",
    "threshold_at_fpr",
    "tpr_at_fpr",
]

SPLIT_OF_RULE = {"clean-id": "calibration", "own-auxiliary": "auxiliary"}
"""Threshold rule -> the clean images whose scores it chooses on."""

SMALLEST_N_FOR_01FPR = 1000
"""Clean images below which a TPR at 0.1 % FPR is not reported: it would rest on no false alarm."""


@dataclass(frozen=True)
class Rates:
    """What a threshold does to the test images; every rate is in [0, 1], nan where not measured.

    Attributes
    ----------
    threshold
        Scores strictly above it are flagged; ``inf`` flags nothing.
    tpr
        Share of the triggered non-target-class images that is flagged.
    fpr
        Share of the clean images (all classes) that is flagged.
    fpr_target_class
        Share of the clean target-class images that is flagged.
    fpr_decoy
        Share of the decoy-stamped images that is flagged.
    """

    threshold: float
    tpr: float
    fpr: float
    fpr_target_class: float = math.nan
    fpr_decoy: float = math.nan


def checked_scores(scores: ArrayLike, what: str) -> NDArray[np.float64]:
    """``scores`` as float64 (N,).

    Raises
    ------
    ValueError
        When they are not one-dimensional, empty or not finite.
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{what} scores must be a non-empty vector, got shape {array.shape}")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(f"{bad} of {len(array)} {what} scores are not finite")
    return array


def auroc(clean: ArrayLike, triggered: ArrayLike) -> float:
    """Probability that a triggered image scores above a clean one, ties counted half.

    Computed from mid-ranks (Mann-Whitney), so it is exact for any pattern of ties and 0.5 for
    constant scores.

    Parameters
    ----------
    clean
        Scores of the negatives, (N,).
    triggered
        Scores of the positives, (M,).

    Raises
    ------
    ValueError
        When either is empty or not finite.
    """
    negatives, positives = checked_scores(clean, "clean"), checked_scores(triggered, "triggered")
    ranks = rankdata(np.concatenate([positives, negatives]))
    m, n = len(positives), len(negatives)
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))


def average_precision(clean: ArrayLike, triggered: ArrayLike) -> float:
    """Area under the precision-recall curve as average precision (a step sum, no interpolation).

    Tied scores enter at one threshold. It depends on the share of positives: compare it only
    between defenses on the same images.
    """
    truth, scores = _pooled(clean, triggered)
    return float(average_precision_score(truth, scores))


def tpr_at_fpr(clean: ArrayLike, triggered: ArrayLike, fpr: float) -> float:
    """The largest TPR over thresholds (strict ``>``) whose FPR on ``clean`` is at most ``fpr``.

    A positive tied with the first clean score that may not be flagged is not flagged either: there
    is no interpolation between thresholds.
    """
    positives = checked_scores(triggered, "triggered")
    return float((positives > threshold_at_fpr(clean, fpr)).mean())


def threshold_at_fpr(clean: ArrayLike, fpr: float) -> float:
    """The lowest threshold (strict ``>``) that flags at most the share ``fpr`` of ``clean``.

    It is read off the very scores it is applied to. For a threshold that holds on images it has
    not seen, use :func:`calibrated_threshold`.
    """
    negatives = checked_scores(clean, "clean")
    allowed = _floor(_checked_rate(fpr) * len(negatives))
    if allowed >= len(negatives):
        return -math.inf
    return _kth_largest(negatives, allowed + 1)


def fpr_at_tpr(clean: ArrayLike, triggered: ArrayLike, tpr: float) -> float:
    """The smallest FPR over thresholds whose TPR on ``triggered`` is at least ``tpr``."""
    truth, scores = _pooled(clean, triggered)
    false_rates, true_rates, _ = roc_curve(truth, scores, drop_intermediate=False)
    return float(false_rates[true_rates >= _checked_rate(tpr)].min())


def detection_metrics(
    clean: ArrayLike,
    triggered: ArrayLike,
    triggered_target: ArrayLike | None = None,
) -> dict[str, float]:
    """Every threshold-free detection number of one cell.

    Parameters
    ----------
    clean
        Scores (N,) of the clean test images of all classes.
    triggered
        Scores (M,) of the triggered images that are not of the target class.
    triggered_target
        Scores of the triggered images of the target class; they count in ``auroc_all`` alone.
        None (or empty) when there are none, and then ``auroc_all`` equals ``auroc``.

    Returns
    -------
    dict
        ``auroc``, ``auroc_all``, ``aupr``, ``tpr_at_1fpr``, ``tpr_at_5fpr``, ``tpr_at_01fpr``
        (nan below :data:`SMALLEST_N_FOR_01FPR` clean images) and ``fpr_at_95tpr``.
    """
    enough = len(np.asarray(clean)) >= SMALLEST_N_FOR_01FPR
    return {
        "auroc": auroc(clean, triggered),
        "auroc_all": auroc(clean, _joined(triggered, triggered_target)),
        "aupr": average_precision(clean, triggered),
        "tpr_at_1fpr": tpr_at_fpr(clean, triggered, 0.01),
        "tpr_at_5fpr": tpr_at_fpr(clean, triggered, 0.05),
        "tpr_at_01fpr": tpr_at_fpr(clean, triggered, 0.001) if enough else math.nan,
        "fpr_at_95tpr": fpr_at_tpr(clean, triggered, 0.95),
    }


def calibrated_threshold(scores: ArrayLike, fpr: float) -> float:
    """A threshold (strict ``>``) from clean scores that keeps the FPR on unseen clean images.

    The k-th largest score, k = floor(fpr (n + 1)): the split-conformal rule. For an unseen clean
    image exchangeable with ``scores``, the chance to be flagged is at most ``fpr``, whatever the
    distribution. On ``scores`` itself at most k - 1 values are flagged, so the realised FPR there
    is at most ``fpr`` too; ties only lower it.

    Parameters
    ----------
    scores
        Scores (n,) of clean calibration images.
    fpr
        Nominal false-positive rate, in (0, 1).

    Returns
    -------
    float
        ``inf`` (nothing is flagged) when n < 1/fpr - 1: so few images cannot vouch for the rate.
    """
    calibration = checked_scores(scores, "calibration")
    rank = _floor(_checked_rate(fpr) * (len(calibration) + 1))
    if rank == 0:
        return math.inf
    return _kth_largest(calibration, min(rank, len(calibration)))


def rates(
    threshold: float,
    clean: ArrayLike,
    triggered: ArrayLike,
    *,
    clean_target: ArrayLike | None = None,
    decoy: ArrayLike | None = None,
) -> Rates:
    """TPR and FPR of ``threshold`` (strict ``>``); nan for the groups that are not given.

    Parameters
    ----------
    clean, triggered
        As in :func:`detection_metrics`.
    clean_target
        Scores of the clean target-class images.
    decoy
        Scores of the decoy-stamped images (the caller chooses the classes).
    """
    return Rates(
        threshold=float(threshold),
        tpr=_flagged(threshold, checked_scores(triggered, "triggered"), "triggered"),
        fpr=_flagged(threshold, checked_scores(clean, "clean"), "clean"),
        fpr_target_class=_flagged(threshold, clean_target, "clean target-class"),
        fpr_decoy=_flagged(threshold, decoy, "decoy"),
    )


def median_rule(
    clean: ArrayLike,
    triggered: ArrayLike,
    triggered_target: ArrayLike | None = None,
    clean_target: ArrayLike | None = None,
) -> Rates:
    """The published rule: the threshold is the median of the pooled test scores (DeDe's code).

    It looks at the test scores and assumes that half of them are triggered, so it stands in columns
    of its own. The pool holds all images given (with ``triggered_target``, as published); the TPR
    is over ``triggered``.
    """
    pool = np.concatenate(
        [checked_scores(clean, "clean"), _joined(triggered, triggered_target)], dtype=np.float64
    )
    return rates(float(np.median(pool)), clean, triggered, clean_target=clean_target)


def _pooled(clean: ArrayLike, triggered: ArrayLike) -> tuple[NDArray, NDArray]:
    negatives, positives = checked_scores(clean, "clean"), checked_scores(triggered, "triggered")
    truth = np.repeat([0, 1], [len(negatives), len(positives)])
    return truth, np.concatenate([negatives, positives])


def _joined(scores: ArrayLike, more: ArrayLike | None) -> NDArray[np.float64]:
    first = checked_scores(scores, "triggered")
    if more is None or not len(np.asarray(more)):
        return first
    return np.concatenate([first, checked_scores(more, "triggered target-class")])


def _flagged(threshold: float, scores: ArrayLike | None, what: str) -> float:
    if scores is None or not len(np.asarray(scores)):
        return math.nan
    return float((checked_scores(scores, what) > threshold).mean())


def _kth_largest(scores: NDArray[np.float64], k: int) -> float:
    position = len(scores) - k
    return float(np.partition(scores, position)[position])


def _floor(value: float) -> int:
    # 0.29 * 100 is 28.999999999999996: a product that means an integer must not lose one.
    return math.floor(value + 1e-9)


def _checked_rate(rate: float) -> float:
    if not 0 <= rate <= 1:
        raise ValueError(f"a rate must be in [0, 1], got {rate}")
    return rate
