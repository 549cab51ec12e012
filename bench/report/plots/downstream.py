"""What filtering costs and what it buys: accuracy and attack success, before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from bench.report.plots.selection import AttackColumn
from bench.report.style import INK, new_figure, shortened

__all__ = ["downstream_figure"]


class Measure(NamedTuple):
    """Columns before and after filtering; colour, both markers, and the dash of the twin's line."""

    before: str
    after: str
    name: str
    color: str
    markers: tuple[str, str]
    dash: str


MEASURES = (
    Measure("clean_accuracy", "ca_filtered", "clean accuracy", "#0173b2", ("|", "o"), ":"),
    Measure("attack_success_rate", "asr_filtered", "attack success", "#b8400e", ("x", "D"), "--"),
)

_ROW = 0.19
_BEFORE = {"markersize": 6, "markeredgewidth": 1.5}
_INVALID = ("attack-weak", "attack-invalid", "uncontrolled")


def downstream_figure(attacks: Sequence[AttackColumn], defenses: Sequence[str]) -> Figure | None:
    """A panel per attack, a row per defense: a line from before filtering to a marker after it.

    Dotted: the clean twin without a filter. Hollow markers on hatching: the attack is not valid.
    None where nothing was measured.
    """
    shown = [attack for attack in attacks if attack.measured]
    if not shown:
        return None
    across = min(4, len(shown))
    down = math.ceil(len(shown) / across)
    names = [shortened(name, 32) for name in defenses]
    labels = max(map(len, names)) * 0.07
    height = down * (_ROW * max(len(defenses), 3) + 0.75) + 0.9
    figure = new_figure(max(2.15 * across + labels + 0.3, 6.2), height)
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, attack in zip(panels, shown, strict=False):
        _panel(axis, attack, defenses)
    for axis in panels[len(shown) :]:
        axis.set_visible(False)
    panels[0].set(xlim=(-0.03, 1.03), ylim=(len(defenses) - 0.4, -0.6))
    panels[0].set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    panels[0].set_yticks(range(len(defenses)), names)
    for axis in panels[max(0, len(shown) - across) : len(shown)]:
        axis.tick_params(labelbottom=True)  # the lowest of each column
    figure.suptitle("filtering at the calibrated threshold", weight="bold", size=10)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=4)
    return figure


def _panel(axis: Axes, attack: AttackColumn, defenses: Sequence[str]) -> None:
    rows = {cell.row["defense"]: cell.row for cell in attack.cells}
    axis.set_title(_two_lines(attack.title), size=8.5)
    axis.grid(axis="y", visible=False)
    axis.tick_params(length=0)
    twin = min(attack.measured, key=lambda cell: cell.seed).row
    for measure in MEASURES:
        value = twin[f"{measure.before}_twin"]
        if value is not None:
            axis.axvline(value, color=measure.color, linestyle=measure.dash, linewidth=1.2)
    for line, defense in enumerate(defenses):
        row = rows.get(defense)
        if row is None or row["status"] in ("failed", "skipped"):
            axis.text(
                0.5,
                line,
                "not run" if row is None else row["status"],
                ha="center",
                va="center",
                size=6.5,
                color="#666666",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
            )
            continue
        if row["status"] in _INVALID:
            axis.add_patch(
                Rectangle((-0.03, line - 0.5), 1.06, 1, facecolor="none", edgecolor="#d5d5d5",
                          hatch="////", linewidth=0, zorder=0)
            )  # fmt: skip
        for measure in MEASURES:
            _dumbbell(axis, line, row, measure)


def _dumbbell(axis: Axes, line: int, row: dict, measure: Measure) -> None:
    before, after = row[measure.before], row[measure.after]
    if before is None:
        return
    color = measure.color
    axis.plot([before], [line], measure.markers[0], color=color, **_BEFORE)
    if after is None:
        return
    axis.plot([before, after], [line, line], color=color, linewidth=1.1)
    fill = "white" if row["status"] in _INVALID else color
    marker = measure.markers[1]
    axis.plot([after], [line], marker, color=color, markersize=4.5, markerfacecolor=fill, zorder=3)


def _two_lines(title: str) -> str:
    return "\n".join(shortened(part, 34) for part in title.replace(" (", "\n(", 1).split("\n"))


def _legend() -> list[Line2D]:
    columns: list[list[Line2D]] = [[], [], []]
    for _, _, name, color, (before, after), dash in MEASURES:
        mine = (
            Line2D([], [], color=color, marker=before, linestyle="", label=name, **_BEFORE),
            Line2D([], [], color=color, marker=after, markersize=4.5, label=f"{name}, filtered"),
            Line2D([], [], color=color, linestyle=dash, label=f"{name}, clean twin"),
        )
        for column, entry in zip(columns, mine, strict=True):
            column.append(entry)
    hollow = {"marker": "o", "markerfacecolor": "white", "markersize": 4.5, "linestyle": ""}
    # A legend fills its columns from above: the two of a kind stand over each other.
    entries = [entry for column in columns for entry in column]
    return [*entries, Line2D([], [], color=INK, label="hollow: attack not valid", **hollow)]
