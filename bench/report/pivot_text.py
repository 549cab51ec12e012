"""Declared tables of metrics for people: marks, words for gaps, notes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from bench.report.declared import AT_PROTOCOL, RATES, DeclaredTable
from bench.report.formats import TextTable
from bench.report.leaderboard import strict_mean
from bench.report.pivot import Pivot, Place, fixed_value, pivot
from bench.report.presentation import (
    ABSENT,
    decimals,
    mark_notes,
    state_notes,
    threshold_note,
)
from bench.report.schema import Results

__all__ = ["SHORT", "pivot_text"]

SHORT = {
    "auroc": "AUROC",
    "auroc_placebo": "placebo",
    "auroc_delta": "delta",
    "auroc_decoy": "decoy",
    "auroc_vs_decoy": "vs decoy",
    "auroc_vs_decoy_placebo": "on twin",
    "auroc_vs_decoy_excess": "beyond twin",
    "auroc_decoy_placebo": "decoy on twin",
    "tpr_calibrated_placebo": "TPR placebo",
    "aupr": "AUPR",
    "tpr": "TPR",
    "fpr": "FPR",
    "fpr_decoy": "FPR decoy",
    "tpr_at_1fpr": "TPR@1%",
    "tpr_at_5fpr": "TPR@5%",
    "tpr_median_rule": "TPR median rule",
    "fpr_median_rule": "FPR median rule",
    "clean_accuracy": "CA",
    "clean_accuracy_twin": "CA twin",
    "attack_success_rate": "ASR",
    "attack_success_rate_twin": "ASR twin",
    "ca_filtered": "CA",
    "asr_filtered": "ASR",
    "fit_seconds": "fit s",
    "score_ms_per_image": "ms/img",
    "peak_memory_mb": "MB",
}
"""Headings; other metrics go by their column's name."""

_READ_OFF = ("tpr_at_1fpr", "tpr_at_5fpr", "tpr_at_01fpr", "fpr_at_95tpr")
_MEDIAN_RULE = ("tpr_median_rule", "fpr_median_rule")
_WORDS = {"attack-weak": "weak", "attack-invalid": "invalid", "uncontrolled": "no twin"}
_ABOVE_CHANCE = ("auroc", "auroc_vs_decoy", "auroc_all")
_DIGITS = {"fit_seconds": 1, "score_ms_per_image": 2, "peak_memory_mb": 0}


def pivot_text(name: str, table: DeclaredTable, results: Results) -> TextTable:
    """A declared table for people: best and second best, grey controls, words for gaps."""
    found = pivot(table, results)
    shown = (*table.metrics, *table.controls)
    headers = [*found.fields, *(SHORT.get(metric, metric) for metric in table.fixed)]
    groups = [""] * len(headers)
    for column in found.columns:
        headers += [SHORT.get(metric, metric) for metric in shown]
        marks = found.marks.get((table.columns or "", column), "")
        groups += [column + marks + (" (control)" if column in found.control_labels else "")] * len(
            shown
        )
    writer = _Writer(table, found, shown)
    lines = [writer.line(place, row) for place, row in found.rows.items()]
    averages = writer.averages() if table.average else []
    first = len(found.fields)
    starts = {len(lines)} if averages and lines else set()
    return TextTable(
        name=name,
        title=f"{name.replace('-', ' ').capitalize()}, profile {results.manifest.profile}",
        notes=tuple(_notes(table, found, results, writer)),
        headers=tuple(headers),
        rows=(*lines, *averages),
        numeric=frozenset(range(first, len(headers))),
        rules_before=frozenset(starts),
        groups=tuple(groups) if any(groups) else (),
        styles=writer.styles,
    )


class _Writer:
    """Turns places into strings and collects their styles."""

    def __init__(self, table: DeclaredTable, found: Pivot, shown: tuple[str, ...]) -> None:
        self.table, self.found, self.shown = table, found, shown
        self.styles: dict[tuple[int, int], frozenset[str]] = {}
        self.incomplete: list[str] = []
        self._line = 0
        self._best = _ranking(table, found)

    def line(self, place: tuple[str, ...], row: dict[str, Place]) -> tuple[str, ...]:
        texts = list(self._labels(place, row))
        for metric in self.table.fixed:
            self._style(len(texts), {"dim"} if self._words(row.values()) else set())
            value = fixed_value(row, metric)
            texts.append(_with_seeds(_number(value.values.get(metric), metric), value))
        for column in self.found.columns:
            cell = row.get(column, Place({}))
            for metric in self.shown:
                styles = set(self._best.get((place, column, metric), ()))
                if metric in self.table.controls:
                    styles.add("grey")
                if cell.status != "ok":
                    styles.add("dim")
                self._style(len(texts), styles)
                texts.append(self._entry(cell, metric, row))
        self._line += 1
        return tuple(texts)

    def averages(self) -> list[tuple[str, ...]]:
        """A line per encoder: means over its valid attacks where a column has all of them.

        Rows of one attack (downstream sets, targets) are averaged first.
        """
        lines = []
        for encoder in dict.fromkeys(self.found.encoders.values()):
            attacks: dict[str, list[dict[str, Place]]] = {}
            for place, row in self.found.rows.items():
                # A set on which an attack cannot be judged at all is no gap in its mean.
                skipped = row and all(c.status == "skipped" for c in row.values())
                if self.found.encoders.get(place) == encoder and not skipped:
                    attacks.setdefault(place[self.found.fields.index("attack")], []).append(row)
            valid = [rows for rows in attacks.values() if _passes(rows)]
            if valid:
                lines.append(self._average(encoder, valid))
        return lines

    def _average(self, encoder: str, attacks: list[list[dict[str, Place]]]) -> tuple[str, ...]:
        def mean(values: list[list[float | None]]) -> float | None:
            return strict_mean([strict_mean(group) for group in values])

        what = "1 attack" if len(attacks) == 1 else f"{len(attacks)} attacks"
        texts = [f"mean over {what} ({encoder})", *[""] * (len(self.found.fields) - 1)]
        for metric in self.table.fixed:
            found = [[fixed_value(row, metric) for row in rows] for rows in attacks]
            every_seed = all(c.seeds == c.expected for group in found for c in group)
            values = [[c.values.get(metric) for c in group] for group in found]
            texts.append(_number(mean(values) if every_seed else None, metric))
        for column in self.found.columns:
            cells = [[row.get(column, Place({})) for row in rows] for rows in attacks]
            # A reference is apart from contests, and its mean is worth showing.
            averaged = all(c.averaged for group in cells for c in group)
            whole = averaged and all(c.complete for group in cells for c in group)
            if averaged and not whole:
                self.incomplete.append(f"{column} ({encoder})")
            for metric in self.shown:
                if metric in self.table.controls:
                    self._style(len(texts), {"grey"})
                values = [[c.values.get(metric) for c in group] for group in cells]
                texts.append(_number(mean(values) if whole else None, metric))
        self._line += 1
        return tuple(texts)

    def _labels(self, place: tuple[str, ...], row: dict[str, Place]) -> Iterable[str]:
        """The row's fields; what holds for the whole row is said behind the first."""
        notes = [_WORDS[word] for word in sorted(self._words(row.values()))]
        if place in self.found.controls:
            notes.append("control")
        for position, value in enumerate(place):
            label = value + self.found.marks.get((self.found.fields[position], value), "")
            yield f"{label} ({', '.join(notes)})" if notes and position == 0 else label

    def _words(self, places: Iterable[Place]) -> set[str]:
        """The status that all measured places of a row share, unless it is ok."""
        measured = {p.status for p in places if p.seeds}
        return measured if len(measured) == 1 and measured <= set(_WORDS) else set()

    def _entry(self, cell: Place, metric: str, row: dict[str, Place]) -> str:
        if not cell.seeds:
            return cell.status if metric == self.shown[0] else ""
        text = _number(cell.values.get(metric), metric)
        if text != ABSENT and cell.status in _WORDS and not self._words(row.values()):
            text += f" ({_WORDS[cell.status]})"
        return _with_seeds(text, cell)

    def _style(self, position: int, styles: set[str]) -> None:
        if styles:
            self.styles[self._line, position] = frozenset(styles)


def _passes(rows: Iterable[dict[str, Place]]) -> bool:
    """Whether an attack passes the validity gate in one of its rows, wherever that was measured:
    the gate is the attack's, also where a defense has no cell in the seed that fails it."""
    gates = [{c.status for c in row.values() if c.seeds and not c.apart} for row in rows]
    return any("ok" in found and found.isdisjoint(_WORDS) for found in gates)


def _ranking(
    table: DeclaredTable, found: Pivot
) -> dict[tuple[tuple[str, ...], str, str], set[str]]:
    """(row, column, metric) -> ``best`` or ``second``, among the places that count.

    Compared as they are shown. There is a second only of three, and an AUROC at or below 0.5 is
    no achievement.
    """
    styles: dict[tuple[tuple[str, ...], str, str], set[str]] = {}
    across = table.columns == "defense"
    lines: dict[Any, list[tuple[tuple[str, ...], str, Place]]] = {}
    for place, row in found.rows.items():
        for column, cell in row.items():
            if cell.counts:
                lines.setdefault(place if across else column, []).append((place, column, cell))
    for metric, goal in table.best.items():
        sign = 1 if goal == "highest" else -1
        for entries in lines.values():
            reached = {
                (place, column): round(sign * value, _DIGITS.get(metric, 3))
                for place, column, cell in entries
                if (value := cell.values.get(metric)) is not None
                and not (metric in _ABOVE_CHANCE and value <= 0.5)
            }
            order = sorted(set(reached.values()), reverse=True)
            if not order or len(entries) < 2 or (len(order) == 1 and len(reached) == len(entries)):
                continue  # nobody to be better than
            words = {order[0]: "best"}
            if len(order) > 1 and len(entries) > 2:
                words[order[1]] = "second"
            for (place, column), value in reached.items():
                if value in words:
                    styles.setdefault((place, column, metric), set()).add(words[value])
    return styles


def _notes(table: DeclaredTable, found: Pivot, results: Results, writer: _Writer) -> Iterable[str]:
    yield from state_notes(results)
    if table.caption:
        yield table.caption
    yield from _threshold_notes(table, results)
    if any("best" in style for style in writer.styles.values()):
        along = "row" if table.columns == "defense" else "column"
        among = "defenses" if table.aggregate else "valid, complete cells"
        yield (
            f"Bold: best in its {along} among {among}, as shown; second best of three or more "
            "underlined. Controls and references do not compete."
        )
    if table.controls:
        yield (
            "In grey the controls: placebo is the same defense and images on the clean twin, decoy "
            "a look-alike stamp that does not activate the backdoor."
        )
    words = {c.status for row in found.rows.values() for c in row.values()}
    if words & {"attack-weak", "attack-invalid"}:
        yield (
            "Weak, invalid: the attack fails the validity gate (ASR below 0.8 or 0.3, or a margin "
            "to the twin); shown, and outside averages and ranking."
        )
    if table.aggregate is not None:
        yield (
            f"The {table.aggregate} over all cells that were measured, over attacks, encoders and "
            "seeds, valid or not."
        )
    elif len(results.manifest.seeds) > 1:
        yield f"Means over {len(results.manifest.seeds)} seeds; with several, the worst status."
    if writer.incomplete:
        yield f"No mean where an attack is missing or not ok: {', '.join(writer.incomplete)}."
    yield from mark_notes(found.marks)


def _with_seeds(text: str, place: Place) -> str:
    """A number, and on how many seeds it rests where that is not all of them."""
    if text == ABSENT or place.seeds == place.expected:
        return text
    return f"{text} ({place.seeds}/{place.expected} seeds)"


def _threshold_notes(table: DeclaredTable, results: Results) -> Iterable[str]:
    """How the thresholds behind the shown columns were chosen; a table can hold several kinds."""
    shown = [*table.fixed, *table.metrics, *table.controls]

    def named(kind: Iterable[str]) -> str:
        return ", ".join(SHORT.get(metric, metric) for metric in shown if metric in kind)

    cells = [cell for cell in results.cells if table.wants(cell.row)]
    if named((*RATES, *AT_PROTOCOL)):
        yield threshold_note(cells, table.threshold_rule, table.threshold_fpr)
    if named(_MEDIAN_RULE):
        yield f"{named(_MEDIAN_RULE)}: {threshold_note(cells, 'median-test')}"
    if named(_READ_OFF):
        yield f"{named(_READ_OFF)}: read off the ROC curve of the test images, no threshold."
    if not named((*RATES, *AT_PROTOCOL, *_MEDIAN_RULE, *_READ_OFF)) and any(
        metric.startswith("auroc") for metric in shown
    ):
        yield "AUROC needs no threshold; none was chosen."


def _number(value: float | None, metric: str) -> str:
    missing = value is None or math.isnan(value)
    return ABSENT if missing else decimals(value, _DIGITS.get(metric, 3))
