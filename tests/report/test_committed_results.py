"""The tables under ``results/`` are those of the cells beside them, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.report.export import table_text
from bench.report.schema import load_results

ROOT = Path(__file__).parents[2] / "results"
FORMS = {".csv": "csv", ".md": "markdown", ".tex": "latex"}


@pytest.mark.parametrize("profile", ["cifar10-small", "cifar10-ablations", "upstream"])
def test_committed_tables_follow_from_committed_cells(profile):
    folder = ROOT / profile
    if not (folder / "cells").is_dir():
        pytest.skip("results/ is not here: an installed package, not a checkout")
    results = load_results(folder)
    tables = [path for path in folder.glob("tables/*") if path.suffix in FORMS]
    tables += [folder / f"leaderboard{suffix}" for suffix in FORMS]
    assert len(tables) > 25
    differing = [
        path.name
        for path in tables
        if path.read_text() != table_text(results, FORMS[path.suffix], path.stem)
    ]
    assert differing == []
