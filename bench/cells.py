"""Stored cells of a results folder: which are done, and how one is written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.limits import check_inside, read_json
from bench.report.columns import CELL_SCHEMA, COLUMNS, MEASURED, ROW_COLUMNS
from bench.store import (
    damage,
    machine_name,
    process_alive,
    scratch_name,
    seal,
    sweep_scratch,
    write_atomically,
)

_TOLD = ("attack", "defense", "status", "reason")
SECONDS_UNTIL_SILENT = 60.0
"""Of a run on another machine, which may have died with its machine."""
FINISHED = frozenset(MEASURED)


class CellStore:
    """``results/<profile>/cells/<key>/``; what lies here is enough to resume a run."""

    def __init__(self, results: Path) -> None:
        self._results = Path(results)
        self.folder = self._results / "cells"
        self._scratch = self._results / ".part"

    def status(self, key: str) -> str | None:
        """The stored status; None when nothing whole is stored under that key."""
        row = self.row(key)
        return None if row is None else row["status"]

    def row(self, key: str) -> dict[str, Any] | None:
        """The stored row with its names, status and reason; None when nothing whole is stored.

        Raises
        ------
        InputError
            When the cell's folder is a link out of the results.
        """
        path = self.folder / key
        check_inside(path, self.folder)
        if not path.is_dir() or damage(path) is not None:
            return None
        return self._stated(key)

    def peek(self, key: str) -> str | None:
        """The status that is written in a cell, without a look at its other files (for plans)."""
        check_inside(self.folder / key, self.folder)
        row = self._stated(key)
        return None if row is None else row["status"]

    def _stated(self, key: str) -> dict[str, Any] | None:
        """The row of a cell as it is written."""
        try:
            row = read_json(self.folder / key / "cell.json")["row"]
            return row if all(isinstance(row[name], str) for name in _TOLD) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keys(self) -> set[str]:
        """The keys of everything that is stored, whole or not."""
        return {path.name for path in self.folder.glob("*")}

    def done(self, key: str) -> bool:
        """Whether the cell has its numbers. Failures and skips are never results."""
        return self.status(key) in FINISHED

    def scratch(self) -> Path:
        """An empty folder on the same file system as the cells."""
        path = self._scratch / scratch_name()
        check_inside(path, self._results)
        path.mkdir(parents=True)
        return path

    def publish(self, scratch: Path, key: str) -> None:
        """Seal a finished scratch folder and put it in place of whatever is stored.

        When two runs finish one cell at once, one of them stays: equal keys mean equal cells.
        """
        seal(scratch)
        target, old = self.folder / key, self._scratch / scratch_name()
        with contextlib.suppress(FileNotFoundError):
            os.replace(target, old)
        try:
            os.replace(scratch, target)
        except OSError:
            if self.status(key) is None:
                raise
        shutil.rmtree(old, ignore_errors=True)

    def write_unfinished(
        self,
        key: str,
        identity: Mapping[str, Any],
        status: str,
        reason: str,
        extra: Mapping[str, Any],
    ) -> None:
        """Store a failed or skipped cell: a row with its reason and no numbers.

        A cell that has its numbers keeps them: another run has finished it meanwhile.
        """
        if self.done(key):
            return
        scratch = self.scratch()
        empty = {name: "" if COLUMNS[name].kind == "text" else None for name in ROW_COLUMNS}
        row = {**empty, **identity, "status": status, "reason": reason, "key": key}
        record = {
            "schema": CELL_SCHEMA,
            "key": key,
            "row": row,
            "transductive": False,
            "thresholds": [],
            "downstream": [],
            "intervals": {},
            "decoy": {"used": None, "description": "", "candidates": []},
            **extra,
        }
        (scratch / "cell.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        if self.done(key):  # meanwhile: on a network's file system writing takes its time
            shutil.rmtree(scratch)
        else:
            self.publish(scratch, key)

    def sweep(self) -> None:
        """Remove scratch folders that killed runs left."""
        check_inside(self._scratch, self._results)
        sweep_scratch(self._scratch)


@dataclass(frozen=True)
class AtWork:
    """A stage that is being computed: its key, what it is called and how far it is, or nothing.

    Several at work at once may be called the same.
    """

    key: str
    label: str
    progress: str = ""


@dataclass(frozen=True)
class RunState:
    """Where a run is.

    Attributes
    ----------
    done, waiting
        Stages that need no more work, and stages whose turn has not come.
    running
        Stages at work.
    seconds_left
        Of all stages that were timed here before, one after the other.
    width
        How many of them run at once.
    untimed
        Stages left, running ones too, of which no time is known.
    """

    done: int
    waiting: int
    running: Sequence[AtWork]
    seconds_left: float
    width: int = 1
    untimed: int = 0

    def in_words(self) -> str:
        """``12 stages done, 2 running, 30 waiting, about 5 min left``."""
        left = duration(self.seconds_left / self.width)
        known = f", about {left} left" if self.seconds_left else ""
        if known and self.untimed:
            known = f", {left} left and {self.untimed} stages never timed here"
        return (
            f"{self.done} stages done, {len(self.running)} running, {self.waiting} waiting{known}"
        )


def duration(seconds: float) -> str:
    """``42 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class RunningMark:
    """Says to ``bench status`` where a live run is; gone when the run ends."""

    def __init__(self, results: Path) -> None:
        self._path = Path(results) / ".running" / f"{machine_name()}-{os.getpid()}.json"
        check_inside(self._path, Path(results))
        self._since: dict[str, float] = {}

    def __enter__(self) -> RunningMark:
        for path in self._path.parent.glob("*.json"):
            host, _, process = path.stem.rpartition("-")
            alive = process.isdecimal() and process_alive(int(process))
            if host == machine_name() and not alive:
                path.unlink(missing_ok=True)
        return self

    def update(self, state: RunState) -> None:
        """Say where the run is now. Stages that were there before keep the time they began."""
        now = time.time()
        self._since = {stage.key: self._since.get(stage.key, now) for stage in state.running}
        document = {
            "state": state.in_words(),
            "running": [
                {"label": stage.label, "progress": stage.progress, "since": self._since[stage.key]}
                for stage in state.running
            ],
        }
        write_atomically(self._path, json.dumps(document))

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)


def describe_status(results: Path, keys: Sequence[str]) -> str:
    """What is done, running and failed in a results folder, one line each."""
    cells = CellStore(results)
    counts: Counter[str] = Counter()
    troubles = []
    for key in keys:
        row = cells.row(key) or {"status": "not run yet"}
        status = row["status"]
        counts[status] += 1
        if status in ("failed", "skipped"):
            troubles.append(f"{status}: {row['attack']} x {row['defense']}: {row['reason']}")
    lines = [", ".join(f"{count} {status}" for status, count in sorted(counts.items()))]
    for path in sorted((Path(results) / ".running").glob("*.json")):
        host, _, pid = path.stem.rpartition("-")
        if not pid.isdecimal() or (host == machine_name() and not process_alive(int(pid))):
            continue
        try:
            told = _running(read_json(path), host, pid)
            silent = time.time() - path.stat().st_mtime
            if host != machine_name() and silent > SECONDS_UNTIL_SILENT:
                told[0] += f" (said {duration(silent)} ago; whether it lives, only {host} can tell)"
            lines += told
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it ended just now
    return "\n".join(lines + troubles)


def _running(mark: Mapping[str, Any], host: str, pid: str) -> list[str]:
    """Lines on one live run."""
    lines = [f"process {pid} on {host}: {mark['state']}"]
    for stage in mark["running"]:
        elapsed = max(0.0, time.time() - stage["since"])
        progress = f"{stage['progress']}, " if stage["progress"] else ""
        lines.append(f"running: {stage['label']} ({progress}{duration(elapsed)})")
    return lines
