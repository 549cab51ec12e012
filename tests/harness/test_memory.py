"""The allocator keeps freed memory, and gives it back when asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource
from bench.memory import give_back_freed_memory, keep_freed_memory, resident_mb
keep_freed_memory()
import torch
def once():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**25).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
once(), once()
print(sum(once() for _ in range(10)))
kept = resident_mb()
give_back_freed_memory()
print(kept - resident_mb())
"""


def _run(**extra: str) -> tuple[int, float]:
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
    faults, given_back = done.stdout.split()
    return int(faults), float(given_back)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for its page faults")
def test_a_large_tensor_reuses_the_memory_of_the_last() -> None:
    faults, given_back = _run()
    assert faults < 100  # ten times 128 MB of fresh memory are at least 640 huge pages
    assert given_back > 100


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for its page faults")
def test_the_users_own_settings_go_before() -> None:
    faults, _ = _run(MALLOC_MMAP_THRESHOLD_="1000000")
    assert faults > 600
