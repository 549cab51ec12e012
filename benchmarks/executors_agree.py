"""The whole `quick` matrix through every executor: the same leaderboard, rows and scores?

    python benchmarks/executors_agree.py [--folder DIR] [--seed 0]
        [--record results/robustness/executors.csv]

Inline; Ray on one node; Ray on three local nodes with a cache of their own each, one of which is
killed with all its processes at a random moment in mid-run. Each starts from an empty cache. The
leaderboard (cost columns aside), every row of every cell and every score must be those of the
inline run, and everything that is stored must match its checksums. Ends with status 0 when nothing
differs.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from arena import Arena, digest, local_nodes, preload, verdict, wait
from recording import replace

PATIENCE = 3600.0
SECONDS_TO_JOIN = 15.0


def inline(arena: Arena) -> tuple[str, int | None]:
    """One process."""
    return "inline", arena.finish()


def one_node(arena: Arena) -> tuple[str, int | None]:
    """A cluster that the run starts for itself."""
    arena.extra = ["--executor", "ray"]
    return "ray, one node", arena.finish()


def killed_node(arena: Arena, draw: random.Random, whole: float) -> tuple[str, int | None]:
    """Three nodes at first."""
    with local_nodes(arena, processors=1) as (cluster, nodes):
        pid = arena.start()
        moment = SECONDS_TO_JOIN + draw.uniform(0.2, 0.6) * whole
        if wait(pid, moment) is not None:
            raise SystemExit(f"the run ended before {moment:.0f} s: nothing was killed")
        before = len(arena.cells())
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        code = wait(pid, arena.patience)
    name = f"ray, three nodes, one killed after {moment:.0f} s with {before} cells stored"
    return name, code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="executors-"))
    os.environ.pop("BENCH_CACHE", None)
    draw = random.Random(arguments.seed)
    preload()
    rows, reference, whole = [], None, 0.0
    for name in ("inline", "one-node", "three-nodes"):
        arena = Arena(folder / name, part=(), patience=PATIENCE)
        arena.folder.mkdir(parents=True, exist_ok=True)
        arena.wipe()
        start = time.monotonic()
        if name == "inline":
            executor, code = inline(arena)
        elif name == "one-node":
            executor, code = one_node(arena)
        else:
            executor, code = killed_node(arena, draw, whole)
        seconds = time.monotonic() - start
        if reference is None:
            reference, whole = digest(arena), seconds
        row = {
            "executor": executor,
            "cells": len(arena.cells()),
            "stages": len(arena.artifacts()),
            "outcome": verdict(arena, reference),
            "run_ended_with": code,
            "seconds": f"{seconds:.0f}",
        }
        rows.append(row)
        print(row, flush=True)
    if arguments.record:
        replace(arguments.record, rows)
    return int(any(row["outcome"] != "identical" or row["run_ended_with"] != 0 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
