"""Runs that are broken on purpose: what :mod:`fault_campaign` and :mod:`executors_agree` share."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bench.cli import main as command_line
from bench.store import damage

COST_COLUMNS = ["fit_seconds", "score_ms_per_image", "peak_memory_mb"]
CORNER = (
    "--attacks",
    "none,badencoder",
    "--defenses",
    "mahalanobis,knn-distance,isolation-forest,pixel-only",
    "--limit-steps",
    "3",
)
"""Of the `quick` matrix: seconds, not minutes."""
PATIENCE = 600.0
ROOT = Path(__file__).resolve().parents[1]
PRELOADED = (
    "bench.stages",
    "bench.executors.inline",
    "bench.report.rendering",
    "bench.report.plots",
    "bench.preflight",
    "matplotlib.pyplot",
    "seaborn",
    "sklearn.ensemble",
    "sklearn.neighbors",
    "torchvision",
)
"""What a run imports sooner or later."""


@dataclass
class Arena:
    """A cache, a results folder, and runs of the `quick` matrix in child processes.

    Attributes
    ----------
    part
        Options that select a part of the matrix; none for all of it.
    extra
        Options of the executor.
    patience
        Seconds that a run may take.
    others
        Caches of the other nodes of a cluster.
    dead
        Those among them whose node was killed.
    """

    folder: Path
    part: Sequence[str] = CORNER
    extra: list[str] = field(default_factory=list)
    patience: float = PATIENCE
    others: list[Path] = field(default_factory=list)
    dead: list[Path] = field(default_factory=list)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def start(self, **environment: str) -> int:
        """Start a run; its process number. Without Ray it is a fork with all modules loaded; beside
        a cluster of ours it is a new process, as gRPC does not survive a fork."""
        arguments = self._arguments()
        if self.extra:
            with (self.folder / "log.txt").open("ab") as log:
                run = subprocess.Popen(
                    [sys.executable, "-c", "from bench.cli import main; main()", *arguments],
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **environment},
                )
            run.returncode = 0  # waited for by its number, not by this object
            return run.pid
        pid = os.fork()
        if pid:
            return pid
        os.setsid()
        log = os.open(self.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        os.environ |= environment
        sys.argv = ["bench", *arguments]
        code = 1
        try:
            command_line()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            os._exit(code)

    def _arguments(self) -> list[str]:
        chosen = ["run", "--config", str(ROOT / "bench.yaml"), "--profile", "quick", *self.part]
        return [*chosen, "--results", str(self.results), "--cache", str(self.cache), *self.extra]

    def finish(self, **environment: str) -> int:
        """Run to the end; the exit status."""
        return wait(self.start(**environment), self.patience)

    def wipe(self) -> None:
        """Back to nothing."""
        for folder in (self.cache, self.results, *self.others):
            shutil.rmtree(folder, ignore_errors=True)

    def artifacts(self) -> list[Path]:
        """In all caches; what two of them have is there twice."""
        found = (cache.glob("*/??/*/manifest.json") for cache in (self.cache, *self.others))
        return sorted(path.parent for paths in found for path in paths)

    def cells(self) -> list[Path]:
        return sorted(path.parent for path in self.results.glob("*/cells/*/manifest.json"))


def wait(pid: int, seconds: float) -> int | None:
    """Exit status of a child (negative: the signal), None when it still runs after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.002)


def kill(pid: int) -> None:
    """SIGKILL for a run, and its end awaited."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def digest(arena: Arena) -> dict[str, str]:
    """What must not change: the leaderboard, every row and every score, by name."""
    (table,) = arena.results.glob("*/leaderboard.csv")
    frame = pd.read_csv(table, keep_default_na=False).drop(columns=COST_COLUMNS)
    found = {"leaderboard": hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()}
    for folder in arena.cells():
        row = json.loads((folder / "cell.json").read_text())["row"]
        kept = {name: value for name, value in row.items() if name not in COST_COLUMNS}
        text = json.dumps(kept, sort_keys=True).encode()
        scores = (folder / "scores.parquet").read_bytes()
        found[folder.name] = hashlib.sha256(text + scores).hexdigest()
    return found


def verdict(arena: Arena, reference: dict[str, str]) -> str:
    """``identical``, or what is wrong."""
    try:
        found = digest(arena)
    except (OSError, ValueError) as error:
        return f"no tables: {error}"
    if found != reference:
        return f"DIFFERS in {sorted(k for k in reference if found.get(k) != reference[k])[:3]}"
    damaged = [p.name[:12] for p in (*arena.artifacts(), *arena.cells()) if damage(p) is not None]
    if damaged:
        return f"DAMAGED: {damaged[:3]}"
    # Nobody sweeps the disk of a machine that has died.
    living = [cache for cache in (arena.cache, *arena.others) if cache not in arena.dead]
    left = [*arena.results.glob("*/.part/*"), *(p for c in living for p in (c / "tmp").glob("*"))]
    return f"LEFT BEHIND: {left[0].name}" if left else "identical"


def resumed(arena: Arena, reference: dict[str, str]) -> str:
    """Run to the end after a fault, and judge."""
    code = arena.finish()
    return verdict(arena, reference) if code == 0 else f"RESUME ENDED WITH {code}"


def preload() -> None:
    """Import what a run imports sooner or later, before runs are forked."""
    for name in PRELOADED:
        importlib.import_module(name)


@contextlib.contextmanager
def local_nodes(arena: Arena, processors: int) -> Iterator[tuple[Any, list[Any]]]:
    """Three Ray nodes on this machine, the head and two with a cache of their own each.

    Runs of the arena go through them; what is yielded are Ray's cluster and the two other nodes.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": processors})
    arena.others = [arena.folder / f"node{index}" for index in (1, 2)]
    arena.dead, nodes = [], []
    try:
        for cache in arena.others:
            shutil.rmtree(cache, ignore_errors=True)
            os.environ["BENCH_CACHE"] = str(cache)
            nodes.append(cluster.add_node(num_cpus=processors))
        os.environ.pop("BENCH_CACHE")
        arena.extra = ["--executor", "ray", "--address", cluster.address]
        yield cluster, nodes
    finally:
        cluster.shutdown()
        arena.extra = []


def kill_node(arena: Arena, cluster: Any, nodes: list[Any]) -> None:
    """The last of the nodes dies with all its processes."""
    arena.dead.append(arena.others[len(nodes) - 1])
    cluster.remove_node(nodes.pop(), allow_graceful=False)
