"""What every executor does with one stage: compute it, measure it, say why it failed."""

from __future__ import annotations

import errno
import json
import os
import re
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from bench.cells import CellStore
from bench.errors import InputError
from bench.graph import Cell, Stage
from bench.history import History
from bench.store import COST, Store, write_atomically
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
    seconds
        What the computed stages took, added up.
    """

    computed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def compute_artifact(stage: Stage, workspace: Workspace) -> bool:
    """Compute a stage unless the store has it; whether it was computed."""
    store = workspace.store
    if store.has(stage.kind, stage.key):
        return False
    with store.lock(stage.key):
        if store.has(stage.kind, stage.key):
            return False
        with store.writing(stage.kind, stage.key) as folder:
            measure(stage, workspace, folder)
    return True


def measure(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """Compute a stage into ``folder``, with its cost beside it."""
    # A third of what a process loads; the keeper and the board of a Ray run need none of it.
    from bench.stages import COMPUTE

    process, start = os.getpid(), time.perf_counter()
    try:
        cost = COMPUTE[stage.kind](stage, workspace, folder) or {}
    except SystemExit as error:
        raise RuntimeError(f"the component tried to end the process ({error.code})") from error
    finally:
        if os.getpid() != process:
            # A component forked, and this is the copy: it must not go on as a second run.
            os._exit(1)
    seconds = time.perf_counter() - start
    (folder / COST).write_text(json.dumps({"seconds": seconds, **cost}) + "\n")
    History(workspace.store).remember(stage, seconds)


class DeviceLostError(InputError):
    """An accelerator answers this process no more: what a stage did to it is no fault of others."""


def device_lost(device: str) -> str | None:
    """Why nothing more can be computed on an accelerator by this process; None if it can.

    After a failed assertion or an illegal access in a kernel every later call raises the same.
    """
    if device != "cuda":
        return None
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return in_words(error)
    return None


class StorageError(InputError):
    """The cache, the results or the head of a cluster cannot be used any more: no fault of the
    stage at work."""


_NO_STORAGE = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "disk quota exceeded",
    errno.EROFS: "read-only file system",
    errno.EIO: "input/output error",
    errno.ESTALE: "stale file handle",
    errno.ENOTCONN: "file system not connected",
}
_PROBE_BYTES = 2**16


def storage_problem(error: BaseException, stage: Stage, store: Store) -> str | None:
    """Why the failure of a stage is the storage's and not its own, in words; None if it is.

    A full disk or a cache that went away would otherwise be a reason of every cell that comes
    after, and stay one.
    """
    seen: BaseException | None = error
    while seen is not None:
        for number, words in _NO_STORAGE.items():
            if getattr(seen, "errno", None) == number or _told(str(seen), number):
                return f"{words} ({_place(getattr(seen, 'filename', None), store)})"
        seen = seen.__cause__ or seen.__context__
    gone = [needed for needed in stage.inputs.values() if not store.peek(needed.kind, needed.key)]
    if gone:
        return f"{store.root} lost {gone[0].label}, which was there"
    try:
        with store.scratch() as scratch:
            (scratch / "probe").write_bytes(bytes(_PROBE_BYTES))
    except OSError as refused:
        return f"{store.root} cannot be written: {refused.strerror or refused}"
    return None


def _place(file: object, store: Store) -> object:
    """What a user knows of a file: the cache where it is a scratch file of it."""
    scratch = isinstance(file, str) and Path(file).is_relative_to(store.root / "tmp")
    return store.root if scratch or not file else file


def _told(text: str, number: int) -> bool:
    """Whether a message gives the system's words with its number, as libraries in C++ and Rust do.

    Words alone may be a component's own.
    """
    numbered = re.search(rf"(errno|os error) {number}\b", text, re.IGNORECASE)
    return numbered is not None and os.strerror(number) in text


def store_failure(
    cells: CellStore,
    cell: Cell,
    reason: str,
    *,
    smoke: bool,
) -> None:
    """Store the row of a cell that has no numbers."""
    cells.write_unfinished(
        cell.key,
        cell.identity,
        "failed",
        reason,
        {**cell.flags, "smoke": smoke, "config": cell.stage.spec["config"]},
    )


def keep_trace(store: Store, stage: Stage) -> None:
    """Keep the stack trace of the error at hand, for whoever looks for the cause."""
    keep_text(store, stage, traceback.format_exc())


def keep_text(store: Store, stage: Stage, text: str) -> None:
    """Keep what is known of a failure under ``failures/``."""
    write_atomically(store.beside("failures", f"{stage.kind}-{stage.key}.txt"), text)


def in_words(error: BaseException) -> str:
    """One line: the message, with the error's type unless it is the user's to mend."""
    message = " ".join(str(error).split()) or "no message"
    return message if isinstance(error, InputError) else f"{type(error).__name__}: {message}"
