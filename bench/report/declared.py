"""Tables as ``bench.yaml`` declares them under ``tables:``; what each setting means."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from bench.errors import nearest
from bench.models import Model
from bench.report.columns import COLUMNS

__all__ = [
    *("AT_PROTOCOL", "BUILT_IN", "CELLS", "FIELDS", "RATES"),
    *("DeclaredTable", "LeaderboardTable", "Tables"),
]

BUILT_IN = ("leaderboard", "summary", "thresholds", "downstream")
"""Tables that every results folder has."""

CELLS = "cells"
"""The export of everything that is stored, JSON only; see docs/cells.md."""

FIELDS = (
    *("attack", "defense", "dataset", "encoder", "downstream", "target"),
    *("auxiliary", "attack_backend", "defense_backend"),
)
"""What rows and columns can be, and what ``where`` can choose by."""

RATES = {
    "tpr": "true positive rate at the table's threshold rule",
    "fpr": "false positive rate at the table's threshold rule",
    "fpr_decoy": "decoy-stamped images above the table's threshold rule",
}
"""Metrics that depend on the table's threshold rule: column -> meaning."""

AT_PROTOCOL = (
    *("tpr_calibrated", "tpr_calibrated_placebo", "fpr_calibrated", "fpr_target_class"),
    *("ca_filtered", "asr_filtered"),
)
"""Columns at the threshold of the protocol, whatever rule a table names."""

Goal = Literal["highest", "lowest"]

_USED = {
    "pivot": {
        *("rows", "columns", "fixed", "metrics", "controls", "best", "aggregate", "average"),
        *("threshold_rule", "threshold_fpr"),
    },
    "encoders": set(),
    "differences": {"metric", "against"},
    "ranks": {"metric"},
    "reported": set(),
}
_COMMON = {"kind", "caption", "where", "profiles"}


class LeaderboardTable(Model):
    """What leaderboard.md and leaderboard.tex show beside the fixed columns.

    ``columns`` are further columns of ``leaderboard.csv``; ``caption`` is a note above the others.
    """

    caption: str = ""
    columns: tuple[str, ...] = ()

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        return _checked(columns, COLUMNS, "column")


class DeclaredTable(Model):
    """One further table.

    Attributes
    ----------
    kind
        ``pivot``: metrics of the leaderboard, in rows and columns of one's choice. ``encoders``:
        what encoder detectors say of clean and of backdoored encoders. ``differences``: every
        defense against one, paired image by image. ``ranks``: mean ranks over blocks, with
        Friedman's and Wilcoxon's tests where there are enough. ``reported``: published figures
        beside ours.
    caption
        The first sentence of the notes; how thresholds were chosen is added.
    profiles
        Whose results have the table; all by default.
    where
        Field -> label patterns (``*`` and ``?``); only cells that match all enter.
    rows, columns
        Fields. Cells that differ in a further field get further rows, so that nothing is averaged
        unseen, unless ``aggregate`` says so. ``columns`` may be left out.
    fixed
        Metrics that stand once per row, before the pivoted ones: those of the attack, which do not
        depend on the defense.
    metrics, controls
        Columns of the leaderboard, or ``tpr``, ``fpr``, ``fpr_decoy`` at the table's threshold
        rule. Controls come after the metrics, in grey.
    best
        Metric -> ``highest`` or ``lowest``: best and second best defense are marked.
    aggregate
        ``mean`` or ``median`` over what rows and columns do not show.
    average
        Whether a line per encoder gives the mean over its valid attacks.
    threshold_rule, threshold_fpr
        Whose clean images set the threshold, at which nominal rate; the protocol's by default.
    metric
        What ``differences`` and ``ranks`` compare.
    against
        Label of the defense that ``differences`` sets the others against.
    """

    kind: Literal["pivot", "encoders", "differences", "ranks", "reported"] = "pivot"
    caption: str = ""
    profiles: tuple[str, ...] = ()
    where: dict[str, tuple[str, ...]] = {}
    rows: tuple[str, ...] = Field(("attack",), min_length=1)
    columns: str | None = None
    fixed: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    best: dict[str, Goal] = {}
    aggregate: Literal["mean", "median"] | None = None
    average: bool = False
    threshold_rule: Literal["clean-id", "own-auxiliary", "median-test"] | None = None
    threshold_fpr: float | None = Field(None, gt=0, lt=1)
    metric: Literal["auroc", "auroc_delta", "auroc_vs_decoy", "auroc_vs_decoy_excess"] = "auroc"
    against: str | None = None

    @field_validator("rows", "where", "profiles", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        """A bare name stands for a list of one."""
        if isinstance(value, str):
            return (value,)
        if isinstance(value, dict):
            plain = {k: [v] if isinstance(v, str | int | float) else v for k, v in value.items()}
            return {
                k: [str(item) for item in v] if isinstance(v, list | tuple) else v
                for k, v in plain.items()
            }
        return value

    @field_validator("rows", "columns", "where")
    @classmethod
    def _fields(cls, value: Any) -> Any:
        _checked((value,) if isinstance(value, str) else value or (), FIELDS, "field")
        return value

    @field_validator("fixed", "metrics", "controls")
    @classmethod
    def _metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _checked(names, {*_NUMBERS, *RATES}, "metric")

    @model_validator(mode="after")
    def _consistent(self) -> DeclaredTable:
        for name in self.model_fields_set - _COMMON - _USED[self.kind]:
            raise ValueError(f"a table of kind {self.kind!r} has no {name!r}")
        if self.kind == "pivot":
            if not self.metrics:
                raise ValueError("metrics is missing: the leaderboard columns to show")
            if self.columns in self.rows:
                raise ValueError(f"{self.columns!r} is both in rows and in columns")
            if self.average and ("attack" not in self.rows or self.columns != "defense"):
                raise ValueError("average needs attack among the rows and columns: defense")
            for name in ("rows", "fixed", "metrics", "controls"):
                values = getattr(self, name)
                if len(set(values)) < len(values):
                    raise ValueError(f"{name} names something twice: {', '.join(values)}")
            # A fixed metric is the attack's: no defense is best at it.
            _checked(self.best, (*self.metrics, *self.controls), "metric of the table")
        if self.kind == "differences" and self.against is None:
            raise ValueError("against is missing: the defense to set the others against")
        if self.kind == "differences" and self.metric == "auroc_vs_decoy_excess":
            raise ValueError("cells keep no draws of auroc_vs_decoy_excess: take auroc_vs_decoy")
        if {self.threshold_rule, self.threshold_fpr} != {None}:
            for name in AT_PROTOCOL:
                if name in (*self.fixed, *self.metrics, *self.controls):
                    raise ValueError(f"{name} is at the protocol's threshold, not a table's")
        if self.threshold_rule == "median-test" and self.threshold_fpr is not None:
            raise ValueError("the median rule has no nominal rate: leave threshold_fpr out")
        return self

    def wants(self, row: dict[str, Any]) -> bool:
        """Whether a cell with these fields enters the table."""
        return all(self.admits(name, str(row[name])) for name in self.where)

    def admits(self, name: str, value: str) -> bool:
        """Whether ``where`` lets a value of one field pass."""
        patterns = self.where.get(name)
        return patterns is None or any(fnmatchcase(value, pattern) for pattern in patterns)


class Tables(Model):
    """``leaderboard`` has settings of its own; every other name declares a further table."""

    __pydantic_extra__: dict[str, DeclaredTable]
    model_config = {**Model.model_config, "extra": "allow"}

    leaderboard: LeaderboardTable = LeaderboardTable()

    @model_validator(mode="after")
    def _names(self) -> Tables:
        seen: dict[str, str] = {}
        for name in self.declared:
            other = seen.setdefault(name.casefold(), name)
            if other != name:
                raise ValueError(f"{name!r} and {other!r} would be one file")
            if name.casefold() in (*BUILT_IN, CELLS):
                raise ValueError(f"{name!r} is the name of a built-in table")
            if not all(part.isalnum() and part.isascii() for part in name.split("-")):
                raise ValueError(f"{name!r} becomes a file name: letters, digits, hyphens")
        return self

    @property
    def declared(self) -> dict[str, DeclaredTable]:
        """The declared tables by name, in the order of the file."""
        return dict(self.__pydantic_extra__ or {})

    def of_profile(self, profile: str) -> dict[str, DeclaredTable]:
        """The declared tables that the results of a profile have."""
        return {
            name: table
            for name, table in self.declared.items()
            if not table.profiles or profile in table.profiles
        }


_NUMBERS = tuple(name for name, column in COLUMNS.items() if column.kind == "number")


def _checked(names: Iterable[str], valid: Iterable[str], what: str) -> Any:
    for name in names:
        if name not in valid:
            raise ValueError(f"unknown {what} {name!r}{nearest(name, valid)}")
    return names
