"""One stored cell: its row, and on demand its scores, draws and pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.limits import MOST_ROWS
from bench.report.arrays import (
    ReportError,
    check_figures,
    check_pictures,
    damaged,
    read_arrays,
)
from bench.report.twin import excess, twin_figures

__all__ = ["StoredCell"]

SCORE_COLUMNS = ("image", "label", "split", "condition", "encoder", "score")


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

    @property
    def roots(self) -> frozenset[str]:
        """Those of :attr:`origins` that start from nothing of the run: trainings from scratch and
        imports. A cell that names no stages stands for its own."""
        made = {
            stage["key"]
            for stage in self.provenance.get("stages", ())
            if stage["kind"] == "import"
            or (stage["kind"] == "pretrain" and stage["label"].startswith("pretrain "))
        }
        return frozenset(made) or frozenset({self.key})

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
