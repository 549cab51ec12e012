"""Runs the stage graph in this process, one stage after the other."""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.cells import CellStore, RunningMark
from bench.errors import InputError
from bench.executors.demand import Demand
from bench.graph import Cell, Stage, cost_name, topological
from bench.progress import Silent
from bench.stages import COMPUTE
from bench.store import COST, write_atomically
from bench.workspace import Workspace


@dataclass
class Outcome:
    """What a run did.

    Attributes
    ----------
    computed, cached
        Labels of the stages that ran and of those that were found.
    failed
        Cell key -> reason.
    """

    computed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class InlineExecutor:
    """A failed stage fails the cells that need it and no other; a finished stage is never lost."""

    def __init__(
        self, workspace: Workspace, cells: CellStore, reporter: Silent, mark: RunningMark
    ) -> None:
        self._workspace = workspace
        self._cells = cells
        self._reporter = reporter
        self._mark = mark

    def run(self, cells: Sequence[Cell]) -> Outcome:
        """Compute every stage that ``cells`` need, in an order that finishes cells early."""
        outcome = Outcome()
        reasons: dict[str, str] = {}
        cell_of = {cell.key: cell for cell in cells}
        stages = topological([cell.stage for cell in cells])
        demand = Demand(stages, cells)
        for stage in stages:
            blocked = next(
                (reasons[s.key] for s in stage.inputs.values() if s.key in reasons), None
            )
            if blocked is None and stage.key not in demand:
                continue  # every cell that would use it has failed: spend nothing on it
            if blocked is None:
                blocked = self._attempt(stage, outcome)
            if blocked is not None:
                reasons[stage.key] = blocked
                demand.fail(stage.key)
                if stage.key in cell_of:
                    outcome.failed[stage.key] = blocked
                    self._store_failure(cell_of[stage.key], blocked)
        return outcome

    def _attempt(self, stage: Stage, outcome: Outcome) -> str | None:
        """Compute one stage unless it is stored; the reason when it fails."""
        start = time.perf_counter()
        self._reporter.start(stage.label)
        self._mark.update(stage.label)
        try:
            computed = (
                self._compute_cell(stage) if stage.kind == "evaluate" else self._compute(stage)
            )
        except Exception as error:
            reason = f"{stage.label}: {_in_words(error)}"
            self._keep_trace(stage)
            self._reporter.finish(
                stage.label, time.perf_counter() - start, f"failed: {_in_words(error)}"
            )
            return reason
        (outcome.computed if computed else outcome.cached).append(stage.label)
        word = "computed" if computed else "cached"
        self._reporter.finish(stage.label, time.perf_counter() - start, word)
        return None

    def _compute(self, stage: Stage) -> bool:
        store = self._workspace.store
        if store.has(stage.kind, stage.key):
            return False
        with store.lock(stage.key):
            if store.has(stage.kind, stage.key):
                return False
            with store.writing(stage.kind, stage.key) as folder:
                self._measure(stage, folder)
        return True

    def _compute_cell(self, stage: Stage) -> bool:
        if self._cells.done(stage.key):
            return False
        scratch = self._cells.scratch()
        try:
            self._measure(stage, scratch)
            self._cells.publish(scratch, stage.key)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return True

    def _measure(self, stage: Stage, folder: Path) -> None:
        start = time.perf_counter()
        cost = COMPUTE[stage.kind](stage, self._workspace, folder) or {}
        seconds = time.perf_counter() - start
        (folder / COST).write_text(json.dumps({"seconds": seconds, **cost}) + "\n")
        history = self._workspace.store.root / "seconds" / f"{cost_name(stage)}.json"
        write_atomically(history, json.dumps({"seconds": seconds}))

    def _store_failure(self, cell: Cell, reason: str) -> None:
        self._cells.write_unfinished(
            cell.key,
            cell.identity,
            "failed",
            reason,
            {
                **cell.flags,
                "smoke": self._workspace.environment.limit_steps is not None,
                "config": cell.stage.spec["config"],
            },
        )

    def _keep_trace(self, stage: Stage) -> None:
        path = self._workspace.store.root / "failures" / f"{stage.kind}-{stage.key}.txt"
        write_atomically(path, traceback.format_exc())


def _in_words(error: Exception) -> str:
    """One line: the message, with the error's type unless it is the user's to mend."""
    message = " ".join(str(error).split()) or "no message"
    return message if isinstance(error, InputError) else f"{type(error).__name__}: {message}"
