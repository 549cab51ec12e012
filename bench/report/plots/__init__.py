"""Plots of a results folder, drawn from stored cells alone: file stem -> figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from matplotlib.figure import Figure

from bench.report.contests import METRIC_NAMES, ranking
from bench.report.curves import cell_scores
from bench.report.plots.attacks import embedding_figure, triggers_figure
from bench.report.plots.cost import cost_figure
from bench.report.plots.curves import histogram_figure, roc_figure
from bench.report.plots.downstream import downstream_figure
from bench.report.plots.heatmap import heatmap_figure
from bench.report.plots.inversions import inverted_triggers_figure
from bench.report.plots.ranks import critical_difference_figure
from bench.report.plots.reconstructions import cells_with_pictures, reconstruction_figure
from bench.report.plots.selection import (
    AttackColumn,
    attack_cells,
    defense_order,
    slug,
)
from bench.report.schema import Results

__all__ = [
    "cost_figure",
    "critical_difference_figure",
    "downstream_figure",
    "draw_all",
    "embedding_figure",
    "heatmap_figure",
    "histogram_figure",
    "inverted_triggers_figure",
    "plots_of",
    "reconstruction_figure",
    "roc_figure",
    "slug",
    "triggers_figure",
]


def draw_all(results: Results) -> Iterator[tuple[str, Figure]]:
    """Every plot of ``results`` as (file stem, figure), one at a time.

    The heatmap, the costs and the ranks average seeds; everything else shows the lowest seed and
    says so. There is a critical-difference diagram for every declared table of ranks that has
    blocks enough for its tests.
    """
    yield from plots_of(results, 0, 1)


def plots_of(results: Results, share: int, shares: int) -> Iterator[tuple[str, Figure]]:
    """The plots of :func:`draw_all` that fall to one of ``shares`` processes, the 0-based
    ``share``: together they draw each once."""
    if not results.cells:
        return
    attacks = attack_cells(results)
    taken: set[str] = set()
    names = [slug(attack.name, taken) for attack in attacks]
    parts: list[Callable[[], Iterator[tuple[str, Figure]]]] = [
        partial(_of_attack, attack, name) for attack, name in zip(attacks, names, strict=True)
    ]
    parts.append(partial(_overviews, results, attacks))
    for part in parts[share::shares]:
        yield from part()


def _overviews(results: Results, attacks: Sequence[AttackColumn]) -> Iterator[tuple[str, Figure]]:
    yield "heatmap", heatmap_figure(results)
    for stem, figure in (
        ("cost", cost_figure(results)),
        ("downstream", downstream_figure(attacks, defense_order(results))),
        ("triggers", triggers_figure(attacks)),
        ("inverted_triggers", inverted_triggers_figure(attacks)),
    ):
        if figure is not None:
            yield stem, figure
    for name, table in results.manifest.further_tables.items():
        if table.kind != "ranks":
            continue
        _, found, _ = ranking(table, results)
        if found is not None and found.p_values is not None:
            title = f"{METRIC_NAMES[table.metric]}, {found.blocks} blocks"
            figure = critical_difference_figure(found.ranks, found.p_values, title)
            yield f"critical_difference_{name}", figure


def _of_attack(attack: AttackColumn, name: str) -> Iterator[tuple[str, Figure]]:
    if attack.pictures is not None:
        yield f"embedding_{name}", embedding_figure(attack, attack.pictures)
    if not attack.measured:
        return
    scores = {cell.key: cell_scores(cell) for cell in attack.measured}
    yield f"roc_{name}", roc_figure(attack, scores)
    yield f"scores_{name}", histogram_figure(attack, scores)
    drawn: set[str] = set()
    for cells, figures in cells_with_pictures(attack):
        labels = [cell.row["defense"] for cell in cells]
        stem = f"reconstructions_{name}_{slug(labels[0], drawn)}"
        yield stem, reconstruction_figure(attack.title, ", ".join(labels), figures)
