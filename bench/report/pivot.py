"""Declared tables of metrics in rows and columns: what stands in each place."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from bench.report.columns import CONTEXT
from bench.report.declared import RATES, DeclaredTable
from bench.report.leaderboard import strict_mean, worst_status
from bench.report.presentation import ABSENT, marks_of
from bench.report.schema import Results, StoredCell
from bench.report.twin import gathered

__all__ = ["NOT_RUN", "Pivot", "Place", "fixed_value", "pivot", "pivot_frame"]

NOT_RUN = "not run"


@dataclass(frozen=True)
class Place:
    """What stands in one row and column.

    Attributes
    ----------
    values
        Metric -> mean over seeds, None where a seed has no value.
    status
        The worst of its cells; ``not run`` when there are none.
    seeds
        How many seeds have scores, of ``expected``.
    apart
        A control, a reference, an analysis or a reduced run: outside contests.
    averaged
        Whether its column may have a mean line: not an analysis, not a reduced run.
    """

    values: dict[str, float | None]
    status: str = NOT_RUN
    seeds: int = 0
    expected: int = 1
    apart: bool = False
    averaged: bool = True

    @property
    def complete(self) -> bool:
        """Ok in every seed."""
        return self.status == "ok" and self.seeds == self.expected

    @property
    def counts(self) -> bool:
        """Whether it may enter an average and a contest."""
        return self.complete and not self.apart


@dataclass(frozen=True)
class Pivot:
    """A table of places.

    Attributes
    ----------
    fields
        The fields that tell rows apart.
    rows
        Values of ``fields`` -> column -> place. Without pivoted columns the one column is ``""``.
    columns
        In the order of the matrix.
    controls
        Rows whose attack is a control.
    control_labels
        The attacks that are controls.
    encoders
        Row -> encoder, where it has only one.
    marks
        (field, label) -> the marks that belong behind an attack's or a defense's name: those of
        all its cells.
    """

    fields: tuple[str, ...]
    rows: dict[tuple[str, ...], dict[str, Place]]
    columns: tuple[str, ...]
    controls: frozenset[tuple[str, ...]]
    encoders: dict[tuple[str, ...], str]
    marks: dict[tuple[str, str], str] = field(default_factory=dict)
    control_labels: frozenset[str] = frozenset()


def pivot(table: DeclaredTable, results: Results) -> Pivot:
    """Sort the cells that ``table`` wants into rows and columns, seeds averaged.

    Cells of one place that differ in a context field (data set, encoder, downstream, target) are
    split into further rows, unless the table aggregates.
    """
    cells = [cell for cell in results.cells if table.wants(cell.row)]
    fields = _telling_fields(table, cells)
    groups: dict[tuple[str, ...], dict[str, list[StoredCell]]] = {}
    for cell in sorted(cells, key=_order(results, table)):
        place = tuple(_text(cell.row[name]) for name in fields)
        column = _text(cell.row[table.columns]) if table.columns else ""
        groups.setdefault(place, {}).setdefault(column, []).append(cell)
    wanted = (*table.fixed, *table.metrics, *table.controls)
    seeds = len(results.manifest.seeds)
    rows, controls, encoders = {}, set(), {}
    for place, columns in groups.items():
        rows[place] = {
            column: _place(found, wanted, table, seeds) for column, found in columns.items()
        }
        mine = [cell for found in columns.values() for cell in found]
        if "attack" in fields and all(cell.control for cell in mine):
            controls.add(place)
        named = {cell.row["encoder"] for cell in mine}
        if len(named) == 1:
            encoders[place] = named.pop()
    for label in _labels(table, table.rows[0], results):
        if all(place[0] != label for place in rows):
            rows[(label, *[ABSENT] * (len(fields) - 1))] = {}
    present = dict.fromkeys(column for row in rows.values() for column in row)
    columns = list(dict.fromkeys([*_labels(table, table.columns, results), *present]))
    # The matrix's order, and what is for comparison only last: references, controls.
    last = {cell.row["defense"] for cell in cells if cell.reference}
    last |= {cell.row["attack"] for cell in cells if cell.control}
    columns.sort(key=lambda label: label in last)
    order = {label: i for i, label in enumerate(_labels(table, table.rows[0], results))}
    rows = dict(
        sorted(rows.items(), key=lambda item: (item[0][0] in last, order.get(item[0][0], 0)))
    )
    labels = frozenset(cell.row["attack"] for cell in cells if cell.control)
    marks = marks_of(cells)
    return Pivot(fields, rows, tuple(columns), frozenset(controls), encoders, marks, labels)


def pivot_frame(table: DeclaredTable, results: Results) -> pd.DataFrame:
    """The numbers of a declared table: ``<column>/<metric>``, with ``<column>/status`` beside."""
    found = pivot(table, results)
    records = []
    for place, row in found.rows.items():
        record: dict[str, Any] = dict(zip(found.fields, place, strict=True))
        for metric in table.fixed:
            record[metric] = fixed_value(row, metric).values.get(metric)
        for column in found.columns:
            cell = row.get(column, Place({}))
            prefix = f"{column}/" if column else ""
            record[f"{prefix}status"] = cell.status
            record[f"{prefix}seeds"] = cell.seeds
            for metric in (*table.metrics, *table.controls):
                record[f"{prefix}{metric}"] = cell.values.get(metric)
        records.append(record)
    names = list(records[0]) if records else list(found.fields)
    frame = pd.DataFrame(records, columns=names, dtype=object)
    for name in names[len(found.fields) :]:
        kind = name.rpartition("/")[2]
        if kind == "seeds":
            frame[name] = frame[name].astype("Int64")
        elif kind != "status":
            frame[name] = frame[name].astype(float)
    return frame


def _labels(table: DeclaredTable, name: str | None, results: Results) -> list[str]:
    """The labels of the matrix that the table asks for, stored or not, when ``name`` is a part of
    the matrix."""
    known = {"attack": results.manifest.attacks, "defense": results.manifest.defenses}
    return [label for label in known.get(name or "", ()) if table.admits(name or "", label)]


def _telling_fields(table: DeclaredTable, cells: list[StoredCell]) -> tuple[str, ...]:
    """``rows``, and the context fields without which one place would hold different things."""
    fields = list(table.rows)
    if table.aggregate is not None:
        return tuple(fields)
    for name in ("attack", "defense", *CONTEXT):
        if name in fields or name == table.columns:
            continue
        places: dict[tuple[Any, ...], set[Any]] = {}
        for cell in cells:
            shown = [*fields, *([table.columns] if table.columns else [])]
            key = tuple(cell.row[field] for field in shown)
            places.setdefault(key, set()).add(cell.row[name])
        if any(len(values) > 1 for values in places.values()):
            fields.append(name)
    return tuple(fields)


def _place(
    cells: list[StoredCell], metrics: tuple[str, ...], table: DeclaredTable, expected: int
) -> Place:
    """Cells that differ in their seed, or in what the table aggregates over."""
    measured = [cell for cell in cells if cell.measured]
    apart = all(c.control or c.reference or c.analysis or c.reduced for c in cells)
    averaged = not all(c.analysis or c.reduced for c in cells)
    if not measured:
        status = worst_status(cell.status for cell in cells)
        return Place({}, status, 0, expected, apart, averaged)
    gather: Callable[[list[float | None]], float | None] = (
        _strict_median if table.aggregate == "median" else strict_mean
    )
    values = {
        m: gather([_rate(cell, m, table) for cell in measured])
        if m in RATES
        else gathered(measured, m, gather)
        for m in metrics
    }
    if table.aggregate is not None:
        apart = all(c.reference or c.reduced for c in cells)
        return Place(values, "ok", 1, 1, apart, averaged)
    status = worst_status(cell.status for cell in measured)
    return Place(values, status, len(measured), expected, apart, averaged)


def _rate(cell: StoredCell, metric: str, table: DeclaredTable) -> float | None:
    entry = cell.calibrated
    if table.threshold_rule is not None or table.threshold_fpr is not None:
        entry = cell.threshold(table.threshold_rule, table.threshold_fpr)
    return (entry or {}).get(metric)


def fixed_value(row: dict[str, Place], metric: str) -> Place:
    """A metric of the attack, as a place: the one value that those places of a row agree on which
    rest on the most seeds."""
    most = max((place.seeds for place in row.values()), default=0)
    found = [place for place in row.values() if place.seeds == most > 0]
    values = {place.values.get(metric) for place in found}
    if len(values) != 1:
        return Place({})
    status = worst_status(place.status for place in found)
    return Place({metric: values.pop()}, status, most, found[0].expected)


def _order(results: Results, table: DeclaredTable) -> Callable[[StoredCell], tuple[Any, ...]]:
    attacks = {label: place for place, label in enumerate(results.manifest.attacks)}
    defenses = {label: place for place, label in enumerate(results.manifest.defenses)}

    def key(cell: StoredCell) -> tuple[Any, ...]:
        row = cell.row
        attack = (cell.control, attacks.get(row["attack"], len(attacks)), row["attack"])
        defense = (cell.reference, defenses.get(row["defense"], len(defenses)), row["defense"])
        leading = (defense, attack) if table.rows[0] == "defense" else (attack, defense)
        return (*leading, *(_text(row[name]) for name in CONTEXT), cell.seed)

    return key


def _strict_median(values: list[float | None]) -> float | None:
    if not values or any(value is None for value in values):
        return None
    return float(statistics.median(v for v in values if v is not None))


def _text(value: Any) -> str:
    return "" if value is None else str(value)
