"""The actors of a Ray run: a keeper for each cache, a board beside the driver. What a node is."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ray

from bench.provenance import code_version, library_versions
from bench.store import Store, file_digest

BYTES_AT_ONCE = 2**26
"""Of an artifact on its way from one node to another."""


class GoneError(Exception):
    """No actor of that name lives."""


def storage_id(root: Path) -> str:
    """A name for the cache under ``root``: equal on two nodes only when they share it.

    The file's number is part of it: a cache that was copied brings the file along.
    """
    path = Store(root).beside("storage-id")
    if not path.is_file():
        root.mkdir(parents=True, exist_ok=True)
        own = root / f".storage-{uuid.uuid4().hex}"
        own.write_text(uuid.uuid4().hex)
        try:
            os.link(own, path)  # whoever comes second fails and takes the first one's
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            with contextlib.suppress(FileExistsError), path.open("x") as file:
                file.write(own.read_text())
        finally:
            own.unlink()
    return f"{path.read_text()}-{path.stat().st_ino}"


def software() -> dict[str, str]:
    """Versions of what numbers depend on, ours first."""
    return {"bench": code_version(), **library_versions()}


def cache_of_this_node(cache: str) -> Path:
    """``BENCH_CACHE`` where the node was started with one, else the driver's folder."""
    return Path(os.environ.get("BENCH_CACHE") or cache)


@dataclass(frozen=True)
class About:
    """A node: its name, which cache it uses, its configuration file's SHA-256 (empty without one),
    and the versions of its libraries."""

    host: str
    storage: str
    config_digest: str
    software: Mapping[str, str]


class Keeper:
    """Reads artifacts of one node's cache for the others."""

    def __init__(self, cache: str) -> None:
        self._store = Store(cache_of_this_node(cache))
        self.sweep()

    def sweep(self) -> int:
        """Remove what processes left that died at their work."""
        return self._store.sweep()

    def about(self, config: str) -> About:
        """What the driver must know of this node; ``config``: path of the configuration file."""
        digest = file_digest(Path(config)) if Path(config).is_file() else ""
        return About(socket.gethostname(), storage_id(self._store.root), digest, software())

    def names(self, kind: str, key: str) -> list[str]:
        """Files of an artifact; none when it is not here or not whole."""
        if not self._store.has(kind, key):
            return []
        folder = self._store.folder(kind, key)
        return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]

    def read(self, kind: str, key: str, name: str, start: int) -> bytes:
        """A part of a file; the last one is shorter than :data:`BYTES_AT_ONCE`."""
        with (self._store.folder(kind, key) / name).open("rb") as file:
            file.seek(start)
            return file.read(BYTES_AT_ONCE)


class Board:
    """What is to be run, and who is at work on what; lives beside the driver."""

    def __init__(self, experiment: bytes = b"") -> None:
        self._experiment = experiment
        self._running: dict[str, dict[str, Any]] = {}
        self._over: dict[str, float] = {}

    def experiment(self) -> bytes:
        """The configuration file as the driver read it, whatever becomes of it meanwhile."""
        return self._experiment

    def start(self, key: str, label: str) -> None:
        self._running[key] = {"label": label, "progress": ""}

    def step(self, key: str, progress: str) -> None:
        if key in self._running:
            self._running[key]["progress"] = progress

    def end(self, key: str) -> None:
        """A stage is at work no more, though it will be handed out again."""
        self._running.pop(key, None)

    def over_memory(self, key: str, megabytes: float) -> None:
        self._over[key] = megabytes

    def memory_of(self, key: str) -> float | None:
        """What the process of that stage held when it ended itself for its size."""
        return self._over.pop(key, None)

    def running(self, out: Set[str]) -> dict[str, dict[str, Any]]:
        """The stages at work among those that are handed out; it forgets the others."""
        self._running = {key: told for key, told in self._running.items() if key in out}
        return self._running


@cache
def actor(name: str) -> Any:
    """The keeper or board of that name.

    Raises
    ------
    GoneError
        When there is none any more.
    """
    try:
        return ray.get_actor(name)
    except ValueError as error:
        raise GoneError(name) from error
