"""The layout of ``cell.json`` as a model: what is not so is refused before anything reads it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

__all__ = ["CellDocument"]

Scalar = bool | int | float | str | None


class _Open(BaseModel):
    """A part of ``cell.json`` that may say more than this version reads."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Decoy(_Open):
    candidates: list[dict[str, Scalar]] = []


class _Stage(_Open):
    kind: str
    label: str
    key: str
    seconds: float | None = None


class _Provenance(_Open):
    code_version: str = ""
    environment: dict[str, Scalar] = {}
    hardware: dict[str, Scalar] = {}
    versions: dict[str, str] = {}
    stages: list[_Stage] = []


class CellDocument(_Open):
    """The layout of ``cell.json``; the row is checked column by column."""

    key: str
    row: dict[str, Any]
    control: bool
    transductive: bool
    reference: bool = False
    analysis: bool = False
    reduced: str = ""
    config: dict[str, Any]
    thresholds: list[dict[str, Scalar]]
    downstream: list[dict[str, Scalar]]
    intervals: dict[str, list[float | None]]
    decoy: _Decoy = _Decoy()
    trigger: dict[str, Any] | None = None
    encoders: dict[str, str] = {}
    encoder_weights: dict[str, str] = {}
    implant: dict[str, Scalar] = {}
    calibrated: dict[str, Scalar] = {}
    provenance: _Provenance = _Provenance()

    @field_validator("thresholds", "downstream")
    @classmethod
    def _numbers(cls, entries: list[dict[str, Scalar]]) -> list[dict[str, Scalar]]:
        """Everything but names is a number or nothing."""
        for entry in entries:
            for name, value in entry.items():
                if name not in _NAMES and isinstance(value, str | bool):
                    raise ValueError(f"{name!r} should be a number, got {value!r}")
        return entries

    @field_validator("intervals")
    @classmethod
    def _pairs(cls, intervals: dict[str, list[float | None]]) -> dict[str, list[float | None]]:
        for name, bounds in intervals.items():
            if len(bounds) != 2:
                raise ValueError(f"{name!r} should have two ends, got {len(bounds)}")
        return intervals


_NAMES = ("rule", "encoder", "probe", "metric")
