"""Reads one results folder: ``manifest.json`` and the cells under ``cells/``, checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.errors import InputError
from bench.limits import MOST_SEED, check_inside
from bench.report.arrays import ReportError
from bench.report.columns import (
    CELL_SCHEMA,
    COLUMNS,
    LEADERBOARD_COLUMNS,
    ROW_COLUMNS,
    STATUSES,
    Column,
)
from bench.report.document import CellDocument
from bench.report.manifest import Manifest, load_manifest, read_manifest_document, read_object
from bench.report.stored_cell import StoredCell
from bench.store import MANIFEST, damage

__all__ = [
    "COLUMNS",
    "LEADERBOARD_COLUMNS",
    "ROW_COLUMNS",
    "STATUSES",
    "Column",
    "Manifest",
    "ReportError",
    "Results",
    "StoredCell",
    "load_cells",
    "load_manifest",
    "load_results",
    "read_manifest_document",
]


@dataclass(frozen=True)
class Results:
    """What tables and plots are made of.

    Attributes
    ----------
    cells
        Cells that may enter a table: none for a smoke run.
    unfinished
        How many cells the manifest lists that are not stored (yet).
    """

    manifest: Manifest
    cells: tuple[StoredCell, ...]
    unfinished: int = 0


def load_cells(results_dir: Path) -> list[StoredCell]:
    """The stored cells that ``manifest.json`` lists, in its order.

    Other folders under ``cells/`` are history and are not read. A listed cell that is not stored
    (a run in progress or interrupted) is left out.

    Raises
    ------
    ReportError
        When the manifest or a ``cell.json`` is damaged; the message names the file.
    """
    folder = Path(results_dir) / "cells"
    paths = [folder / key / "cell.json" for key in load_manifest(results_dir).cells]
    return [_load_cell(path) for path in paths if path.exists()]


def load_results(results_dir: Path) -> Results:
    """Manifest and cells together; a smoke run contributes no cells.

    Raises
    ------
    ReportError
        See :func:`load_cells`; and when no cell is stored: tables may be handed on without the
        cells that they were made from, and are worth more than empty ones.
    """
    manifest = load_manifest(results_dir)
    if manifest.smoke:
        return Results(manifest, ())
    check_some_stored(results_dir, manifest)
    cells = tuple(load_cells(results_dir))
    return Results(manifest, cells, unfinished=len(manifest.cells) - len(cells))


def check_some_stored(results_dir: Path, manifest: Manifest) -> None:
    """Raise :class:`ReportError` when of all the cells of a full run none is stored."""
    folder = Path(results_dir) / "cells"
    # A link or a pipe of that name is there, too: reading it says what is wrong with it.
    stored = any(os.path.lexists(folder / key / "cell.json") for key in manifest.cells)
    if manifest.cells and not manifest.smoke and not stored:
        raise ReportError(
            f"none of the {len(manifest.cells)} cells of {results_dir} is stored there, so its "
            f"tables cannot be made anew: `bench run --profile {manifest.profile}` makes them"
        )


def _load_cell(path: Path) -> StoredCell:
    try:
        check_inside(path.parent, path.parents[1])
    except InputError as error:
        raise ReportError(str(error)) from None
    document = read_object(path)
    if document.get("schema") != CELL_SCHEMA:
        raise ReportError(
            f"{path}: schema {document.get('schema')!r}, this version reads {CELL_SCHEMA}"
        )
    try:
        found = CellDocument.model_validate(document)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in details["loc"])
        message = details["msg"].removeprefix("Value error, ")
        raise ReportError(f"{path}: damaged, {where}: {message[:1].lower()}{message[1:]}") from None
    row = _checked_row(found.row, path)
    if not found.key == row["key"] == path.parent.name:
        raise ReportError(f"{path}: damaged, its key is {found.key!r}, in its row {row['key']!r}")
    wrong = damage(path.parent) if (path.parent / MANIFEST).exists() else None
    if wrong is not None:
        raise ReportError(f"{path.parent}: damaged, {wrong}")
    flags = ("control", "transductive", "reference", "analysis", "reduced")
    sections = ("config", "thresholds", "downstream", "intervals", "implant")
    sections += ("encoders", "encoder_weights")
    return StoredCell(
        key=found.key,
        row=row,
        **{name: getattr(found, name) for name in (*flags, *sections)},
        decoy=found.decoy.model_dump(),
        trigger=found.trigger or {},
        chosen=found.calibrated,
        provenance=found.provenance.model_dump(exclude_unset=True),
        path=path.parent,
    )


def _checked_row(row: dict[str, Any], path: Path) -> dict[str, Any]:
    """``row`` in column order, with every value of its column's kind or None."""
    missing = [name for name in ROW_COLUMNS if name not in row]
    if missing:
        raise ReportError(f"{path}: damaged, its row has no {', '.join(missing)}")
    if row["status"] not in STATUSES:
        raise ReportError(f"{path}: damaged, unknown status {row['status']!r}")
    checked = {}
    for name in ROW_COLUMNS:
        try:
            checked[name] = _typed(row[name], COLUMNS[name].kind)
        except (TypeError, ValueError, OverflowError):
            raise ReportError(
                f"{path}: damaged, {name!r} should be {COLUMNS[name].kind}, got {row[name]!r}"
            ) from None
    return checked


def _typed(value: Any, kind: str) -> Any:
    if kind == "text":
        if isinstance(value, bool):
            return str(value).lower()
        return "" if value is None else str(value)
    if value is None:
        return None
    if isinstance(value, (str, bool)):
        raise TypeError(value)
    if kind == "integer" and abs(value) > MOST_SEED:
        raise OverflowError(value)
    return int(value) if kind == "integer" else float(value)
