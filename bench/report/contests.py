"""Defenses against each other: paired differences per attack, mean ranks over all blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from bench.evaluation.bootstrap import percentile_interval
from bench.evaluation.ranking import Ranking, compare_over_blocks
from bench.evaluation.statistics import interval_over_seeds
from bench.report.declared import DeclaredTable
from bench.report.formats import TextTable
from bench.report.leaderboard import (
    attack_columns,
    independent_seeds,
    plain_rows,
    strict_mean,
    worst_status,
)
from bench.report.presentation import ABSENT, decimals, mark_notes, marks_of, state_notes
from bench.report.schema import Results, StoredCell
from bench.report.twin import gathered

__all__ = [
    "METRIC_NAMES",
    "differences_frame",
    "differences_text",
    "ranking",
    "ranks_frame",
    "ranks_text",
]

METRIC_NAMES = {
    "auroc": "AUROC",
    "auroc_delta": "AUROC minus placebo",
    "auroc_vs_decoy": "AUROC vs decoy",
    "auroc_vs_decoy_excess": "AUROC vs decoy, beyond the twin's",
}
_DIFFERENCE_COLUMNS = (
    *("attack", "defense", "against", "status", "seeds", "value", "value_against"),
    *("difference", "low", "high"),
)


def differences_frame(table: DeclaredTable, results: Results) -> pd.DataFrame:
    """``metric`` of every defense minus that of ``against``, per attack, seeds averaged.

    ``low`` and ``high``: of one seed the 95 % interval of the difference over source images,
    paired, from the draws that all defenses share; of several as in
    :func:`bench.evaluation.statistics.interval_over_seeds`. Empty where a cell is of an earlier
    version, which kept no draws, or has no value of the metric.
    """
    groups, seeds = _by_attack(table, results), results.manifest.seeds
    records = []
    for attack, defenses in groups.items():
        base = defenses.get(table.against or "", {})
        for defense, cells in defenses.items():
            shared = [seed for seed in cells if seed in base]
            if defense == table.against or not shared:
                continue
            mine, other = [cells[s] for s in shared], [base[s] for s in shared]
            value, against = (
                strict_mean([cell.row[table.metric] for cell in found]) for found in (mine, other)
            )
            origins = [cell.origins for cell in mine]
            independent = independent_seeds(shared, origins, results.manifest)
            low, high = _interval(mine, other, table.metric, independent)
            difference = None if None in (value, against) else value - against
            records.append(
                {
                    "attack": attack,
                    "defense": defense,
                    "against": table.against,
                    "status": worst_status(cell.status for cell in (*mine, *other)),
                    "seeds": f"{len(shared)}/{len(seeds)}",
                    "value": value,
                    "value_against": against,
                    "difference": difference,
                    "low": low,
                    "high": high,
                }
            )
    frame = pd.DataFrame(records, columns=list(_DIFFERENCE_COLUMNS), dtype=object)
    return frame.astype(dict.fromkeys(_DIFFERENCE_COLUMNS[5:], float))


def differences_text(name: str, table: DeclaredTable, results: Results) -> TextTable:
    """The differences for people; an asterisk where the interval leaves out zero."""
    frame = differences_frame(table, results)
    metric = METRIC_NAMES[table.metric]
    repeated = len(results.manifest.seeds) > 1
    headers = (
        *("attack", "defense", *(["seeds"] if repeated else [])),
        *(metric, f"of {table.against}", "difference", "interval", ""),
    )
    first = 3 if repeated else 2
    rows, styles, marks = [], {}, _marks(frame, results)
    for number, row in enumerate(frame.to_dict("records")):
        interval, clear = ABSENT, ""
        if not np.isnan(row["low"]):
            interval = f"[{decimals(row['low'], 3, '+')}, {decimals(row['high'], 3, '+')}]"
            clear = "*" if row["low"] > 0 or row["high"] < 0 else ""
        invalid = "" if row["status"] == "ok" else f" ({row['status']})"
        rows.append(
            (
                row["attack"] + invalid,
                row["defense"] + marks.get(("defense", row["defense"]), ""),
                *([row["seeds"]] if repeated else []),
                decimals(row["value"], 3),
                decimals(row["value_against"], 3),
                decimals(row["difference"], 3, "+"),
                interval,
                clear,
            )
        )
        if invalid:
            styles |= {(number, i): frozenset({"dim"}) for i in range(first, first + 4)}
    attacks = list(frame["attack"])
    return TextTable(
        name=name,
        title=f"{metric} against {table.against}, profile {results.manifest.profile}",
        notes=tuple(_difference_notes(table, frame, results)),
        headers=headers,
        rows=tuple(rows),
        numeric=frozenset(range(2, first + 4)),
        rules_before=frozenset(i for i in range(1, len(rows)) if attacks[i] != attacks[i - 1]),
        styles=styles,
    )


def ranking(table: DeclaredTable, results: Results) -> tuple[pd.DataFrame, Ranking | None, str]:
    """Blocks x defenses, what follows from it, and what was left out.

    A block is one (attack, data set, encoder) on which every defense has an ok cell in every seed;
    seeds and downstream sets are averaged first, sets on which the attack is skipped left out.
    Controls, references, analyses and reduced rows stay outside.
    """
    cells = [
        cell
        for cell in results.cells
        if table.wants(cell.row)
        and not (cell.control or cell.reference or cell.analysis or cell.reduced)
    ]
    references = {cell.row["defense"] for cell in results.cells if cell.reference}
    values: dict[tuple[str, ...], dict[str, dict[Any, StoredCell | None]]] = {}
    for cell in cells:
        row = cell.row
        if cell.status == "skipped":
            continue
        block = values.setdefault((row["attack"], row["dataset"], row["encoder"]), {})
        value = cell if cell.status == "ok" else None
        part = (row["seed"], row["downstream"], row["target"])
        block.setdefault(row["defense"], {})[part] = value
    defenses = list(dict.fromkeys(cell.row["defense"] for cell in cells))
    seeds = set(results.manifest.seeds)
    means: dict[tuple[str, ...], dict[str, float | None]] = {}
    for block, found in values.items():
        sets = {part[1:] for parts in found.values() for part in parts}
        wanted = [(seed, *rest) for seed in seeds for rest in sets]
        means[block] = {}
        for defense in defenses:
            there = [found.get(defense, {}).get(part) for part in wanted]
            whole = None not in there
            means[block][defense] = gathered(there, table.metric, strict_mean) if whole else None
    valid = [
        block
        for block, found in values.items()
        if any(value is not None for parts in found.values() for value in parts.values())
    ]
    whole = [b for b in valid if None not in means[b].values()]
    scores = pd.DataFrame([means[b] for b in whole], columns=defenses, dtype=float)
    scores.index = pd.Index([" / ".join(b) for b in whole], dtype=object)
    left = [b[0] for b in valid if b not in whole]
    said = (
        [f"Left out, without an ok value of every defense in every seed: {', '.join(left)}."]
        if left
        else []
    )
    absent = [
        d
        for d in results.manifest.defenses
        if table.admits("defense", d) and d not in defenses and d not in references
    ]
    if absent:
        said.append(f"Without a cell that counts, hence not ranked: {', '.join(absent)}.")
    return scores, compare_over_blocks(scores) if len(scores) else None, " ".join(said)


def ranks_frame(table: DeclaredTable, results: Results) -> pd.DataFrame:
    """Defense, mean rank, number of blocks; best first. Values themselves are not averaged here:
    blocks are of several encoders."""
    _, found, _ = ranking(table, results)
    if found is None:
        return pd.DataFrame(columns=["defense", "mean_rank", "blocks"])
    frame = pd.DataFrame({"mean_rank": found.ranks, "blocks": found.blocks})
    frame = frame.sort_values(["mean_rank"], kind="stable").rename_axis("defense").reset_index()
    return frame.astype({"blocks": "Int64"})


def ranks_text(name: str, table: DeclaredTable, results: Results) -> TextTable:
    """Mean ranks for people, with the tests or the reason why there are none."""
    frame = ranks_frame(table, results)
    scores, found, left = ranking(table, results)
    notes = list(state_notes(results))
    if table.caption:
        notes.append(table.caption)
    notes.append("Ranks by a metric without a threshold; 1 is the best, ties share.")
    if found is None:
        notes.append("No attack on which every defense has a valid value in every seed.")
    elif found.reason:
        blocks = ", ".join(str(block) for block in scores.index)
        notes.append(f"No tests and no critical-difference diagram: {found.reason} ({blocks}).")
    else:
        notes += _tested(found)
    return TextTable(
        name=name,
        title=f"Mean ranks by {METRIC_NAMES[table.metric]}, profile {results.manifest.profile}",
        notes=(*notes, *([left] if left else [])),
        headers=("defense", "mean rank", "blocks"),
        rows=tuple(
            (
                row["defense"],
                decimals(row["mean_rank"], 2),
                str(row["blocks"]),
            )
            for row in frame.to_dict("records")
        ),
        numeric=frozenset({1, 2}),
    )


def _tested(found: Ranking) -> Iterable[str]:
    yield f"Friedman's test over {found.blocks} blocks: p = {found.friedman_p:.2g}."
    p_values = found.p_values
    assert p_values is not None
    names = list(p_values.columns)
    pairs = len(names) * (len(names) - 1) // 2
    least = min(1.0, pairs * 2.0 ** (1 - found.blocks))
    yield (
        f"The smallest p that the pairwise test can reach with {len(names)} defenses on "
        f"{found.blocks} blocks is {least:.2g}; where that is above 0.05, no pair can differ."
    )
    yield "Blocks share test images and clean encoders, so they are not fully independent."
    clear = [
        f"{first} and {second} ({p_values.loc[first, second]:.2g})"
        for place, first in enumerate(names)
        for second in names[place + 1 :]
        if p_values.loc[first, second] < 0.05
    ]
    yield (
        "Pairs that differ at 0.05 by Wilcoxon's signed-rank test with Holm's bound: "
        f"{', '.join(clear) or 'none'}."
    )


def _marks(frame: pd.DataFrame, results: Results) -> dict[tuple[str, str], str]:
    """The marks of the defenses that a table of differences shows."""
    shown = set(frame["defense"])
    found = marks_of(cell for cell in results.cells if cell.row["defense"] in shown)
    return {who: mark for who, mark in found.items() if who[0] == "defense"}


def _difference_notes(table: DeclaredTable, frame: pd.DataFrame, results: Results) -> Iterable[str]:
    yield from state_notes(results)
    if table.caption:
        yield table.caption
    yield "AUROC needs no threshold; none was chosen."
    yield (
        "Intervals: 95 %, over source images, paired: both defenses see the same draws of the same "
        "images. *: zero lies outside. Not corrected for the number of rows."
    )
    if len(results.manifest.seeds) > 1:
        yield (
            "Over seeds: from three on of which no two share an encoder or a pretraining, an "
            "interval of the mean; otherwise from the lowest to the highest end of their "
            "intervals, so that * says that every seed has the sign."
        )
    without = frame["low"].isna()
    if (without & frame["difference"].notna()).any():
        yield f"{ABSENT}: a cell of an earlier version kept no draws; rerun it for an interval."
    if (without & frame["difference"].isna()).any():
        yield f"{ABSENT} without a difference: the victim has no twin, or no decoy qualified."
    if len(results.manifest.seeds) > 1 and len(frame):
        yield "Over the seeds that both defenses have, so the value of the other may vary by row."
    yield from mark_notes(_marks(frame, results))
    gaps = _gaps(table, frame, results)
    if gaps:
        yield f"Without a pair: {', '.join(gaps)}."


def _gaps(table: DeclaredTable, frame: pd.DataFrame, results: Results) -> list[str]:
    """Pairs of the matrix that have no row, in words."""
    controls = {cell.row["attack"] for cell in results.cells if cell.control}
    attacks = [a for a in results.manifest.attacks if a not in controls]
    defenses = [d for d in results.manifest.defenses if d != table.against]
    columns = attack_columns(plain_rows(results))
    label_of = {columns[cell.key]: cell.row["attack"] for cell in results.cells}
    there = {(label_of[a], d) for a, d in zip(frame["attack"], frame["defense"], strict=True)}
    return [
        f"{defense} on {attack}"
        for attack in attacks
        if table.admits("attack", attack)
        for defense in defenses
        if table.admits("defense", defense) and (attack, defense) not in there
    ]


def _by_attack(
    table: DeclaredTable, results: Results
) -> dict[str, dict[str, dict[int, StoredCell]]]:
    """Attack column -> defense -> seed -> measured cell, in leaderboard order."""
    cells = {cell.key: cell for cell in results.cells}
    rows = plain_rows(results)
    columns = attack_columns(rows)
    groups: dict[str, dict[str, dict[int, StoredCell]]] = {}
    for row in rows:
        cell = cells[row["key"]]
        wanted = table.wants(row) or row["defense"] == table.against
        if wanted and cell.measured and not cell.control:
            attack = groups.setdefault(columns[cell.key], {})
            attack.setdefault(row["defense"], {})[cell.seed] = cell
    return groups


def _interval(
    mine: list[StoredCell], other: list[StoredCell], metric: str, independent: bool
) -> tuple[float, float]:
    values, ends = [], []
    for first, second in zip(mine, other, strict=True):
        pair = (first.row[metric], second.row[metric])
        draws = [_draws(cell, metric) for cell in (first, second)]
        if None in pair or draws[0] is None or draws[1] is None or len(draws[0]) != len(draws[1]):
            return (np.nan, np.nan)
        values.append(pair[0] - pair[1])
        ends.append(percentile_interval(draws[0] - draws[1]))
    return interval_over_seeds(values, *zip(*ends, strict=True), independent)


def _draws(cell: StoredCell, metric: str) -> np.ndarray | None:
    stored = cell.draws()
    if metric == "auroc_delta":
        if not {"auroc", "auroc_placebo"} <= set(stored):
            return None
        return stored["auroc"].astype(np.float64) - stored["auroc_placebo"]
    found: Any = stored.get(metric)
    return None if found is None else found.astype(np.float64)
