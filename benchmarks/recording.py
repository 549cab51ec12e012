"""CSV files of what was measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.provenance import hardware
from bench.store import write_atomically


def machine_of(device: str) -> str:
    """What computes on ``device``, and on how many cores."""
    known = hardware(device)
    return f"{known.get('accelerator', known['processor'])}, {known['cores']} cores"


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a CSV file; a new one starts with the keys of the first row.

    Raises
    ------
    ValueError
        When the file has other columns.
    """
    if not path.exists():
        replace(path, rows)
        return
    with path.open("r+", newline="") as stream:
        header = next(csv.reader(stream), [])
        if header != list(rows[0]):
            raise ValueError(f"{path} has the columns {header}, not {list(rows[0])}")
        stream.seek(0, 2)
        csv.DictWriter(stream, header).writerows(rows)


def replace(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file that holds these rows, at least one, and no others."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
