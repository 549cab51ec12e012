"""Peak memory of a block of code."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from types import TracebackType

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


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


def resident_peak_mb() -> float:
    """The process's high-water mark of resident memory in MB."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)
