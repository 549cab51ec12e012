"""Stored cells between several runs, and what ``bench status`` says of a live one."""

from __future__ import annotations

import json
import os

import pytest

from bench.cells import AtWork, CellStore, RunningMark, RunState, describe_status
from bench.report.columns import ROW_COLUMNS
from bench.store import machine_name

KEY = "ab" * 32
IDENTITY = {"attack": "badencoder", "defense": "lof"}


def finished(cells: CellStore, auroc: float) -> None:
    scratch = cells.scratch()
    row = {**dict.fromkeys(ROW_COLUMNS, ""), **IDENTITY, "status": "ok", "auroc": auroc}
    (scratch / "cell.json").write_text(json.dumps({"row": row}))
    cells.publish(scratch, KEY)


def test_a_failure_takes_no_finished_cell_away(tmp_path):
    """Two runs of one matrix: the second fails, on a smaller device, what the first has done."""
    cells = CellStore(tmp_path)
    cells.folder.mkdir()
    cells.write_unfinished(KEY, IDENTITY, "failed", "no memory", {})
    assert cells.status(KEY) == "failed"
    finished(cells, 0.5)
    cells.write_unfinished(KEY, IDENTITY, "failed", "no memory", {})
    assert cells.row(KEY)["auroc"] == 0.5
    assert cells.status(KEY) == "ok"


def test_stages_of_one_name_are_counted_one_by_one(tmp_path):
    """The fits of a defense on two victims are called the same."""
    at_work = [AtWork("k1", "fit lof", "3/10"), AtWork("k2", "fit lof"), AtWork("k3", "audit")]
    with RunningMark(tmp_path) as mark:
        mark.update(RunState(4, 5, at_work, 0.0))
        lines = describe_status(tmp_path, [KEY]).splitlines()
    here = f"process {os.getpid()} on {machine_name()}"
    assert lines == [
        "1 not run yet",
        f"{here}: 4 stages done, 3 running, 5 waiting",
        "running: fit lof (3/10, 0 s)",
        "running: fit lof (0 s)",
        "running: audit (0 s)",
    ]
    assert describe_status(tmp_path, [KEY]) == "1 not run yet"


@pytest.mark.parametrize(
    ("seconds", "untimed", "told"),
    [
        (80.0, 0, "waiting, about 40 s left"),
        (80.0, 3, "waiting, 40 s left and 3 stages never timed here"),
        (0.0, 3, "waiting"),
    ],
)
def test_time_left_is_only_promised_of_stages_that_were_timed(seconds, untimed, told):
    assert RunState(1, 2, [], seconds, width=2, untimed=untimed).in_words().endswith(told)


@pytest.mark.parametrize(("age", "told"), [(5, False), (600, True)])
def test_a_run_elsewhere_that_is_silent_is_told_with_its_age(tmp_path, monkeypatch, age, told):
    with monkeypatch.context() as patch:
        patch.setattr("bench.cells.machine_name", lambda: "node-12")
        mark = RunningMark(tmp_path)
        mark.update(RunState(1, 2, [], 0.0))
    (path,) = (tmp_path / ".running").iterdir()
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))
    line = describe_status(tmp_path, []).splitlines()[-1]
    assert line.startswith(f"process {os.getpid()} on node-12: 1 stages done, 0 running")
    assert line.endswith(" (said 10 min ago; whether it lives, only node-12 can tell)") == told


def test_a_mark_of_a_machine_whose_name_begins_alike_is_kept(tmp_path, monkeypatch):
    (tmp_path / ".running").mkdir()
    for name in ("node-12-999999999", "node-999999999"):
        (tmp_path / ".running" / f"{name}.json").write_text("{}")
    monkeypatch.setattr("bench.cells.machine_name", lambda: "node")
    with RunningMark(tmp_path):
        left = [path.stem for path in (tmp_path / ".running").iterdir()]
    assert left == ["node-12-999999999"]
