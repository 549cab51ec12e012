"""Runs the stage graph on Ray: shared stages once, everything else as wide as the machines.

Ray Core moves tasks, bytes and errors; which stage comes next and what a failure means is decided
here, in one process, from :class:`bench.executors.schedule.Schedule`.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayError,
    RuntimeEnvSetupError,
    TaskCancelledError,
    WorkerCrashedError,
)

from bench.cells import AtWork, CellStore, RunningMark, RunState
from bench.executors.computing import (
    Outcome,
    StorageError,
    keep_text,
    store_failure,
)
from bench.executors.ray_cluster import SECONDS_TO_PING, Cluster
from bench.executors.ray_worker import Order, Origin, Report, compute_order
from bench.executors.schedule import Schedule, State
from bench.graph import Cell, Stage, topological
from bench.history import History
from bench.progress import Silent
from bench.store import Store

ATTEMPTS = 3
"""How often a stage is begun whose process dies under it."""
LOST_NODES = 10
"""How often a stage is begun whose machine dies under it, or whose artifact is lost."""
HANDED_OUT, SHORT_HANDED_OUT = 2, 4
"""Times what the machines have: so much is out at once, that no processor waits for us. The second
of stages that take at most :data:`SHORT_SECONDS`, behind which a long one does not wait long."""
SHORT_SECONDS = 1.0
SECONDS_BETWEEN_VIEWS = 1.0
UNTIMED_SECONDS: Mapping[str, float] = {"pretrain": 600.0, "implant": 300.0, "fit": 60.0}
"""A guess for what was never timed, that long stages begin early."""


@dataclass
class _Task:
    """A stage that was handed to Ray."""

    stage: Stage
    reference: Any
    demand: Mapping[str, float]
    asked: bool  # whether it was told who has its inputs
    began: float | None = None  # when it was seen at work, by a clock that cannot jump
    cancelled: str = ""
    outdated: bool = False  # it asks for more than any node that still lives has


@dataclass
class _Troubles:
    """How often a stage lost its process, its machine, its device's memory or its artifact, or was
    begun where its inputs were not, without knowing whom to ask."""

    crashes: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)
    nodes: Counter[str] = field(default_factory=Counter)
    no_device_memory: Counter[str] = field(default_factory=Counter)
    unasked: Counter[str] = field(default_factory=Counter)


class RayExecutor:
    """The same keys, scores and tables as :class:`bench.executors.inline.InlineExecutor`.

    Parameters
    ----------
    cluster
        Not yet entered.
    origin
        Of the run, for the workers.
    smoke
        Whether rows of failures are marked so.
    compute
        What a worker does with an order.
    """

    def __init__(
        self,
        cluster: Cluster,
        origin: Origin,
        store: Store,
        cells: CellStore,
        reporter: Silent,
        mark: RunningMark,
        *,
        smoke: bool = False,
        compute: Callable[[Order], Report] = compute_order,
    ) -> None:
        self._cluster, self._origin = cluster, origin
        self._store, self._cells = store, cells
        self._history = History(store)
        self._reporter, self._mark = reporter, mark
        self._smoke, self._compute = smoke, compute
        self._costs: dict[str, Mapping[str, float]] = {}
        self._tasks: dict[Any, _Task] = {}
        self._handed_out: Counter[str] = Counter()  # what all tasks take together
        self._homeless: set[str] = set()  # kinds that no node that lives can take
        self._troubles = _Troubles()
        self._outcome = Outcome()

    def run(self, cells: Sequence[Cell]) -> Outcome:
        """Compute every stage that ``cells`` need, in the order of the schedule.

        Raises
        ------
        InputError
            When no cluster answers, or no node has what a stage takes.
        """
        self._cell_of = {cell.key: cell for cell in cells}
        self._schedule = Schedule(
            cells,
            self._history.seconds,
            lambda stage: UNTIMED_SECONDS.get(stage.kind, 1.0),
        )
        with self._cluster:
            kinds = {stage.kind: stage for stage in topological([cell.stage for cell in cells])}
            for stage in kinds.values():
                self._cluster.check(stage)
            self._remote = ray.remote(self._compute)
            # A process that has used one GPU stays on it, whichever Ray assigns it next.
            self._remote_once = ray.remote(max_calls=1)(self._compute)
            # What is planned stays: looking through it for garbage takes seconds where it is large.
            gc.freeze()
            try:
                self._loop()
            finally:
                # What still runs ends as the cluster is left. Cancelling it would end this very
                # process, wherever a stage finishes in the same moment (a failed check in Ray).
                gc.unfreeze()
        return self._outcome

    def _loop(self) -> None:
        viewed = 0.0
        while self._schedule.open:
            self._submit()
            if self._tasks:
                done, _ = ray.wait(list(self._tasks), num_returns=1, timeout=SECONDS_BETWEEN_VIEWS)
                # Whatever else has ended meanwhile, without waiting for it.
                done, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
                for reference in done:
                    task = self._tasks.pop(reference)
                    self._handed_out.subtract(task.demand)
                    self._settle(task)
            if time.monotonic() - viewed >= SECONDS_BETWEEN_VIEWS:
                viewed = time.monotonic()
                self._view()

    def _submit(self) -> None:
        """Hand out what is ready, as long as its processors and devices are not all spoken for."""
        full: set[str] = set()
        while (stage := self._schedule.peek(full)) is not None:
            demand = self._demand(stage)
            short = self._schedule.seconds(stage.key) <= SHORT_SECONDS
            if not self._has_room(demand, SHORT_HANDED_OUT if short else HANDED_OUT):
                full.add(stage.kind)
                continue
            self._schedule.take(full)
            if stage.kind == "evaluate" and self._cells.done(stage.key):
                self._finished(stage, Report("cached"))
                continue
            alone = self._troubles.no_device_memory[stage.key] > 0
            fresh = demand.get("num_gpus", 0) > 0 and (alone or self._cluster.several_gpus)
            remote = self._remote_once if fresh else self._remote
            # By its kind: of every name that it has heard, Ray keeps and reports counts for good.
            reference = remote.options(name=stage.kind, max_retries=0, **demand).remote(
                self._order(stage)
            )
            self._tasks[reference] = _Task(stage, reference, demand, asked=self._cluster.apart)
            self._handed_out.update(demand)

    def _demand(self, stage: Stage) -> dict[str, float]:
        return self._cluster.demand(stage, self._troubles.no_device_memory[stage.key] > 0)

    def _has_room(self, demand: Mapping[str, float], times: int = HANDED_OUT) -> bool:
        """Whether a stage may be handed out: each resource by itself, so that those which take no
        device do not wait for one, and long ones that come later not behind many short ones."""
        return all(
            not self._handed_out[name]
            or self._handed_out[name] + demand.get(name, 0) <= times * self._cluster.capacity(name)
            for name in ("num_cpus", "num_gpus")
            if demand.get(name, 0)
        )

    def _order(self, stage: Stage) -> Order:
        behind = {before.key: before for before in _behind(stage)}
        costs, holders = {}, {}
        if stage.kind == "evaluate":
            costs = {key: self._costs[key] for key in behind if key in self._costs}
        if self._cluster.apart:
            holders = {key: self._cluster.holders(before) for key, before in behind.items()}
        return Order(
            stage, self._origin, holders, costs, self._cluster.board_name, self._memory_mb(stage)
        )

    def _memory_mb(self, stage: Stage) -> float | None:
        gigabytes = self._cluster.asked(stage).memory_gb
        return None if gigabytes is None else gigabytes * 1024

    def _view(self) -> None:
        """Show and note where things are; end what has taken too long."""
        out = {task.stage.key for task in self._tasks.values()}
        running = ray.get(self._cluster.board.running.remote(out))
        self._cluster.count_nodes()
        while self._cluster.notes:
            self._reporter.note(self._cluster.notes.pop(0))
        for task in self._tasks.values():
            if task.stage.key in running:
                self._limit(task)
            elif not self._cluster.fits(task.demand):
                self._rehouse(task)
        counts = self._schedule.counts
        settled = sum(counts[state] for state in (State.done, State.failed, State.dropped))
        waiting = len(self._schedule) - settled - len(running)
        width = max(1, len(running))
        state = RunState(
            settled,
            max(0, waiting),
            [AtWork(key, told["label"], told["progress"]) for key, told in running.items()],
            self._schedule.seconds_left,
            width,
            self._schedule.untimed_left,
        )
        self._mark.update(state)
        self._reporter.view(state)

    def _rehouse(self, task: _Task) -> None:
        """What waits asks for more than any node has, since one went: it asks for less where it
        can, and is named where it cannot."""
        demand = self._demand(task.stage)
        if demand != task.demand and not task.outdated:
            task.outdated = True
            ray.cancel(task.reference, force=True)
        elif demand == task.demand and task.stage.kind not in self._homeless:
            self._homeless.add(task.stage.kind)
            what = self._cluster.in_words(task.stage, demand)
            self._reporter.note(f"warning: no node is left that has what {what}: it waits for one")

    def _limit(self, task: _Task) -> None:
        now = time.monotonic()
        if task.began is None:
            task.began = now
        minutes = self._cluster.asked(task.stage).minutes
        if minutes is not None and now - task.began > 60 * minutes and not task.cancelled:
            task.cancelled = (
                f"took longer than the {minutes:g} minutes of a {task.stage.kind} stage"
            )
            ray.cancel(task.reference, force=True)

    def _settle(self, task: _Task) -> None:
        stage = task.stage
        try:
            report: Report = ray.get(task.reference)
        except RayError as error:
            self._died(task, error)
            return
        if not self._schedule.awaited(stage.key):
            return  # what it was made of was lost and could not be made again: it has failed
        for note in report.notes:
            self._reporter.note(f"warning: {note}")
        if report.state == "missing":
            self._missing(task, report.missing)
        elif report.state == "no device memory" and not self._troubles.no_device_memory[stage.key]:
            self._troubles.no_device_memory[stage.key] += 1
            self._reporter.note(f"{stage.label}: no device memory; once more, alone on its device")
            self._give_back(stage)
        elif report.state == "no storage":
            raise StorageError(
                f"{stage.label}: {report.reason}; what is finished is kept: run again when it is "
                "mended"
            )
        elif report.state in ("computed", "cached"):
            self._finished(stage, report)
        else:
            keep_text(self._store, stage, report.trace)
            self._failed(stage, report.reason, report.seconds)

    def _missing(self, task: _Task, key: str) -> None:
        """An input was not where the stage was begun, nor with anyone whom it knew to ask."""
        self._troubles.unasked[task.stage.key] += not task.asked
        if task.asked or self._troubles.unasked[task.stage.key] > LOST_NODES:
            # Its machine went after it was computed: it is computed again, then this one.
            self._cluster.lost(key)
            self._troubles.losses[key] += 1
            if self._troubles.losses[key] > LOST_NODES:
                what = self._schedule.stage(key).label
                self._failed(task.stage, f"{what}, which it needs, was lost {LOST_NODES} times")
                return
            self._store_failures(self._schedule.lose(key))
        # A machine with a cache of its own joined after the order was written, or does not answer.
        self._cluster.count_nodes(patience=SECONDS_TO_PING)
        self._give_back(task.stage)

    def _finished(self, stage: Stage, report: Report) -> None:
        if report.files:
            self._publish(stage, report.files)
        if report.storage:
            self._cluster.stored(stage.key, report.storage)
        if report.cost:
            self._costs[stage.key] = report.cost
        if report.state == "computed" and "seconds" in report.cost:
            self._history.remember(stage, report.cost["seconds"])
        computed = report.state == "computed"
        (self._outcome.computed if computed else self._outcome.cached).append(stage.label)
        self._outcome.seconds += report.seconds if computed else 0.0
        self._schedule.finish(stage.key)
        self._reporter.finish(stage.label, report.seconds, report.state)

    def _publish(self, stage: Stage, files: Mapping[str, bytes]) -> None:
        scratch = self._cells.scratch()
        try:
            for name, content in files.items():
                path = scratch / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self._cells.publish(scratch, stage.key)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _died(self, task: _Task, error: RayError) -> None:
        """The process or the machine of a stage is gone."""
        stage, troubles = task.stage, self._troubles
        self._cluster.sweep()
        if task.cancelled:
            self._failed(stage, task.cancelled)
            return
        if task.outdated:
            self._give_back(stage)
            return
        if isinstance(error, ObjectStoreFullError | OutOfDiskError):
            raise StorageError(
                f"{stage.label}: Ray has no space left for results ({type(error).__name__}); what "
                "is finished is kept: run again when it is mended"
            )
        megabytes = ray.get(self._cluster.board.memory_of.remote(stage.key))
        if megabytes is not None:
            limit = self._memory_mb(stage)
            self._failed(
                stage, f"held {megabytes:.0f} MB, more than the {limit:.0f} MB of such a stage"
            )
        elif isinstance(error, NodeDiedError | ObjectLostError):
            # With the second, it had ended: the machine went before it could hand the result over.
            troubles.nodes[stage.key] += 1
            self._again(stage, "its node died", troubles.nodes[stage.key], LOST_NODES)
        elif isinstance(
            error, WorkerCrashedError | OutOfMemoryError | TaskCancelledError | RuntimeEnvSetupError
        ):
            troubles.crashes[stage.key] += 1
            what = "ran out of memory" if isinstance(error, OutOfMemoryError) else "died"
            self._again(stage, f"its process {what}", troubles.crashes[stage.key], ATTEMPTS)
        else:
            keep_text(self._store, stage, str(error))
            first = str(error).strip().splitlines()[-1] if str(error).strip() else "no message"
            self._failed(stage, f"{type(error).__name__}: {first}")

    def _again(self, stage: Stage, what: str, times: int, most: int) -> None:
        if times >= most:
            self._failed(stage, f"{what} {times} times")
            return
        self._reporter.note(f"{stage.label}: {what}; it is begun again")
        self._give_back(stage)

    def _give_back(self, stage: Stage) -> None:
        ray.get(self._cluster.board.end.remote(stage.key))
        self._schedule.give_back(stage.key)

    def _failed(self, stage: Stage, reason: str, seconds: float = 0.0) -> None:
        self._reporter.finish(stage.label, seconds, f"failed: {reason}")
        self._store_failures(self._schedule.fail(stage.key, f"{stage.label}: {reason}"))

    def _store_failures(self, failed: Mapping[str, str]) -> None:
        for key, why in failed.items():
            self._outcome.failed[key] = why
            store_failure(self._cells, self._cell_of[key], why, smoke=self._smoke)


def _behind(stage: Stage) -> list[Stage]:
    """What a stage may look at: its inputs and theirs."""
    found: dict[str, Stage] = {}
    pending = list(stage.inputs.values())
    while pending:
        at = pending.pop()
        if at.key not in found:
            found[at.key] = at
            pending += at.inputs.values()
    return list(found.values())
