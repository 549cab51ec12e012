"""Writes every table and plot of a results folder, each file whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from bench.report.declared import Tables
from bench.report.drawing import drawn
from bench.report.export import table_text
from bench.report.schema import (
    Manifest,
    check_some_stored,
    load_manifest,
    load_results,
    read_manifest_document,
)
from bench.store import MANIFEST, write_atomically

__all__ = ["REPORT_VERSION", "declare_tables", "is_current", "render"]

REPORT_VERSION = 9
"""Raise it when tables or plots of the same cells change: stored reports are then redrawn."""

RECORD = "report.json"

_TABLES = (
    ("leaderboard.csv", "csv", "leaderboard"),
    ("leaderboard.md", "markdown", "leaderboard"),
    ("leaderboard.tex", "latex", "leaderboard"),
    ("leaderboard.html", "html", "leaderboard"),
    ("tables/summary.csv", "csv", "summary"),
    ("tables/summary.md", "markdown", "summary"),
    ("tables/summary.tex", "latex", "summary"),
    ("tables/thresholds.csv", "csv", "thresholds"),
    ("tables/downstream.csv", "csv", "downstream"),
)


def render(results_dir: Path) -> list[Path]:
    """Write tables, plots and ``report.json`` into ``results_dir``; the paths written.

    Everything comes from stored cells. Files of an earlier report that no longer belong are
    removed. A smoke run gives tables without rows that say so, and no plots.

    Raises
    ------
    ReportError
        When the manifest or a cell is missing or damaged; tables and plots then stay as they were
        or are partly new, and :func:`is_current` is False.
    """
    results_dir = Path(results_dir)
    digest = _digest(results_dir, load_manifest(results_dir))
    earlier = _recorded(results_dir)
    written: dict[str, str] = {}
    for name, content in _contents(results_dir):
        write_atomically(results_dir / name, content)
        written[name] = hashlib.sha256(content).hexdigest()
    for name in sorted(set(earlier.get("outputs", {})) - set(written)):
        (results_dir / name).unlink(missing_ok=True)
    record = {"version": REPORT_VERSION, "digest": digest, "outputs": dict(sorted(written.items()))}
    write_atomically(results_dir / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    return [results_dir / name for name in (*written, RECORD)]


def declare_tables(results_dir: Path, tables: Tables) -> None:
    """Have the manifest declare ``tables``: what an experiment file says now, for stored cells.

    Raises
    ------
    ReportError
        When the manifest is missing or damaged, or no cell is stored.
    """
    check_some_stored(results_dir, load_manifest(results_dir))
    document = read_manifest_document(results_dir)
    wanted = tables.model_dump(mode="json", exclude_unset=True)
    if document.get("tables") != wanted:
        document["tables"] = wanted
        content = json.dumps(document, indent=1, sort_keys=True) + "\n"
        write_atomically(Path(results_dir) / "manifest.json", content.encode())


def is_current(results_dir: Path) -> bool:
    """Whether the stored cells are those of the last report and its files lie there unchanged.

    Raises
    ------
    ReportError
        When ``manifest.json`` is missing or damaged.
    """
    results_dir = Path(results_dir)
    record = _recorded(results_dir)
    if record.get("digest") != _digest(results_dir, load_manifest(results_dir)):
        return False
    return all(
        (results_dir / name).is_file()
        and hashlib.sha256((results_dir / name).read_bytes()).hexdigest() == digest
        for name, digest in record["outputs"].items()
    )


def _contents(results_dir: Path) -> Iterator[tuple[str, bytes]]:
    results = load_results(results_dir)
    declared = (
        (f"tables/{table}.{suffix}", form, table)
        for table in results.manifest.further_tables
        for suffix, form in (("csv", "csv"), ("md", "markdown"), ("tex", "latex"))
    )
    for name, form, table in (*_TABLES, *declared):
        yield name, table_text(results, form, table).encode()
    if not results.cells:
        return
    for name, content in drawn(results_dir, results).items():
        yield f"plots/{name}", content


def _digest(results_dir: Path, manifest: Manifest) -> str:
    """SHA-256 over the report's version, the manifest's order and every cell: its ``cell.json``,
    and the seal that holds the digests of its other files."""
    cells = {}
    for key in manifest.cells:
        paths = (results_dir / "cells" / key / name for name in ("cell.json", MANIFEST))
        cells[key] = [
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
            for path in paths
        ]
    document = {
        "version": REPORT_VERSION,
        "profile": manifest.profile,
        "attacks": manifest.attacks,
        "defenses": manifest.defenses,
        "seeds": manifest.seeds,
        "pretraining": [manifest.pretrained_with(seed) for seed in manifest.seeds],
        "smoke": manifest.smoke,
        "tables": manifest.tables,
        "cells": cells,
    }
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def _recorded(results_dir: Path) -> dict:
    """The last report's record; empty when there is none that can be used."""
    path = results_dir / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    usable = isinstance(record, dict) and isinstance(record.get("outputs"), dict)
    return record if usable and all(_inside(name) for name in record["outputs"]) else {}


def _inside(name: object) -> bool:
    """Whether ``name`` is a relative path that stays in the results folder."""
    return isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts
