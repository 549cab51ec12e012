"""The stage that asks whether the attack is one: success, clean accuracy, a decoy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench.api import Trigger
from bench.data.imageset import ImageSet
from bench.data.splits import permuted_rows
from bench.evaluation import downstream as metrics
from bench.evaluation.similarity import backdoor_z_score
from bench.graph import Stage
from bench.stages.picturing import save_pictures
from bench.stages.poisoning import class_name
from bench.stages.probing import Reader, evaluation_images
from bench.workspace import Workspace, trigger_record, write_json, write_tensors


def audit(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """Attack success and clean accuracy of victim and twin; choose the decoy.

    The decoy is the first look-alike that activates the backdoor on less than
    ``decoy_max_success`` of the validation images of other classes; the test set has no say in it.
    """
    spec = stage.spec
    target = spec["target"]
    test = evaluation_images(stage, workspace)
    class_name(test, target)
    trigger = _trigger(stage, workspace)
    victim = Reader(stage, "victim", workspace)
    train = workspace.images(stage.inputs["train"])
    validation = train.select(permuted_rows(len(train), spec["validation"], train.name))
    candidates, decoy = _choose_decoy(trigger, victim, validation, target, spec)
    conditions: dict[str, Trigger | None] = {"clean": None, "triggered": trigger}
    if decoy is not None:
        conditions["decoy"] = decoy
    predictions: dict[str, Tensor] = {}
    geometry: list[dict[str, Any]] = []
    z_scores: dict[str, float | None] = {}
    seen: dict[str, dict[str, Tensor]] = {}
    readers = {"victim": victim}
    if "twin" in stage.inputs:
        readers["twin"] = Reader(stage, "twin", workspace)
    others = torch.from_numpy(np.flatnonzero(test.labels != target))
    for role, reader in readers.items():
        found = seen[role] = {}
        for condition, stamp in conditions.items():
            features = found[condition] = reader.features(test, stamp)
            geometry.append({"encoder": role, "condition": condition, **_geometry(features)})
            for head in reader.heads[:1] if condition == "decoy" else reader.heads:
                predictions[f"{role}_{head}_{condition}"] = reader.predict(head, features)
        z_scores[role] = backdoor_z_score(found["clean"][others], found["triggered"][others])
    save_pictures(folder, test, target, conditions, seen)
    write_tensors(
        folder / "predictions.safetensors",
        {name: value.to(torch.int16) for name, value in predictions.items()},
    )
    if decoy is not None:
        reached = metrics.attack_success_rate(
            predictions[f"victim_{victim.heads[0]}_decoy"], test.labels, target
        ).non_target
        next(c for c in candidates if c["used"])["attack_success_rate_test"] = reached
    write_json(
        folder / "triggers.json",
        {"trigger": trigger_record(trigger), "decoy": trigger_record(decoy)},
    )
    write_json(
        folder / "audit.json",
        {
            "decoys": candidates,
            "embeddings": geometry,
            "backdoor_z_scores": z_scores,
            "raw_pixels_knn_accuracy": workspace.json(stage.inputs["pixels"], "metrics.json")[
                "knn_accuracy"
            ],
            "implant": _json(stage, workspace, "metrics.json"),
            "smoke": _json(stage, workspace, "smoke.json"),
        },
    )


def _geometry(features: Tensor) -> dict[str, float]:
    """Mean length of embeddings (N, D), and their concentration: the length of the mean unit
    embedding, 1 when all point one way."""
    return {
        "mean_norm": float(features.norm(dim=1).mean()),
        "concentration": float(functional.normalize(features, dim=1).mean(0).norm()),
    }


def _trigger(stage: Stage, workspace: Workspace) -> Trigger:
    if "attack" in stage.inputs:
        trigger = workspace.trigger(stage.inputs["attack"])
        if trigger is None:
            raise ValueError("the attack left no trigger")
        return trigger
    attack = workspace.component("attacks", stage)
    return attack.trigger(workspace.encoder(stage.inputs["victim"].inputs["encoder"]).image_size)


def _json(stage: Stage, workspace: Workspace, name: str) -> dict[str, Any]:
    """A file that the attack's stage may have left; empty when it did not."""
    attack = stage.inputs.get("attack")
    if attack is None or not (workspace.folder(attack) / name).is_file():
        return {}
    return workspace.json(attack, name)


def _choose_decoy(
    trigger: Trigger, victim: Reader, validation: ImageSet, target: int, spec: Any
) -> tuple[list[dict[str, Any]], Trigger | None]:
    others = validation.select(torch.from_numpy(np.flatnonzero(validation.labels != target)))
    tried: list[dict[str, Any]] = []
    for candidate in trigger.decoys():
        predictions = victim.predict(victim.heads[0], victim.features(others, candidate))
        success = metrics.attack_success_rate(predictions, others.labels, target).non_target
        used = success < spec["decoy_max_success"]
        tried.append(
            {
                "name": candidate.name,
                "description": candidate.describe(),
                "attack_success_rate": success,
                "used": used,
            }
        )
        if used:
            return tried, candidate
    return tried, None
