"""CSV files of what was measured."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a CSV file; a new one starts with the keys of the first row."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)


def replace(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file that holds these rows and no others."""
    path.unlink(missing_ok=True)
    append(path, rows)
