"""Kill a run with SIGKILL at random moments, restart it each time, compare with a quiet run.

    python benchmarks/kill_and_resume.py [--profile quick] [--kills 5] [--seed 0]

Ends with status 0 when both leaderboards agree, cost columns aside.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

COST_COLUMNS = ["fit_seconds", "score_ms_per_image", "peak_memory_mb"]
CODE = "from bench.cli import main; main()"


def command(profile: str, config: Path, folder: Path) -> list[str]:
    options = ["--config", str(config), "--profile", profile]
    places = ["--results", str(folder / "results"), "--cache", str(folder / "cache")]
    return [sys.executable, "-c", CODE, "run", *options, *places]


def leaderboard(folder: Path, profile: str) -> pd.DataFrame:
    table = pd.read_csv(folder / "results" / profile / "leaderboard.csv")
    return table.drop(columns=COST_COLUMNS)


def finished(folder: Path) -> int:
    """How many artifacts and cells are stored whole."""
    artifacts = len(list((folder / "cache").glob("*/??/*/manifest.json")))
    return artifacts + len(list((folder / "results").glob("*/cells/*/manifest.json")))


def kill_after(again: list[str], folder: Path, stages: int, delay: float) -> str:
    """Start a run and kill it ``delay`` seconds after it has finished ``stages`` more stages."""
    before = finished(folder)
    start = time.monotonic()
    run = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while run.poll() is None and finished(folder) < before + stages:
        time.sleep(0.02)
    try:
        run.wait(delay)
    except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGKILL)
        run.wait()
        now = finished(folder)
        return f"after {time.monotonic() - start:.1f} s, {now - before} more stored, {now} in all"
    return "too late, the run had ended"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("bench.yaml"))
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        quiet, killed = Path(scratch) / "quiet", Path(scratch) / "killed"
        start = time.monotonic()
        undisturbed = command(arguments.profile, arguments.config, quiet)
        subprocess.run(undisturbed, check=True, capture_output=True)
        whole = time.monotonic() - start
        total = finished(quiet)
        print(f"undisturbed run: {whole:.1f} s, {total} artifacts and cells", flush=True)
        again = command(arguments.profile, arguments.config, killed)
        for number in range(arguments.kills):
            # A random share of what is left, then a random moment inside the stage at work.
            stages = moments.randint(1, max(1, (total - finished(killed)) // 4))
            delay = moments.uniform(0, 1.5)
            print(f"kill {number + 1}: {kill_after(again, killed, stages, delay)}", flush=True)
        last = subprocess.run(again, check=True, capture_output=True, text=True)
        print(last.stdout.splitlines()[0])
        left = list((killed / "cache" / "tmp").glob("*"))
        print(f"scratch folders left: {len(left)}")
        one, two = (leaderboard(folder, arguments.profile) for folder in (quiet, killed))
        same = one.equals(two)
        print(f"leaderboards of {len(one)} rows {'agree' if same else 'DIFFER'}")
        return 0 if same and not left else 1


if __name__ == "__main__":
    sys.exit(main())
