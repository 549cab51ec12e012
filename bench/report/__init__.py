"""Tables and plots from stored cells: imports neither torch nor a plug-in."""

from __future__ import annotations

from bench.report.rendering import declare_tables, is_current, render
from bench.report.schema import (
    LEADERBOARD_COLUMNS,
    Manifest,
    ReportError,
    Results,
    StoredCell,
    load_cells,
    load_manifest,
    load_results,
)

__all__ = [
    "LEADERBOARD_COLUMNS",
    "Manifest",
    "ReportError",
    "Results",
    "StoredCell",
    "declare_tables",
    "is_current",
    "load_cells",
    "load_manifest",
    "load_results",
    "render",
]
