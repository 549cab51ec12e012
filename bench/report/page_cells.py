"""What the page of one cell is made of: numbers, thinned curves, pictures, settings, origin."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from bench.report.curves import STEPS, cell_scores, histograms, roc_points
from bench.report.formats import number_text
from bench.report.leaderboard import attack_columns
from bench.report.page_table import Texts, identity
from bench.report.pictures import Strip, attack_strips, fitting, reconstruction_strips
from bench.report.presentation import ABSENT, MARKS
from bench.report.schema import Results, StoredCell

__all__ = ["cells_payload"]

LOOKS_BUDGET = 350_000
"""Characters of base64 that the looks of all attacks may take in one page."""

FIGURES_BUDGET = 700_000
"""The same for what defenses drew: reconstructions, inverted triggers."""

_THRESHOLD_RATES = ("tpr", "fpr", "fpr_target_class", "fpr_decoy")


class _Shared:
    """Lists of text numbers that several cells have in common, each stored once."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self._numbers: dict[str, int] = {}
        self.blocks: list[list[int]] = []

    def block(self, *texts: str) -> int:
        block = [self.texts.number(text) for text in texts]
        number = self._numbers.setdefault(json.dumps(block), len(self.blocks))
        if number == len(self.blocks):
            self.blocks.append(block)
        return number

    def pairs(self, value: Any) -> list[int]:
        """Nested settings as (path, text) blocks, in the order of their paths."""
        return [self.block(path, text) for path, text in sorted(_flat("", value))]


class _Album:
    """Embedded pictures, each stored once."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self._numbers: dict[str, int] = {}

    def numbers(self, strips: list[Strip]) -> list[list[int]]:
        return [
            [self.texts.number(label), count, self._numbers.setdefault(png, len(self._numbers))]
            for label, count, png in strips
        ]

    @property
    def pictures(self) -> list[str]:
        return list(self._numbers)


def cells_payload(results: Results, texts: Texts) -> dict[str, Any]:
    """``cells`` in the order of ``results``, and what they share.

    Raises
    ------
    ReportError
        When the scores or pictures of a cell are missing or damaged.
    """
    shared, album = _Shared(texts), _Album(texts)
    columns = attack_columns(cell.row for cell in results.cells)
    looks = _looks(results, columns)
    attacks = list(looks)
    drawn = _figures(results)
    cells = []
    for cell in results.cells:
        cells.append(
            {
                **_identity(cell, texts),
                **_numbers(cell, shared),
                **_curves(cell),
                "pictures": album.numbers(drawn.get(cell.key, [])),
                "left_out": cell.key not in drawn and (cell.path / "figures.npz").exists(),
                "looks": attacks.index(columns[cell.key]) if columns[cell.key] in looks else None,
                **_origin(cell, shared),
            }
        )
    return {
        "cells": cells,
        "looks": [
            {"seed": texts.number(number_text(seed)), "pictures": album.numbers(strips)}
            for seed, strips in looks.values()
        ],
        "siblings": _siblings(results),
        "blocks": shared.blocks,
        "pictures": album.pictures,
        "steps": STEPS,
    }


def _identity(cell: StoredCell, texts: Texts) -> dict[str, Any]:
    return {
        "key": cell.key,
        "trigger": texts.number(str(cell.trigger.get("description") or "")),
        "decoy": texts.number(str(cell.decoy.get("description") or "")),
        "reduced": texts.number(cell.reduced),
        "marks": texts.number(
            " ".join(note for flag, (_, note) in MARKS.items() if getattr(cell, flag))
        ),
    }


def _numbers(cell: StoredCell, shared: _Shared) -> dict[str, Any]:
    row = cell.row
    bounds = {
        name: text for name, ends in cell.intervals.items() if name in row and (text := _ends(ends))
    }
    calibrated = cell.calibrated
    rules = [
        shared.block(
            str(entry.get("rule") or ""),
            number_text(entry.get("nominal_fpr")) or ABSENT,
            number_text(entry.get("threshold")) or ABSENT,
            *(
                " ".join(filter(None, (_short(entry.get(name)), _ends_of(entry, name))))
                for name in _THRESHOLD_RATES
            ),
            "in the leaderboard" if entry is calibrated else "",
        )
        for entry in cell.thresholds
    ]
    return {
        "status": row["status"],
        "values": [
            shared.block(name, number_text(row[name]) or ABSENT, bounds.get(name, ""))
            for name in row
            if row[name] is not None and row[name] != ""
        ],
        "thresholds": rules,
        "downstream": [shared.block(*entry) for entry in _downstream(cell)],
    }


def _downstream(cell: StoredCell) -> list[tuple[str, ...]]:
    """(probe, metric, on the victim, on the twin, without encoder) per number."""
    places = {"victim": 2, "twin": 3}
    found: dict[tuple[str, str], list[str]] = {}
    for entry in cell.downstream:
        probe, metric = str(entry.get("probe") or ""), str(entry.get("metric") or "")
        line = found.setdefault((probe, metric), [probe, metric, ABSENT, ABSENT, ABSENT])
        ends = _ends((entry.get("low"), entry.get("high")))
        text = " ".join(filter(None, (_short(entry.get("value")), ends)))
        line[places.get(str(entry.get("encoder")), 4)] = text
    return [tuple(line) for line in found.values()]


def _curves(cell: StoredCell) -> dict[str, Any]:
    if not cell.measured:
        return {"roc": None, "histograms": None}
    scores = cell_scores(cell)
    curves = {name: roc_points(scores, name) for name in ("victim", "twin")}
    bins = histograms(scores)
    if bins is not None:
        threshold = (cell.calibrated or {}).get("threshold")
        numbers = bins | {"threshold": math.nan if threshold is None else threshold}
        bins |= {name: _rounded(numbers[name]) for name in ("low", "high", "threshold")}
    return {"roc": curves if any(curves.values()) else None, "histograms": bins}


def _origin(cell: StoredCell, shared: _Shared) -> dict[str, Any]:
    """Settings, decoy candidates and provenance."""
    config, provenance = cell.config, cell.provenance
    candidates = cell.decoy.get("candidates") or []
    stages = provenance.get("stages") or []
    rest = {name: config[name] for name in config if name not in ("attack", "defense")}
    machine = {name: value for name, value in provenance.items() if name != "stages"}
    return {
        "settings": {
            "attack": shared.pairs(config.get("attack")),
            "trigger": shared.pairs(cell.trigger),
            "defense": shared.pairs(config.get("defense")),
            "rest": shared.pairs(rest),
        },
        "candidates": [
            shared.block(
                str(one.get("description") or one.get("name") or ""),
                _short(one.get("attack_success_rate")),
                _short(one.get("attack_success_rate_test")),
                "used" if one.get("used") else "",
            )
            for one in candidates
        ],
        "provenance": shared.pairs(machine),
        "stages": [
            shared.block(
                str(stage.get("kind") or ""),
                str(stage.get("label") or ""),
                "" if stage.get("seconds") is None else f"{float(stage['seconds']):.1f}",
                str(stage.get("key") or "")[:12],
            )
            for stage in stages
        ],
    }


def _looks(
    results: Results, columns: Mapping[str, str]
) -> dict[str, tuple[int | None, list[Strip]]]:
    """Attack column -> the lowest seed that has pictures of it, and the pictures."""
    chosen: dict[str, StoredCell] = {}
    for cell in results.cells:
        if not (cell.path / "attack.npz").exists():
            continue
        other = chosen.get(columns[cell.key])
        if other is None or cell.seed < other.seed:
            chosen[columns[cell.key]] = cell
    strips = fitting(list(chosen.values()), attack_strips, LOOKS_BUDGET, (4, 2, 1))
    return {
        name: (cell.row["seed"], strips[cell.key])
        for name, cell in chosen.items()
        if strips.get(cell.key)
    }


def _figures(results: Results) -> dict[str, list[Strip]]:
    """Cell key -> what its defense drew: of all seeds where they fit, else of the lowest."""
    cells = [cell for cell in results.cells if (cell.path / "figures.npz").exists()]
    every = fitting(cells, reconstruction_strips, FIGURES_BUDGET, (8, 6, 4))
    if len(every) == len(cells):
        return every
    lowest = min(cell.seed for cell in cells)
    first = [cell for cell in cells if cell.seed == lowest]
    return fitting(first, reconstruction_strips, FIGURES_BUDGET, (8, 6, 4, 3, 2, 1))


def _siblings(results: Results) -> list[list[int]]:
    """Groups of cells, by number, that differ in their seed only."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, cell in enumerate(results.cells):
        groups.setdefault(identity(cell.row), []).append(number)
    return [
        sorted(group, key=lambda number: results.cells[number].seed)
        for group in groups.values()
        if len(group) > 1
    ]


def _flat(path: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        inner = f"{path}." if path else ""
        return [pair for name, one in value.items() for pair in _flat(f"{inner}{name}", one)]
    if value is None and not path:
        return []
    if isinstance(value, float):
        return [(path, number_text(value) or ABSENT)]
    return [(path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


def _ends_of(entry: Mapping[str, Any], name: str) -> str:
    return _ends((entry.get(f"{name}_low"), entry.get(f"{name}_high")))


def _ends(bounds: Any) -> str:
    low, high = bounds if bounds else (None, None)
    return "" if low is None or high is None else f"[{_short(low)}, {_short(high)}]"


def _short(value: Any) -> str:
    """Four decimals of a rate, four digits of anything else: what a page of details needs."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return ABSENT if value is None else str(value)
    if math.isnan(value):
        return ABSENT
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) <= 1 else f"{value:.4g}"


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
