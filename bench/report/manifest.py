"""``manifest.json`` of a results folder: what a run wrote about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.config import pretraining_seed
from bench.limits import read_json
from bench.report.arrays import ReportError, damaged
from bench.report.declared import DeclaredTable, Tables

__all__ = ["Manifest", "load_manifest", "read_manifest_document", "read_object"]


@dataclass(frozen=True)
class Manifest:
    """What a run wrote about itself: labels in display order and the keys of its cells."""

    profile: str
    attacks: tuple[str, ...]
    defenses: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[str, ...]
    smoke: bool = False
    tables: dict[str, Any] = field(default_factory=dict)
    pretraining_seed: int | Mapping[int, int] | None = None

    def pretrained_with(self, seed: int) -> int:
        """The seed with which the encoders of a cell's ``seed`` were trained from scratch."""
        return pretraining_seed(self.pretraining_seed, seed)

    @property
    def further_tables(self) -> dict[str, DeclaredTable]:
        """The declared tables that belong to this profile, by name."""
        return self.declared.of_profile(self.profile)

    @cached_property
    def declared(self) -> Tables:
        """The tables of the experiment file.

        Raises
        ------
        ReportError
            When the manifest holds something else under ``tables``.
        """
        try:
            return Tables.model_validate(self.tables)
        except ValidationError as error:
            details = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in ("tables", *details["loc"]))
            raise ReportError(f"manifest.json: damaged, {where}: {details['msg']}") from None


def read_manifest_document(results_dir: Path) -> dict[str, Any]:
    """``manifest.json`` as it is stored, with the configuration and the machine.

    Raises
    ------
    ReportError
        When it is missing or no JSON object.
    """
    path = Path(results_dir) / "manifest.json"
    if not path.exists():
        raise ReportError(f"{path}: not found; `bench run` writes it")
    return read_object(path)


def load_manifest(results_dir: Path) -> Manifest:
    """Read ``manifest.json``.

    Raises
    ------
    ReportError
        When it is missing or damaged.
    """
    path = Path(results_dir) / "manifest.json"
    document = read_manifest_document(results_dir)
    try:
        for key in document["cells"]:
            if not isinstance(key, str) or Path(key).name != key:
                raise TypeError(f"{key!r} is no cell's name")
        for name in ("attacks", "defenses", "seeds", "cells"):
            if not isinstance(document[name], list):
                raise TypeError(f"{name} is no list")
        return Manifest(
            profile=str(document["profile"]),
            attacks=tuple(str(label) for label in document["attacks"]),
            defenses=tuple(str(label) for label in document["defenses"]),
            seeds=tuple(int(seed) for seed in document["seeds"]),
            cells=tuple(dict.fromkeys(str(key) for key in document["cells"])),
            smoke=bool(document.get("smoke", False)),
            tables=dict(document.get("tables") or {}),
            pretraining_seed=_pretraining_seed(document),
        )
    except KeyError as error:
        raise ReportError(f"{path}: damaged, it has no {error}") from None
    except (TypeError, ValueError) as error:
        raise damaged(path, error) from None


def _pretraining_seed(document: Mapping[str, Any]) -> int | dict[int, int] | None:
    """Of the profile that the manifest repeats; manifests of earlier versions have none."""
    seed = ((document.get("config") or {}).get("profile") or {}).get("pretraining_seed")
    if isinstance(seed, Mapping):
        return {int(own): int(shared) for own, shared in seed.items()}
    return None if seed is None else int(seed)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that ``path`` holds.

    Raises
    ------
    ReportError
        When it is unreadable, no JSON, or no object.
    """
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None
    if not isinstance(document, dict):
        raise ReportError(f"{path}: damaged, not a JSON object")
    return document
