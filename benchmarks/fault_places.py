"""Faults of the places that a run works in: disks, file systems, other runs, clocks.

Needs the right to mount (a full disk is a tmpfs), and bindfs for a file system of our own.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from arena import PATIENCE, Arena, wait

if TYPE_CHECKING:
    from fault_campaign import Campaign

SILENT_SECONDS = 20.0
SECONDS_TO_MOUNT = 30.0


@contextlib.contextmanager
def mounted(at: Path, *options: str) -> Iterator[None]:
    """A file system of its own at a folder (needs the rights to mount)."""
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *options, str(at)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def places(campaign: Campaign) -> None:
    """Disk full, read-only results, a cache that vanishes, two drivers, a wild clock."""
    arena = campaign.arena

    def full_disk(size: str) -> str:
        arena.wipe()
        with mounted(arena.cache, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
            code = arena.finish()
        return f"run ended with {code}"

    for size in ("64k", "512k", "2m", "8m"):
        campaign.once("disk full (cache)", size, lambda size=size: full_disk(size))

    def results_on(options: str) -> str:
        shutil.rmtree(arena.results)
        with mounted(arena.results, "-t", "tmpfs", "-o", options, "tmpfs"):
            code = arena.finish()
        return f"run ended with {code}"

    campaign.once("disk full (results)", "256k", lambda: results_on("size=256k"))
    campaign.once("read-only results", "tmpfs -o ro", lambda: results_on("ro"))

    def vanishing() -> str:
        arena.wipe()
        pid = arena.start()
        code = wait(pid, campaign.draw.uniform(0.3, 0.8) * campaign.whole)
        late = ", too late" if code is not None else ""
        shutil.rmtree(arena.cache, ignore_errors=True)
        code = wait(pid, PATIENCE) if code is None else code
        return f"run ended with {code}{late}"

    for number in range(3):
        campaign.once("cache vanishes", f"time {number + 1}", vanishing)

    def two_drivers() -> str:
        arena.wipe()
        pids = [arena.start(), arena.start()]
        codes = [wait(pid, PATIENCE) for pid in pids]
        return f"ended with {codes[0]} and {codes[1]}"

    for number in range(3):
        campaign.once("two drivers on one cache", f"time {number + 1}", two_drivers)

    def wild_clock() -> str:
        arena.wipe()
        pid = os.fork()
        if not pid:
            honest, draw = time.time, random.Random(0)
            time.time = lambda: honest() + draw.uniform(-1e7, 1e7)
            os._exit(arena.finish() or 0)
        return f"run ended with {wait(pid, PATIENCE)}"

    campaign.once("the clock jumps", "by up to 115 days, at every look", wild_clock)

    def times() -> None:
        for path in (*arena.cache.rglob("*"), *arena.results.rglob("*")):
            os.utime(path, (4e9, 4e9))
        for cell in arena.cells()[::2]:
            shutil.rmtree(cell)  # so that the cache is needed again

    campaign.once("files from the future", "all of cache and results", times)


def can_serve() -> bool:
    """Whether the faults of file systems can be brought about here."""
    return shutil.which("bindfs") is not None


@contextlib.contextmanager
def served(arena: Arena) -> Iterator[subprocess.Popen[bytes]]:
    """The cache on a file system that a process of ours serves (needs bindfs and FUSE).

    Stopping the process makes it a file system that does not answer, killing it one that is gone.
    Afterwards the cache is what was behind it.
    """
    behind = arena.folder / "behind"
    for folder in (behind, arena.cache):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    server = subprocess.Popen(["bindfs", "-f", str(behind), str(arena.cache)])
    try:
        end = time.monotonic() + SECONDS_TO_MOUNT
        while not os.path.ismount(arena.cache):
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"bindfs does not serve {arena.cache}")
            time.sleep(0.05)
        yield server
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGCONT)
        if os.path.ismount(arena.cache) or server.poll() is not None:
            subprocess.run(["umount", "-l", str(arena.cache)], check=False)
        if server.poll() is None:
            server.terminate()
        server.wait()
        arena.cache.rmdir()
        behind.rename(arena.cache)


def file_systems(campaign: Campaign) -> None:
    """A cache that is slow, one that is silent for a while, one that is gone in mid-run."""

    def slow() -> str:
        campaign.arena.wipe()
        with served(campaign.arena) as server:
            pid = campaign.arena.start()
            with stuttering(server):
                code = wait(pid, PATIENCE)
        return f"run ended with {code}"

    def silent(server: subprocess.Popen[bytes]) -> None:
        server.send_signal(signal.SIGSTOP)
        time.sleep(SILENT_SECONDS)
        server.send_signal(signal.SIGCONT)

    def in_mid_run(harm: Callable[[subprocess.Popen[bytes]], None]) -> str:
        campaign.arena.wipe()
        with served(campaign.arena) as server:
            moment = campaign.draw.uniform(0.1, 0.8) * campaign.whole
            pid = campaign.arena.start()
            if (code := wait(pid, moment)) is not None:
                return f"after {moment:.1f} s, too late, run ended with {code}"
            harm(server)
            code = wait(pid, PATIENCE)
        return f"after {moment:.1f} s, run ended with {code}"

    campaign.once("cache on a slow file system", "answers a quarter of the time", slow)
    for _ in range(3):
        what = f"for {SILENT_SECONDS:.0f} s"
        campaign.once("cache stops answering", what, lambda: in_mid_run(silent))
    for _ in range(3):
        campaign.once(
            "file system of the cache dies",
            "its server is killed",
            lambda: in_mid_run(subprocess.Popen.kill),
        )


@contextlib.contextmanager
def stuttering(server: subprocess.Popen[bytes]) -> Iterator[None]:
    """Let a process run a quarter of the time, in pieces of a tenth of a second."""
    over = threading.Event()

    def stutter() -> None:
        while not over.wait(0.1):
            server.send_signal(signal.SIGSTOP)
            over.wait(0.3)
            server.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=stutter)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
