"""Whether what came of a fault is what must come of it; ``tests/harness/test_fault_record.py``
holds the record to it."""

from __future__ import annotations

import re
from collections.abc import Mapping

ENDS: dict[str, tuple[str, ...]] = {
    "disk full (cache)": ("2",),
    "disk full (results)": ("2",),
    "read-only results": ("2",),
    "cache vanishes": ("2",),
    "two drivers on one cache": ("0 and 0",),
    "the clock jumps": ("0",),
    "cache on a slow file system": ("0",),
    "cache stops answering": ("0",),
    "file system of the cache dies": ("2", "-7"),  # SIGBUS, where a file of it was mapped
    "ray: kill a worker": ("0",),
    "ray: kill a node": ("0",),
    "ray: kill the driver": ("-9",),
}
"""With which status the run that a fault befell must have ended, before it was resumed."""


def problem(row: Mapping[str, object]) -> str:
    """How a line of the campaign departs from what it must say; empty where it does not.

    A kill may cost nothing that was stored, a fault must have happened, the run that it befell
    must have ended with its status, and the tables after the resume must be identical.
    """
    fault, detail, outcome = (str(row[name]) for name in ("fault", "detail", "outcome"))
    if "too late" in detail:
        return "the run had ended before the fault"
    ended = re.search(r"ended with (.+)$", detail)
    if fault in ENDS and (ended is None or ended[1] not in ENDS[fault]):
        return f"the run ended with {ended and ended[1]}, not with {' or '.join(ENDS[fault])}"
    kept = re.fullmatch(r"([+-]\d+) stored, \d+ in all, all whole", outcome)
    if fault == "kill the run" and kept is not None:
        return "" if int(kept[1]) >= 0 else "what was stored before is gone"
    return "" if outcome == "identical" else outcome
