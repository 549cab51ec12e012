"""Everything that a results folder stores as one JSON document (docs/cells.md)."""

from __future__ import annotations

import json
from typing import Any

from bench.report.schema import Results, StoredCell

__all__ = ["CELLS_SCHEMA", "cells_document", "cells_json"]

CELLS_SCHEMA = 1
"""Raised when a field changes its meaning or goes; new fields do not raise it."""


def cells_document(results: Results) -> dict[str, Any]:
    """The run and its cells as plain values; scores and pictures stay in the cells' folders."""
    manifest = results.manifest
    return {
        "schema": CELLS_SCHEMA,
        "profile": manifest.profile,
        "attacks": list(manifest.attacks),
        "defenses": list(manifest.defenses),
        "seeds": list(manifest.seeds),
        "smoke": manifest.smoke,
        "unfinished": results.unfinished,
        "cells": [_cell(cell) for cell in results.cells],
    }


def cells_json(results: Results) -> str:
    """:func:`cells_document` as text."""
    document = cells_document(results)
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _cell(cell: StoredCell) -> dict[str, Any]:
    flags = ("control", "transductive", "reference", "analysis", "reduced")
    sections = ("intervals", "thresholds", "downstream", "trigger", "decoy", "encoders")
    sections += ("encoder_weights", "implant")
    return {
        "key": cell.key,
        **{name: getattr(cell, name) for name in flags},
        "row": cell.row,
        "calibrated": cell.chosen,
        **{name: getattr(cell, name) for name in sections},
        "config": cell.config,
        "provenance": cell.provenance,
    }
