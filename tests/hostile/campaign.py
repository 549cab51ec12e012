"""Hostile and malformed input: the cases, and how each is run, timed and weighed.

A case is a function that puts its input into an empty folder and says what is done with it. It is
run in a process of its own: time and peak memory are that process's alone, and one that would take
all memory or all time is ended at the limit.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from experiment import TINY

LIMIT_SECONDS, LIMIT_MEGABYTES = 10.0, 1000.0
LIMIT_WAITING = 40.0
"""Seconds by the clock, for a process that waits; the others count processor time, so that a busy
machine fails no case."""
Outcome = Literal["refused", "failed cell", "set aside", "escaped"]
"""``refused``: exit status 2, one line on stderr, nothing else. ``failed cell``: exit status 1, the
cell stands in the table with its reason. ``set aside``: the run goes on without that input and says
so. ``escaped``: what is written shows the text and runs nothing."""


@dataclass(frozen=True)
class Deed:
    """What is done with a hostile input.

    Attributes
    ----------
    arguments
        Of the command line, which runs in the folder of the case.
    call
        In place of the command line: a function that raises as the library does.
    environment
        Variables set for the process.
    says
        What the line must contain.
    outcome
        What must come of it.
    after
        Called in the end; raises an ``AssertionError`` where something happened that must not.
    """

    arguments: tuple[str, ...] = ()
    call: Callable[[], object] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    says: str = ""
    outcome: Outcome = "refused"
    after: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Case:
    """A hostile input by name; ``prepare`` makes it in an empty folder; ``long``: in seconds."""

    category: str
    name: str
    prepare: Callable[[Path], Deed]
    long: bool = False


@dataclass(frozen=True)
class Ran:
    """What came of a case.

    Attributes
    ----------
    line
        The line that it was refused with, or what else it said last.
    seconds, clock_seconds
        Of processor time, and by the clock.
    problem
        How it departs from what must come of it; empty when it does not.
    """

    category: str
    name: str
    outcome: str
    line: str
    seconds: float
    clock_seconds: float
    megabytes: float
    problem: str


CASES: list[Case] = []


def case(
    category: str, name: str, *, long: bool = False
) -> Callable[[Callable[[Path], Deed]], Callable[[Path], Deed]]:
    """Add a function to :data:`CASES`."""

    def add(prepare: Callable[[Path], Deed]) -> Callable[[Path], Deed]:
        CASES.append(Case(category, name, prepare, long))
        return prepare

    return add


def command(*arguments: object, **more: Any) -> Deed:
    """A command line, as a deed."""
    return Deed(tuple(map(str, arguments)), **more)


def experiment(folder: Path, *changes: tuple[tuple[Any, ...], Any]) -> Path:
    """The tiny experiment as ``bench.yaml``, with values put at places in it."""
    content = json.loads(json.dumps(TINY))
    for keys, value in changes:
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def run_forked(chosen: Case, folder: Path) -> Ran:
    """Run a case in a fork of this process, which has the libraries loaded."""
    deed = chosen.prepare(folder)
    streams = (folder.parent / f"{folder.name}.out", folder.parent / f"{folder.name}.err")
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        _become(deed, folder, *streams)
    return _judged(chosen, deed, *_watched(child, start), *streams)


def run_apart(chosen: Case, folder: Path) -> Ran:
    """Run a case in a fresh interpreter; its start and its imports count."""
    streams = (folder.parent / f"{folder.name}.out", folder.parent / f"{folder.name}.err")
    deed = chosen.prepare(folder)
    if deed.call is not None:
        return run_forked(chosen, _emptied(folder))
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        _redirect(folder, *streams)
        code = "from bench.cli import main; main()"
        os.execve(
            sys.executable,
            [sys.executable, "-c", code, *deed.arguments],
            _environment(deed),
        )
    return _judged(chosen, deed, *_watched(child, start), *streams)


def _emptied(folder: Path) -> Path:
    fresh = folder.with_name(f"{folder.name}-again")
    fresh.mkdir()
    return fresh


def _environment(deed: Deed) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BENCH_")}
    path = os.pathsep.join(filter(None, [str(deed.environment.get("PYTHONPATH", "")), *sys.path]))
    return {**kept, **deed.environment, "PYTHONPATH": path}


def _redirect(folder: Path, out: Path, err: Path) -> None:
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, number)


def _become(deed: Deed, folder: Path, out: Path, err: Path) -> None:
    """Do the deed and end the process, as an interpreter would."""
    status = 1
    try:
        _redirect(folder, out, err)
        os.environ.clear()
        os.environ.update(_environment(deed))
        sys.path[:0] = filter(None, [deed.environment.get("PYTHONPATH")])
        status = _called(deed.call) if deed.call is not None else _commanded(deed.arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _commanded(arguments: tuple[str, ...]) -> int:
    from bench.cli import main

    sys.argv = ["bench", *arguments]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def _called(call: Callable[[], object]) -> int:
    """A library call, with its errors told as the command line tells them."""
    import bench.cli

    bench.cli.app = lambda **_: call()
    return _commanded(())


def _watched(child: int, start: float) -> tuple[int, float, float, float, str]:
    """Exit status, seconds of processor time and by the clock, peak megabytes and the limit that
    was passed."""
    broken, peak = "", 0.0
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        waited = time.perf_counter() - start
        if ended:
            seconds = usage.ru_utime + usage.ru_stime
            broken = broken or ("took all time" if seconds > LIMIT_SECONDS else "")
            # Of one that ended before it was looked at: at least what this process has.
            peak = peak or usage.ru_maxrss / 1000
            return os.waitstatus_to_exitcode(status), seconds, waited, peak, broken
        # Not what wait4 says: that is at least what this process had before the child's exec.
        peak = _peak(child) or peak
        if not broken and (peak > LIMIT_MEGABYTES or waited > LIMIT_WAITING):
            broken = "took all time" if waited > LIMIT_WAITING else "took all memory"
            os.kill(child, signal.SIGKILL)
        time.sleep(0.03)


def _peak(process: int) -> float:
    """Megabytes that a process has had resident at most; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


def _judged(
    chosen: Case,
    deed: Deed,
    status: int,
    seconds: float,
    waited: float,
    peak: float,
    broken: str,
    out: Path,
    err: Path,
) -> Ran:
    printed = out.read_text(encoding="utf-8", errors="replace")
    complaint = err.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in complaint.splitlines() if line.strip()]
    problem = broken or _departure(deed, status, printed, complaint, lines)
    if not problem and peak > LIMIT_MEGABYTES:
        problem = "took all memory"
    if not problem:
        try:
            deed.after()
        except AssertionError as error:
            problem = f"afterwards: {error}"
    last = (lines or printed.splitlines() or [""])[-1]
    outcome = "NOT REFUSED" if problem else deed.outcome
    return Ran(chosen.category, chosen.name, outcome, last, seconds, waited, peak, problem)


def _departure(deed: Deed, status: int, printed: str, complaint: str, lines: list[str]) -> str:
    if "Traceback (most recent call last)" in complaint:
        return f"traceback: {lines[-1][:200]}"
    if deed.outcome == "refused":
        if status != 2:
            return f"exit status {status}: {(lines or printed.splitlines() or [''])[-1][:200]}"
        if len(lines) != 1 or printed:
            return f"{len(lines)} lines on stderr: {complaint[:300]!r} {printed[:100]!r}"
    wanted = {"refused": 2, "failed cell": 1, "set aside": 0, "escaped": 0}[deed.outcome]
    if status != wanted:
        return f"exit status {status}, not {wanted}: {complaint[-300:]!r}"
    if not all(part.isprintable() for part in lines):
        return f"control characters on the terminal: {complaint!r}"
    if deed.says not in complaint + printed:
        return f"does not say {deed.says!r}: {complaint[-300:]!r}"
    return ""
