"""Break runs in every way we can think of, resume them, and compare the tables with a quiet run.

    python benchmarks/fault_campaign.py [--kills 200] [--seed 0] [--folder DIR]
        [--only file-systems | --ray ROUNDS] [--record results/robustness/faults.csv]

The experiment is a corner of the `quick` matrix with every training loop cut short: two attacks,
four defenses. After each fault the run is resumed until it ends by itself; then the tables (cost
columns aside), every row of every cell and every score must be those of the quiet run, no scratch
folder may be left and everything that is stored must match its checksums. `--ray` does the faults
of a cluster instead, and adds their lines to the record: three local nodes, workers and nodes that
are killed, a driver that is killed. `--only file-systems` does those of a file system that is
served by a process (the last of the whole, and the only ones that need bindfs), and adds them. The
first line of a record is the quiet run; the seconds of a kill are those that the run had lived.
What is drawn follows from the seed, in shares of the quiet run's seconds; when a kill really comes
is up to the machine. Ends with status 0 when nothing differs, no kill took away what was stored,
each fault happened and each run that it befell ended with its status (`fault_judging.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arena import PATIENCE, Arena, digest, kill, kill_node, local_nodes, preload, resumed, wait
from fault_judging import problem
from fault_places import can_serve, file_systems, places
from recording import append

from bench.store import damage


class Campaign:
    """Faults one after the other, with a table of what became of each."""

    def __init__(
        self,
        arena: Arena,
        reference: dict[str, str],
        whole: float,
        seed: int,
        record: Path | None = None,
    ) -> None:
        self.arena, self.reference, self.whole = arena, reference, whole
        self.draw, self._record = random.Random(seed), record
        self.rows: list[dict[str, object]] = []

    def note(self, fault: str, detail: str, outcome: str, seconds: float) -> None:
        row = {"fault": fault, "detail": detail, "outcome": outcome, "seconds": f"{seconds:.1f}"}
        self.rows.append(row)
        if self._record is not None:
            append(self._record, [row])
        print(f"{len(self.rows):4d} {fault}: {detail}: {outcome}", flush=True)

    def kills(self, wanted: int) -> None:
        """SIGKILL at random moments, half of them while something is being written; each is
        followed by the resume that the next one interrupts, until a run ends by itself."""
        done = 0
        while done < wanted:
            self.arena.wipe()
            self.arena.folder.mkdir(exist_ok=True)
            start, here = time.monotonic(), 0
            while done < wanted:
                before = len(self.arena.artifacts()) + len(self.arena.cells())
                how = self.draw.choice(("any moment", "while writing"))
                moment = self.draw.uniform(0.0, 0.6 * self.whole)
                pid, begun = self.arena.start(), time.monotonic()
                alive, writing = self._until(pid, how, moment)
                if not alive:
                    break
                kill(pid)
                moment = time.monotonic() - begun
                how = "while writing" if writing else "any moment"
                done, here = done + 1, here + 1
                now = len(self.arena.artifacts()) + len(self.arena.cells())
                whole = all(damage(p) is None for p in self.arena.artifacts() + self.arena.cells())
                state = "all whole" if whole else "A PART READS AS A WHOLE"
                outcome = f"{now - before:+d} stored, {now} in all, {state}"
                self.note("kill the run", f"{how}, after {moment:.2f} s", outcome, moment)
            self.note(
                "resume after kills",
                f"{here} kills",
                resumed(self.arena, self.reference),
                time.monotonic() - start,
            )

    def _until(self, pid: int, how: str, moment: float) -> tuple[bool, bool]:
        """Wait for the moment of a kill; whether the run still lives, and whether it is writing an
        artifact or a cell."""
        if wait(pid, moment) is not None:
            return False, False
        end = time.monotonic() + self.whole
        while how == "while writing" and time.monotonic() < end:
            if self._writing(pid):
                return True, True
            if wait(pid, 0.001) is not None:
                return False, False
        return True, False

    def _writing(self, pid: int) -> bool:
        """Whether there is a part of an artifact or a cell of that process, not of one before."""
        for place in (self.arena.cache / "tmp", *self.arena.results.glob("*/.part")):
            for scratch in place.glob(f"*-{pid}-*"):
                with contextlib.suppress(FileNotFoundError):  # it was finished just now
                    if os.listdir(scratch):
                        return True
        return False

    def once(self, fault: str, detail: str, do: Callable[[], str | None]) -> None:
        """One fault on a finished or a fresh arena, then a resume."""
        start = time.monotonic()
        said = do()
        outcome = resumed(self.arena, self.reference)
        detail = detail if said is None else f"{detail}: {said}"
        self.note(fault, detail, outcome, time.monotonic() - start)


def damages(campaign: Campaign) -> None:
    """Truncated, flipped, swapped and missing files, in the cache and among the cells."""
    arena, draw = campaign.arena, campaign.draw

    def truncated(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def flipped(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)

    def removed(path: Path) -> None:
        path.unlink()

    def emptied(path: Path) -> None:
        path.write_bytes(b"")

    def forget_cells() -> None:
        # So that the damaged artifact is needed again.
        shutil.rmtree(arena.results)

    kinds = sorted({folder.parents[1].name for folder in arena.artifacts()})
    for how in (truncated, flipped, removed, emptied):
        for kind in kinds:
            folder = draw.choice([f for f in arena.artifacts() if f.parents[1].name == kind])
            path = draw.choice(
                sorted(p for p in folder.rglob("*") if p.suffix != ".json")
                or [folder / "manifest.json"]
            )

            def harm(path: Path = path, how: Callable[[Path], None] = how) -> None:
                how(path)
                forget_cells()

            campaign.once(f"artifact {how.__name__}", f"{kind}/{path.name}", harm)
        folder = draw.choice(arena.cells())
        path = draw.choice([folder / "cell.json", folder / "scores.parquet"])
        campaign.once(f"cell {how.__name__}", path.name, lambda path=path, how=how: how(path))
    one, two = draw.sample([f for f in arena.artifacts() if f.parents[1].name == "score"], 2)

    def swap_artifacts() -> None:
        first, second = one / "scores.parquet", two / "scores.parquet"
        held = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(held)
        forget_cells()

    campaign.once("artifacts swapped", "score/scores.parquet", swap_artifacts)
    a, b = draw.sample(arena.cells(), 2)

    def swap_cells() -> None:
        held = (a / "cell.json").read_bytes()
        (a / "cell.json").write_bytes((b / "cell.json").read_bytes())
        (b / "cell.json").write_bytes(held)

    campaign.once("cells swapped", "cell.json", swap_cells)


def ray_faults(campaign: Campaign, rounds: int) -> None:
    """Three local nodes, each with a cache of its own: workers, nodes and drivers are killed."""
    arena = campaign.arena
    for number in range(rounds):
        for fault in ("a worker", "a node", "the driver"):
            arena.wipe()
            start = time.monotonic()
            with local_nodes(arena, processors=2) as (cluster, nodes):
                pid = arena.start()
                moment = 15 + campaign.draw.uniform(0.2, 0.8) * campaign.whole
                code = wait(pid, moment)
                said = "too late"
                if code is None:
                    said = harm(fault, pid, arena, cluster, nodes, campaign.draw)
                    # A run that ended before it could be harmed has been waited for.
                    code = wait(pid, PATIENCE) if said == "killed" else "a status of its own"
                outcome = resumed(arena, campaign.reference)
            detail = f"round {number + 1}, after {moment:.1f} s, {said}, run ended with {code}"
            campaign.note(f"ray: kill {fault}", detail, outcome, time.monotonic() - start)


def harm(fault: str, pid: int, arena: Arena, cluster: Any, nodes: list, draw: random.Random) -> str:
    """Kill a worker, a node with all its processes, or the driver."""
    if fault == "the driver":
        os.kill(pid, signal.SIGKILL)
        return "killed"
    if fault == "a node":
        kill_node(arena, cluster, nodes)
        return "killed"
    while wait(pid, 0.05) is None:
        if working := at_work(cluster.address):
            os.kill(draw.choice(working), signal.SIGKILL)
            return "killed"
    return "too late"


def at_work(address: str) -> list[int]:
    """Processes of that cluster, and of no other on this machine, that are at a stage."""
    # Ray names a process after the stage at work in it; its parent is a node of its cluster.
    listed = subprocess.run(
        ["pgrep", "-f", r"^ray::(pretrain|implant|probe|audit|fit|score|evaluate)\b"],
        capture_output=True,
        text=True,
    ).stdout.split()
    working = []
    for pid in map(int, listed):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
            if address.encode() in Path(f"/proc/{parent}/cmdline").read_bytes():
                working.append(pid)
    return working


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ray", type=int, default=0, metavar="ROUNDS")
    parser.add_argument("--only", choices=("file-systems",))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    added = bool(arguments.ray or arguments.only)
    if not arguments.ray and not can_serve():
        parser.error("bindfs is not installed: the faults of file systems need it")
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="faults-"))
    quiet, arena = Arena(folder / "quiet"), Arena(folder / "broken")
    for each in (quiet, arena):
        each.folder.mkdir(parents=True, exist_ok=True)
        each.wipe()
    preload()
    start = time.monotonic()
    if quiet.finish() != 0:
        print((quiet.folder / "log.txt").read_text(), file=sys.stderr)
        return 1
    whole = time.monotonic() - start
    if arguments.record and not added:
        arguments.record.unlink(missing_ok=True)
    campaign = Campaign(arena, digest(quiet), whole, arguments.seed, arguments.record)
    if not added:
        detail = f"{len(quiet.cells())} cells, seed {arguments.seed}"
        campaign.note("none", detail, "identical", whole)
    if arguments.ray:
        ray_faults(campaign, arguments.ray)
    elif arguments.only:
        file_systems(campaign)
    else:
        campaign.kills(arguments.kills)
        arena.wipe()
        arena.finish()
        damages(campaign)
        places(campaign)
        file_systems(campaign)
    counts = Counter(str(row["fault"]) for row in campaign.rows)
    bad = [(number, what) for number, row in enumerate(campaign.rows, 1) if (what := problem(row))]
    for fault, count in counts.items():
        print(f"{count:5d} x {fault}")
    for number, what in bad:
        print(f"line {number}: {what}")
    print(f"{len(campaign.rows)} lines, {len(bad)} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
