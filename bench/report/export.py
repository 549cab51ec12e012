"""One table of a results folder as text in one format."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from bench.report import leaderboard
from bench.report.formats import TextTable, to_csv, to_html, to_json, to_latex, to_markdown
from bench.report.page import leaderboard_page
from bench.report.presentation import leaderboard_table, plain_table, summary_table
from bench.report.schema import Results, load_results

__all__ = ["FORMATS", "TABLES", "export", "table_text"]

_FRAMES: dict[str, Callable[[Results], pd.DataFrame]] = {
    "leaderboard": leaderboard.leaderboard,
    "summary": leaderboard.summary,
    "thresholds": leaderboard.thresholds,
    "downstream": leaderboard.downstream,
}
_DATA_WRITERS: dict[str, Callable[[pd.DataFrame], str]] = {"csv": to_csv, "json": to_json}
_TEXT_WRITERS: dict[str, Callable[[TextTable], str]] = {
    "latex": to_latex,
    "markdown": to_markdown,
    "html": to_html,
}

TABLES: tuple[str, ...] = tuple(_FRAMES)
"""Names of the tables."""

FORMATS: tuple[str, ...] = (*_DATA_WRITERS, *_TEXT_WRITERS)
"""Names of the formats: csv and json carry every column, the others what people read."""


def export(results_dir: Path, format: str, table: str = "leaderboard") -> str:
    """The table ``table`` of ``results_dir`` in ``format``.

    Parameters
    ----------
    format
        One of :data:`FORMATS`.
    table
        One of :data:`TABLES`.

    Raises
    ------
    ValueError
        For an unknown name, with the valid names and the nearest.
    ReportError
        When the folder is missing or damaged.
    """
    _check(format, FORMATS, "format")
    _check(table, TABLES, "table")
    return table_text(load_results(Path(results_dir)), format, table)


def table_text(results: Results, format: str, table: str) -> str:
    """As :func:`export`, from results already read."""
    if (format, table) == ("html", "leaderboard"):
        return leaderboard_page(results)
    if format in _DATA_WRITERS:
        return _DATA_WRITERS[format](_FRAMES[table](results))
    return _TEXT_WRITERS[format](_text_table(results, table))


def _text_table(results: Results, table: str) -> TextTable:
    if table == "leaderboard":
        return leaderboard_table(results)
    if table == "summary":
        return summary_table(results)
    return plain_table(table, _FRAMES[table](results), results)


def _check(name: str, valid: tuple[str, ...], what: str) -> None:
    if name in valid:
        return
    nearest = difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"unknown {what} {name!r}, valid: {', '.join(valid)}{hint}")
