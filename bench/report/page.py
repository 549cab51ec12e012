"""The leaderboard as one HTML file: a table to sort and filter, and a page for every cell.

The file needs no server and no network, and runs nothing but its own script: a content security
policy allows that by its hash. Texts of the results are data to the script, never markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.report.page_cells import cells_payload
from bench.report.page_table import Texts, table_payload
from bench.report.presentation import leaderboard_table, state_notes
from bench.report.schema import Results

__all__ = ["leaderboard_page"]

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("dom", "table", "copies", "charts", "cell", "main")


def leaderboard_page(results: Results) -> str:
    """The page of ``results``. Same cells, same text.

    Raises
    ------
    ReportError
        When the scores or pictures of a cell are missing or damaged.
    """
    table = leaderboard_table(results)
    state = state_notes(results)
    style = _asset("page.css")
    script = "(() => {\n" + "\n".join(_asset(f"{name}.js") for name in SCRIPTS) + "})();\n"
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("leaderboard.html.j2").render(
        table=table,
        state=state,
        notes=table.notes[len(state) :],
        facts=_facts(results),
        policy=_policy(script, style),
        style=Markup(style),
        script=Markup(script),
        data=_embedded(_payload(results)),
    )


def _payload(results: Results) -> dict[str, Any]:
    texts = Texts()
    payload = {
        "title": texts.number(f"Leaderboard, profile {results.manifest.profile}"),
        "profile": texts.number(results.manifest.profile),
        "state": [texts.number(note) for note in state_notes(results)],
        "table": table_payload(results, texts),
        **cells_payload(results, texts),
    }
    return payload | texts.payload()


def _facts(results: Results) -> list[str]:
    """What the run was, in a few words each."""
    cells = results.cells
    counts = [
        (len({cell.row["attack"] for cell in cells}), "attack"),
        (len({cell.row["defense"] for cell in cells}), "defense"),
        (len({cell.seed for cell in cells}), "seed"),
        (len(cells), "cell"),
    ]
    facts = [f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts]
    versions = sorted({cell.row["code_version"] for cell in cells} - {""})
    if len(versions) > 1:
        return [*facts, f"{len(versions)} versions of the code"]
    return [*facts, *(f"version {version}" for version in versions)]


def _policy(script: str, style: str) -> str:
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(payload: dict[str, Any]) -> Markup:
    """``payload`` as JSON that ends no element and no line early: all but ASCII is escaped."""
    text = json.dumps(payload, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
