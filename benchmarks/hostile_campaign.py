"""Every hostile input in a process of its own: what came of it, how long it took, how much memory.

    python benchmarks/hostile_campaign.py [--output FILE.csv] [--apart] [--only WORD]

Ends with status 0 when each was refused (or set aside, or escaped) as it must be. Seconds are of
processor time, and by the clock (on a busy machine more). A process is a fork of this one, which
has all libraries loaded: megabytes include the nearly 600 of these. With ``--apart`` it is a fresh
interpreter, whose imports count.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
from pathlib import Path

# Before torch loads: a fork of a process that has used OpenMP's threads waits for them for ever.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "hostile"))

import hostile
from campaign import run_apart, run_forked

from bench.store import machine_name

COLUMNS = ("category", "input", "outcome", "seconds", "clock_seconds", "peak_mb", "line")
SHOWN = 200
"""Characters of a line; some name a path of ten thousand."""


def shown(line: str, folder: Path) -> str:
    """A line without what is this machine's alone."""
    for told, word in {
        str(folder): ".",
        str(folder.parent): "..",
        machine_name(): "HOST",
    }.items():
        line = line.replace(told, word)
    return line if len(line) <= SHOWN else f"{line[:SHOWN]} ..."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    run = run_apart if arguments.apart else run_forked
    hostile.warm_up()
    rows = []
    for number, chosen in enumerate(hostile.CASES):
        if arguments.only not in f"{chosen.category}: {chosen.name}":
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / f"case{number}"
            folder.mkdir()
            ran = run(chosen, folder)
            line = shown(ran.line, folder)
        cost = (f"{ran.seconds:.1f}", f"{ran.clock_seconds:.1f}", f"{ran.megabytes:.0f}")
        rows.append((ran.category, ran.name, ran.outcome, *cost, line))
        print(
            f"{ran.seconds:5.1f} s {ran.megabytes:5.0f} MB  {ran.outcome:11s}  {ran.category}: "
            f"{ran.name}\n      {ran.problem or line}",
            flush=True,
        )
    bad = sum(row[2] == "NOT REFUSED" for row in rows)
    print(f"{len(rows)} cases, {bad} not as they must be")
    if arguments.output is not None:
        with arguments.output.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(rows)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
