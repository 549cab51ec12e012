"""Declared tables of metrics for people: marks, words for gaps, notes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from bench.report.declared import RATES, DeclaredTable
from bench.report.formats import TextTable
from bench.report.leaderboard import strict_mean
from bench.report.pivot import Pivot, Place, fixed_value, pivot
from bench.report.presentation import ABSENT, MARKS, decimals, state_notes, threshold_note
from bench.report.schema import Results

__all__ = ["SHORT", "pivot_text"]

SHORT = {
    "auroc": "AUROC",
    "auroc_placebo": "placebo",
    "auroc_delta": "delta",
    "auroc_decoy": "decoy",
    "auroc_vs_decoy": "vs decoy",
    "auroc_vs_decoy_placebo": "on twin",
    "aupr": "AUPR",
    "tpr": "TPR",
    "fpr": "FPR",
    "fpr_decoy": "FPR decoy",
    "tpr_at_1fpr": "TPR@1%",
    "tpr_at_5fpr": "TPR@5%",
    "tpr_median_rule": "TPR",
    "fpr_median_rule": "FPR",
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

_WORDS = {"attack-weak": "weak", "attack-invalid": "invalid", "uncontrolled": "no twin"}
_DIGITS = {"fit_seconds": 1, "score_ms_per_image": 2, "peak_memory_mb": 0}


def pivot_text(name: str, table: DeclaredTable, results: Results) -> TextTable:
    """A declared table for people: best and second best, grey controls, words for gaps."""
    found = pivot(table, results)
    shown = (*table.metrics, *table.controls)
    headers = [*found.fields, *(SHORT.get(metric, metric) for metric in table.fixed)]
    groups = [""] * len(headers)
    for column in found.columns:
        headers += [SHORT.get(metric, metric) for metric in shown]
        groups += [column + found.marks.get(column, "")] * len(shown)
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
            texts.append(_number(fixed_value(row, metric), metric))
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
        """A line per encoder: means over its valid attacks where a column has all of them."""
        lines = []
        for encoder in dict.fromkeys(self.found.encoders.values()):
            rows = {
                place: row
                for place, row in self.found.rows.items()
                if self.found.encoders.get(place) == encoder and place not in self.found.controls
            }
            valid = [p for p, row in rows.items() if any(c.status == "ok" for c in row.values())]
            if not valid:
                continue
            what = "1 attack" if len(valid) == 1 else f"{len(valid)} attacks"
            texts = [f"mean over {what} ({encoder})", *[""] * (len(self.found.fields) - 1)]
            for metric in self.table.fixed:
                texts.append(
                    _number(strict_mean([fixed_value(rows[p], metric) for p in valid]), metric)
                )
            for column in self.found.columns:
                cells = [rows[place].get(column, Place({})) for place in valid]
                whole = all(cell.complete for cell in cells)
                if not whole:
                    self.incomplete.append(f"{column or 'it'} ({encoder})")
                for metric in self.shown:
                    if metric in self.table.controls:
                        self._style(len(texts), {"grey"})
                    values = [cell.values.get(metric) for cell in cells] if whole else []
                    texts.append(_number(strict_mean(values), metric))
            self._line += 1
            lines.append(tuple(texts))
        return lines

    def _labels(self, place: tuple[str, ...], row: dict[str, Place]) -> Iterable[str]:
        """The row's fields; what holds for the whole row is said behind the first."""
        notes = [_WORDS[word] for word in sorted(self._words(row.values()))]
        if place in self.found.controls:
            notes.append("control")
        for position, value in enumerate(place):
            marks = self.found.marks.get(value, "") if self._is("defense", position) else ""
            label = value + marks
            yield f"{label} ({', '.join(notes)})" if notes and position == 0 else label

    def _is(self, name: str, position: int) -> bool:
        return self.found.fields[position] == name

    def _words(self, places: Iterable[Place]) -> set[str]:
        """The status that all measured places of a row share, unless it is ok."""
        measured = {p.status for p in places if p.seeds}
        return measured if len(measured) == 1 and measured <= set(_WORDS) else set()

    def _entry(self, cell: Place, metric: str, row: dict[str, Place]) -> str:
        if not cell.seeds:
            return cell.status if metric == self.shown[0] else ""
        text = _number(cell.values.get(metric), metric)
        if text == ABSENT:
            return text
        if cell.status in _WORDS and not self._words(row.values()):
            text += f" ({_WORDS[cell.status]})"
        if cell.seeds < cell.expected:
            text += f" ({cell.seeds}/{cell.expected} seeds)"
        return text

    def _style(self, position: int, styles: set[str]) -> None:
        if styles:
            self.styles[self._line, position] = frozenset(styles)


def _ranking(
    table: DeclaredTable, found: Pivot
) -> dict[tuple[tuple[str, ...], str, str], set[str]]:
    """(row, column, metric) -> ``best`` or ``second``, among ok and complete places."""
    styles: dict[tuple[tuple[str, ...], str, str], set[str]] = {}
    across = table.columns == "defense"
    lines: dict[Any, list[tuple[tuple[str, ...], str, Place]]] = {}
    for place, row in found.rows.items():
        for column, cell in row.items():
            if cell.complete and place not in found.controls:
                lines.setdefault(place if across else column, []).append((place, column, cell))
    for metric, goal in table.best.items():
        for entries in lines.values():
            sign = 1 if goal == "highest" else -1
            reached = [c.values.get(metric) for *_, c in entries]
            values = {round(sign * value, 3) for value in reached if value is not None}
            if len(values) < 2:
                continue
            first, second = sorted(values, reverse=True)[:2]
            for place, column, cell in entries:
                value = cell.values.get(metric)
                rounded = None if value is None else round(sign * value, 3)
                if rounded in (first, second):
                    word = "best" if rounded == first else "second"
                    styles.setdefault((place, column, metric), set()).add(word)
    return styles


def _notes(table: DeclaredTable, found: Pivot, results: Results, writer: _Writer) -> Iterable[str]:
    yield from state_notes(results)
    if table.caption:
        yield table.caption
    shown = {*table.metrics, *table.controls, *table.fixed}
    if shown & {*RATES, "tpr_calibrated", "fpr_calibrated", "ca_filtered", "asr_filtered"}:
        yield threshold_note(results, table.threshold_rule, table.threshold_fpr)
    elif shown & {"auroc", "auroc_delta", "auroc_placebo", "auroc_vs_decoy"}:
        yield "AUROC needs no threshold; none was chosen."
    if any("best" in style for style in writer.styles.values()):
        along = "row" if table.columns == "defense" else "column"
        yield f"Bold: best in its {along} among valid, complete cells; second best underlined."
    if table.controls:
        yield (
            "In grey the controls: placebo is the same defense and images on the clean twin, decoy "
            "a look-alike stamp that does not activate the backdoor."
        )
    words = {c.status for row in found.rows.values() for c in row.values()}
    if words & {"attack-weak", "attack-invalid"}:
        yield (
            "Weak, invalid: the attack fails the validity gate (ASR below 0.8 or 0.3); shown, and "
            "outside averages and ranking."
        )
    if table.aggregate is not None:
        yield f"The {table.aggregate} over all cells that were measured."
    elif len(results.manifest.seeds) > 1:
        yield f"Means over {len(results.manifest.seeds)} seeds."
    if writer.incomplete:
        yield f"No mean where an attack is missing or not ok: {', '.join(writer.incomplete)}."
    for mark, text in MARKS.values():
        if any(mark in marks for marks in found.marks.values()):
            yield f"{mark} {text}"


def _number(value: float | None, metric: str) -> str:
    missing = value is None or math.isnan(value)
    return ABSENT if missing else decimals(value, _DIGITS.get(metric, 3))
