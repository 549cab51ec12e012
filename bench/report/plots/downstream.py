"""What filtering costs and what it buys: accuracy and attack success, before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from bench.report.plots.selection import AttackColumn
from bench.report.style import INK, new_figure, shortened

__all__ = ["downstream_figure"]

MEASURES = (
    ("clean_accuracy", "ca_filtered", "clean accuracy", "#0173b2", "o"),
    ("attack_success_rate", "asr_filtered", "attack success", "#b8400e", "D"),
)
"""Before, after, name, colour and marker."""

_ROW = 0.19
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
    for before, _, _, color, _ in MEASURES:
        if twin[f"{before}_twin"] is not None:
            axis.axvline(twin[f"{before}_twin"], color=color, linestyle=":", linewidth=1.3)
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
        for before, after, _, color, marker in MEASURES:
            _dumbbell(axis, line, row, before, after, color, marker)


def _dumbbell(
    axis: Axes, line: int, row: dict, before: str, after: str, color: str, marker: str
) -> None:
    if row[before] is None:
        return
    axis.plot([row[before]], [line], "|", color=color, markersize=7, markeredgewidth=1.6)
    if row[after] is None:
        return
    axis.plot([row[before], row[after]], [line, line], color=color, linewidth=1.1)
    fill = "white" if row["status"] in _INVALID else color
    axis.plot(
        [row[after]], [line], marker, color=color, markersize=4.5, markerfacecolor=fill, zorder=3
    )


def _two_lines(title: str) -> str:
    return "\n".join(shortened(part, 34) for part in title.replace(" (", "\n(", 1).split("\n"))


def _legend() -> list[Line2D | Rectangle]:
    entries: list[Line2D | Rectangle] = []
    for _, _, name, color, marker in MEASURES:
        entries += [
            Line2D([], [], color=color, marker="|", linestyle="", markersize=8, markeredgewidth=1.6,
                   label=f"{name}, no filter"),
            Line2D([], [], color=color, marker=marker, markersize=4.5, label=f"{name}, filtered"),
            Line2D([], [], color=color, linestyle=":", label=f"{name}, clean twin"),
        ]  # fmt: skip
    # A legend fills its columns from above: the two of a kind stand over each other.
    entries = [entries[i] for i in (0, 3, 1, 4, 2, 5)]
    hollow = Line2D([], [], color=INK, marker="o", markerfacecolor="white", markersize=4.5,
                    linestyle="", label="hollow: attack not valid")  # fmt: skip
    return [*entries, hollow]
