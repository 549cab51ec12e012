"""What a process of a Ray run does with a stage: fetch what it needs, compute it, report."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import ray

from bench.configfile import ConfigFile
from bench.executors.computing import (
    compute_artifact,
    device_lost,
    in_words,
    measure,
    storage_problem,
)
from bench.executors.ray_actors import (
    BYTES_AT_ONCE,
    GoneError,
    actor,
    cache_of_this_node,
    storage_id,
)
from bench.graph import Stage
from bench.memory import give_back_freed_memory, resident_mb, resident_tree_mb
from bench.progress import Silent
from bench.session import Selection, Session
from bench.store import COST, Store, damage, publish
from bench.workspace import Workspace

SECONDS_BETWEEN_STEPS = 2.0
SECONDS_BETWEEN_LOOKS = 0.5
OVER_MEMORY, DEVICE_LOST = 77, 78
"""Exit status of a process that outgrew its stage's memory, or can use its accelerator no more."""


@dataclass(frozen=True)
class Origin:
    """Where a run comes from: the configuration file and its SHA-256, what was selected of it, and
    the driver's cache folder."""

    config: str
    config_digest: str
    selection: Selection
    cache: str

    @classmethod
    def of(cls, session: Session) -> Origin:
        """Of a session on this machine."""
        path = session.file.path.resolve()
        digest = hashlib.sha256(session.file.yaml.content).hexdigest()
        cache = str(session.store.root.resolve())
        # What `auto` means is decided once, here: it is part of every key.
        selection = replace(session.selection, device=session.environment.device)
        return cls(str(path), digest, selection, cache)


@dataclass(frozen=True)
class Order:
    """One stage to compute, with all that a process elsewhere needs to know.

    Attributes
    ----------
    holders
        Stage key -> the keepers of the caches that have its artifact, by name.
    board
        By name: handles of actors in every order are counted by Ray in every process.
    costs
        Stage key -> its measured cost, for the provenance of a cell.
    memory_mb
        Above it the process ends itself; None: no limit of ours.
    """

    stage: Stage
    origin: Origin
    holders: Mapping[str, tuple[str, ...]]
    costs: Mapping[str, Mapping[str, float]]
    board: str
    memory_mb: float | None = None


@dataclass(frozen=True)
class Report:
    """What became of an order.

    Attributes
    ----------
    state
        ``computed``, ``cached``, ``failed``, ``missing`` (an input is nowhere any more),
        ``no device memory`` or ``no storage``.
    reason, trace
        One line and the stack, of a failure.
    missing
        Key of the input that is gone.
    files
        Of a finished cell: name -> content.
    storage
        Which cache has the artifact now.
    """

    state: str
    seconds: float = 0.0
    cost: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    trace: str = ""
    missing: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    storage: str = ""
    notes: tuple[str, ...] = ()


class MissingError(Exception):
    """No keeper that lives has the artifact of that key."""


class _ToBoard(Silent):
    """Passes the steps of training loops on, every other second."""

    def __init__(self) -> None:
        self.board: Any = None
        self.key = ""
        self._last = 0.0

    def step(self, what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self.board is not None and now - self._last >= SECONDS_BETWEEN_STEPS:
            self._last = now
            of = f"/{total}" if total else ""
            self.board.step.remote(self.key, f"{what} {done}{of}")


class _RemoteWorkspace(Workspace):
    """Fetches the artifacts that other nodes have, when they are looked at."""

    holders: Mapping[str, tuple[str, ...]] = {}
    costs: Mapping[str, Mapping[str, float]] = {}

    def folder(self, stage: Stage) -> Path:
        if not self.store.has(stage.kind, stage.key):
            self._fetch(stage)
        return self.store.folder(stage.kind, stage.key)

    def cost(self, stage: Stage) -> dict[str, float]:
        known = self.costs.get(stage.key)
        return dict(known) if known is not None else super().cost(stage)

    def _fetch(self, stage: Stage) -> None:
        for holder in self.holders.get(stage.key, ()):
            try:
                keeper = actor(holder)
                names = ray.get(keeper.names.remote(stage.kind, stage.key))
                with self.store.scratch() as scratch:
                    for name in names:
                        path = scratch / name
                        path.parent.mkdir(parents=True, exist_ok=True)
                        with path.open("wb") as file:
                            _copy(keeper, stage, name, file)
                    if names and damage(scratch) is None:
                        publish(scratch, self.store.folder(stage.kind, stage.key))
                        return
            except (ray.exceptions.RayError, FileNotFoundError, GoneError):
                continue  # that node is gone, or its artifact is: the next one may have it
        raise MissingError(stage.key)


def _copy(keeper: Any, stage: Stage, name: str, file: BinaryIO) -> None:
    """One file of an artifact, a part at a time: some are larger than the memory to spare."""
    while True:
        part = ray.get(keeper.read.remote(stage.kind, stage.key, name, file.tell()))
        file.write(part)
        if len(part) < BYTES_AT_ONCE:
            return


@dataclass
class _Context:
    """What a process keeps from one stage to the next: opened data, loaded encoders."""

    workspace: _RemoteWorkspace
    reporter: _ToBoard


_contexts: dict[Origin, _Context] = {}
_lost: list[str] = []
"""Why this process can use its accelerator no more: it ends before it takes another stage, which
Ray then gives to a new one."""


def compute_order(order: Order) -> Report:
    """Compute one stage in this process."""
    if _lost:
        os._exit(DEVICE_LOST)
    key, board = order.stage.key, actor(order.board)
    board.start.remote(key, order.stage.label)
    _make_room(order)
    watch = _Watch(order)
    start = time.perf_counter()
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: notes.append(str(message))
            context = _context(order.origin, board)
            context.reporter.board, context.reporter.key = board, key
            context.workspace.holders, context.workspace.costs = order.holders, order.costs
            report = _computed(order, context.workspace)
    except MissingError as error:
        report = Report("missing", missing=str(error))
    except Exception as error:
        report = _failure(error, order)
    finally:
        watch.stop()
        _free_device()
    return Report(
        **{**report.__dict__, "seconds": time.perf_counter() - start, "notes": tuple(notes)}
    )


def _computed(order: Order, workspace: _RemoteWorkspace) -> Report:
    stage, store = order.stage, workspace.store
    if stage.kind == "evaluate":
        with store.scratch() as scratch:
            measure(stage, workspace, scratch)
            files = {
                path.relative_to(scratch).as_posix(): path.read_bytes()
                for path in scratch.rglob("*")
                if path.is_file()
            }
        return Report("computed", files=files, cost=json.loads(files[COST]))
    computed = compute_artifact(stage, workspace)
    cost = Workspace.cost(workspace, stage)
    state = "computed" if computed else "cached"
    return Report(state, cost=cost, storage=storage_id(store.root))


def _failure(error: Exception, order: Order) -> Report:
    import torch

    trace = traceback.format_exc()
    if torch.cuda.is_initialized() and (lost := device_lost("cuda")):
        _lost.append(lost)
    # An input may lie on another node: that one is gone is found when it is looked at.
    alone = Stage(order.stage.kind, order.stage.spec, {}, order.stage.label)
    problem = storage_problem(error, alone, Store(cache_of_this_node(order.origin.cache)))
    if problem is not None:
        return Report("no storage", reason=f"{problem} on {socket.gethostname()}", trace=trace)
    out_of_memory = isinstance(error, torch.cuda.OutOfMemoryError)
    if out_of_memory:
        # A next stage starts with an empty device: what this one loaded goes as well.
        _contexts.clear()
    state = "no device memory" if out_of_memory else "failed"
    return Report(state, reason=in_words(error), trace=trace)


def _make_room(order: Order) -> None:
    """What earlier stages left in this process must not count against the limit of this one."""
    if order.memory_mb is not None and resident_mb() > order.memory_mb / 2:
        _contexts.clear()
        gc.collect()
        give_back_freed_memory()


def _free_device() -> None:
    """Give back device memory that nothing uses: processes of other stages share the device."""
    import torch

    if torch.cuda.is_initialized() and not _lost:
        torch.cuda.empty_cache()


def _context(origin: Origin, board: Any) -> _Context:
    if origin not in _contexts:
        _contexts.clear()
        reporter = _ToBoard()
        experiment = ConfigFile(Path(origin.config), ray.get(board.experiment.remote()))
        session = Session(experiment, origin.selection, reporter)
        session.set_up_torch()
        store = Store(cache_of_this_node(origin.cache))
        _contexts[origin] = _Context(session.workspace(_RemoteWorkspace, store), reporter)
    return _contexts[origin]


class _Watch:
    """Ends the process when it outgrows its stage's memory: the machine's other work goes on."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._ended = threading.Event()
        if order.memory_mb is not None:
            threading.Thread(target=self._look, daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def _look(self) -> None:
        order = self._order
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            megabytes = resident_tree_mb()
            if megabytes > order.memory_mb:
                ray.get(actor(order.board).over_memory.remote(order.stage.key, megabytes))
                os._exit(OVER_MEMORY)
