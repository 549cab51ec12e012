"""Plots of a results folder, drawn from stored cells alone: file stem -> figure."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.metrics import roc_curve

from bench.report.curves import Scores, cell_scores
from bench.report.leaderboard import attack_columns, leaderboard
from bench.report.reconstructions import reconstruction_figure
from bench.report.schema import Results, StoredCell
from bench.report.style import INK, MARKERS, SERIES, heat_colors, new_figure, palette

__all__ = ["draw_all", "heatmap_figure", "histogram_figure", "roc_figure", "slug"]

PANELS = (
    ("auroc", "AUROC", "triggered vs clean, victim"),
    ("auroc_placebo", "placebo AUROC", "the same on the clean twin"),
    ("auroc_decoy", "decoy AUROC", "decoy vs clean, 0.5 is ideal"),
    ("auroc_vs_decoy", "AUROC vs decoy", "triggered vs decoy"),
)
_LOWEST_FPR = 1e-3
_ROC_POINTS = 300
_HISTOGRAM_BINS = 50

Code = tuple[tuple[float, float, float], str]
"""Colour and marker of a defense."""


def draw_all(results: Results) -> Iterator[tuple[str, Figure]]:
    """Every plot of ``results`` as (file stem, figure), one at a time.

    The heatmap averages seeds; curves, histograms and reconstructions show the lowest seed.
    """
    if not results.cells:
        return
    yield "heatmap", heatmap_figure(results)
    codes = _codes(results)
    stems: set[str] = set()
    for column, cells in _by_column(results).items():
        measured = [cell for cell in cells if cell.measured]
        if not measured:
            continue
        scores = {cell.key: cell_scores(cell) for cell in measured}
        name = slug(column, stems)
        yield f"roc_{name}", roc_figure(column, measured, scores, codes)
        yield f"scores_{name}", histogram_figure(column, measured, scores)
        drawn: set[str] = set()
        for cell in measured:
            figures = cell.figures()
            if figures is not None:
                stem = f"reconstructions_{name}_{slug(cell.row['defense'], drawn)}"
                yield stem, reconstruction_figure(column, cell.row["defense"], figures)


def slug(label: str, taken: set[str]) -> str:
    """A file name for ``label`` that is not in ``taken``, and is added to it."""
    name = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "unnamed"
    if name in taken:
        name = f"{name[:60]}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"
    taken.add(name)
    return name


def heatmap_figure(results: Results) -> Figure:
    """Attack x defense: AUROC and its controls side by side; cells that are not ok are hatched."""
    frame = leaderboard(results)
    frame["column"] = frame["key"].map(attack_columns(frame.to_dict("records")))
    attacks = list(dict.fromkeys(frame["column"]))
    present = set(frame["defense"])
    defenses = [label for label in _codes(results) if label in present]
    controls = set(frame.loc[frame["control"], "column"])
    side = max(0.95 * len(attacks), 2.2)
    labels = max(len(label) for label in defenses) * 0.075
    across = 4 if 4 * side + labels <= 17 else 2
    down = 4 // across
    figure = new_figure(across * side + labels + 1.1, down * (0.5 * len(defenses) + 1.7))
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, (metric, title, subtitle) in zip(axes, PANELS, strict=True):
        _heatmap_panel(axis, frame, metric, attacks, defenses)
        axis.set_title(title, pad=18)
        axis.text(
            0.5, 1.015, subtitle, transform=axis.transAxes, ha="center", va="bottom", size=7.5
        )
        ticks = [f"{name}\n(control)" if name in controls else name for name in attacks]
        axis.set_xticks(range(len(attacks)), ticks, rotation=35, ha="right")
        axis.set_yticks(range(len(defenses)), defenses)
    bar = figure.colorbar(axes[0].images[0], ax=list(axes), shrink=0.85, pad=0.01, extend="min")
    bar.outline.set_visible(False)
    bar.set_label("0.5 and below: no better than chance", size=7.5)
    return figure


def _heatmap_panel(
    axis: Axes, frame: pd.DataFrame, metric: str, attacks: list[str], defenses: list[str]
) -> None:
    values = np.full((len(defenses), len(attacks)), np.nan)
    axis.grid(False)
    axis.tick_params(length=0)
    groups = dict(iter(frame.groupby(["column", "defense"], sort=False)))
    for column, attack in enumerate(attacks):
        for line, defense in enumerate(defenses):
            rows = groups.get((attack, defense))
            if rows is None:
                _hatch(axis, column, line)
                _write(axis, column, line, "not run", "#666666", 6.5)
                continue
            status = "ok" if (rows["status"] == "ok").any() else rows["status"].iloc[0]
            value = rows.loc[rows["status"] == status, metric].mean(skipna=False)
            values[line, column] = value
            number = "–" if math.isnan(value) else f"{value:.2f}"
            ink = "white" if value > 0.7 else INK
            if status == "ok":
                _write(axis, column, line, number, ink, 8.5)
                continue
            _hatch(axis, column, line)
            text = status.replace("attack-", "")
            _write(axis, column, line, text if number == "–" else f"{number}\n{text}", INK, 6.5)
    axis.imshow(values, cmap=heat_colors(), vmin=0.5, vmax=1.0, aspect="auto")
    axis.set_xticks(np.arange(1, len(attacks)) - 0.5, minor=True)
    axis.set_yticks(np.arange(1, len(defenses)) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=2)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set_visible(False)


def _hatch(axis: Axes, column: int, line: int) -> None:
    corner = (column - 0.5, line - 0.5)
    axis.add_patch(
        Rectangle(corner, 1, 1, facecolor="none", edgecolor="#b5b5b5", hatch="////", linewidth=0)
    )


def _write(axis: Axes, column: int, line: int, text: str, color: str, size: float) -> None:
    box = None
    if "\n" in text or text.isalpha() or " " in text:  # a status: keep it legible on the hatching
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.2}
    axis.text(column, line, text, ha="center", va="center", color=color, size=size, bbox=box)


def roc_figure(
    attack: str, cells: list[StoredCell], scores: dict[str, Scores], codes: dict[str, Code]
) -> Figure:
    """ROC of every defense on one attack; dotted: placebo; inset: the same, log false positives.

    ``codes`` gives a defense the same colour and marker in every figure.
    """
    figure = new_figure(7.6, 4.6)
    axis = figure.subplots()
    inset = axis.inset_axes((0.47, 0.09, 0.5, 0.46))
    inset.patch.set_alpha(0.95)
    for axes in (axis, inset):
        chance = np.geomspace(_LOWEST_FPR / 10, 1, 100)
        axes.plot(chance, chance, color="#bbbbbb", linewidth=0.8)
    for place, cell in enumerate(cells):
        color, marker = codes[cell.row["defense"]]
        victim = _roc(scores[cell.key], "victim")
        twin = _roc(scores[cell.key], "twin")
        for axes in (axis, inset):
            if twin is not None:
                axes.plot(*twin, color=color, linestyle=":", linewidth=1.1)
            if victim is not None:
                label = _roc_label(cell.row) if axes is axis else None
                axes.plot(
                    *victim,
                    color=color,
                    linewidth=1.6,
                    marker=marker,
                    markersize=4 if axes is axis else 3,
                    markevery=_spread(victim[0], place, log=axes is inset),
                    label=label,
                )
    if any(("twin", "clean") in scores[cell.key] for cell in cells):
        axis.plot([], [], color=INK, linestyle=":", linewidth=1.1, label="placebo (clean twin)")
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), title=attack)
    axis.set(xlabel="false positive rate", ylabel="true positive rate")
    inset.set(xscale="log", xlim=(_LOWEST_FPR, 1), ylim=(0, 1.02))
    inset.set_xticks([0.001, 0.01, 0.1, 1], ["0.1 %", "1 %", "10 %", "100 %"])
    inset.set_xticks([], minor=True)
    inset.set_title("log false positive rate", size=7.5, weight="normal", pad=3)
    inset.tick_params(labelsize=6.5, length=2, pad=1)
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside right upper", title="AUROC | placebo"
    )
    return figure


def _codes(results: Results) -> dict[str, Code]:
    """Defense -> its colour and marker, in the manifest's order."""
    found = (cell.row["defense"] for cell in results.cells)
    labels = list(dict.fromkeys([*results.manifest.defenses, *found]))
    colors = palette(len(labels))
    return {label: (colors[i], MARKERS[i % len(MARKERS)]) for i, label in enumerate(labels)}


def _roc_label(row: dict[str, Any]) -> str:
    numbers = (
        "–" if row[name] is None else f"{row[name]:.3f}" for name in ("auroc", "auroc_placebo")
    )
    weak = "" if row["status"] == "ok" else f" ({row['status']})"
    return f"{row['defense']}{weak}\n{' | '.join(numbers)}"


def _roc(scores: Scores, encoder: str) -> tuple[np.ndarray, np.ndarray] | None:
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


def _spread(false: np.ndarray, place: int, *, log: bool) -> list[int]:
    """Where a curve carries its marker: a few places, shifted from curve to curve."""
    shift = 0.03 * (place % 5)
    wanted = 10.0 ** np.array([-2.5, -1.5, -0.6]) if log else np.array([0.12, 0.4, 0.7])
    return np.unique(np.searchsorted(false, np.minimum(wanted * (1 + shift * 4), 1.0))).tolist()


def histogram_figure(attack: str, cells: list[StoredCell], scores: dict[str, Scores]) -> Figure:
    """Scores of one attack, a panel per defense: what the threshold separates, and what not."""
    across = min(3, len(cells))
    down = math.ceil(len(cells) / across)
    figure = new_figure(3.3 * across + 0.4, 2.35 * down + 0.75)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axis, cell in zip(panels, cells, strict=False):
        _histogram_panel(axis, cell, scores[cell.key])
    for axis in panels[len(cells) :]:
        axis.set_visible(False)
    figure.suptitle(attack, weight="bold", size=10)
    for axis in panels[max(0, len(cells) - across) : len(cells)]:  # the lowest of each column
        axis.set_xlabel("score (higher is more suspicious)", size=8)
    entries: dict[str, Any] = {}
    for axis in panels:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=5)
    return figure


def _histogram_panel(axis: Axes, cell: StoredCell, scores: Scores) -> None:
    series = {
        "clean": scores.get(("victim", "clean")),
        "triggered": scores.get(("victim", "triggered")),
        "decoy": scores.get(("victim", "decoy")),
        "placebo": scores.get(("twin", "triggered")),
    }
    series = {name: values for name, values in series.items() if values is not None}
    pooled = np.concatenate(list(series.values()))
    low, high = np.percentile(pooled, [0.1, 99.9])  # a few extreme scores would squeeze the rest
    edges = np.linspace(low, high if high > low else low + 1.0, _HISTOGRAM_BINS + 1)
    for name, values in series.items():
        density = np.histogram(values, edges)[0] / len(values)
        filled = name == "clean"
        label = "triggered, clean twin (placebo)" if name == "placebo" else name
        axis.stairs(
            density,
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
    weak = "" if cell.status == "ok" else f" ({cell.status})"
    axis.set_title(f"{cell.row['defense']}{weak}", size=9)
    axis.set_yticks([])
    axis.grid(axis="y", visible=False)
    axis.spines[["left", "top", "right"]].set_visible(False)
    axis.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
    axis.xaxis.get_offset_text().set_size(7)


def _by_column(results: Results) -> dict[str, list[StoredCell]]:
    """Attack column -> its cells of the lowest seed, defenses in leaderboard order."""
    cells = {cell.key: cell for cell in results.cells}
    frame = leaderboard(results)
    columns = attack_columns(frame.to_dict("records"))
    chosen: dict[tuple[str, str], StoredCell] = {}
    for key in frame["key"]:
        cell = cells[key]
        place = (columns[key], cell.row["defense"])
        other = chosen.get(place)
        if other is None or (other.measured, -other.seed) < (cell.measured, -cell.seed):
            chosen[place] = cell
    grouped: dict[str, list[StoredCell]] = {}
    for (column, _), cell in chosen.items():
        grouped.setdefault(column, []).append(cell)
    return grouped
