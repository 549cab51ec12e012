"""The whole `quick` matrix through every executor: the same leaderboard, rows and scores?

    python benchmarks/executors_agree.py [--folder DIR] [--seed 0]
        [--record results/robustness/executors.csv]

Inline; Ray on one node; Ray on three local nodes with a cache of their own each, one of which is
killed with all its processes when a random number of cells is finished. Each starts from an empty
cache. The leaderboard (cost columns aside), every row of every cell and every score must be those
of the inline run, and everything that is stored must match its checksums. Ends with status 0 when
nothing differs.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
import time
from pathlib import Path

from arena import Arena, digest, kill_node, local_nodes, preload, verdict, wait
from recording import replace

from bench.provenance import code_version, hardware

PATIENCE = 3600.0
CELLS = 112


def inline(arena: Arena) -> tuple[str, int | None]:
    """One process."""
    return "inline", arena.finish()


def one_node(arena: Arena) -> tuple[str, int | None]:
    """A cluster that the run starts for itself."""
    arena.extra = ["--executor", "ray"]
    return "ray, one node", arena.finish()


def killed_node(arena: Arena, draw: random.Random) -> tuple[str, int | None]:
    """Three nodes at first."""
    with local_nodes(arena, processors=1) as (cluster, nodes):
        pid = arena.start()
        wanted = draw.randint(CELLS // 4, 3 * CELLS // 4)
        while len(arena.cells()) < wanted:
            if wait(pid, 0.1) is not None:
                raise SystemExit(f"the run ended before {wanted} cells: nothing was killed")
        stored = sum(1 for path in arena.artifacts() if path.is_relative_to(arena.others[-1]))
        before = len(arena.cells())
        kill_node(arena, cluster, nodes)
        code = wait(pid, arena.patience)
    name = f"ray, three nodes, one killed with {stored} artifacts, {before} cells being finished"
    return name, code


def computed(arena: Arena) -> int:
    """Stages that the run says it has computed, evaluations included."""
    return int(re.findall(r"(\d+) stages computed", (arena.folder / "log.txt").read_text())[-1])


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
    rows, reference = [], None
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
            executor, code = killed_node(arena, draw)
        seconds = time.monotonic() - start
        if reference is None:
            reference = digest(arena)
        row = {
            "executor": executor,
            "cells": len(arena.cells()),
            "stages_computed": computed(arena),
            "outcome": verdict(arena, reference),
            "run_ended_with": code,
            "seconds": f"{seconds:.0f}",
            "code": code_version(),
            "machine": hardware("cpu")["processor"],
        }
        rows.append(row)
        print(row, flush=True)
    if arguments.record:
        replace(arguments.record, rows)
    return int(any(row["outcome"] != "identical" or row["run_ended_with"] != 0 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
