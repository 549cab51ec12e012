"""Attack x defense: the AUROC and its three controls."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bench.report.leaderboard import attack_columns, leaderboard, worst_status
from bench.report.plots.selection import defense_order, seed_note
from bench.report.schema import Results
from bench.report.style import INK, annotate_above, heat_colors, new_figure, shortened

__all__ = ["heatmap_figure"]

PANELS = (
    ("auroc", "AUROC", "triggered vs clean, victim"),
    ("auroc_placebo", "placebo AUROC", "the same on the clean twin"),
    ("auroc_decoy", "decoy AUROC", "decoy vs clean, 0.5 is ideal"),
    ("auroc_vs_decoy", "AUROC vs decoy", "triggered vs decoy"),
)
_CELL = (0.68, 0.36)
"""Width and height in inches: two short lines of text fit."""

_WIDEST = 17.0

INVERTED = 0.4
"""An AUROC below is no chance: the defense ranks triggered images as the cleanest."""


def heatmap_figure(results: Results) -> Figure:
    """Attack x defense: AUROC and its controls side by side; cells that are not ok are hatched."""
    frame = leaderboard(results)
    frame["column"] = frame["key"].map(attack_columns(frame.to_dict("records")))
    attacks = list(dict.fromkeys(frame["column"]))
    defenses = defense_order(results)
    controls = set(frame.loc[frame["control"], "column"])
    side = max(_CELL[0] * len(attacks), 2.2)
    names = [shortened(label, 32) for label in defenses]
    labels = max(map(len, names)) * 0.075
    across = 4 if 4 * side + labels + 1 <= _WIDEST else 2
    down = len(PANELS) // across
    figure = new_figure(across * side + labels + 1.0, down * (_CELL[1] * len(defenses) + 1.6))
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, (metric, title, subtitle) in zip(axes, PANELS, strict=True):
        _panel(axis, frame, metric, attacks, defenses, len(results.manifest.seeds))
        axis.set_title(title, pad=18)
        annotate_above(axis, subtitle)
        ticks = [shortened(name, 32) + "\n(control)" * (name in controls) for name in attacks]
        axis.set_xticks(range(len(attacks)), ticks, rotation=35, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(defenses)), names)
        axis.tick_params(labelbottom=True)
    bar = figure.colorbar(
        axes[0].images[0], ax=list(axes), shrink=0.5, aspect=35, pad=0.01, extend="min"
    )
    bar.outline.set_visible(False)
    bar.set_label(
        f"0.5 and below: no better than chance; \\\\\\ below {INVERTED}: inverted", size=7.5
    )
    note = seed_note(results)
    if note:
        figure.suptitle(
            f"{note}; the worst status of the seeds; 1/3: one seed of three was measured", size=8
        )
    return figure


def _panel(
    axis: Axes,
    frame: pd.DataFrame,
    metric: str,
    attacks: list[str],
    defenses: list[str],
    seeds: int,
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
            values[line, column] = _cell(axis, column, line, rows, metric, seeds)
    axis.imshow(values, cmap=heat_colors(), vmin=0.5, vmax=1.0, aspect="auto")
    axis.set_xticks(np.arange(1, len(attacks)) - 0.5, minor=True)
    axis.set_yticks(np.arange(1, len(defenses)) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=2)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set_visible(False)


def _cell(axis: Axes, column: int, line: int, rows: pd.DataFrame, metric: str, seeds: int) -> float:
    """Write one cell: the mean over its measured seeds, their worst status, how many of all."""
    measured = rows[~rows["status"].isin(["failed", "skipped"])]
    used = measured if len(measured) else rows
    status = worst_status(used["status"])
    value = float(used[metric].mean(skipna=False))
    number = "–" if math.isnan(value) else f"{value:.2f}"
    details = [] if status == "ok" else [status.replace("attack-", "")]
    details += [f"{len(measured)}/{seeds}"] if 0 < len(measured) < seeds else []
    if value < INVERTED:
        _hatch(axis, column, line, "#b8400e", "\\\\\\")
    if not details:
        _write(axis, column, line, number, "white" if value > 0.7 else INK, 8)
        return value
    if status != "ok":
        _hatch(axis, column, line)
    lines = [] if number == "–" and status != "ok" else [number]
    _write(axis, column, line, "\n".join([*lines, " ".join(details)]), INK, 6)
    return value


def _hatch(axis: Axes, column: int, line: int, color: str = "#b5b5b5", hatch: str = "////") -> None:
    corner = (column - 0.5, line - 0.5)
    axis.add_patch(
        Rectangle(corner, 1, 1, facecolor="none", edgecolor=color, hatch=hatch, linewidth=0)
    )


def _write(axis: Axes, column: int, line: int, text: str, color: str, size: float) -> None:
    box = None
    if "\n" in text or text.isalpha() or " " in text:  # a status: keep it legible on the hatching
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
    axis.text(
        column,
        line,
        text,
        ha="center",
        va="center",
        color=color,
        size=size,
        bbox=box,
        linespacing=0.95,
    )
