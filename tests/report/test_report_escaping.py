"""Labels are the user's: no format may run, break or lose them."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess

import pytest
from stored_cells import DECLARED, write_cell, write_manifest

from bench.report.declared import BUILT_IN
from bench.report.export import FORMATS, export
from bench.report.formats import escape_latex, escape_markdown

TABLES = (*BUILT_IN, *DECLARED)
LABEL = r"a_b & <script>|$x$ =1+1"
HOSTILE = r"=cmd|'/c'! 50% #1 {x} \input{y} ~^ [z] 漢 “q” *b* `c` ü"


@pytest.fixture
def hostile(tmp_path):
    keys = [
        write_cell(tmp_path, LABEL, HOSTILE, figures=True),
        write_cell(tmp_path, LABEL, "[bracket", status="failed", reason=f"-1\n{HOSTILE}"),
        write_cell(tmp_path, "@none", HOSTILE, control=True),
    ]
    write_manifest(tmp_path, [LABEL, "@none"], [HOSTILE, "[bracket"], keys)
    return tmp_path


def _braces_balance(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"\\[\\{}]|[{}]", text):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0


@pytest.mark.parametrize("table", TABLES)
def test_latex_braces_balance(hostile, table):
    assert _braces_balance(export(hostile, "latex", table))


def test_every_latex_special_character_is_escaped():
    assert escape_latex(LABEL) == (r"a\_b \& \textless{}script\textgreater{}\textbar{}\$x\$ =1+1")
    assert escape_latex("\\{") == r"\textbackslash{}\{"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_tables_compile(hostile, tmp_path):
    work = tmp_path / "latex"
    work.mkdir()
    for table in TABLES:
        (work / f"{table}.tex").write_text(export(hostile, "latex", table), encoding="utf-8")
    (work / "main.tex").write_text(
        "\\documentclass{article}\n\\usepackage{array,booktabs,graphicx,xcolor}\n\\begin{document}\n"
        "\\listoftables\n"
        + "".join(f"\\input{{{table}}}\n" for table in TABLES)
        + "\\end{document}\n",
        encoding="utf-8",
    )
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "main.tex"]
    for _ in range(2):  # the second reads the list of tables back
        run = subprocess.run(command, cwd=work, capture_output=True, check=False)
        assert run.returncode == 0, run.stdout.decode(errors="replace")[-2000:]
    assert (work / "main.pdf").stat().st_size > 0


def test_csv_guards_text_that_a_spreadsheet_would_run(hostile):
    rows = list(csv.DictReader(io.StringIO(export(hostile, "csv"))))
    assert {row["defense"][:2] for row in rows} == {"'=", "[b"}
    assert {row["attack"] for row in rows} == {LABEL, "'@none"}
    assert any(row["reason"].startswith("'-1") for row in rows)
    for table in TABLES:
        for row in csv.reader(io.StringIO(export(hostile, "csv", table))):
            texts = [cell for cell in row if not re.fullmatch(r"-?[\d.e+-]+", cell)]
            assert not any(text.startswith(("=", "+", "-", "@")) for text in texts)


def test_csv_leaves_negative_numbers_alone(tmp_path):
    write_manifest(
        tmp_path, ["x"], ["d"], [write_cell(tmp_path, "x", "d", row={"auroc_delta": -0.5})]
    )
    row = next(csv.DictReader(io.StringIO(export(tmp_path, "csv"))))
    assert row["auroc_delta"] == "-0.5"


def test_latex_sets_negative_numbers_with_a_minus_sign_and_labels_as_they_are(tmp_path):
    key = write_cell(tmp_path, "x-1", "-2", row={"auroc_delta": -0.5})
    write_manifest(tmp_path, ["x-1"], ["-2"], [key])
    text = export(tmp_path, "latex")
    assert "$-$0.500 [" in text
    assert "x-1 & -2 &" in text


def test_markdown_keeps_its_columns_and_shows_no_markup(hostile):
    text = export(hostile, "markdown")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    counts = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}
    assert len(counts) == 1
    assert "<script>" not in text
    assert escape_markdown(LABEL) == r"a\_b &amp; &lt;script&gt;\|\$x\$ =1+1"


@pytest.mark.parametrize("table", TABLES)
def test_html_is_escaped(hostile, table):
    text = export(hostile, "html", table)
    assert LABEL not in text
    assert "<script>|" not in text
    # The others name no attack of this folder.
    if table in ("leaderboard", "thresholds", "downstream", "detection", "ranks"):
        assert "&lt;script&gt;|" in text


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_carries_every_cell(hostile, form):
    text = export(hostile, form)
    assert text.count("script") >= 2
    assert text.endswith("\n")
