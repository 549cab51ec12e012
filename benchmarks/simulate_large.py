"""A large matrix through the real Ray executor, with stages that sleep instead of computing.

    python benchmarks/simulate_large.py [--attacks 50 --defenses 50 --downstreams 10 --seeds 5]
        [--slots 8] [--minutes 60] [--record benchmarks/simulate_large.csv]

The graph is that of ``benchmarks/plan_large.py``. Every stage sleeps what one of its kind takes
(``SECONDS``), scaled down so that all takes about ``--minutes`` on ``--slots`` processors. The
share of the harness is what these did not sleep of the time from the connection to the last end:
starting processes, scheduling, messages, and processors that waited.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import plan_large
from recording import append

from bench.cells import CellStore, RunningMark
from bench.executors.ray_cluster import Cluster
from bench.executors.ray_driver import RayExecutor
from bench.executors.ray_worker import Order, Origin, Report
from bench.graph import Cell, topological
from bench.progress import Silent
from bench.provenance import code_version, hardware
from bench.session import Session

SECONDS = {
    "data": 6.8,
    "pixels": 15.0,
    "poison": 10.0,
    "pretrain": 160.0,
    "implant": 430.0,
    "probe": 37.0,
    "audit": 31.0,
    "fit": 30.0,
    "score": 15.0,
    "evaluate": 3.5,
}
"""Means of `cifar10-small`, seed 0, on two cores (benchmarks/stage_times.csv); `pretrain` is an
estimate for the large matrix: 150 s for a fine-tuned CLIP victim, 800 s for each of the few from
scratch."""


def sleeper(scale: float) -> Callable[[Order], Report]:
    """What a worker does with an order: sleep its kind's seconds, scaled down."""
    scaled = {kind: scale * seconds for kind, seconds in SECONDS.items()}

    def compute_order(order: Order) -> Report:
        import bench.stages  # noqa: F401  what a worker loads before its first stage

        time.sleep(scaled[order.stage.kind])
        return Report("computed", seconds=scaled[order.stage.kind])

    return compute_order


def simulate(session: Session, cells: list[Cell], slots: int, scale: float) -> dict[str, float]:
    """Run ``cells`` with the executor of ``bench run --executor ray``: what it took."""
    origin = Origin.of(session)
    cluster = Cluster(origin, {}, 1, "cpu", processors=slots)
    cpu, start = time.process_time(), time.perf_counter()
    with RunningMark(session.results) as mark:
        outcome = RayExecutor(
            cluster,
            origin,
            session.store,
            CellStore(session.results),
            Silent(),
            mark,
            compute=sleeper(scale),
        ).run(cells)
    return {
        "wall": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "failed": len(outcome.failed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in zip(plan_large.SIZES, (50, 50, 10, 5), strict=True):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    sizes = {name: getattr(arguments, name) for name in plan_large.SIZES}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        start = time.perf_counter()
        session, _, _ = plan_large.plan(folder, plan_large.experiment(sizes))
        cells = [cell for cell in session.cells if not cell.skip]
        stages = topological([cell.stage for cell in cells])
        planned = time.perf_counter() - start
        work = sum(SECONDS[stage.kind] for stage in stages)
        scale = arguments.minutes * 60 * arguments.slots / work
        print(f"{len(cells)} cells, {len(stages)} stages, planned in {planned:.1f} s", flush=True)
        print(f"{work / 3600:.0f} h of work, scaled by {scale:.2g}", flush=True)
        took = simulate(session, cells, arguments.slots, scale)
        share = 1 - work * scale / (took["wall"] * arguments.slots)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = {
        "code": code_version(),
        **sizes,
        "cells": len(cells),
        "stages": len(stages),
        "plan_seconds": round(planned, 1),
        "slots": arguments.slots,
        "work_hours": round(work / 3600),
        "wall_seconds": round(took["wall"], 1),
        "harness_share": round(share, 4),
        "milliseconds_per_stage": round(1000 * took["wall"] / len(stages), 2),
        "driver_cpu_milliseconds_per_stage": round(1000 * took["cpu"] / len(stages), 2),
        "driver_peak_mb": round(peak),
        "failed": took["failed"],
        "machine": hardware("cpu")["processor"],
    }
    for name, value in row.items():
        print(f"{name}: {value}")
    if arguments.record:
        append(arguments.record, [row])


if __name__ == "__main__":
    main()
