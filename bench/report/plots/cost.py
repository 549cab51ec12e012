"""What detection costs: seconds against AUROC, with the placebo's beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.isotonic import isotonic_regression

from bench.report.leaderboard import attack_columns, leaderboard, valid_in_part
from bench.report.plots.selection import defense_order, seed_note
from bench.report.schema import Results
from bench.report.style import INK, Code, log_axis, new_figure, palette, shortened

__all__ = ["Costs", "cost_figure", "costs", "ladder"]

METRICS = ("auroc", "auroc_placebo", "fit_seconds", "score_ms_per_image")
PANELS = (
    ("fit_seconds", "seconds to fit", 0.01),
    ("score_ms_per_image", "milliseconds per scored image", 0.001),
)
"""Metric, axis label, and the least that is drawn: smaller values stand there."""

_LABEL_INCHES = 0.165
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Costs:
    """Costs and AUROC of all defenses on one kind of encoder; encoders are never averaged.

    Attributes
    ----------
    complete
        Valid attacks on which every defense has an ok row: what ``means`` averages.
    incomplete
        The other valid attacks -> the defenses that lack an ok row.
    means
        Index: defenses in display order; columns: :data:`METRICS`. Empty when no attack is
        complete.
    single
        The same per attack outside the mean: further columns ``defense`` and ``attack``.
    """

    encoder: str
    complete: tuple[str, ...]
    incomplete: Mapping[str, tuple[str, ...]]
    means: pd.DataFrame
    single: pd.DataFrame


def costs(results: Results) -> list[Costs]:
    """One entry per encoder with a valid attack. Controls, analyses and reduced rows stay out."""
    frame = leaderboard(results)
    frame = frame[frame["reduced"].fillna("") == ""]
    frame["column"] = frame["key"].map(attack_columns(frame.to_dict("records")))
    # What took in some seeds only would be averaged over its successes.
    kept = ~frame["column"].isin(valid_in_part(results))
    kept &= ~frame["control"] & ~frame["analysis"] & (frame["status"] == "ok")
    frame = frame[kept]
    frame = frame.dropna(subset=["auroc", *(metric for metric, _, _ in PANELS)])
    order = defense_order(results)
    groups = frame.groupby("encoder", sort=False)
    return [_costs_of(str(encoder), rows, order) for encoder, rows in groups]


def _costs_of(encoder: str, rows: pd.DataFrame, order: Sequence[str]) -> Costs:
    defenses = [name for name in order if name in set(rows["defense"])]
    complete: list[str] = []
    incomplete: dict[str, tuple[str, ...]] = {}
    for attack, found in rows.groupby("column", sort=False):
        seeds = found.groupby("defense")["seed"].nunique(dropna=False)
        wanted = found["seed"].nunique(dropna=False)
        missing = tuple(name for name in defenses if seeds.get(name, 0) < wanted)
        if missing:
            incomplete[str(attack)] = missing
        else:
            complete.append(str(attack))
    each = rows.groupby(["defense", "column"], sort=False)[list(METRICS)].mean().reset_index()
    each = each.rename(columns={"column": "attack"})
    inside = each["attack"].isin(complete)
    means = each[inside].groupby("defense")[list(METRICS)].mean()
    means = means.reindex(defenses) if complete else means
    return Costs(encoder, tuple(complete), incomplete, means, each[~inside])


def cost_figure(results: Results) -> Figure | None:
    """A row of two panels per encoder: seconds to fit and to score against AUROC.

    Filled: on the victim, averaged over complete attacks; hollow: its placebo; faint: an attack
    outside the mean. None where there is no valid attack.
    """
    found = costs(results)
    if not found:
        return None
    order = defense_order(results)
    codes = palette(order)
    names = [len(shortened(name, 26)) for name in order]
    counts = [len(_labelled(entry)) for entry in found]
    heights = [max(_LABEL_INCHES * count, 2.4) for count in counts]
    gutter = max(names) * 0.075 + 0.35
    figure = new_figure(8.0 + gutter, sum(heights) + 1.15 * len(found) + 0.7)
    grid = figure.subplots(
        len(found), 3, sharey="row", squeeze=False,
        width_ratios=[3.9, gutter, 3.9], height_ratios=heights,
    )  # fmt: skip
    for axes, entry in zip(grid, found, strict=True):
        _row(axes, entry, codes)
    title = "cost against AUROC"
    figure.suptitle(", ".join(filter(None, (title, seed_note(results)))), weight="bold", size=10)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=3)
    return figure


def _row(axes: Sequence[Axes], entry: Costs, codes: Mapping[str, Code]) -> None:
    left, middle, right = axes
    labelled = _labelled(entry)
    values = [*entry.means[["auroc", "auroc_placebo"]].to_numpy().ravel()]
    values += [*entry.single["auroc"], *labelled["auroc"]]
    low, high = min(np.nanmin(values) - 0.03, 0.7), 1.04
    for axis, (metric, label, least) in zip((left, right), PANELS, strict=True):
        _points(axis, entry, metric, least, codes)
        below = (labelled[metric] < least).any()
        note = f"; less than {least:g} stands at {least:g}" if below else ""
        axis.set(xlabel=label + note, ylim=(low, high))
        axis.tick_params(labelleft=True)
    left.set_ylabel("AUROC" if entry.complete else "AUROC, single attacks")
    gap = (high - low) / (len(labelled) + 1) if len(labelled) > 12 else (high - low) * 0.07
    places = ladder(labelled["auroc"].to_numpy(), low + gap / 2, high - gap / 2, gap)
    middle.set(xlim=(0, 1))
    middle.set_axis_off()
    for name, place in zip(labelled.index, places, strict=True):
        color, marker = codes[str(name)]
        middle.plot([0.06], [place], marker, color=color, markersize=5)
        middle.text(0.12, place, shortened(str(name), 26), va="center", size=8)
    left.set_title(_caption(entry), size=8.5, loc="left")


def _points(axis: Axes, entry: Costs, metric: str, least: float, codes: Mapping[str, Code]) -> None:
    for row in entry.single.to_dict("records"):
        color, marker = codes[row["defense"]]
        place = [max(row[metric], least)]
        axis.plot(place, [row["auroc"]], marker, color=color, markersize=4, alpha=0.3, mew=0)
    for name, row in entry.means.iterrows():
        color, marker = codes[str(name)]
        place = max(row[metric], least)
        both = [row["auroc_placebo"], row["auroc"]]
        axis.plot([place, place], both, color=color, linewidth=1.1, zorder=2)
        hollow = {"markerfacecolor": "white", "markeredgecolor": color}
        axis.plot([place], both[:1], marker, markersize=5.5, zorder=3, **hollow)
        axis.plot([place], both[1:], marker, color=color, markersize=6, zorder=4)
    found = np.maximum(pd.concat([entry.means[metric], entry.single[metric]]), least)
    log_axis(axis, found.min() / 1.8, found.max() * 1.8)


def _labelled(entry: Costs) -> pd.DataFrame:
    """What the labels point at, by defense: the mean, or its best attack where there is none."""
    if entry.complete:
        return entry.means
    best = entry.single.sort_values("auroc", ascending=False, kind="stable")
    return best.drop_duplicates("defense").set_index("defense")[list(METRICS)]


def ladder(wanted: np.ndarray, low: float, high: float, gap: float) -> np.ndarray:
    """Places in [low, high], at least ``gap`` apart, as near to ``wanted`` as that allows.

    The gap shrinks where they would not fit.
    """
    count = len(wanted)
    gap = min(gap, (high - low) / max(count - 1, 1))
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(count)
    free = isotonic_regression(np.asarray(wanted, dtype=float)[order] - steps)
    places = np.empty(count)
    places[order] = np.clip(free, low, high - gap * (count - 1)) + steps
    return places


def _caption(entry: Costs) -> str:
    lines = [f"{shortened(entry.encoder, 40)}: "]
    if entry.complete:
        lines[0] += "mean over " + _listed(entry.complete)
    else:
        lines[0] += "no attack on which every defense is ok, hence no mean"
    for attack, missing in entry.incomplete.items():
        lines.append(f"not in the mean: {shortened(attack, 40)} (lacks {_listed(missing)})")
    return "\n".join(lines)


def _listed(names: Sequence[str]) -> str:
    shown = [shortened(name, 26) for name in names[:_NAMES_SHOWN]]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _legend() -> list[Line2D]:
    plain = {"color": INK, "linestyle": "", "marker": "o"}
    return [
        Line2D([], [], markersize=6, label="on the victim", **plain),
        Line2D([], [], markersize=5.5, markerfacecolor="white", label="placebo", **plain),
        Line2D([], [], markersize=4, alpha=0.3, label="one attack outside the mean", **plain),
    ]
