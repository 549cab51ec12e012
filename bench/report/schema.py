"""Reads stored cells: ``manifest.json`` and ``cells/<key>/`` of one results folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from bench.config import pretraining_seed
from bench.errors import InputError
from bench.limits import MOST_ROWS, MOST_SEED, check_inside, read_json
from bench.report.arrays import (
    ReportError,
    check_figures,
    check_pictures,
    damaged,
    read_arrays,
)
from bench.report.columns import (
    COLUMNS,
    LEADERBOARD_COLUMNS,
    ROW_COLUMNS,
    STATUSES,
    Column,
)
from bench.report.declared import DeclaredTable, Tables
from bench.report.document import CellDocument
from bench.report.twin import excess, twin_figures
from bench.store import MANIFEST, damage

__all__ = [
    "CELL_SCHEMA",
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

CELL_SCHEMA = 1
"""Version of the ``cell.json`` layout that this module reads."""

SCORE_COLUMNS = ("image", "label", "split", "condition", "encoder", "score")


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


@dataclass(frozen=True)
class StoredCell:
    """One cell as it lies on disk.

    Attributes
    ----------
    row
        The leaderboard row; metrics of failed and skipped cells are None.
    control
        The attack is a control: the gate does not apply and the cell stays out of averages.
    reference
        The defense never calls the encoder.
    analysis
        The defense was told what no defender knows: the cell stays out of averages.
    reduced
        What is smaller than its authors had it; not empty, the cell stays out of averages.
    thresholds, downstream
        Long-form entries: one per threshold rule, one per downstream number.
    intervals
        Metric name -> [low, high], the test-sampling interval.
    decoy
        The decoy used and the candidates tried; empty when there was none.
    implant
        Figures of the attack's own training.
    chosen
        ``rule`` and ``nominal_fpr`` of the threshold behind the row's calibrated rates.
    encoders
        ``victim`` and ``twin`` -> the key of the encoder; empty in cells of earlier versions.
    encoder_weights
        The same -> SHA-256 of its weights; empty in cells of earlier versions.
    path
        The cell's folder.
    """

    key: str
    row: dict[str, Any]
    control: bool
    transductive: bool
    config: dict[str, Any]
    thresholds: list[dict[str, Any]]
    downstream: list[dict[str, Any]]
    intervals: dict[str, Any]
    decoy: dict[str, Any]
    path: Path
    provenance: dict[str, Any] = field(default_factory=dict)
    trigger: dict[str, Any] = field(default_factory=dict)
    encoders: dict[str, str] = field(default_factory=dict)
    encoder_weights: dict[str, str] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    implant: dict[str, Any] = field(default_factory=dict)
    reference: bool = False
    analysis: bool = False
    reduced: str = ""

    @property
    def status(self) -> str:
        return self.row["status"]

    @property
    def measured(self) -> bool:
        """Whether the cell has scores: it neither failed nor was skipped."""
        return self.status not in ("failed", "skipped")

    @property
    def seed(self) -> int:
        return -1 if self.row["seed"] is None else self.row["seed"]

    @property
    def calibrated(self) -> dict[str, Any] | None:
        """The entry of ``thresholds`` behind ``tpr_calibrated`` and ``fpr_calibrated``.

        A cell of an earlier version does not name it: then the one with these rates, of several
        the one with the highest nominal rate.
        """
        names = ("threshold_source", "tpr_calibrated", "fpr_calibrated")
        wanted = tuple(self.row[name] for name in names)
        found = [
            entry
            for entry in self.thresholds
            if (entry.get("rule"), entry.get("tpr"), entry.get("fpr")) == wanted
        ]
        named = self.chosen.get("nominal_fpr")
        return next(
            (entry for entry in found if entry.get("nominal_fpr") == named),
            max(found, key=lambda entry: entry.get("nominal_fpr") or 0, default=None),
        )

    def threshold(self, rule: str | None, nominal_fpr: float | None) -> dict[str, Any] | None:
        """The entry of ``thresholds`` for a rule and a nominal rate; the row's own where None."""
        chosen = self.calibrated or {}
        rule = rule or chosen.get("rule")
        wanted = None if rule == "median-test" else nominal_fpr or chosen.get("nominal_fpr")
        for entry in self.thresholds:
            if (entry.get("rule"), entry.get("nominal_fpr")) == (rule, wanted):
                return entry
        return None

    def scores(self) -> pd.DataFrame:
        """Per-image scores: image, label, split, condition, encoder, score.

        Raises
        ------
        ReportError
            When ``scores.parquet`` is missing or damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path / "scores.parquet"
        try:
            with pq.ParquetFile(path) as file:
                if file.metadata.num_rows > MOST_ROWS:
                    raise ValueError(f"{file.metadata.num_rows:,} rows")
            frame = pd.read_parquet(path, columns=list(SCORE_COLUMNS))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise damaged(path, error) from None
        if not len(frame) or not pd.api.types.is_numeric_dtype(frame["score"]):
            raise ReportError(f"{path}: damaged, it has no scores that are numbers")
        return frame

    @property
    def origins(self) -> frozenset[str]:
        """Keys of all that was trained or imported on the way to victim and twin. Cells of earlier
        versions name no encoders: the cell then stands for its own."""
        made = {
            stage["key"]
            for stage in self.provenance.get("stages", ())
            if stage["kind"] in ("pretrain", "implant", "import")
        }
        return frozenset(made | set(self.encoders.values())) or frozenset({self.key})

    @cached_property
    def derived(self) -> dict[str, float | None]:
        """Metrics that follow from what is stored, in no row (:mod:`bench.report.twin`)."""
        return {**twin_figures(self), "auroc_vs_decoy_excess": excess(self.row)}

    def draws(self) -> dict[str, np.ndarray]:
        """``auroc`` and, where there are any, ``auroc_placebo`` and ``auroc_vs_decoy`` in every
        bootstrap draw, float (draws,); empty in cells of earlier versions.

        Raises
        ------
        ReportError
            When ``draws.npz`` is damaged.
        """
        path = self.path / "draws.npz"
        arrays = read_arrays(path) or {}
        for name, array in arrays.items():
            if array.dtype.kind != "f" or array.ndim != 1:
                raise ReportError(f"{path}: damaged, {name!r} is {array.dtype} {array.shape}")
        return arrays

    def figures(self) -> dict[str, np.ndarray] | None:
        """Arrays of ``figures.npz``, or None when the defense drew none.

        Raises
        ------
        ReportError
            When the file is damaged, or a figure is not uint8 (M, H, W, 3) with one entry per
            input image.
        """
        path = self.path / "figures.npz"
        arrays = read_arrays(path)
        if arrays is not None:
            check_figures(arrays, path)
        return arrays

    def attack_pictures(self) -> dict[str, np.ndarray] | None:
        """Arrays of ``attack.npz``, what the attack looks like; None where the cell has none.

        ``clean``, ``triggered``, ``difference`` (amplified by ``gain``) and, where there is one,
        ``decoy``: uint8 (M, H, W, 3). Per encoder ``victim`` and ``twin``: ``<encoder>_points``
        (K, 2), ``<encoder>_groups`` (K,) and ``<encoder>_variance`` (2,), the plane of the first
        two principal components of embeddings.

        Raises
        ------
        ReportError
            When the file is damaged or an array has another shape.
        """
        path = self.path / "attack.npz"
        arrays = read_arrays(path)
        if arrays is not None:
            check_pictures(arrays, path)
        return arrays


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
    return _read_json(path)


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


def load_cells(results_dir: Path) -> list[StoredCell]:
    """The stored cells that ``manifest.json`` lists, in its order.

    Other folders under ``cells/`` are history and are not read. A listed cell that is not stored
    (a run in progress or interrupted) is left out.

    Raises
    ------
    ReportError
        When the manifest or a ``cell.json`` is damaged; the message names the file.
    """
    paths = _cell_files(Path(results_dir), load_manifest(results_dir))
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
    cells = tuple(load_cells(results_dir))
    if manifest.cells and not cells:
        raise ReportError(
            f"none of the {len(manifest.cells)} cells of {results_dir} is stored there, so its "
            f"tables cannot be made anew: `bench run --profile {manifest.profile}` makes them"
        )
    return Results(manifest, cells, unfinished=len(manifest.cells) - len(cells))


def _cell_files(results_dir: Path, manifest: Manifest) -> list[Path]:
    return [results_dir / "cells" / key / "cell.json" for key in manifest.cells]


def _load_cell(path: Path) -> StoredCell:
    try:
        check_inside(path.parent, path.parents[1])
    except InputError as error:
        raise ReportError(str(error)) from None
    document = _read_json(path)
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None
    if not isinstance(document, dict):
        raise ReportError(f"{path}: damaged, not a JSON object")
    return document
