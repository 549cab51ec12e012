"""The row of the leaderboard that a cell is."""

from __future__ import annotations

import math
from typing import Any

from bench.evaluation import downstream
from bench.evaluation.measurement import Measurement
from bench.graph import Stage
from bench.workspace import Workspace

INTERVALS_IN_ROW = ("auroc", "auroc_delta")
ROLES = ("victim", "twin")


def roles(stage: Stage) -> tuple[str, ...]:
    """The encoders of a cell: the victim and, where there is one, the clean twin."""
    return tuple(role for role in ROLES if role in stage.inputs)


def leaderboard_row(
    stage: Stage, workspace: Workspace, measured: Measurement, triggers: dict[str, Any]
) -> dict[str, Any]:
    """The columns of ``bench/report/columns.py`` for the cell of an ``evaluate`` stage.

    ``triggers`` is what the audit says of the trigger and of its decoy.
    """
    values = {
        (row["encoder"], row["metric"]): row["value"]
        for row in measured.downstream
        if row["probe"] == stage.spec["probes"][0]
    }
    row = {
        **stage.spec["identity"],
        **_status(stage, workspace, values, triggers),
        **_detection(measured),
        **_attack(values),
        **_verdicts(stage, workspace),
        **_cost(stage, workspace),
        **measured.counts,
        "device": workspace.environment.device,
        "key": stage.key,
        "code_version": workspace.code_version,
        "probe": stage.spec["probes"][0],
        "decoy": triggers["decoy"]["description"] if triggers["decoy"] else "",
    }
    for name in INTERVALS_IN_ROW:
        low, high = measured.intervals.get(name, (math.nan, math.nan))
        row |= {f"{name}_low": low, f"{name}_high": high}
    return row


def _status(
    stage: Stage,
    workspace: Workspace,
    values: dict[tuple[str, str], Any],
    triggers: dict[str, Any],
) -> dict[str, str]:
    """What the validity gate says, and in ``reason`` everything that a reader should know."""
    status, reason = "ok", ""
    if not stage.spec["control"]:
        status, reason = downstream.validity_gate(
            *(values.get((role, "attack_success_rate")) for role in ROLES),
            *(values.get((role, "clean_accuracy")) for role in ROLES),
        )
    reasons = [reason, *_import_problems(stage, workspace)]
    if triggers["decoy"] is None:
        reasons.append("No decoy: every look-alike activates the backdoor.")
    return {"status": status, "reason": " ".join(text for text in reasons if text)}


def _detection(measured: Measurement) -> dict[str, Any]:
    metrics, chosen, median = measured.metrics, measured.chosen, measured.median
    return {
        **metrics,
        "threshold_source": chosen["rule"],
        "tpr_calibrated": chosen["tpr"],
        "fpr_calibrated": chosen["fpr"],
        "fpr_target_class": chosen["fpr_target_class"],
        "tpr_median_rule": median["tpr"],
        "fpr_median_rule": median["fpr"],
    }


def _attack(values: dict[tuple[str, str], Any]) -> dict[str, Any]:
    return {
        "clean_accuracy": values.get(("victim", "clean_accuracy")),
        "clean_accuracy_twin": values.get(("twin", "clean_accuracy")),
        "attack_success_rate": values.get(("victim", "attack_success_rate")),
        "attack_success_rate_twin": values.get(("twin", "attack_success_rate")),
        "attack_success_rate_all": values["victim", "attack_success_rate_all"],
        "ca_filtered": values["victim", "ca_filtered"],
        "asr_filtered": values["victim", "asr_filtered"],
    }


def _verdicts(stage: Stage, workspace: Workspace) -> dict[str, Any]:
    scored = {role: workspace.json(stage.inputs[role], "score.json") for role in roles(stage)}
    twin = scored.get("twin", {})
    return {
        "encoder_score": scored["victim"]["encoder_score"],
        "encoder_score_twin": twin.get("encoder_score"),
        "encoder_verdict": scored["victim"]["encoder_verdict"],
        "encoder_verdict_twin": twin.get("encoder_verdict", ""),
    }


def _cost(stage: Stage, workspace: Workspace) -> dict[str, float]:
    """Of the fit on the victim and of its scores; the peak is the larger of the two."""
    scores = workspace.cost(stage.inputs["victim"])
    fit = workspace.cost(stage.inputs["victim"].inputs["fit"])
    peaks = [cost.get("peak_memory_mb", math.nan) for cost in (fit, scores)]
    return {
        "fit_seconds": fit.get("fit_seconds", math.nan),
        "score_ms_per_image": scores.get("score_ms_per_image", math.nan),
        "peak_memory_mb": math.nan if any(map(math.isnan, peaks)) else max(peaks),
    }


def _import_problems(stage: Stage, workspace: Workspace) -> list[str]:
    """What the smoke tests of an imported victim and clean twin found, in sentences."""
    smoke = workspace.json(stage.inputs["audit"], "audit.json")["smoke"]
    sentences = [f"The import looks wrong: {problem}." for problem in smoke.get("problems", [])]
    if "twin" in stage.inputs:
        encoder = stage.inputs["twin"].inputs["fit"].inputs["encoder"]
        if (workspace.folder(encoder) / "smoke.json").is_file():
            problems = workspace.json(encoder, "smoke.json")["problems"]
            sentences += [
                f"The clean twin's import looks wrong: {problem}." for problem in problems
            ]
    return sentences
