"""The stage that ends a cell: every metric of the protocol, written as a stored cell."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.evaluation.bootstrap import Sample
from bench.evaluation.comparisons import CellScores
from bench.evaluation.detection import SPLIT_OF_RULE
from bench.evaluation.measurement import Measurement, downstream_row, measure
from bench.figures import BESIDE_FIGURES
from bench.graph import Stage
from bench.report.columns import CELL_SCHEMA
from bench.stages.picturing import PICTURES
from bench.stages.probing import evaluation_images
from bench.stages.rows import leaderboard_row, roles
from bench.workspace import Workspace, write_json, write_scores

DRAWS = "draws.npz"
STORED_DRAWS = ("auroc", "auroc_placebo", "auroc_vs_decoy")
"""Kept draw by draw: differences between defenses are paired in them."""
_CONTROLS = (
    ("placebo_clean", "twin", "clean"),
    ("placebo_triggered", "twin", "triggered"),
    ("decoy", "victim", "decoy"),
    ("placebo_decoy", "twin", "decoy"),
)


def evaluate(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """Turn the scores of victim and twin into a row with intervals, and store the cell."""
    spec, audit = stage.spec, stage.inputs["audit"]
    labels = evaluation_images(audit, workspace).labels.numpy()
    frame = _scores(stage, workspace, labels)
    measured = measure(
        _cell_scores(frame, labels, audit.spec["target"]),
        _calibration(frame),
        _predictions(audit, workspace),
        spec["probes"],
        spec["protocol"],
        spec["split_seed"],
    )
    write_scores(folder / "scores.parquet", frame)
    draws = measured.draws
    kept = {name: draws[name].astype(np.float32) for name in STORED_DRAWS if name in draws}
    np.savez_compressed(folder / DRAWS, **kept)
    _merge_figures(stage, workspace, folder)
    if (workspace.folder(audit) / PICTURES).is_file():  # audits of earlier versions have none
        shutil.copyfile(workspace.folder(audit) / PICTURES, folder / PICTURES)
    write_json(folder / "cell.json", _document(stage, workspace, measured))


def _document(stage: Stage, workspace: Workspace, measured: Measurement) -> dict[str, Any]:
    """``cell.json``, laid out in docs/cells.md."""
    spec, audit = stage.spec, stage.inputs["audit"]
    about = workspace.json(audit, "audit.json")
    triggers = workspace.json(audit, "triggers.json")
    return {
        "schema": CELL_SCHEMA,
        "key": stage.key,
        "row": finite(leaderboard_row(stage, workspace, measured, triggers)),
        "control": spec["control"],
        "reference": spec["reference"],
        "analysis": spec["analysis"],
        **({"reduced": spec["reduced"]} if "reduced" in spec else {}),
        "transductive": False,
        "smoke": workspace.environment.limit_steps is not None,
        "config": spec["config"],
        "provenance": workspace.provenance(stage),
        "trigger": triggers["trigger"],
        "decoy": {
            "used": triggers["decoy"]["kind"] if triggers["decoy"] else None,
            "description": triggers["decoy"]["description"] if triggers["decoy"] else "",
            "candidates": about["decoys"],
        },
        "implant": about["implant"],
        "encoders": {role: _encoder_key(stage, role) for role in roles(stage)},
        "encoder_weights": {
            role: workspace.json(stage.inputs[role], "score.json").get("encoder_weights", "")
            for role in roles(stage)
        },
        "calibrated": {name: measured.chosen[name] for name in ("rule", "nominal_fpr")},
        "thresholds": finite(measured.thresholds),
        "downstream": finite([*measured.downstream, *_audited(about)]),
        "intervals": finite(
            {name: list(interval) for name, interval in measured.intervals.items()}
        ),
    }


def finite(value: Any) -> Any:
    """``value`` with nan and infinities as None, which JSON can hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value


def _encoder_key(stage: Stage, role: str) -> str:
    """The stage that made the encoder: cells with one key here speak of one encoder."""
    return stage.inputs[role].inputs["fit"].inputs["encoder"].key


def _audited(about: dict[str, Any]) -> list[dict[str, Any]]:
    """What the audit found that knows no probe: the pixels' own accuracy, embeddings, z-scores."""
    return [
        downstream_row(
            "none", "raw-pixels-knn", "clean_accuracy", about["raw_pixels_knn_accuracy"]
        ),
        *(
            downstream_row(
                entry["encoder"], "embedding", f"{figure}_{entry['condition']}", entry[figure]
            )
            for entry in about["embeddings"]
            for figure in ("mean_norm", "concentration")
        ),
        *(
            downstream_row(role, "embedding", "backdoor_z_score", value)
            for role, value in about["backdoor_z_scores"].items()
        ),
    ]


def _scores(stage: Stage, workspace: Workspace, labels: np.ndarray) -> pd.DataFrame:
    """Victim's and, where there is one, twin's scores in the stored layout."""
    parts = []
    for role in roles(stage):
        path = workspace.folder(stage.inputs[role]) / "scores.parquet"
        parts.append(pd.read_parquet(path).assign(encoder=role))
    frame = pd.concat(parts, ignore_index=True)
    test = (frame["split"] == "test").to_numpy()
    label = np.full(len(frame), -1, dtype=np.int16)
    label[test] = labels[frame["image"].to_numpy()[test]]
    frame.insert(1, "label", label)
    for column in ("split", "condition", "encoder"):
        frame[column] = frame[column].astype("category")
    return frame[["image", "label", "split", "condition", "encoder", "score"]]


def _cell_scores(frame: pd.DataFrame, labels: np.ndarray, target: int) -> CellScores:
    """The test images' scores by encoder and condition."""
    scores = _by_condition(frame, len(labels))
    return CellScores(
        labels=labels,
        target=target,
        clean=Sample.of_all(scores["victim", "clean"]),
        triggered=Sample.of_all(scores["victim", "triggered"]),
        **{
            name: Sample.of_all(scores[role, condition])
            for name, role, condition in _CONTROLS
            if (role, condition) in scores
        },
    )


def _by_condition(frame: pd.DataFrame, count: int) -> dict[tuple[str, str], np.ndarray]:
    """(encoder, condition) -> float64 (count,) of the test images, by image number."""
    scores: dict[tuple[str, str], np.ndarray] = {}
    test = frame[frame["split"] == "test"]
    for (role, condition), group in test.groupby(["encoder", "condition"], observed=True):
        values = np.full(count, np.nan)
        values[group["image"].to_numpy()] = group["score"].to_numpy(np.float64)
        if np.isnan(values).any():
            raise ValueError(f"{role}: {condition} scores do not cover the test set")
        scores[str(role), str(condition)] = values
    return scores


def _calibration(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Threshold rule -> the victim's scores of the clean images that it chooses on, float64."""
    victim = frame[frame["encoder"] == "victim"]
    return {
        rule: victim.loc[victim["split"] == split, "score"].to_numpy(np.float64)
        for rule, split in SPLIT_OF_RULE.items()
    }


def _predictions(audit: Stage, workspace: Workspace) -> dict[str, np.ndarray]:
    stored = workspace.tensors(audit, "predictions.safetensors")
    return {name: values.numpy() for name, values in stored.items()}


def _merge_figures(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """The victim's figures, and the twin's under the prefix ``twin_``."""
    found = {role: workspace.folder(stage.inputs[role]) / "figures.npz" for role in roles(stage)}
    victim, twin = found["victim"], found.get("twin")
    if not victim.is_file():
        return
    if twin is None or not twin.is_file():
        shutil.copyfile(victim, folder / "figures.npz")
        return
    with np.load(victim, allow_pickle=False) as first, np.load(twin, allow_pickle=False) as second:
        arrays = {name: first[name] for name in first.files}
        theirs = [name for name in second.files if name not in BESIDE_FIGURES]
        arrays |= {f"twin_{name}": second[name] for name in theirs}
    np.savez_compressed(folder / "figures.npz", **arrays)
