"""Names and errors that want to be code where they are shown."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import torch
from campaign import Deed, case, command
from hostile_checkpoints import narrow
from hostile_results import results

SCRIPT = "</script><img src=x onerror=alert(1)>"
FORMULA = '=HYPERLINK("http://x","y")'
TEX = r"\input{/etc/passwd}"
LINK = "[click](javascript:alert(1)) | `x`"


def shown(folder: Path, form: str, text: str, check: Callable[[str], None]) -> Deed:
    """Every table in one format, of a cell whose names and whose error are ``text``."""
    place = results(
        folder, text, status="failed", reason=text, row={"dataset": text, "downstream": text}
    )

    def after() -> None:
        check((folder.parent / f"{folder.name}.out").read_text())

    arguments = ("export", "--format", form, "--results", place.parents[2])
    return command(*arguments, outcome="escaped", after=after)


@case("markup", "HTML in labels, data set and error, as HTML")
def html_html(folder: Path) -> Deed:
    def check(text: str) -> None:
        assert "<img" not in text, "an image tag came through"
        assert "&lt;img" in text, "the text is lost"

    return shown(folder, "html", SCRIPT, check)


@case("markup", "HTML in labels, data set and error, as Markdown")
def html_markdown(folder: Path) -> Deed:
    def check(text: str) -> None:
        assert "<img" not in text, "an image tag came through"
        assert "onerror" in text, "the text is lost"

    return shown(folder, "markdown", SCRIPT, check)


@case("markup", "Markdown in labels, data set and error, as Markdown")
def markdown_markdown(folder: Path) -> Deed:
    def check(text: str) -> None:
        assert "[click](" not in text, "a link came through"
        rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
        widths = {row.count("|") for row in rows}
        assert len(widths) == 1, "a column came through"

    return shown(folder, "markdown", LINK, check)


@case("markup", "LaTeX in labels, data set and error, as LaTeX")
def latex_latex(folder: Path) -> Deed:
    def check(text: str) -> None:
        assert "\\input{" not in text, "a command came through"
        assert "textbackslash" in text, "the text is lost"

    return shown(folder, "latex", TEX, check)


@case("markup", "formula in labels, data set and error, as CSV")
def formula_csv(folder: Path) -> Deed:
    def check(text: str) -> None:
        values = [value for row in csv.reader(io.StringIO(text)) for value in row]
        assert not any(value.startswith(("=", "+", "@")) for value in values), "a formula"
        assert f"'{FORMULA}" in values, "the text is lost"

    return shown(folder, "csv", FORMULA, check)


@case("markup", "formula behind a tab and a line break, as CSV")
def tab_csv(folder: Path) -> Deed:
    def check(text: str) -> None:
        values = [value for row in csv.reader(io.StringIO(text)) for value in row]
        assert not any(value.lstrip().startswith("=") for value in values), "a formula"

    return shown(folder, "csv", f"\n{FORMULA}", check)


@case("markup", "everything at once, in the page of a report", long=True)
def page(folder: Path) -> Deed:
    place = results(folder, SCRIPT, status="failed", reason=SCRIPT + TEX + FORMULA)

    def after() -> None:
        text = (place.parents[1] / "leaderboard.html").read_text()
        assert SCRIPT not in text, "markup came through"

    return command("report", outcome="escaped", after=after)


@case("markup", "names of images that are markup and formulas, in a scan")
def scan_names(folder: Path) -> Deed:
    import numpy as np
    from PIL import Image

    (folder / "images").mkdir()
    torch.save(narrow(), folder / "x.pth")
    for number, name in enumerate(("=cmd|x!A0", "<img src=x onerror=alert(1)>", "@a", "b")):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
    (folder / "images" / "<svg onload=alert(1)>.png").write_bytes(b"")

    def after() -> None:
        assert "<img src=x" not in (folder / "out" / "report.html").read_text(), "an image tag"
        assert "<svg onload" not in (folder / "out" / "report.html").read_text(), "a script"
        table = (folder / "out" / "scores.csv").read_text()
        assert not any(line.startswith(("=", "@")) for line in table.splitlines()), "a formula"

    arguments = ("--images", "images", "--defenses", "mahalanobis", "--device", "cpu")
    return command("scan", "x.pth", *arguments, "--output", "out", outcome="escaped", after=after)
