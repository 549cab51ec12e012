"""Stages that ask whether the attack is one: probe, raw pixels, audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from bench.api import Trigger
from bench.data.imageset import ImageSet
from bench.data.splits import permuted_rows
from bench.errors import InputError
from bench.evaluation import downstream as metrics
from bench.graph import Stage
from bench.workspace import Workspace, trigger_record, write_json, write_tensors

BATCH = 1000


def probe_images(stage: Stage, workspace: Workspace) -> ImageSet:
    """The labelled images that a probe (and the kNN bank) learns from."""
    train = workspace.images(stage.inputs["train"])
    rows = permuted_rows(len(train), stage.spec["train"], train.name)
    return train.select(rows[: stage.spec["probe"]["max_train_images"]])


def probe_features(
    encoder: Stage, images: ImageSet, train_key: str, workspace: Workspace
) -> Tensor:
    what = ("probe", train_key, hash(images.rows.numpy().tobytes()))
    return workspace.embeddings(encoder, what, lambda: images.batches(BATCH))[0]


def probe(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """Train the MLP probe on frozen features of the downstream training set."""
    images = probe_images(stage, workspace)
    features = probe_features(stage.inputs["encoder"], images, stage.inputs["train"].key, workspace)
    settings = stage.spec["probe"]
    trained = metrics.train_probe(
        features,
        images.labels,
        len(images.class_names),
        generator=workspace.generator(stage),
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        progress=workspace.progress,
    )
    save_file(trained.state_dict(), folder / "probe.safetensors")
    write_json(
        folder / "probe.json",
        {"dimension": features.shape[1], "classes": len(images.class_names)},
    )


def pixels(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """kNN on raw pixels: what the data gives away without any encoder."""
    bank = probe_images(stage, workspace)
    test = evaluation_images(stage, workspace)
    predictions = metrics.raw_pixel_knn(
        test.float().to(workspace.device),
        bank.float().to(workspace.device),
        bank.labels,
        len(bank.class_names),
        k=stage.spec["probe"]["neighbours"],
        temperature=stage.spec["probe"]["temperature"],
    )
    write_json(
        folder / "metrics.json",
        {"knn_accuracy": metrics.clean_accuracy(predictions, test.labels)},
    )


def evaluation_images(stage: Stage, workspace: Workspace) -> ImageSet:
    """The test set of the cell, or a fixed random draw of ``test_images`` of it."""
    test = workspace.images(stage.inputs["test"])
    limit = stage.spec["test_images"]
    if limit is None or limit >= len(test):
        return test
    rows = permuted_rows(len(test), {"seed": 0, "start": 0, "stop": limit}, test.name)
    return test.select(rows.sort().values)


def audit(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """Attack success and clean accuracy of victim and twin; choose the decoy.

    The decoy is the first look-alike that activates the backdoor on less than
    ``decoy_max_success`` of the validation images of other classes; the test set has no say in it.
    """
    spec = stage.spec
    target = spec["target"]
    test = evaluation_images(stage, workspace)
    if target >= len(test.class_names):
        raise InputError(
            f"target class {target} does not exist: {test.name} has {len(test.class_names)} classes"
        )
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
    for role in ("victim", "twin"):
        reader = victim if role == "victim" else Reader(stage, "twin", workspace)
        for condition, stamp in conditions.items():
            features = reader.features(test, stamp)
            geometry.append({"encoder": role, "condition": condition, **_geometry(features)})
            predictions[f"{role}_mlp_{condition}"] = reader.mlp(features)
            if condition != "decoy":
                predictions[f"{role}_knn_{condition}"] = reader.knn(features)
    write_tensors(
        folder / "predictions.safetensors",
        {name: value.to(torch.int16) for name, value in predictions.items()},
    )
    if decoy is not None:
        reached = metrics.attack_success_rate(
            predictions["victim_mlp_decoy"], test.labels, target
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
            "raw_pixels_knn_accuracy": workspace.json(stage.inputs["pixels"], "metrics.json")[
                "knn_accuracy"
            ],
            "implant": (
                workspace.json(stage.inputs["implant"], "metrics.json")
                if "implant" in stage.inputs
                else {}
            ),
        },
    )


class Reader:
    """Reads classes out of one encoder with its trained probe and with kNN."""

    def __init__(self, stage: Stage, role: str, workspace: Workspace) -> None:
        self._probe_stage = stage.inputs[role]
        self._encoder_stage = self._probe_stage.inputs["encoder"]
        self._settings = stage.spec["probe"]
        self._workspace = workspace
        about = workspace.json(self._probe_stage, "probe.json")
        self._probe = metrics.Probe(about["dimension"], about["classes"], (512, 256), 0.5)
        self._probe.load_state_dict(workspace.tensors(self._probe_stage, "probe.safetensors"))
        self._probe.to(workspace.device).eval().requires_grad_(False)
        self._classes = about["classes"]

    def features(self, images: ImageSet, trigger: Trigger | None) -> Tensor:
        encoder = self._workspace.encoder(self._encoder_stage)
        batches = images.to(self._workspace.device).batches(BATCH)
        return torch.cat([encoder.embed(trigger(b) if trigger else b) for b in batches])

    def mlp(self, features: Tensor) -> Tensor:
        return metrics.predict(self._probe, features)

    def knn(self, features: Tensor) -> Tensor:
        bank = probe_images(self._probe_stage, self._workspace)
        bank_features = probe_features(
            self._encoder_stage, bank, self._probe_stage.inputs["train"].key, self._workspace
        )
        return metrics.knn_predict(
            features,
            bank_features,
            bank.labels,
            self._classes,
            k=self._settings["neighbours"],
            temperature=self._settings["temperature"],
        )


def _geometry(features: Tensor) -> dict[str, float]:
    """Mean length of embeddings (N, D), and their concentration: the length of the mean unit
    embedding, 1 when all point one way."""
    return {
        "mean_norm": float(features.norm(dim=1).mean()),
        "concentration": float(functional.normalize(features, dim=1).mean(0).norm()),
    }


def _trigger(stage: Stage, workspace: Workspace) -> Trigger:
    if "implant" in stage.inputs:
        trigger = workspace.trigger(stage.inputs["implant"])
        if trigger is None:
            raise ValueError("the attack left no trigger")
        return trigger
    attack = workspace.component("attacks", stage)
    return attack.trigger(workspace.encoder(stage.inputs["victim"].inputs["encoder"]).image_size)


def _choose_decoy(
    trigger: Trigger, victim: Reader, validation: ImageSet, target: int, spec: Any
) -> tuple[list[dict[str, Any]], Trigger | None]:
    others = validation.select(torch.from_numpy(np.flatnonzero(validation.labels != target)))
    tried: list[dict[str, Any]] = []
    for candidate in trigger.decoys():
        predictions = victim.mlp(victim.features(others, candidate))
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
