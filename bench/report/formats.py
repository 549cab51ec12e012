"""Data frames as text: CSV, JSON, Markdown, LaTeX, HTML. Same frame, same bytes."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

__all__ = [
    "TextTable",
    "escape_latex",
    "escape_markdown",
    "guard_formula",
    "number_text",
    "to_csv",
    "to_html",
    "to_json",
    "to_latex",
    "to_markdown",
]

SIGNIFICANT_DIGITS = 6
"""Of every float in CSV and JSON: more would be noise, and would differ between machines."""


@dataclass(frozen=True)
class TextTable:
    """A table to be read: unescaped strings.

    Attributes
    ----------
    title, notes
        The heading and the paragraphs that say how to read it.
    numeric
        Headers of the columns to align right.
    rules_before
        Indices of the rows that start a new group.
    name
        Becomes ``tab:<name>`` in LaTeX.
    """

    name: str
    title: str
    notes: tuple[str, ...]
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[str] = frozenset()
    rules_before: frozenset[int] = frozenset()


def number_text(value: Any) -> str:
    """``value`` for CSV: 6 significant digits, empty when missing, text unchanged."""
    if value is None or value is pd.NA:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.{SIGNIFICANT_DIGITS}g}"
    return str(value)


def guard_formula(text: str) -> str:
    """``text`` with a leading apostrophe where a spreadsheet would run it as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def to_csv(frame: pd.DataFrame) -> str:
    """``frame`` with a header line; text that looks like a formula is guarded."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(frame.columns)
    for values in _values(frame):
        writer.writerow(
            guard_formula(value) if isinstance(value, str) else number_text(value)
            for value in values
        )
    return stream.getvalue()


def to_json(frame: pd.DataFrame) -> str:
    """A list of objects, one per row; missing values are null, floats as in the CSV."""
    records = [
        {name: _json_value(value) for name, value in zip(frame.columns, values, strict=True)}
        for values in _values(frame)
    ]
    return json.dumps(records, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(table: TextTable) -> str:
    """A heading, a pipe table, the notes."""
    lines = [f"# {escape_markdown(table.title)}", ""]
    if table.rows:
        lines.append(_pipe_row(table.headers))
        lines.append(_pipe_rule(table))
        lines.extend(_pipe_row(row) for row in table.rows)
    else:
        lines.append("No rows.")
    for note in table.notes:
        lines += ["", escape_markdown(note)]
    return "\n".join(lines) + "\n"


def to_latex(table: TextTable) -> str:
    r"""A ``table`` float to ``\input``; the preamble needs ``booktabs`` and ``graphicx``."""
    alignment = "".join("r" if name in table.numeric else "l" for name in table.headers)
    caption = " ".join(escape_latex(text) for text in (f"{table.title}.", *table.notes))
    lines = [
        r"% needs \usepackage{booktabs,graphicx}; table* or sidewaystable give it more width",
        r"\begin{table}",
        r"\centering",
        rf"\caption[{{{escape_latex(table.title)}}}]{{\footnotesize {caption}}}",
        rf"\label{{tab:{re.sub('[^a-z0-9-]', '-', table.name.lower())}}}",
    ]
    if table.rows:
        lines.append(r"\setlength{\tabcolsep}{3pt}")
        lines += [r"\resizebox{\linewidth}{!}{%", rf"\begin{{tabular}}{{{alignment}}}", r"\toprule"]
        lines += [_latex_row(table.headers, table), r"\midrule"]
        for index, row in enumerate(table.rows):
            if index in table.rules_before:
                lines.append(r"\midrule")
            lines.append(_latex_row(row, table))
        lines += [r"\bottomrule", r"\end{tabular}}"]
    lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def to_html(table: TextTable) -> str:
    """A page with the table and its notes; everything is escaped, nothing is scripted."""

    def cells(tag: str, texts: Sequence[str]) -> str:
        classes = [' class="n"' if name in table.numeric else "" for name in table.headers]
        return "".join(
            f"<{tag}{kind}>{html.escape(text)}</{tag}>"
            for text, kind in zip(texts, classes, strict=True)
        )

    title = html.escape(table.title)
    body = "\n".join(
        _html_row(cells("td", row), index in table.rules_before)
        for index, row in enumerate(table.rows)
    )
    notes = "\n".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
    return _PAGE.format(title=title, head=cells("th", table.headers), body=body, notes=notes)


def escape_markdown(text: str) -> str:
    """``text`` as one line that Markdown shows literally, also inside a table cell."""
    text = re.sub(r"([\\`*_\[\]#~|$])", r"\\\1", _one_line(text))
    return html.escape(text, quote=False)


def escape_latex(text: str) -> str:
    """``text`` as one line that pdflatex typesets literally."""
    return "".join(_latex_character(character) for character in _one_line(text))


def _html_row(cells: str, starts_group: bool) -> str:
    return f'<tr class="g">{cells}</tr>' if starts_group else f"<tr>{cells}</tr>"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _pipe_row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(escape_markdown(text) for text in texts) + " |"


def _pipe_rule(table: TextTable) -> str:
    return (
        "|" + "|".join("---:" if name in table.numeric else "---" for name in table.headers) + "|"
    )


def _latex_row(texts: Sequence[str], table: TextTable) -> str:
    cells = []
    for name, text in zip(table.headers, texts, strict=True):
        cell = escape_latex(text)
        if name in table.numeric:
            cell = re.sub(r"(?<![\w.])-(?=\d)", "$-$", cell)
        # The empty group keeps a leading bracket from being read as the argument of the last \\.
        cells.append(f"{{}}{cell}" if cell.startswith("[") else cell)
    return " & ".join(cells) + r" \\"


def _latex_character(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    if ord(character) < 0x7F or character in _LATEX_LETTERS:
        return character
    return rf"\texttt{{U+{ord(character):04X}}}"


def _values(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Rows of plain Python values: what came from numpy or pandas is unwrapped."""
    return [
        tuple(value.item() if isinstance(value, np.generic) else value for value in row)
        for row in frame.itertuples(index=False, name=None)
    ]


def _json_value(value: Any) -> Any:
    if isinstance(value, float):
        text = number_text(value)
        return float(text) if text else None
    return None if value is pd.NA else value


_LATEX: dict[str, str] = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "§": r"\S{}",
    "–": "--",
    "…": r"\dots{}",
    "×": r"$\times$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}

_LATEX_LETTERS = frozenset("äöüßáàâãåéèêëíìîïóòôõøúùûñçæÄÖÜÁÀÂÃÅÉÈÊËÍÌÎÏÓÒÔÕØÚÙÛÑÇÆ")
"""What pdflatex knows without further packages; others are shown by their code point."""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 14px/1.45 system-ui, sans-serif; margin: 2rem; color: #222; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3em .7em; text-align: left; white-space: nowrap; }}
th {{ border-bottom: 2px solid #444; }}
.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
tr.g td {{ border-top: 1px solid #999; }}
tbody tr:hover {{ background: #f2f4f7; }}
p {{ max-width: 60rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table>
{notes}
</body>
</html>
"""
