"""One table of a results folder as text in one format."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pandas as pd

from bench.errors import InputError, nearest
from bench.report import leaderboard
from bench.report.cells import cells_json
from bench.report.contests import differences_frame, differences_text, ranks_frame, ranks_text
from bench.report.declared import BUILT_IN, CELLS, Tables
from bench.report.formats import TextTable, to_csv, to_html, to_json, to_latex, to_markdown
from bench.report.page import leaderboard_page
from bench.report.pivot import pivot_frame
from bench.report.pivot_text import pivot_text
from bench.report.presentation import leaderboard_table, plain_table, summary_table
from bench.report.reported import reported_frame, reported_text
from bench.report.schema import Results, load_results
from bench.report.verdicts import encoders_frame, encoders_text

__all__ = ["CELLS", "FORMATS", "described_tables", "export", "table_names", "table_text"]

Frame = Callable[[Results], pd.DataFrame]
Text = Callable[[Results], TextTable]

_DATA_WRITERS: dict[str, Callable[[pd.DataFrame], str]] = {"csv": to_csv, "json": to_json}
_TEXT_WRITERS: dict[str, Callable[[TextTable], str]] = {
    "latex": to_latex,
    "markdown": to_markdown,
    "html": to_html,
}
_KINDS: dict[str, tuple[Callable[..., pd.DataFrame], Callable[..., TextTable]]] = {
    "pivot": (pivot_frame, pivot_text),
    "encoders": (encoders_frame, encoders_text),
    "differences": (differences_frame, differences_text),
    "ranks": (ranks_frame, ranks_text),
    "reported": (reported_frame, reported_text),
}

FORMATS: tuple[str, ...] = (*_DATA_WRITERS, *_TEXT_WRITERS)
"""Names of the formats: csv and json carry every column, the others what people read."""


def export(results_dir: Path, format: str, table: str = "leaderboard") -> str:
    """The table ``table`` of ``results_dir`` in ``format``.

    Parameters
    ----------
    format
        One of :data:`FORMATS`.
    table
        A built-in or declared table, or ``cells``.

    Raises
    ------
    InputError
        For an unknown name, with the valid names and the nearest.
    ReportError
        When the folder is missing or damaged.
    """
    results = load_results(Path(results_dir))
    tables = table_names(results.manifest.further_tables)
    for name, valid, what in ((format, FORMATS, "format"), (table, tables, "table")):
        if name not in valid:
            raise InputError(f"unknown {what} {name!r}{nearest(name, valid)}")
    return table_text(results, format, table)


def table_names(declared: Iterable[str]) -> tuple[str, ...]:
    """Every table that can be exported: built-in ones, then the experiment file's, then cells."""
    return (*BUILT_IN, *declared, CELLS)


def described_tables(declared: Tables) -> dict[str, str]:
    """:func:`table_names` with a few words for each."""
    described = dict.fromkeys(table_names(declared.declared), "")
    described |= {
        "leaderboard": "one row per cell: attack, defense, metrics, controls, cost",
        "summary": "each defense averaged over the valid attacks on one kind of encoder",
        "thresholds": "every threshold rule of every cell, with its realised rates",
        "downstream": "every accuracy and success rate, by probe, of victim and twin",
        CELLS: "everything that is stored, as one JSON document",
    }
    return described | {
        name: table.caption or table.kind for name, table in declared.declared.items()
    }


def table_text(results: Results, format: str, table: str) -> str:
    """As :func:`export`, from results already read.

    Raises
    ------
    InputError
        When ``cells`` is asked for in another format than JSON.
    """
    if table == CELLS:
        if format != "json":
            raise InputError(f"table {CELLS!r} has the format json only, not {format}")
        return cells_json(results)
    if (format, table) == ("html", "leaderboard"):
        return leaderboard_page(results)
    frame, text = _makers(results, table)
    if format in _DATA_WRITERS:
        return _DATA_WRITERS[format](frame(results))
    return _TEXT_WRITERS[format](text(results))


def _makers(results: Results, table: str) -> tuple[Frame, Text]:
    """What makes the data frame and the readable form of a table."""
    built_in: dict[str, tuple[Frame, Text | None]] = {
        "leaderboard": (leaderboard.leaderboard, leaderboard_table),
        "summary": (leaderboard.summary, summary_table),
        "thresholds": (leaderboard.thresholds, None),
        "downstream": (leaderboard.downstream, None),
    }
    if table in built_in:
        frame, text = built_in[table]
        return frame, text or (lambda results: plain_table(table, frame(results), results))
    declared = results.manifest.further_tables[table]
    make_frame, make_text = _KINDS[declared.kind]
    return partial(make_frame, declared), partial(make_text, table, declared)
