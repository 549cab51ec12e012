"""Test scores of a cell, and the thinned curves that a page can carry; needs no matplotlib."""

from __future__ import annotations

import numpy as np

from bench.report.schema import StoredCell

__all__ = ["Scores", "cell_scores", "histograms", "roc_points"]

Scores = dict[tuple[str, str], np.ndarray]
"""(encoder, condition) -> test scores; triggered and decoy without the target class."""

STEPS = 10_000
"""Rates in a page are whole multiples of 1 / STEPS."""

_GRID = np.unique(np.concatenate([np.linspace(0, 1, 41), np.geomspace(1e-4, 1, 33)]))
_TOLERANCE = 0.002
_BINS = 40

_SERIES = {
    "clean": ("victim", "clean"),
    "triggered": ("victim", "triggered"),
    "decoy": ("victim", "decoy"),
    "placebo": ("twin", "triggered"),
}


def cell_scores(cell: StoredCell) -> Scores:
    """The finite test scores of ``cell``.

    Raises
    ------
    ReportError
        When ``scores.parquet`` is missing or damaged.
    """
    frame = cell.scores()
    target = cell.row["target"]
    kept = (frame["split"] == "test") & np.isfinite(frame["score"])
    if target is not None:
        kept &= (frame["condition"] == "clean") | (frame["label"] != target)
    groups = frame[kept].groupby(["encoder", "condition"], observed=True)["score"]
    return {(str(who), str(what)): values.to_numpy() for (who, what), values in groups}


def roc_points(scores: Scores, encoder: str) -> list[int] | None:
    """ROC of triggered against clean on ``encoder``, thinned; None where scores are missing.

    Returns
    -------
    list
        False and true positive rate in turn, in units of 1 / STEPS, each as the difference to the
        point before. True positive rates read off between points are within 0.002.
    """
    clean, triggered = scores.get((encoder, "clean")), scores.get((encoder, "triggered"))
    if clean is None or triggered is None:
        return None
    false, true = _roc(clean, triggered)
    places = np.minimum(np.searchsorted(false, _GRID), len(false) - 1)
    kept = np.unique(np.concatenate([[0, len(false) - 1], places]))
    tops = np.searchsorted(false, false[kept], side="right") - 1  # both ends of a vertical step
    kept = np.unique(np.concatenate([kept, tops]))
    points = np.rint(np.stack([false[kept], true[kept]], axis=1) * STEPS).astype(int)
    points = _without_collinear(points)
    return np.diff(points, axis=0, prepend=np.zeros((1, 2), dtype=int)).ravel().tolist()


def histograms(scores: Scores) -> dict[str, object] | None:
    """Shares of each condition in 40 bins, in units of 1 / STEPS; None without scores.

    The bins span all but the lowest and highest 0.1 % of the pooled scores: ``low`` to ``high``.
    """
    series = {name: scores[place] for name, place in _SERIES.items() if place in scores}
    if not series:
        return None
    low, high = np.percentile(np.concatenate(list(series.values())), [0.1, 99.9])
    edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1, dtype=np.float64)
    shares = {
        name: np.rint(np.histogram(values, edges)[0] * (STEPS / len(values))).astype(int).tolist()
        for name, values in series.items()
    }
    return {"low": float(edges[0]), "high": float(edges[-1]), **shares}


def _roc(clean: np.ndarray, triggered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates at every distinct score, from (0, 0) to (1, 1)."""
    values = np.concatenate([clean, triggered])
    truth = np.repeat([0, 1], [len(clean), len(triggered)])
    order = np.argsort(-values, kind="stable")
    values, truth = values[order], truth[order]
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    hits = np.cumsum(truth)[ends]
    false = np.append(0.0, (ends + 1 - hits) / len(clean))
    return false, np.append(0.0, hits / len(triggered))


def _without_collinear(points: np.ndarray) -> np.ndarray:
    """``points`` without those that the straight line between others already shows."""
    kept = [0]
    end = 1
    while end < len(points):
        while end + 1 < len(points) and _on_line(points[kept[-1] : end + 2]):
            end += 1
        kept.append(end)
        end += 1
    return points[kept]


def _on_line(points: np.ndarray) -> bool:
    """Whether the first and the last point stand for all between them."""
    (x, y), (far_x, far_y) = points[0], points[-1]
    if far_x == x:
        return True
    line = y + (far_y - y) * (points[:, 0] - x) / (far_x - x)
    return bool((np.abs(line - points[:, 1]) <= _TOLERANCE * STEPS).all())
