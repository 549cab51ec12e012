"""The export of everything that is stored, and its page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench.errors import InputError
from bench.report.cells import CELLS_SCHEMA
from bench.report.export import export

PAGE = Path(__file__).parents[2] / "docs" / "cells.md"


def test_the_document_holds_every_cell_and_says_what_is_missing(make_results):
    folder = make_results(
        special={("drupe", "knn"): ("failed", "boom")}, absent=frozenset({("none", "dede")})
    )
    document = json.loads(export(folder, "json", "cells"))
    assert document["schema"] == CELLS_SCHEMA
    assert document["unfinished"] == 1
    assert len(document["cells"]) == 8
    failed = [cell for cell in document["cells"] if cell["row"]["status"] == "failed"]
    assert [cell["row"]["reason"] for cell in failed] == ["boom"]
    assert failed[0]["row"]["auroc"] is None


def test_every_field_is_documented_and_nothing_else(make_results):
    document = json.loads(export(make_results(), "json", "cells"))
    first, second = PAGE.read_text(encoding="utf-8").split("One cell:")
    for text, fields in ((first, document), (second, document["cells"][0])):
        named = set()
        for line in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE):
            named |= set(re.findall(r"`(\w+)`", line))
        assert named == set(fields)


def test_the_page_states_the_version():
    assert f"`schema` is {CELLS_SCHEMA}." in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("form", ["csv", "latex", "markdown", "html"])
def test_other_formats_are_refused_in_words(make_results, form):
    with pytest.raises(InputError, match="has the format json only"):
        export(make_results(), form, "cells")
