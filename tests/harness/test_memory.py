"""The allocator keeps freed memory, and gives it back when asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.memory import resident_tree_mb

# Counted in memory, not in page faults: a fault is 4 KB or 2 MB, as the system finds huge pages.
# The small blocks are what a program holds on to; in the sliver behind a tensor they would keep the
# next from taking its place.
SCRIPT = """
import ctypes
from bench.memory import give_back_freed_memory, keep_freed_memory, resident_mb
keep_freed_memory()
import torch
def once():
    new = torch.empty(2**25)  # 128 MB
    [ctypes.CDLL(None).malloc(size) for size in (100, 400, 700, 1000)]
    before = resident_mb()
    new.fill_(1)
    return resident_mb() - before
once(), once()
print(sum(once() for _ in range(10)))
kept = resident_mb()
give_back_freed_memory()
print(kept - resident_mb())
"""


def _run(**extra: str) -> tuple[float, float]:
    """MB that ten tensors of 128 MB, one after the other, took fresh from the system, and MB given
    back at the end."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "THP_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**clean, **extra},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    fresh, given_back = done.stdout.split()
    return float(fresh), float(given_back)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for resident memory")
def test_a_large_tensor_reuses_the_memory_of_the_last() -> None:
    fresh, given_back = _run()
    assert fresh < 64
    assert given_back > 100


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for resident memory")
def test_the_users_own_settings_go_before() -> None:
    fresh, _ = _run(MALLOC_MMAP_THRESHOLD_="1000000")
    assert fresh > 1200


CHILD = "import sys; held = bytearray(2**28); print('there', flush=True); sys.stdin.read()"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for resident memory")
def test_what_a_process_started_counts_as_its_own() -> None:
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"
    before = resident_tree_mb()
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"there\n"  # the child's own child is
        assert resident_tree_mb() - before > 256
    assert resident_tree_mb() - before < 128
