"""Data frames as text: CSV, JSON, Markdown, LaTeX, HTML. Same frame, same bytes."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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

LONG_TEXT = 45
"""Characters from which a LaTeX column becomes a paragraph."""

ROWS_PER_FLOAT = 45
"""Of a LaTeX table: more do not fit a page."""


@dataclass(frozen=True)
class TextTable:
    """A table to be read: unescaped strings.

    Attributes
    ----------
    title, notes
        The heading and the paragraphs that say how to read it.
    numeric
        Positions of the columns to align right.
    rules_before
        Indices of the rows that start a new group.
    groups
        What stands above the headers, one per column, empty for none; equal neighbours share.
    styles
        (row, column) -> any of ``best``, ``second``, ``grey`` (a control), ``dim`` (not valid).
    name
        Becomes ``tab:<name>`` in LaTeX.
    """

    name: str
    title: str
    notes: tuple[str, ...]
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    rules_before: frozenset[int] = frozenset()
    groups: tuple[str, ...] = ()
    styles: Mapping[tuple[int, int], frozenset[str]] = field(default_factory=dict)

    def style(self, row: int, column: int) -> frozenset[str]:
        """The styles of one entry."""
        return self.styles.get((row, column), frozenset())

    def spans(self) -> list[tuple[str, int, int]]:
        """Runs of equal ``groups``: (text, first column, columns)."""
        runs: list[tuple[str, int, int]] = []
        for position, text in enumerate(self.groups):
            if runs and text and runs[-1][0] == text:
                runs[-1] = (text, runs[-1][1], runs[-1][2] + 1)
            else:
                runs.append((text, position, 1))
        return runs


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
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def to_csv(frame: pd.DataFrame) -> str:
    """``frame`` with a header line; text that looks like a formula is guarded."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(guard_formula(str(name)) for name in frame.columns)
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
    """A heading, a pipe table, the notes. Groups stand before the headers, best is bold, second
    best italic."""
    lines = [f"# {escape_markdown(table.title)}", ""]
    if table.rows:
        groups = table.groups or ("",) * len(table.headers)
        headers = [
            f"{group}: {name}" if group else name
            for group, name in zip(groups, table.headers, strict=True)
        ]
        lines.append("| " + " | ".join(map(escape_markdown, headers)) + " |")
        rule = ("---:" if i in table.numeric else "---" for i in range(len(headers)))
        lines.append("|" + "|".join(rule) + "|")
        for number, row in enumerate(table.rows):
            cells = (_markdown_cell(text, table.style(number, i)) for i, text in enumerate(row))
            lines.append("| " + " | ".join(cells) + " |")
    else:
        lines.append("No rows.")
    for note in table.notes:
        lines += ["", escape_markdown(note)]
    return "\n".join(lines) + "\n"


def to_latex(table: TextTable) -> str:
    r"""``table`` floats to ``\input``; the preamble needs ``array, booktabs, graphicx, xcolor``.

    Wide tables shrink to the line, long ones go on in further floats, each of a page at most.
    """
    lines = [r"% needs \usepackage{array,booktabs,graphicx,xcolor}; table* gives more width"]
    pages = _pages(table)
    name = re.sub("[^a-z0-9-]", "-", table.name.lower())
    for number, rows in enumerate(pages, 1):
        title = table.title if len(pages) == 1 else f"{table.title} ({number} of {len(pages)})"
        said = (f"{title}.", *table.notes) if number == 1 else (f"{title}.",)
        caption = " ".join(escape_latex(text) for text in said)
        lines += [
            r"\begin{table}",
            r"\centering",
            rf"\caption[{{{escape_latex(title)}}}]{{\footnotesize {caption}}}",
            rf"\label{{tab:{name}{'' if number == 1 else f'-{number}'}}}",
            r"\vspace{0.5em}",
            *(_latex_tabular(table, rows) if table.rows else []),
            r"\end{table}",
            # LaTeX holds 18 floats at most before it must set them.
            *([r"\clearpage"] if number % 10 == 0 else []),
        ]
    return "\n".join(lines) + "\n"


def _pages(table: TextTable) -> list[range]:
    """The rows of each float: at most :data:`ROWS_PER_FLOAT`, groups kept whole where they fit."""
    pages, start, count = [], 0, len(table.rows)
    while count - start > ROWS_PER_FLOAT:
        full = start + ROWS_PER_FLOAT
        whole = [i for i in table.rules_before if start < i <= full]
        stop = max(whole, default=full)
        pages.append(range(start, stop))
        start = stop
    return [*pages, range(start, count)]


def _latex_tabular(table: TextTable, rows: range) -> list[str]:
    alignment = "".join(_latex_column(table, i) for i in range(len(table.headers)))
    lines = [
        r"\setlength{\tabcolsep}{3pt}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        *_latex_groups(table),
        _latex_row(_latex_cell(h, i in table.numeric) for i, h in enumerate(table.headers)),
        r"\midrule",
    ]
    for number in rows:
        if number in table.rules_before and number != rows.start:
            lines.append(r"\midrule")
        lines.append(
            _latex_row(
                _latex_cell(text, i in table.numeric, table.style(number, i))
                for i, text in enumerate(table.rows[number])
            )
        )
    return [*lines, r"\bottomrule", r"\end{tabular}}"]


def to_html(table: TextTable) -> str:
    """A page with the table and its notes; everything is escaped, nothing is scripted."""
    title = html.escape(table.title)
    head = "".join(
        _html_cell("th", text, i in table.numeric) for i, text in enumerate(table.headers)
    )
    groups = ""
    if table.groups:
        spans = (
            f'<th class="c" colspan="{count}">{html.escape(text)}</th>'
            for text, _, count in table.spans()
        )
        groups = f"<tr>{''.join(spans)}</tr>"
    lines = []
    for number, row in enumerate(table.rows):
        cells = (
            _html_cell("td", text, i in table.numeric, table.style(number, i))
            for i, text in enumerate(row)
        )
        lines.append(_html_row("".join(cells), number in table.rules_before))
    notes = "\n".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
    return _PAGE.format(title=title, groups=groups, head=head, body="\n".join(lines), notes=notes)


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


def _markdown_cell(text: str, styles: frozenset[str]) -> str:
    written = escape_markdown(text)
    if not written or not styles & {"best", "second"}:
        return written
    return f"**{written}**" if "best" in styles else f"*{written}*"


def _html_cell(tag: str, text: str, numeric: bool, styles: frozenset[str] = frozenset()) -> str:
    classes = " ".join([*(["n"] if numeric else []), *sorted(styles)])
    attribute = f' class="{classes}"' if classes else ""
    return f"<{tag}{attribute}>{html.escape(text)}</{tag}>"


def _latex_column(table: TextTable, position: int) -> str:
    """Right, left, or a paragraph where a text is long."""
    if position in table.numeric:
        return "r"
    longest = max((len(row[position]) for row in table.rows), default=0)
    return r">{\raggedright\arraybackslash}p{6cm}" if longest > LONG_TEXT else "l"


def _latex_groups(table: TextTable) -> list[str]:
    """The line above the headers, with a rule under each group."""
    if not table.groups:
        return []
    cells, rules = [], []
    for text, first, count in table.spans():
        written = escape_latex(text)
        cells.append(rf"\multicolumn{{{count}}}{{c}}{{{written}}}" if text else "")
        if text:
            rules.append(rf"\cmidrule(lr){{{first + 1}-{first + count}}}")
    return [_latex_row(cells), " ".join(rules)]


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(text: str, numeric: bool, styles: frozenset[str] = frozenset()) -> str:
    cell = escape_latex(text)
    if numeric:
        cell = re.sub(r"(?<![\w.])-(?=\d)", "$-$", cell)
    if not cell:
        return ""
    if "dim" in styles:
        cell = rf"\textit{{{cell}}}"
    if styles & {"grey", "dim"}:
        cell = rf"\textcolor{{gray}}{{{cell}}}"
    if "best" in styles:
        cell = rf"\textbf{{{cell}}}"
    elif "second" in styles:
        cell = rf"\underline{{{cell}}}"
    # The empty group keeps a leading bracket from being read as the argument of the last \\.
    return f"{{}}{cell}" if cell.startswith("[") else cell


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
    "¶": r"\P{}",
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
.c {{ text-align: center; }}
.best {{ font-weight: 700; }}
.second {{ text-decoration: underline; }}
.grey, .dim {{ color: #767676; }}
.dim {{ font-style: italic; }}
tr.g td {{ border-top: 1px solid #999; }}
tbody tr:hover {{ background: #f2f4f7; }}
p {{ max-width: 60rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
<table>
<thead>{groups}<tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table>
{notes}
</body>
</html>
"""
