"""Peak memory and seconds of a block of code, and an allocator that keeps what it was given."""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import sys
import time
from pathlib import Path
from types import TracebackType

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
# glibc's mallopt(3): names of parameters, and how much freed memory the heap may hold at its end.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TRIM_BYTES, _PAD_BYTES = 2**31 - 1, 2**28
# Blocks of every size that malloc hands out as "small", this many of each: 1 MB in all.
_SMALL_BYTES, _SMALL_BLOCKS = range(24, 1032, 16), 24


class PeakMemory:
    """Peak memory in MB while the block ran: device memory on an accelerator, else the process's
    resident set (where the system cannot reset its high-water mark, the peak since the start)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.peak_mb = 0.0

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif _CLEAR.exists():
            give_back_freed_memory()
            try:
                _CLEAR.write_text("5")
            except OSError:  # not allowed in some containers: the mark then stays the process's
                return self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._device.type == "cuda":
            self.peak_mb = torch.cuda.max_memory_allocated(self._device) / 2**20
            return
        self.peak_mb = resident_peak_mb()


def clock(device: torch.device) -> float:
    """Seconds of a clock that only goes forward, read when ``device`` has done all it was asked
    to: an accelerator works on after its calls have returned."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def resident_peak_mb() -> float:
    """The process's high-water mark of resident memory in MB."""
    if _STATUS.exists():
        return _status_mb("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


def resident_mb() -> float:
    """The process's resident memory in MB, where the system tells (Linux)."""
    return _status_mb("VmRSS")


def resident_tree_mb() -> float:
    """The same, with every process that this one started and that is still there: the authors' code
    runs in one of its own."""
    total, left = 0.0, [os.getpid()]
    while left:
        folder = Path("/proc") / str(left.pop())
        try:
            total += _status_mb("VmRSS", folder / "status")
            for task in (folder / "task").iterdir():
                left += map(int, (task / "children").read_text().split())
        except (OSError, StopIteration):  # it has ended, and a zombie holds no memory
            continue
    return total


def keep_freed_memory() -> None:
    """Have glibc reuse the memory of large tensors instead of returning it to the system.

    By default every tensor above 32 MB is fresh memory, whose pages the system must clear one by
    one: a third of the time of a SimCLR step (figures in docs/decisions.md). Tensors of 2 MB and
    more ask for huge pages. To be called before the first large tensor; the user's own
    ``MALLOC_*`` and ``THP_MEM_ALLOC_ENABLE`` go before, and without glibc nothing happens.
    """
    # Torch reads it at its first allocation. Blocks that begin on a page also keep the heap from
    # splitting into pieces just too small for the next tensor of their size.
    chosen = os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    libc = _glibc()
    if libc is None or chosen != "1" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    libc.mallopt(_M_TOP_PAD, _PAD_BYTES)
    _stock_small_blocks(libc)


def give_back_freed_memory() -> None:
    """Return to the system what :func:`keep_freed_memory` holds and nothing uses."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@functools.cache
def _stock_small_blocks(libc: ctypes.CDLL) -> None:
    """Leave free blocks of every small size in the heap, once per process.

    Without them a small object may be given the sliver between two large tensors; the memory of
    the first is then a sliver too short for the next tensor of its size, which takes fresh memory.
    """
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = []
    for size in _SMALL_BYTES:
        for _ in range(_SMALL_BLOCKS):
            blocks.append(libc.malloc(size))
            libc.malloc(_SMALL_BYTES[0])  # stays, and keeps the free blocks from growing together
    for block in blocks:
        libc.free(block)


def _status_mb(name: str, path: Path = _STATUS) -> float:
    """A line of /proc/self/status, in MB."""
    lines = path.read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, when it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
