"""The stage that ends a cell: every metric of the protocol, written as a stored cell."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.evaluation import detection, downstream
from bench.evaluation.bootstrap import Bootstrap, Sample
from bench.evaluation.comparisons import (
    CellScores,
    control_metrics,
    detection_draws,
    detection_intervals,
)
from bench.graph import Stage
from bench.stages.picturing import PICTURES
from bench.stages.probing import evaluation_images
from bench.workspace import Workspace, write_json, write_scores

SCHEMA = 1
RULES = ("clean-id", "own-auxiliary")
_SPLIT_OF_RULE = {"clean-id": "calibration", "own-auxiliary": "auxiliary"}
INTERVALS_IN_ROW = ("auroc", "auroc_delta")
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
    target = audit.spec["target"]
    labels = evaluation_images(audit, workspace).labels.numpy()
    frame = _scores(stage, workspace, labels)
    scores = _by_condition(frame, len(labels))
    cell = CellScores(
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
    bootstrap = Bootstrap(labels, spec["protocol"]["bootstrap_draws"], spec["split_seed"])
    others = labels != target
    metrics = detection.detection_metrics(
        cell.clean.scores,
        cell.triggered.scores[others],
        triggered_target=cell.triggered.scores[~others],
    )
    metrics |= control_metrics(cell)
    draws = detection_draws(bootstrap, cell)
    intervals = detection_intervals(draws)
    thresholds = _thresholds(frame, cell, spec["protocol"]["calibration_fpr"], bootstrap)
    chosen = next(
        t
        for t in thresholds
        if t["rule"] == spec["protocol"]["threshold_source"]
        and t["nominal_fpr"] == spec["protocol"]["calibration_fpr"]
    )
    predictions = {
        name: values.numpy()
        for name, values in workspace.tensors(audit, "predictions.safetensors").items()
    }
    rows = _downstream(predictions, spec["probes"], cell, chosen["threshold"], bootstrap)
    about = workspace.json(audit, "audit.json")
    rows.append(
        _downstream_row(
            "none", "raw-pixels-knn", "clean_accuracy", about["raw_pixels_knn_accuracy"]
        )
    )
    rows += [
        _downstream_row(
            entry["encoder"], "embedding", f"{figure}_{entry['condition']}", entry[figure]
        )
        for entry in about["embeddings"]
        for figure in ("mean_norm", "concentration")
    ]
    rows += [
        _downstream_row(role, "embedding", "backdoor_z_score", value)
        for role, value in about["backdoor_z_scores"].items()
    ]
    triggers = workspace.json(audit, "triggers.json")
    problems = _import_problems(stage, workspace, about["smoke"].get("problems", []))
    row = _row(
        stage, workspace, metrics, intervals, thresholds, chosen, rows, triggers, labels, problems
    )
    write_scores(folder / "scores.parquet", frame)
    kept = {name: draws[name].astype(np.float32) for name in STORED_DRAWS if name in draws}
    np.savez_compressed(folder / DRAWS, **kept)
    _merge_figures(stage, workspace, folder)
    if (workspace.folder(audit) / PICTURES).is_file():  # audits of earlier versions have none
        shutil.copyfile(workspace.folder(audit) / PICTURES, folder / PICTURES)
    write_json(
        folder / "cell.json",
        {
            "schema": SCHEMA,
            "key": stage.key,
            "row": row,
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
            "encoders": {role: _encoder_key(stage, role) for role in _roles(stage)},
            "calibrated": {name: chosen[name] for name in ("rule", "nominal_fpr")},
            "thresholds": finite(thresholds),
            "downstream": finite(rows),
            "intervals": finite({name: list(interval) for name, interval in intervals.items()}),
        },
    )


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


def _roles(stage: Stage) -> tuple[str, ...]:
    """The encoders of a cell."""
    return tuple(role for role in ("victim", "twin") if role in stage.inputs)


def _encoder_key(stage: Stage, role: str) -> str:
    """The stage that made the encoder: cells with one key here speak of one encoder."""
    return stage.inputs[role].inputs["fit"].inputs["encoder"].key


def _scores(stage: Stage, workspace: Workspace, labels: np.ndarray) -> pd.DataFrame:
    """Victim's and, where there is one, twin's scores in the stored layout."""
    parts = []
    for role in _roles(stage):
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


def _thresholds(
    frame: pd.DataFrame, cell: CellScores, nominal_fpr: float, bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """Every rule with its realised rates and their intervals at that threshold.

    TPR over non-target triggered images. The threshold is held fixed: the intervals say how the
    rates vary with the test images, not with the calibration images.
    """
    others = cell.labels != cell.target
    groups = {
        "clean": cell.clean.scores,
        "triggered": cell.triggered.scores[others],
        "clean_target": cell.clean.scores[~others],
    }
    decoy = None if cell.decoy is None else cell.decoy.scores[others]
    victim = frame[frame["encoder"] == "victim"]
    rows = []
    for rule in RULES:
        clean = victim.loc[victim["split"] == _SPLIT_OF_RULE[rule], "score"].to_numpy(np.float64)
        for fpr in sorted({nominal_fpr, 0.01, 0.05}):
            threshold = detection.calibrated_threshold(clean, fpr)
            rates = detection.rates(threshold, **groups, decoy=decoy)
            rows.append(_threshold_row(rule, fpr, rates, cell, bootstrap))
    pooled = detection.median_rule(
        groups["clean"],
        groups["triggered"],
        cell.triggered.scores[~others],
        groups["clean_target"],
    )
    return [*rows, _threshold_row("median-test", None, pooled, cell, bootstrap)]


def _threshold_row(
    rule: str,
    nominal_fpr: float | None,
    rates: detection.Rates,
    cell: CellScores,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    others = cell.labels != cell.target
    intervals = {}
    for name, sample in (("tpr", cell.triggered.where(others)), ("fpr", cell.clean)):
        low, high = bootstrap.mean(sample.images, sample.scores > rates.threshold)
        intervals |= {f"{name}_low": low, f"{name}_high": high}
    return {
        "rule": rule,
        "nominal_fpr": nominal_fpr,
        "threshold": rates.threshold,
        "tpr": rates.tpr,
        "fpr": rates.fpr,
        "fpr_target_class": rates.fpr_target_class,
        "fpr_decoy": rates.fpr_decoy,
        **intervals,
    }


def _downstream_row(
    encoder: str,
    probe: str,
    metric: str,
    value: float | None,
    interval: tuple[float, float] = (math.nan, math.nan),
) -> dict[str, Any]:
    return {
        "encoder": encoder,
        "probe": probe,
        "metric": metric,
        "value": value,
        "low": interval[0],
        "high": interval[1],
    }


def _downstream(
    predictions: dict[str, np.ndarray],
    probes: list[str],
    cell: CellScores,
    threshold: float,
    bootstrap: Bootstrap,
) -> list[dict[str, Any]]:
    """CA and ASR of victim and twin by probe, and both behind the filter, with intervals.

    The first of ``probes`` is the one behind the filter.
    """
    main = probes[0]
    labels, target = cell.labels, cell.target
    images, others = np.arange(len(labels)), np.flatnonzero(labels != target)
    rows = []
    for role in ("victim", "twin"):
        for probe in probes:
            if f"{role}_{probe}_clean" not in predictions:
                continue
            clean = predictions[f"{role}_{probe}_clean"]
            triggered = predictions[f"{role}_{probe}_triggered"]
            success = downstream.attack_success_rate(triggered, labels, target)
            right, hit = (clean == labels).astype(float), (triggered == target).astype(float)
            for metric, value, interval in (
                ("clean_accuracy", right.mean(), bootstrap.mean(images, right)),
                ("attack_success_rate", success.non_target, bootstrap.mean(others, hit[others])),
                ("attack_success_rate_all", success.all, bootstrap.mean(images, hit)),
            ):
                rows.append(_downstream_row(role, probe, metric, float(value), interval))
    filtered = downstream.filtered_rates(
        threshold,
        target,
        clean_scores=cell.clean.scores,
        clean_predictions=predictions[f"victim_{main}_clean"],
        clean_labels=labels,
        triggered_scores=cell.triggered.scores,
        triggered_predictions=predictions[f"victim_{main}_triggered"],
        triggered_labels=labels,
    )
    passes = cell.clean.scores <= threshold
    kept = (passes & (predictions[f"victim_{main}_clean"] == labels)).astype(float)
    hits = predictions[f"victim_{main}_triggered"] == target
    taken = (cell.triggered.scores <= threshold) & hits
    for metric, value, interval in (
        ("ca_filtered", filtered.ca_filtered, bootstrap.mean(images, kept)),
        (
            "asr_filtered",
            filtered.asr_filtered,
            bootstrap.mean(others, taken[others].astype(float)),
        ),
        ("ca_passing", filtered.ca_passing, (math.nan, math.nan)),
    ):
        rows.append(_downstream_row("victim", main, metric, value, interval))
    return rows


def _row(
    stage: Stage,
    workspace: Workspace,
    metrics: dict[str, float],
    intervals: dict[str, tuple[float, float]],
    thresholds: list[dict[str, Any]],
    chosen: dict[str, Any],
    rows: list[dict[str, Any]],
    triggers: dict[str, Any],
    labels: np.ndarray,
    problems: list[str],
) -> dict[str, Any]:
    spec, target = stage.spec, stage.inputs["audit"].spec["target"]
    main = spec["probes"][0]
    median = next(t for t in thresholds if t["rule"] == "median-test")
    values = {(r["encoder"], r["metric"]): r["value"] for r in rows if r["probe"] in (main, "none")}
    success, accuracy = (
        {role: values.get((role, metric)) for role in ("victim", "twin")}
        for metric in ("attack_success_rate", "clean_accuracy")
    )
    status, reason = (
        ("ok", "")
        if spec["control"]
        else downstream.validity_gate(
            success["victim"], success["twin"], accuracy["victim"], accuracy["twin"]
        )
    )
    reasons = [reason, *problems]
    if triggers["decoy"] is None:
        reasons.append("No decoy: every look-alike activates the backdoor.")
    cost = {role: workspace.cost(stage.inputs[role]) for role in _roles(stage)}
    fit_cost = workspace.cost(stage.inputs["victim"].inputs["fit"])
    scored = {role: workspace.json(stage.inputs[role], "score.json") for role in _roles(stage)}
    row = {
        **spec["identity"],
        "status": status,
        "reason": " ".join(text for text in reasons if text),
        **{name: value for name, value in metrics.items() if name != "fpr_target_class_at_5fpr"},
        "threshold_source": chosen["rule"],
        "tpr_calibrated": chosen["tpr"],
        "fpr_calibrated": chosen["fpr"],
        "fpr_target_class": chosen["fpr_target_class"],
        "tpr_median_rule": median["tpr"],
        "fpr_median_rule": median["fpr"],
        "clean_accuracy": accuracy["victim"],
        "clean_accuracy_twin": accuracy["twin"],
        "attack_success_rate": success["victim"],
        "attack_success_rate_twin": success["twin"],
        "attack_success_rate_all": values["victim", "attack_success_rate_all"],
        "ca_filtered": values["victim", "ca_filtered"],
        "asr_filtered": values["victim", "asr_filtered"],
        "encoder_score": scored["victim"]["encoder_score"],
        "encoder_score_twin": scored.get("twin", {}).get("encoder_score"),
        "encoder_verdict": scored["victim"]["encoder_verdict"],
        "encoder_verdict_twin": scored.get("twin", {}).get("encoder_verdict", ""),
        "fit_seconds": fit_cost.get("fit_seconds", math.nan),
        "score_ms_per_image": cost["victim"].get("score_ms_per_image", math.nan),
        "peak_memory_mb": max(
            fit_cost.get("peak_memory_mb", math.nan),
            cost["victim"].get("peak_memory_mb", math.nan),
        ),
        "n_clean": len(labels),
        "n_triggered": int((labels != target).sum()),
        "device": workspace.environment.device,
        "key": stage.key,
        "code_version": workspace.code_version,
        "probe": main,
        "decoy": triggers["decoy"]["description"] if triggers["decoy"] else "",
    }
    for name in INTERVALS_IN_ROW:
        row[f"{name}_low"], row[f"{name}_high"] = intervals.get(name, (math.nan, math.nan))
    return finite(row)


def _import_problems(stage: Stage, workspace: Workspace, victim: list[str]) -> list[str]:
    """What the smoke tests of an imported victim and clean twin found, in sentences."""
    sentences = [f"The import looks wrong: {problem}." for problem in victim]
    if "twin" in stage.inputs:
        encoder = stage.inputs["twin"].inputs["fit"].inputs["encoder"]
        if (workspace.folder(encoder) / "smoke.json").is_file():
            problems = workspace.json(encoder, "smoke.json")["problems"]
            sentences += [
                f"The clean twin's import looks wrong: {problem}." for problem in problems
            ]
    return sentences


def _merge_figures(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """The victim's figures, and the twin's under the prefix ``twin_``."""
    found = {role: workspace.folder(stage.inputs[role]) / "figures.npz" for role in _roles(stage)}
    victim, twin = found["victim"], found.get("twin")
    if not victim.is_file():
        return
    if twin is None or not twin.is_file():
        shutil.copyfile(victim, folder / "figures.npz")
        return
    shared = ("input", "condition", "image")
    with np.load(victim, allow_pickle=False) as first, np.load(twin, allow_pickle=False) as second:
        arrays = {name: first[name] for name in first.files}
        arrays |= {f"twin_{name}": second[name] for name in second.files if name not in shared}
    np.savez_compressed(folder / "figures.npz", **arrays)
