"""Runs the stage graph in this process, one stage after the other."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence

from bench.cells import AtWork, CellStore, RunningMark, RunState
from bench.executors.computing import (
    DeviceLostError,
    Outcome,
    StorageError,
    compute_artifact,
    device_lost,
    in_words,
    keep_trace,
    measure,
    storage_problem,
    store_failure,
)
from bench.executors.demand import Demand
from bench.graph import Cell, Stage, topological
from bench.history import History
from bench.progress import Silent
from bench.workspace import Workspace

__all__ = ["InlineExecutor", "Outcome"]


class InlineExecutor:
    """A failed stage fails the cells that need it and no other; a finished stage is never lost.

    One that leaves the accelerator unusable ends the run: the next one goes on with the others.
    """

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
        history = History(self._workspace.store)
        seconds = [history.seconds(stage) for stage in stages]
        left, untimed = sum(filter(None, seconds)), seconds.count(None)
        lost: DeviceLostError | None = None
        for number, stage in enumerate(stages):
            at_work = [AtWork(stage.key, stage.label)]
            after = len(stages) - number - 1
            self._mark.update(RunState(number, after, at_work, left, untimed=untimed))
            left -= seconds[number] or 0.0
            untimed -= seconds[number] is None
            blocked = next(
                (reasons[s.key] for s in stage.inputs.values() if s.key in reasons), None
            )
            if blocked is None and stage.key not in demand:
                continue  # every cell that would use it has failed: spend nothing on it
            if blocked is None and lost is not None:
                continue
            if blocked is None:
                blocked = self._attempt(stage, outcome)
                lost = None if blocked is None else self._device_lost(stage)
            if blocked is not None:
                reasons[stage.key] = blocked
                demand.fail(stage.key)
                if stage.key in cell_of:
                    outcome.failed[stage.key] = blocked
                    smoke = self._workspace.environment.limit_steps is not None
                    store_failure(self._cells, cell_of[stage.key], blocked, smoke=smoke)
        if lost is not None:
            raise lost
        return outcome

    def _device_lost(self, stage: Stage) -> DeviceLostError | None:
        """What to raise once every cell that the failed ``stage`` takes along says why."""
        reason = device_lost(self._workspace.environment.device)
        if reason is None:
            return None
        return DeviceLostError(
            f"{stage.label} failed and left the device unusable for this process ({reason}); run "
            "again for the other cells"
        )

    def _attempt(self, stage: Stage, outcome: Outcome) -> str | None:
        """Compute one stage unless it is stored; the reason when it fails."""
        start = time.perf_counter()
        self._reporter.start(stage.label)
        try:
            computed = (
                self._compute_cell(stage)
                if stage.kind == "evaluate"
                else compute_artifact(stage, self._workspace)
            )
        except Exception as error:
            problem = storage_problem(error, stage, self._workspace.store)
            if problem is not None:
                raise StorageError(
                    f"{stage.label}: {problem}; what is finished is kept: run again when it is "
                    "mended"
                ) from error
            keep_trace(self._workspace.store, stage)
            self._reporter.finish(
                stage.label, time.perf_counter() - start, f"failed: {in_words(error)}"
            )
            return f"{stage.label}: {in_words(error)}"
        seconds = time.perf_counter() - start
        (outcome.computed if computed else outcome.cached).append(stage.label)
        outcome.seconds += seconds if computed else 0.0
        self._reporter.finish(stage.label, seconds, "computed" if computed else "cached")
        return None

    def _compute_cell(self, stage: Stage) -> bool:
        if self._cells.done(stage.key):
            return False
        scratch = self._cells.scratch()
        try:
            measure(stage, self._workspace, scratch)
            self._cells.publish(scratch, stage.key)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return True
