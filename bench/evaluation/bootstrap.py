"""The test-sampling interval: a bootstrap of source images, stratified by class.

One test image is one unit: drawing it twice repeats its clean, triggered, placebo and decoy scores
together, so intervals of differences are paired. The draws follow from the labels and a seed
alone, hence all defenses on one test set share them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.evaluation.detection import checked_scores

__all__ = ["DRAWS", "Bootstrap", "Interval", "Sample", "percentile_interval"]

DRAWS = 2000
Interval = tuple[float, float]

_PICKS_AT_ONCE = 4_000_000  # int64: 32 MB while the draws are made
_WEIGHTS_AT_ONCE = 64_000  # float64: half a MB stays in a processor's cache


@dataclass(frozen=True)
class Sample:
    """Scores of some source images under one condition.

    Attributes
    ----------
    images
        int64 (M,): positions in the labels that the bootstrap was made from; each at most once.
    scores
        float64 (M,), finite.

    Raises
    ------
    ValueError
        When lengths differ, an image is named twice or a score is not finite.
    """

    images: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        images = np.asarray(self.images)
        scores = checked_scores(self.scores, "sample")
        if images.shape != scores.shape:
            raise ValueError(f"{images.shape} images for {scores.shape} scores")
        if not np.issubdtype(images.dtype, np.integer):
            raise ValueError(f"images are positions and must be integers, got {images.dtype}")
        if images.min() < 0:
            raise ValueError(f"images are positions and must not be negative, got {images.min()}")
        if len(np.unique(images)) != len(images):
            raise ValueError("an image has one score per condition, and one is named twice")
        object.__setattr__(self, "images", images.astype(np.int64))
        object.__setattr__(self, "scores", scores)

    @classmethod
    def of_all(cls, scores: ArrayLike) -> Sample:
        """One score per image of the test set, in its order."""
        return cls(np.arange(len(np.asarray(scores))), scores)

    def where(self, chosen: NDArray[np.bool_]) -> Sample:
        """Only the images for which ``chosen`` (bool, one per image of the test set) holds."""
        kept = np.asarray(chosen, dtype=bool)[self.images]
        return Sample(self.images[kept], self.scores[kept])


class Bootstrap:
    """Multiplicities of the source images in every draw, and statistics over the draws.

    Parameters
    ----------
    labels
        Class of every test image, int (n,), not negative. Each draw takes as many images of a class
        as the class has.
    draws
        How many bootstrap samples.
    seed
        Fixed by the protocol, so that every defense sees the same draws.

    Raises
    ------
    ValueError
        When the labels are not a non-empty vector of non-negative integers.
    """

    def __init__(self, labels: ArrayLike, draws: int = DRAWS, seed: int = 0) -> None:
        classes = np.asarray(labels)
        if classes.ndim != 1 or not len(classes) or not np.issubdtype(classes.dtype, np.integer):
            raise ValueError("labels must be a non-empty vector of integers")
        if classes.min() < 0:
            raise ValueError(f"labels must not be negative, got {classes.min()}")
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}")
        self.draws = draws
        self.multiplicities: NDArray[np.uint8] = np.empty((draws, len(classes)), dtype=np.uint8)
        for label in np.unique(classes):
            members = np.flatnonzero(classes == label)
            # A generator per class: the draws of one class do not depend on the other classes.
            generator = np.random.default_rng([seed, int(label)])
            self.multiplicities[:, members] = _stratum(len(members), draws, generator)

    def auroc_draws(self, negatives: Sample, positives: Sample) -> NDArray[np.float64]:
        """AUROC in every draw, (draws,): exact, ties count half, nan where a side is empty.

        Pairs of an image with itself have the share of all pairs in every draw that they have in
        the sample: an image that is drawn w times would meet itself w^2 times, 2 on average, and
        pull the draws towards how triggered images compare with themselves.

        The scores are sorted once; a draw only changes weights, so each costs a cumulative sum and
        two look-ups per positive.
        """
        order = np.argsort(negatives.scores, kind="stable")
        ascending, rows = negatives.scores[order], negatives.images[order]
        by_score = np.argsort(positives.scores, kind="stable")  # look-ups then walk memory in order
        scores, images = positives.scores[by_score], positives.images[by_score]
        below = np.searchsorted(ascending, scores, "left")
        not_above = np.searchsorted(ascending, scores, "right")
        both, left, right = np.intersect1d(
            negatives.images, positives.images, assume_unique=True, return_indices=True
        )
        # Twice the win of each such image over itself: 2, 1 for a tie, or 0.
        against_itself = 1 + np.sign(positives.scores[right] - negatives.scores[left])
        share = len(both) / (len(rows) * len(images)) if len(both) else 0.0

        def statistics(weights: NDArray[np.uint8]) -> NDArray[np.float64]:
            cumulative = np.zeros((len(weights), len(rows) + 1))
            np.cumsum(
                np.take(weights, rows, axis=1), axis=1, dtype=np.float64, out=cumulative[:, 1:]
            )
            drawn = np.take(weights, images, axis=1).astype(np.float64)
            wins = np.take(cumulative, below, axis=1) + np.take(cumulative, not_above, axis=1)
            pairs = 2 * cumulative[:, -1] * drawn.sum(axis=1)
            own = np.take(weights, both, axis=1).astype(np.float64)
            others = _ratios(
                np.einsum("ij,ij->i", drawn, wins) - own**2 @ against_itself,
                pairs - 2 * (own**2).sum(axis=1),
            )
            if not share:
                return others
            alone = _ratios(own @ against_itself, 2 * own.sum(axis=1))
            mixed = (1 - share) * others + share * alone
            return np.where(np.isnan(others), alone, np.where(np.isnan(alone), others, mixed))

        return self._over_blocks(statistics)

    def aupr_draws(self, negatives: Sample, positives: Sample) -> NDArray[np.float64]:
        """Average precision in every draw, (draws,), as in ``detection.average_precision``."""
        order = np.argsort(-negatives.scores, kind="stable")
        rows = negatives.images[order]
        by_score = np.argsort(-positives.scores, kind="stable")
        scores, images = -positives.scores[by_score], positives.images[by_score]
        false = np.searchsorted(-negatives.scores[order], scores, "right")
        true = np.searchsorted(scores, scores, "right")
        false_alarms, hits = np.zeros(len(rows) + 1), np.zeros(len(images) + 1)

        def statistic(weights: NDArray[np.uint8]) -> float:
            np.cumsum(weights[rows], dtype=np.float64, out=false_alarms[1:])
            drawn = weights[images].astype(np.float64)
            np.cumsum(drawn, out=hits[1:])
            caught = hits[true]
            # Where nothing was drawn down to this score the numerator is 0 as well.
            precision = caught / np.maximum(caught + false_alarms[false], 1)
            return _ratio(float(drawn @ precision), float(hits[-1]))

        return self._over_draws(statistic)

    def tpr_at_fpr_draws(
        self, negatives: Sample, positives: Sample, fpr: float
    ) -> NDArray[np.float64]:
        """TPR at ``fpr`` in every draw, (draws,), as in ``detection.tpr_at_fpr``.

        The threshold is read off each draw's own negatives.
        """
        order = np.argsort(-negatives.scores, kind="stable")
        descending, rows = negatives.scores[order], negatives.images[order]
        by_score = np.argsort(-positives.scores, kind="stable")
        scores, images = positives.scores[by_score], positives.images[by_score]
        # How many positives lie strictly above each negative, and all of them for no threshold.
        above = np.append(np.searchsorted(-scores, -descending, "left"), len(scores))
        hits = np.zeros(len(images) + 1)

        def statistic(weights: NDArray[np.uint8]) -> float:
            false_alarms = np.cumsum(weights[rows], dtype=np.int64)
            np.cumsum(weights[images], dtype=np.float64, out=hits[1:])
            allowed = math.floor(fpr * false_alarms[-1] + 1e-9)
            first_kept = np.searchsorted(false_alarms, allowed, "right")
            return _ratio(float(hits[above[first_kept]]), float(hits[-1]))

        return self._over_draws(statistic)

    def fpr_at_tpr_draws(
        self, negatives: Sample, positives: Sample, tpr: float
    ) -> NDArray[np.float64]:
        """FPR at ``tpr`` in every draw, (draws,), as in ``detection.fpr_at_tpr``."""
        order = np.argsort(-negatives.scores, kind="stable")
        rows = negatives.images[order]
        by_score = np.argsort(-positives.scores, kind="stable")
        scores, images = positives.scores[by_score], positives.images[by_score]
        # How many negatives a threshold just below each positive flags.
        flagged = np.searchsorted(-negatives.scores[order], -scores, "right")
        false_alarms = np.zeros(len(rows) + 1)

        def statistic(weights: NDArray[np.uint8]) -> float:
            hits = np.cumsum(weights[images], dtype=np.float64)
            np.cumsum(weights[rows], dtype=np.float64, out=false_alarms[1:])
            if not hits[-1]:
                return float("nan")
            needed = np.searchsorted(hits, tpr * hits[-1] - 1e-9, "left")
            return _ratio(float(false_alarms[flagged[needed]]), float(false_alarms[-1]))

        return self._over_draws(statistic)

    def mean_draws(self, images: ArrayLike, values: ArrayLike) -> NDArray[np.float64]:
        """Mean of ``values`` over ``images`` in every draw, (draws,).

        Accuracies, attack success rates and TPR or FPR at a fixed threshold are means of
        indicators (``predictions == labels``, ``scores > threshold``).

        Parameters
        ----------
        images
            int (M,): positions in the labels.
        values
            float or bool (M,), one per image. Of no image at all the mean is nan.
        """
        if not len(np.asarray(images)):
            return np.full(self.draws, np.nan)
        sample = Sample(np.asarray(images), np.asarray(values, dtype=np.float64))

        def statistics(weights: NDArray[np.uint8]) -> NDArray[np.float64]:
            drawn = np.take(weights, sample.images, axis=1).astype(np.float64)
            return _ratios(drawn @ sample.scores, drawn.sum(axis=1))

        return self._over_blocks(statistics)

    def mean(self, images: ArrayLike, values: ArrayLike) -> Interval:
        """95 % interval of an accuracy or a rate, see :meth:`mean_draws`."""
        return percentile_interval(self.mean_draws(images, values))

    def _over_blocks(
        self, statistics: Callable[[NDArray[np.uint8]], NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """Of many draws at once where test sets are small, of few where they are large."""
        count, images = self.multiplicities.shape
        step = max(1, _WEIGHTS_AT_ONCE // images)
        blocks = (self.multiplicities[start : start + step] for start in range(0, count, step))
        return np.concatenate([statistics(block) for block in blocks])

    def _over_draws(self, statistic: Callable[[NDArray[np.uint8]], float]) -> NDArray[np.float64]:
        # One draw at a time keeps the working set in the processor's cache: faster than batches,
        # and memory does not grow with the number of draws.
        return np.array([statistic(weights) for weights in self.multiplicities])


def percentile_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """The central ``confidence`` of ``values`` (draws,).

    Draws in which the statistic is undefined (nan) are left out: in a small transductive cell all
    positives may be missing from a draw. (nan, nan) when none is defined.
    """
    array = np.asarray(values, dtype=np.float64)
    defined = array[np.isfinite(array)]
    if not len(defined):
        return (float("nan"), float("nan"))
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return (float(low), float(high))


def _stratum(size: int, draws: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """How often each of ``size`` images comes in each draw of ``size`` with replacement."""
    # uint8 is enough: an image comes about once per draw, 256 times never happens.
    counts = np.empty((draws, size), dtype=np.uint8)
    step = max(1, _PICKS_AT_ONCE // size)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        picks = generator.integers(0, size, size=(rows, size))
        picks += size * np.arange(rows)[:, None]
        counts[start : start + rows] = np.bincount(picks.ravel(), minlength=rows * size).reshape(
            rows, size
        )
    return counts


def _ratios(numerators: NDArray[np.float64], denominators: NDArray[np.float64]) -> NDArray:
    """Element by element, nan where a denominator is 0."""
    undefined = denominators == 0
    return np.where(undefined, np.nan, numerators / np.where(undefined, 1, denominators))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")
