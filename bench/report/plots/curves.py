"""One attack, a panel per defense: ROC curves and histograms of scores.

Colour and dash say which images and which encoder, as in every plot; the panel says which defense.
So sixteen defenses stay as legible as two, with and without colour.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from bench.report.curves import Scores
from bench.report.plots.selection import AttackColumn
from bench.report.schema import StoredCell
from bench.report.style import INK, SERIES, annotate_above, log_axis, new_figure, shortened

__all__ = ["histogram_figure", "roc_figure"]

_LOWEST_FPR = 1e-3
_ROC_POINTS = 300
_CONTEXT_POINTS = 60
_HISTOGRAM_BINS = 50
_SQUEEZED = 0.05
"""Below this share of the axis for the middle half of the clean scores, the axis is logarithmic."""

_OTHERS = "#cfcfcf"

Curve = tuple[np.ndarray, np.ndarray]


def roc_figure(attack: AttackColumn, scores: dict[str, Scores]) -> Figure:
    """ROC of every defense on one attack; dotted: placebo; inset: the same, log false positives.

    Parameters
    ----------
    scores
        Key of each measured cell -> its scores.
    """
    cells = attack.measured
    victims = {cell.key: roc(scores[cell.key], "victim") for cell in cells}
    thinned = {
        key: curve and _interpolated(curve, _CONTEXT_POINTS) for key, curve in victims.items()
    }
    figure, panels = _grid(len(cells), 2.35, 2.3)
    for axis, cell in zip(panels, cells, strict=False):
        for key, curve in thinned.items():
            if curve is not None and key != cell.key:
                axis.plot(*curve, color=_OTHERS, linewidth=0.6, zorder=1, label="other defenses")
        twin = roc(scores[cell.key], "twin")
        _roc_panel(axis, victims[cell.key], twin, low=(cell.row["auroc"] or 0.5) < 0.5)
        numbers = (cell.row["auroc"], cell.row["auroc_placebo"])
        shown = ["–" if number is None else f"{number:.3f}" for number in numbers]
        _name(axis, attack, cell, f"AUROC {shown[0]}, placebo {shown[1]}")
    for axis in panels[: len(cells)]:
        axis.set_xlabel("false positive rate", size=7.5)
        axis.set_ylabel("true positive rate", size=7.5)
        axis.label_outer()
    figure.suptitle(attack.title, weight="bold", size=10)
    _legend(figure, panels)
    return figure


def _roc_panel(axis: Axes, victim: Curve | None, twin: Curve | None, *, low: bool) -> None:
    """``low``: the curve runs below the diagonal, so that the inset goes above it."""
    box = (0.14, 0.54, 0.44, 0.38) if low else (0.53, 0.13, 0.44, 0.38)
    inset = axis.inset_axes(box, zorder=5)
    inset.patch.set_alpha(0.95)
    for axes in (axis, inset):
        chance = np.geomspace(_LOWEST_FPR / 10, 1, 100) if axes is inset else np.array([0, 1])
        label = "chance" if axes is axis else None
        axes.plot(chance, chance, color=INK, linewidth=0.5, linestyle=(0, (8, 4)), label=label)
        if twin is not None:
            label = "placebo (clean twin)" if axes is axis else None
            curve = twin if axes is axis else _log_spaced(twin)
            axes.plot(*curve, linewidth=1.3, zorder=4, label=label, **SERIES["placebo"])
        if victim is not None:
            label = "victim" if axes is axis else None
            curve = victim if axes is axis else _log_spaced(victim)
            axes.plot(*curve, linewidth=1.7, zorder=3, label=label, **SERIES["triggered"])
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axis.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axis.tick_params(labelsize=7)
    inset.set(xscale="log", xlim=(_LOWEST_FPR, 1), ylim=(0, 1.02))
    inset.set_xticks([0.001, 0.01, 0.1, 1], ["0.1 %", "", "10 %", ""])
    inset.set_xticks([], minor=True)
    inset.set_yticks([0, 0.5, 1], ["", "", ""])
    inset.tick_params(labelsize=6, length=2, pad=1)


def roc(scores: Scores, encoder: str) -> Curve | None:
    """False and true positive rates, thinned evenly and, near zero, evenly in the logarithm."""
    clean, triggered = scores.get((encoder, "clean")), scores.get((encoder, "triggered"))
    if clean is None or triggered is None:
        return None
    truth = np.repeat([0, 1], [len(clean), len(triggered)])
    false, true, _ = roc_curve(truth, np.concatenate([clean, triggered]))
    wanted = np.concatenate(
        [np.linspace(0, 1, _ROC_POINTS), np.geomspace(_LOWEST_FPR / 10, 1, _ROC_POINTS)]
    )
    kept = np.unique(np.concatenate([[0, len(false) - 1], np.searchsorted(false, wanted)]))
    tops = np.searchsorted(false, false[kept], side="right") - 1  # both ends of a vertical step
    kept = np.unique(np.concatenate([kept, tops]))
    return false[kept], true[kept]


def _interpolated(curve: Curve, count: int) -> Curve:
    """``curve`` at ``count`` places, evenly along its length: steep parts keep their shape."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(curve, axis=1)))])
    wanted = np.linspace(0, along[-1], count)
    return np.interp(wanted, along, curve[0]), np.interp(wanted, along, curve[1])


def _log_spaced(curve: Curve) -> Curve:
    """``curve`` for a logarithmic axis, on which a segment that starts at zero has no direction."""
    false = np.geomspace(_LOWEST_FPR, 1, _ROC_POINTS)
    return false, np.interp(false, *curve)


def histogram_figure(attack: AttackColumn, scores: dict[str, Scores]) -> Figure:
    """Scores of one attack, a panel per defense: what the threshold separates, and what not.

    Every curve is drawn to its own peak: a narrow one would flatten the others.
    """
    cells = attack.measured
    figure, panels = _grid(len(cells), 2.45, 1.65)
    for axis, cell in zip(panels, cells, strict=False):
        _histogram_panel(axis, cell, scores[cell.key])
        _name(axis, attack, cell, "")
    figure.suptitle(f"{attack.title}: scores, right is more suspicious", weight="bold", size=10)
    _legend(figure, panels, title="each curve to its own peak")
    return figure


def _histogram_panel(axis: Axes, cell: StoredCell, scores: Scores) -> None:
    series = {
        "clean": scores.get(("victim", "clean")),
        "triggered": scores.get(("victim", "triggered")),
        "decoy": scores.get(("victim", "decoy")),
        "placebo": scores.get(("twin", "triggered")),
    }
    series = {name: values for name, values in series.items() if values is not None}
    edges, log = _edges(series)
    for name, values in series.items():
        counts = np.histogram(values, edges)[0].astype(float)
        filled = name == "clean"
        label = "triggered, clean twin (placebo)" if name == "placebo" else name
        axis.stairs(
            counts / max(counts.max(), 1),
            edges,
            fill=filled,
            alpha=0.45 if filled else 1.0,
            linewidth=0 if filled else 1.3,
            label=label,
            **SERIES[name],
        )
    threshold = (cell.calibrated or {}).get("threshold")
    if threshold is not None and edges[0] <= threshold <= edges[-1]:
        label = "calibrated threshold"
        axis.axvline(threshold, color=INK, linewidth=0.9, linestyle=(0, (6, 2)), label=label)
    axis.set_yticks([])
    axis.grid(axis="y", visible=False)
    axis.spines[["left", "top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7)
    if log:
        log_axis(axis, edges[0], edges[-1])
        axis.set_xlabel("log scale", size=7, labelpad=1)
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4), useOffset=False)
        axis.xaxis.get_offset_text().set_size(7)


def _edges(series: dict[str, np.ndarray]) -> tuple[np.ndarray, bool]:
    """Edges of the bins, and whether they are evenly spaced in the logarithm."""
    pooled = np.concatenate(list(series.values()))
    low, high = np.percentile(pooled, [0.1, 99.9])  # a few extreme scores would squeeze the rest
    if not high > low:
        return np.linspace(low, low + 1.0, _HISTOGRAM_BINS + 1), False
    quartiles = np.percentile(series.get("clean", pooled), [25, 75])
    squeezed = quartiles[1] - quartiles[0] < _SQUEEZED * (high - low)
    if squeezed and 0 < low < high / 5:
        return np.geomspace(low, high, _HISTOGRAM_BINS + 1), True
    return np.linspace(low, high, _HISTOGRAM_BINS + 1), False


def _grid(count: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure with ``count`` visible panels of that size in inches, row by row."""
    across = min(4, math.ceil(math.sqrt(count)))
    down = math.ceil(count / across)
    figure = new_figure(max(width * across + 0.4, 4.6), height * down + 1.0)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axis in panels[count:]:
        axis.set_visible(False)
    return figure, panels


def _name(axis: Axes, attack: AttackColumn, cell: StoredCell, subtitle: str) -> None:
    """Whose panel it is; the status where it differs from the other panels'."""
    own = "" if cell.status in ("ok", attack.status) else f" ({cell.status})"
    axis.set_title(shortened(cell.row["defense"], 30) + own, size=8.5, pad=13 if subtitle else 4)
    if subtitle:
        annotate_above(axis, subtitle)


def _legend(figure: Figure, panels: np.ndarray, title: str | None = None) -> None:
    entries: dict[str, Any] = {}
    for axis in panels:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    legend = figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=5, title=title
    )
    legend.get_title().set_size(7.5)
