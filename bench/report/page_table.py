"""What the table of the leaderboard page is made of: columns, rows, and every text in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bench.report.columns import COLUMNS, CONTEXT, LEADERBOARD_COLUMNS
from bench.report.formats import escape_latex, number_text
from bench.report.leaderboard import over_seeds, per_seed, varying_context
from bench.report.presentation import (
    FURTHER_TITLES,
    MARKS,
    further_text,
    further_title,
    readable_row,
)
from bench.report.schema import Results

__all__ = ["Texts", "identity", "table_payload"]

Row = dict[str, Any]

_PARTS = {
    "n": ("n_seeds",),
    "AUROC": ("auroc", "auroc_low", "auroc_high"),
    "placebo": ("auroc_placebo",),
    "delta": ("auroc_delta", "auroc_delta_low", "auroc_delta_high"),
    "decoy": ("auroc_decoy",),
    "vs decoy": ("auroc_vs_decoy", "auroc_vs_decoy_low", "auroc_vs_decoy_high"),
    "on twin": ("auroc_vs_decoy_placebo",),
    "beyond twin": ("auroc_vs_decoy_excess",),
    "TPR@1%": ("tpr_at_1fpr",),
    "TPR@5%": ("tpr_at_5fpr",),
    "TPR/FPR cal.": ("tpr_calibrated", "fpr_calibrated"),
    "TPR placebo": ("tpr_calibrated_placebo",),
    "CA/twin": ("clean_accuracy", "clean_accuracy_twin"),
    "ASR/twin": ("attack_success_rate", "attack_success_rate_twin"),
    "verdict/twin": ("encoder_verdict", "encoder_verdict_twin"),
    "fit s": ("fit_seconds",),
    "ms/img": ("score_ms_per_image",),
}
"""Header of a readable column -> the columns of ``leaderboard.csv`` behind it."""

_MEANINGS = {
    "n_seeds": "seeds averaged in this row",
    "auroc_vs_decoy_low": "lower end of the interval of auroc_vs_decoy",
    "auroc_vs_decoy_high": "upper end of the interval of auroc_vs_decoy",
}

_GROUPS = {
    "Row": (
        *("attack", "defense", *CONTEXT, "profile", "seed", "attack_backend", "defense_backend"),
        *("auxiliary", "status", "reason", "n_seeds", "transductive", "reference", "analysis"),
        "reduced",
    ),
    "Detection": (
        *("auroc", "auroc_low", "auroc_high", "auroc_all", "aupr", "tpr_at_1fpr", "tpr_at_5fpr"),
        *("tpr_at_01fpr", "fpr_at_95tpr"),
    ),
    "Controls": (
        *("auroc_placebo", "auroc_delta", "auroc_delta_low", "auroc_delta_high", "auroc_decoy"),
        *("auroc_vs_decoy", "auroc_vs_decoy_low", "auroc_vs_decoy_high"),
        *("auroc_vs_decoy_placebo", "auroc_vs_decoy_excess", "auroc_decoy_placebo"),
        *("control", "decoy"),
    ),
    "Thresholds": (
        *("threshold_source", "tpr_calibrated", "fpr_calibrated", "fpr_target_class"),
        "tpr_calibrated_placebo",
        *("tpr_median_rule", "fpr_median_rule"),
    ),
    "Attack and accuracy": (
        *("clean_accuracy", "clean_accuracy_twin", "attack_success_rate"),
        *("attack_success_rate_twin", "attack_success_rate_all", "ca_filtered", "asr_filtered"),
        "probe",
    ),
    "Encoder verdict": (
        *("encoder_score", "encoder_score_twin", "encoder_verdict", "encoder_verdict_twin"),
    ),
    "Cost": ("fit_seconds", "score_ms_per_image", "peak_memory_mb", "device"),
}
"""Groups of the column chooser; what is in none of them is provenance."""

_REST = "Provenance"

_SCALES = {
    **dict.fromkeys(("auroc", "auroc_vs_decoy", "auroc_all", "aupr"), "heat"),
    **dict.fromkeys(("auroc_placebo", "auroc_decoy", "auroc_vs_decoy_placebo"), "grey"),
    "auroc_decoy_placebo": "grey",
}
"""Columns with a colour scale around 0.5; controls have theirs in grey."""


class Texts:
    """Every text of the page once: rows and cells name theirs by number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def payload(self) -> dict[str, Any]:
        """``texts`` by number, and ``latex`` of those that LaTeX would not show as they are."""
        escaped = {number: escape_latex(text) for text, number in self._numbers.items()}
        latex = {
            number: escaped[number] for t, number in self._numbers.items() if escaped[number] != t
        }
        return {"texts": list(self._numbers), "latex": latex}


def table_payload(results: Results, texts: Texts) -> dict[str, Any]:
    """Columns and rows for the page, seeds averaged and, where there are several, each.

    ``columns`` are the readable ones in their order, shown at first, then every other column of
    ``leaderboard.csv``. A row has ``t``, the text of each column, and ``v``, the value in the CSV
    of each name in ``names``.
    """
    repeated = len(results.manifest.seeds) > 1
    mean, single = over_seeds(results), per_seed(results)
    context = varying_context(mean) if len(mean) else []
    further = results.manifest.declared.leaderboard.columns
    columns = _columns(mean, context, repeated, further)
    names = list(mean.columns)
    numbers = {key: number for number, key in enumerate(cell.key for cell in results.cells)}
    seeds = _seeds_of(single)

    def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
        return [
            _row(row, columns, names, texts, numbers, context, repeated, seeds)
            for row in frame.to_dict("records")
        ]

    return {
        "names": names,
        "numeric": [_is_numeric(name) for name in names],
        "columns": [_column_payload(column, names, texts) for column in columns],
        "mean": rows(mean),
        "seeds": rows(single) if repeated else None,
        "marks": [[mark, texts.number(text)] for mark, text in MARKS.values()],
        "groups": [*_GROUPS, _REST],
        "glossary": {
            name: [_group(name), texts.number(column.meaning)] for name, column in COLUMNS.items()
        },
    }


def identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the rows of one cell at several seeds have in common."""
    return tuple(str(row[name]) for name in ("attack", "defense", *CONTEXT))


def _columns(
    frame: pd.DataFrame, context: list[str], repeated: bool, further: list[str]
) -> list[dict[str, Any]]:
    """One dictionary per column: title, the names behind it, and how it is shown at first."""
    template = dict(zip(frame.columns, _blank(frame), strict=True))
    titles = list(readable_row(template, context, repeated))
    columns = [_described(title, _PARTS.get(title, (title,)), True) for title in titles]
    covered = {column["parts"][0] for column in columns if len(column["parts"]) == 1}
    for name in further:
        title = further_title(name, titles)
        if title and name not in covered:
            columns.append(_described(title, (name,), True))
            covered.add(name)
    columns += [
        _described(FURTHER_TITLES.get(name, name), (name,), repeated and name == "seed")
        for name in LEADERBOARD_COLUMNS
        if name not in covered
    ]
    for column in columns:
        column["view"] = {"n": "mean", "seed": "seeds"}.get(column["title"]) if repeated else None
    return columns


def _blank(frame: pd.DataFrame) -> list[Any]:
    """A row of missing values, to learn the readable columns from when there are no rows."""
    kinds = (COLUMNS[name].kind if name in COLUMNS else "number" for name in frame.columns)
    return [{"text": "", "flag": False}.get(kind, float("nan")) for kind in kinds]


def _described(title: str, parts: tuple[str, ...], shown: bool) -> dict[str, Any]:
    known = tuple(name for name in parts if name in COLUMNS or name in _MEANINGS)
    first = known[0] if known else ""
    return {
        "title": title,
        "parts": known,
        "shown": shown,
        "group": _group(first) if known else "Row",
        "scale": _SCALES.get(first, "") if len(known) != 2 else "",
        "numeric": bool(known) and all(_is_numeric(name) for name in known),
        "interval": len(known) == 3,
    }


def _column_payload(column: dict[str, Any], names: list[str], texts: Texts) -> dict[str, Any]:
    meanings = []
    for name in column["parts"][: 1 if column["interval"] else None]:
        known = COLUMNS.get(name)
        unit = f" ({known.unit})" if known and known.unit else ""
        meanings.append(f"{name}: {known.meaning if known else _MEANINGS[name]}{unit}")
    if column["interval"]:
        meanings.append("Brackets: its interval, see the notes.")
    return {
        **{name: column[name] for name in ("shown", "group", "scale", "numeric", "interval")},
        "title": texts.number(column["title"]),
        "parts": [names.index(name) for name in column["parts"]],
        "meanings": [texts.number(text) for text in meanings],
        "view": column["view"],
    }


def _row(
    row: Row,
    columns: list[dict[str, Any]],
    names: list[str],
    texts: Texts,
    numbers: Mapping[str, int],
    context: list[str],
    repeated: bool,
    seeds: Mapping[tuple[Any, ...], list[str]],
) -> dict[str, Any]:
    cell = numbers[row["key"]]
    readable = readable_row(row, context, repeated)
    if row["n_seeds"] > 1:
        row = row | {"key": "", "seed": ", ".join(seeds[(*identity(row), row["status"])])}
    shown = [
        readable[column["title"]]
        if column["title"] in readable
        else further_text(row[column["parts"][0]])
        for column in columns
    ]
    return {
        "c": cell,
        "s": row["status"],
        "t": [texts.number(text) for text in shown],
        "v": [texts.number(number_text(row[name])) for name in names],
    }


def _seeds_of(frame: pd.DataFrame) -> dict[tuple[Any, ...], list[str]]:
    """Identity and status -> the seeds whose rows were averaged, in order."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for row in frame.to_dict("records"):
        found.setdefault((*identity(row), row["status"]), []).append(row["seed"])
    for seeds in found.values():
        seeds.sort(key=lambda seed: -1 if pd.isna(seed) else seed)
    return {key: [number_text(seed) for seed in seeds] for key, seeds in found.items()}


def _group(name: str) -> str:
    return next((group for group, names in _GROUPS.items() if name in names), _REST)


def _is_numeric(name: str) -> bool:
    column = COLUMNS.get(name)
    return column is None or column.kind in ("number", "integer")
