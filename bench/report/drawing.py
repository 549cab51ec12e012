"""Draws and encodes the plots of a results folder, on every core where there are many.

Drawing takes half a minute and more, nearly all of it in Python code that one process runs on one
core. The other cores get processes of their own, started anew: a copy of this one would inherit
threads that a library may not survive without.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.report.schema import ReportError, Results, load_results

__all__ = ["drawn"]

MOST_PROCESSES = 4
CELLS_PER_PROCESS = 25
"""Fewer cells are drawn faster than a process starts."""


def drawn(results_dir: Path, results: Results, processes: int | None = None) -> dict[str, bytes]:
    """File name -> content of every plot, in one order and with the same bytes however many draw.

    Parameters
    ----------
    processes
        How many draw; by default one per core, fewer for few cells.

    Raises
    ------
    ReportError
        When a cell is damaged.
    RuntimeError
        When a process fails otherwise, with what it said last.
    """
    if processes is None:
        wanted = len(results.cells) // CELLS_PER_PROCESS
        processes = max(1, min(os.cpu_count() or 1, MOST_PROCESSES, wanted))
    with tempfile.TemporaryDirectory(prefix="bench-plots-") as scratch:
        helpers = [
            _start(Path(results_dir), Path(scratch), share, processes)
            for share in range(1, processes)
        ]
        try:
            parts = dict(_encoded(results, 0, processes))
            for helper in helpers:
                _, said = helper.communicate()
                if helper.returncode != 0:
                    raise _failure(said)
        finally:
            for helper in helpers:
                helper.kill()
                helper.wait()
        for path in Path(scratch).iterdir():
            parts[path.name] = path.read_bytes()
    return {name: parts[name] for name in sorted(parts)}


def _start(results_dir: Path, scratch: Path, share: int, shares: int) -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(results_dir), str(scratch), f"{share}/{shares}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _failure(said: str) -> Exception:
    """What a process that ended with an error died of, by the last line of its trace."""
    last = (said.strip().splitlines() or ["no message"])[-1]
    damaged = f"{ReportError.__module__}.{ReportError.__name__}: "
    if last.startswith(damaged):
        return ReportError(last.removeprefix(damaged))
    return RuntimeError(f"drawing plots failed: {last}")


def _encoded(results: Results, share: int, shares: int) -> Iterator[tuple[str, bytes]]:
    from bench.report.plots import plots_of  # matplotlib costs a second: only who draws pays it
    from bench.report.style import encoded, plot_style

    with plot_style():
        for stem, figure in plots_of(results, share, shares):
            for suffix, content in encoded(figure).items():
                yield f"{stem}.{suffix}", content


def main(results_dir: str, scratch: str, share: str) -> None:
    """Write one share of the plots into ``scratch``."""
    number, shares = (int(part) for part in share.split("/"))
    for name, content in _encoded(load_results(Path(results_dir)), number, shares):
        (Path(scratch) / name).write_bytes(content)


if __name__ == "__main__":
    main(*sys.argv[1:])
