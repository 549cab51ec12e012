"""Compute a few cells of a leaderboard again from nothing: do scores and rows come out the same?

    python benchmarks/rerun_cells.py --cache /tmp/again [--profile cifar10-small] [--cells 3]
        [--draw 0] [--seeds 2] [--attacks badclip] [--results results]
        [--record results/robustness/rerun.csv]

Which cells is a draw by number among those that are stored under the keys of `bench.yaml` as it
stands. Encoders, victims, fits and scores are computed anew in the cache that is named, which has
to be empty or what an earlier try of this script left. Machine and thread number are part of what
is promised: elsewhere, last bits may differ, so ``--seeds`` and ``--attacks`` narrow the draw to
what this machine computed.
Ends with status 0 when nothing differs.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recording import append, machine_of

from bench.cells import CellStore
from bench.configfile import ConfigFile
from bench.errors import InputError
from bench.graph import Cell
from bench.provenance import code_version
from bench.session import Selection, Session

# What a cell took, and what made it.
OF_THE_RUN = ("fit_seconds", "score_ms_per_image", "peak_memory_mb", "code_version")


def drawn(session: Session, count: int, draw: int) -> list[Cell]:
    """``count`` of the stored cells, the same ones for the same number."""
    known = CellStore(session.results)
    stored = [cell for cell in session.cells if not cell.skip and known.done(cell.key)]
    if not stored:
        raise InputError("no cell of that profile, those seeds and attacks is stored")
    if not 1 <= count <= len(stored):
        raise InputError(f"--cells wants 1 to {len(stored)}, the cells that are stored")
    chosen = random.Random(draw).sample(sorted(cell.key for cell in stored), count)
    return [cell for cell in stored if cell.key in chosen]


def compared(before: Path, after: Path) -> dict[str, Any]:
    """Two folders of one cell."""
    old, new = (pd.read_parquet(folder / "scores.parquet") for folder in (before, after))
    numbers = old.select_dtypes("number").columns
    bytes_before, bytes_after = (f.joinpath("scores.parquet").read_bytes() for f in (before, after))
    largest = float(np.nanmax(np.abs(old[numbers].to_numpy() - new[numbers].to_numpy())))
    rows = [json.loads((folder / "cell.json").read_text())["row"] for folder in (before, after)]
    kept = [{k: v for k, v in row.items() if k not in OF_THE_RUN} for row in rows]
    differ = sorted(k for k in {*kept[0], *kept[1]} if kept[0].get(k) != kept[1].get(k))
    return {
        "scores": "equal bytes" if bytes_before == bytes_after else "other bytes",
        "largest_difference": f"{largest:.3g}",
        "row": "equal" if not differ else "differs in " + " ".join(differ),
    }


def again(profile: str, cell: Cell, cache: Path) -> Path:
    """The folder of the cell, computed with everything that it needs."""
    identity = cell.identity
    selection = Selection(
        profile=profile,
        attacks=(str(identity["attack"]),),
        defenses=(str(identity["defense"]),),
        seeds=(int(identity["seed"]),),
        cache=cache,
        results=cache / "results",
    )
    session = Session(ConfigFile(Path("bench.yaml")), selection)
    outcome = session.run()
    if outcome.failed:
        raise SystemExit(f"{cell.stage.label}: {outcome.failed}")
    return CellStore(session.results).folder / cell.key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="cifar10-small")
    parser.add_argument("--cells", type=int, default=3)
    parser.add_argument("--draw", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--attacks", nargs="+")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    try:
        differing = _rerun(arguments)
    except InputError as error:
        parser.error(str(error))
    raise SystemExit(1 if differing else 0)


def _rerun(arguments: argparse.Namespace) -> int:
    """How many of the cells came out different."""
    _claim(arguments.cache)
    seeds = tuple(arguments.seeds) if arguments.seeds else None
    attacks = tuple(arguments.attacks) if arguments.attacks else None
    selection = Selection(
        profile=arguments.profile, results=arguments.results, seeds=seeds, attacks=attacks
    )
    session = Session(ConfigFile(Path("bench.yaml")), selection)
    machine = machine_of(session.environment.device)
    bad = 0
    for cell in drawn(session, arguments.cells, arguments.draw):
        start = time.perf_counter()
        folder = again(arguments.profile, cell, arguments.cache)
        stored = CellStore(session.results).folder / cell.key
        found = compared(stored, folder)
        made_by = json.loads((stored / "cell.json").read_text())["row"]["code_version"]
        seconds = f"{time.perf_counter() - start:.0f}"
        row = {
            "code": code_version(),
            "cell": f"{cell.stage.label}, seed {cell.identity['seed']}",
            "made_by": made_by,
            **found,
            "seconds": seconds,
            "machine": machine,
        }
        bad += found["row"] != "equal" or found["scores"] != "equal bytes"
        print(", ".join(f"{name}: {value}" for name, value in row.items()), flush=True)
        if arguments.record is not None:
            append(arguments.record, [row])
    return bad


def _claim(cache: Path) -> None:
    """Refuse a cache with the stages of other runs: they would be compared with themselves."""
    mark = cache / "only-rerun-cells"
    if cache.exists() and not mark.is_file() and (not cache.is_dir() or any(cache.iterdir())):
        raise InputError(f"--cache {cache} is neither empty nor what an earlier try left")
    cache.mkdir(parents=True, exist_ok=True)
    mark.touch()


if __name__ == "__main__":
    main()
