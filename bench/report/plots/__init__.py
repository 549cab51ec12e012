"""Plots of a results folder, drawn from stored cells alone: file stem -> figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    if not results.cells:
        return
    attacks = attack_cells(results)
    yield "heatmap", heatmap_figure(results)
    for stem, figure in (
        ("cost", cost_figure(results)),
        ("downstream", downstream_figure(attacks, defense_order(results))),
        ("triggers", triggers_figure(attacks)),
        ("inverted_triggers", inverted_triggers_figure(attacks)),
    ):
        if figure is not None:
            yield stem, figure
    yield from _of_each_ranking(results)
    yield from _of_each_attack(attacks)


def _of_each_ranking(results: Results) -> Iterator[tuple[str, Figure]]:
    for name, table in results.manifest.further_tables.items():
        if table.kind != "ranks":
            continue
        _, found, _ = ranking(table, results)
        if found is not None and found.p_values is not None:
            title = f"{METRIC_NAMES[table.metric]}, {found.blocks} blocks"
            figure = critical_difference_figure(found.ranks, found.p_values, title)
            yield f"critical_difference_{name}", figure


def _of_each_attack(attacks: Sequence[AttackColumn]) -> Iterator[tuple[str, Figure]]:
    taken: set[str] = set()
    for attack in attacks:
        name = slug(attack.name, taken)
        if attack.pictures is not None:
            yield f"embedding_{name}", embedding_figure(attack, attack.pictures)
        if not attack.measured:
            continue
        scores = {cell.key: cell_scores(cell) for cell in attack.measured}
        yield f"roc_{name}", roc_figure(attack, scores)
        yield f"scores_{name}", histogram_figure(attack, scores)
        drawn: set[str] = set()
        for cells, figures in cells_with_pictures(attack):
            labels = [cell.row["defense"] for cell in cells]
            stem = f"reconstructions_{name}_{slug(labels[0], drawn)}"
            yield stem, reconstruction_figure(attack.title, ", ".join(labels), figures)
