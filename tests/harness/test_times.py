"""``bench times``: what the stages of a matrix took."""

from __future__ import annotations

import json

import pytest

from bench.graph import topological
from bench.session import Selection, Session
from bench.times import describe_times, stage_times


def test_seconds_are_those_stored_beside_each_artifact(tiny_run):
    session = Session(tiny_run.file, Selection())
    table = stage_times(session).set_index("stage")
    stages = topological([cell.stage for cell in session.cells])
    assert table.stages.sum() == table.stored.sum() == len(stages)
    expected = {}
    for stage in stages:
        folder = (
            session.results / "cells" / stage.key
            if stage.kind == "evaluate"
            else session.store.folder(stage.kind, stage.key)
        )
        seconds = json.loads((folder / "cost.json").read_text())["seconds"]
        expected[stage.kind] = expected.get(stage.kind, 0) + seconds
    assert table.seconds.to_dict() == pytest.approx(expected)
    assert table.share.sum() == pytest.approx(1)


def test_uses_are_what_cells_would_compute_on_their_own(tiny_run):
    session = Session(tiny_run.file, Selection())
    table = stage_times(session).set_index("stage")
    alone = sum(len(topological([cell.stage])) for cell in session.cells)
    assert table.cells.sum() == alone > table.stages.sum()
    assert table.spared["evaluate"] == 0
    assert table.spared["pretrain"] > table.seconds["pretrain"]


def test_what_is_not_stored_counts_as_a_stage_and_as_no_time(tiny_run, tmp_path):
    table = stage_times(Session(tiny_run.file, Selection(cache=tmp_path, results=tmp_path)))
    assert table.stages.sum() > 0
    assert table.stored.sum() == 0
    assert table.seconds.sum() == 0
    text = describe_times(table)
    assert f"0 of {table.stages.sum()} stages are stored; they took 0 s" in text
    assert "nan" not in text
