"""Published figures beside ours, with the setting of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd
import yaml
from pydantic import TypeAdapter

from bench.models import Model
from bench.report.declared import DeclaredTable
from bench.report.formats import TextTable
from bench.report.leaderboard import strict_mean, worst_status
from bench.report.presentation import ABSENT, state_notes
from bench.report.schema import Results, StoredCell

__all__ = ["Reported", "reported_figures", "reported_frame", "reported_text"]


class Ours(Model):
    """Which of our rows stands beside a published figure."""

    attack: str
    defense: str
    metric: str
    factor: float = 1.0
    plus: float = 0.0
    probe: str | None = None
    """A probe of ``downstream.csv``, for a figure that was not read by the cell's own."""


class Reported(Model):
    """A published figure, see ``reported.yaml``."""

    system: str
    metric: str
    value: float
    setting: str
    source: str
    ours: Ours


@cache
def reported_figures() -> tuple[Reported, ...]:
    """The figures of ``reported.yaml``, in its order."""
    text = (files("bench.report") / "reported.yaml").read_text(encoding="utf-8")
    return TypeAdapter(tuple[Reported, ...]).validate_python(yaml.safe_load(text))


def reported_frame(table: DeclaredTable, results: Results) -> pd.DataFrame:
    """One row per published figure: value, setting, source; our value, setting and status.

    Figures for which the profile has no row keep an empty ``measured``.
    """
    names = (
        *("system", "metric", "published", "setting", "source"),
        *("measured", "our_setting", "status"),
    )
    records = []
    for figure in reported_figures():
        where = {"attack": (figure.ours.attack,), "defense": (figure.ours.defense,)}
        chosen = DeclaredTable(kind="reported", where={**table.where, **where})
        measured, setting, status = _ours(chosen, results, figure.ours)
        records.append(
            dict(
                zip(
                    names,
                    (
                        *(figure.system, figure.metric, figure.value, figure.setting),
                        *(figure.source, measured, setting, status),
                    ),
                    strict=True,
                )
            )
        )
    frame = pd.DataFrame(records, columns=list(names), dtype=object)
    return frame.astype({"published": float, "measured": float})


def reported_text(name: str, table: DeclaredTable, results: Results) -> TextTable:
    """The comparison for people; sources are numbered in the notes."""
    frame = reported_frame(table, results)
    sources = list(dict.fromkeys(frame["source"]))
    rows = tuple(
        (
            row["system"],
            row["metric"],
            f"{row['published']:.4g}",
            row["setting"],
            str(sources.index(row["source"]) + 1),
            ABSENT if pd.isna(row["measured"]) else f"{row['measured']:.3f}",
            row["our_setting"] or row["status"],
        )
        for row in frame.to_dict("records")
    )
    return TextTable(
        name=name,
        title=f"Reported and measured, profile {results.manifest.profile}",
        notes=tuple(_notes(table, sources, results)),
        headers=("system", "metric", "published", "setting", "source", "ours", "our setting"),
        rows=rows,
        numeric=frozenset({2, 5}),
    )


def _notes(table: DeclaredTable, sources: list[str], results: Results) -> Iterable[str]:
    yield from state_notes(results)
    if table.caption:
        yield table.caption
    yield (
        "Published figures that can be traced to a public file, beside the nearest of ours. The "
        "settings differ, so a difference is no failed replication; thresholds are those of each "
        "figure's own rule, ours in the median rows likewise."
    )
    yield " ".join(f"({place}) {source}." for place, source in enumerate(sources, 1))


def _ours(chosen: DeclaredTable, results: Results, ours: Ours) -> tuple[float | None, str, str]:
    """Our value, mean over seeds, with its setting and status.

    Where several labels match, the first in the matrix's order: the figure is then one of the
    attack, equal for all.
    """
    cells = [c for c in results.cells if chosen.wants(c.row) and c.measured]
    if not cells:
        return None, "", "not run"
    first = cells[0]
    told = ("defense", "dataset", "encoder", "downstream", "target")
    alike = [c for c in cells if all(c.row[name] == first.row[name] for name in told)]
    value = strict_mean([_figure(c, ours) for c in alike])
    worst = worst_status(c.status for c in alike)
    setting = _setting(alike, worst, len(results.manifest.seeds))
    setting += f", {ours.probe}" if ours.probe else ""
    return (None if value is None else ours.plus + ours.factor * value), setting, worst


def _figure(cell: StoredCell, ours: Ours) -> float | None:
    if ours.probe is None:
        return cell.row[ours.metric]
    wanted = ("victim", ours.probe, ours.metric)
    for entry in cell.downstream:
        if (entry.get("encoder"), entry.get("probe"), entry.get("metric")) == wanted:
            return entry.get("value")
    return None


def _setting(cells: list[StoredCell], status: str, of_seeds: int) -> str:
    row: Mapping[str, Any] = cells[0].row
    measured = len({cell.seed for cell in cells})
    share = str(measured) if measured == of_seeds else f"{measured} of {of_seeds}"
    seeds = f", {share} seeds" if of_seeds > 1 else ""
    invalid = "" if status == "ok" else f", {status}"
    judged = row["downstream"]
    sets = row["dataset"] if judged == row["dataset"] else f"{row['dataset']} to {judged}"
    return f"{row['encoder']}, {sets}, {row['profile']}{seeds}{invalid}"
