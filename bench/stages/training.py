"""Stages that make encoders: data, pretrain, implant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import registry
from bench.api import AttackerWorld, ModelPoisoning
from bench.data.captions import template_captions
from bench.data.imageset import ImageSet
from bench.data.splits import check_disjoint, permuted_rows, pick_references
from bench.encoders.architectures import find
from bench.encoders.contrastive import ClipRecipe, train_clip
from bench.encoders.encoder import Encoder
from bench.encoders.randomness import stream
from bench.encoders.ssl import SSLRecipe
from bench.encoders.ssl import pretrain as pretrain_ssl
from bench.errors import InputError
from bench.graph import Stage
from bench.stages.poisoning import class_name, poisoned
from bench.upstream.component import TrainerWorld
from bench.workspace import (
    Workspace,
    another,
    generator_for,
    trigger_record,
    write_json,
    write_tensors,
)


def data(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """Decode one split of a data set into uint8 tensors.

    Raises
    ------
    InputError
        When its files are not those that the key stands for: changed since the run was planned, or
        others on this machine.
    """
    name, split = stage.spec["dataset"], stage.spec["split"]
    source = workspace.sources[name]
    images = source.load(split)
    if source.fingerprint(split) != stage.spec["fingerprint"]:
        raise another(f"data set {name!r} ({split})")
    tensors = {"images": images.uint8()}
    if images.labelled:
        tensors["labels"] = images.labels
    write_tensors(folder / "images.safetensors", tensors)
    write_json(
        folder / "about.json",
        {
            "name": images.name,
            "class_names": list(images.class_names),
            "captions": images.captions if images.captioned else None,
        },
    )


def pretrain(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """Train on every image that is not held out: the clean encoder, a twin, or a victim.

    A victim's folder also holds what was done to it, as :func:`implant` leaves it.
    """
    train = workspace.images(stage.inputs["train"])
    rows = permuted_rows(len(train), {"all_but": stage.spec["held_out"]}, train.name)
    captions, groups = _captions(stage, train, rows)
    images = train.select(rows)
    second = _second_captions(stage, train, rows)
    if "poison" in stage.inputs:
        images, captions, groups, second = poisoned(
            images, captions, groups, second, stage.inputs["poison"], workspace
        )
    encoder, metrics = _train(stage, workspace, images.without_labels(), captions, groups, second)
    encoder.save(folder / "encoder.safetensors")
    if "poison" not in stage.inputs:
        write_json(folder / "metrics.json", metrics)
        return
    poison = stage.inputs["poison"]
    manifest = workspace.json(poison, "poisoned.json")
    write_json(folder / "metrics.json", {**metrics, **workspace.json(poison, "metrics.json")})
    _write_victim(
        folder,
        poison,
        workspace.json(poison, "triggers.json")["trigger"],
        stage.spec["twin"],
        {"poisoned": manifest["poisoned"]},
    )


def _train(
    stage: Stage,
    workspace: Workspace,
    images: ImageSet,
    captions: list[str] | None,
    groups: Tensor | None,
    second: list[str] | None,
) -> tuple[Encoder, dict[str, float]]:
    recipe, architecture = stage.spec["recipe"], stage.spec["architecture"]
    options: dict[str, Any] = {
        "generator": workspace.generator(stage),
        "device": workspace.device,
        "precision": workspace.environment.precision,
        "progress": workspace.progress,
    }
    if recipe["name"] == "upstream":
        return _train_upstream(stage, workspace, images, captions)
    if recipe["name"] == "ssl":
        return pretrain_ssl(
            SSLRecipe.model_validate(recipe["parameters"]),
            architecture,
            stage.spec["settings"],
            images.to(workspace.device),
            **options,
        )
    return train_clip(
        ClipRecipe.model_validate(recipe["parameters"]),
        _start(stage, workspace, images, options["generator"]),
        images.to(workspace.device),
        captions,
        groups,
        second_captions=second,
        **options,
    )


def _start(
    stage: Stage, workspace: Workspace, images: ImageSet, generator: torch.Generator
) -> Encoder:
    """What training goes on from: a copy of the clean encoder, or fresh weights."""
    if "encoder" in stage.inputs:
        return workspace.encoder(stage.inputs["encoder"]).clone()
    return Encoder.initialise(
        stage.spec["architecture"],
        stage.spec["settings"],
        generator=stream(generator),
        image_size=images.image_size,
    )


def _train_upstream(
    stage: Stage,
    workspace: Workspace,
    images: ImageSet,
    captions: list[str] | None,
) -> tuple[Encoder, dict[str, float]]:
    """The authors' training; victim and twin take this same path."""
    parameters = dict(stage.spec["recipe"]["parameters"])
    parameters.pop("revision")
    attack = registry.load("attacks", parameters.pop("attack")).model_validate(parameters)
    generator = workspace.generator(stage)
    return attack.train(
        TrainerWorld(
            encoder=_start(stage, workspace, images, generator),
            images=images,
            captions=captions,
            generator=generator,
            device=workspace.device,
        )
    )


def _second_captions(stage: Stage, train: ImageSet, rows: Tensor) -> list[str] | None:
    """Another template per labelled image, for recipes with an in-modal term."""
    recipe = stage.spec["recipe"]
    wanted = recipe["name"] == "clip" and recipe["parameters"].get("inmodal_weight", 0.0) > 0
    if not wanted:
        return None
    if not train.labelled:
        raise InputError(f"inmodal_weight needs labelled images; {train.name} has no labels")
    drawn = template_captions(
        train.labels, train.class_names, generator_for(stage.spec["seed"], "captions", "second")
    )
    return [drawn[row] for row in rows.tolist()]


def _captions(
    stage: Stage, train: ImageSet, rows: Tensor
) -> tuple[list[str] | None, Tensor | None]:
    """Captions of the training images and which of them mean the same, for image-text training.

    A set's own captions, or one drawn template about the class of every labelled image. Drawn for
    the whole set, so that no caption depends on what is held out.
    """
    if stage.spec["recipe"]["name"] == "ssl" or not find(stage.spec["architecture"]).text:
        return None, None
    if train.captioned:
        captions = [train.captions[row] for row in rows.tolist()]
    else:
        drawn = template_captions(
            train.labels, train.class_names, generator_for(stage.spec["seed"], "captions", "")
        )
        captions = [drawn[row] for row in rows.tolist()]
    if train.labelled:
        return captions, train.labels[rows]
    known = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    return captions, torch.tensor([known[caption] for caption in captions])


def implant(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """Let an attack fine-tune a copy of the clean encoder."""
    spec = stage.spec
    attack: ModelPoisoning = workspace.component("attacks", stage)
    train = workspace.images(stage.inputs["train"])
    downstream = workspace.images(stage.inputs["downstream"])
    shadow = permuted_rows(len(train), spec["shadow"], train.name)
    pool = permuted_rows(len(downstream), spec["references"], downstream.name)
    target = spec["target"]
    class_name(downstream, target)
    references = pick_references(
        pool, downstream.labels, target, spec["reference_count"], downstream.name
    )
    if stage.inputs["train"].key == stage.inputs["downstream"].key:
        check_disjoint({"shadow": shadow, "references": references})
    victim = attack.implant(
        AttackerWorld(
            encoder=workspace.encoder(stage.inputs["encoder"]).clone(),
            shadow=train.select(shadow).without_labels().to(workspace.device),
            references=downstream.select(references).without_labels().to(workspace.device),
            target=target,
            generator=workspace.generator(stage),
            progress=workspace.progress,
            precision=workspace.environment.precision,
        )
    )
    broken = [n for n, v in victim.encoder.network.named_parameters() if not v.isfinite().all()]
    if broken:
        raise FloatingPointError(f"the attack diverged: {broken[0]} is not finite; lower its rate")
    victim.encoder.save(folder / "encoder.safetensors")
    write_json(folder / "metrics.json", dict(victim.metrics))
    _write_victim(
        folder,
        stage,
        trigger_record(victim.trigger),
        stage.inputs["encoder"].key,
        {"poisoned": [], "shadow": shadow.tolist(), "references": references.tolist()},
    )


def _write_victim(
    folder: Path, attack: Stage, trigger: Any, clean_twin: str, roles: dict[str, list[int]]
) -> None:
    """What makes an encoder a victim: trigger, target, touched rows of the data, clean twin."""
    write_json(folder / "triggers.json", {"trigger": trigger})
    write_json(
        folder / "victim.json",
        {
            "attack": attack.spec["component"],
            "target": attack.spec["target"],
            "clean_twin": clean_twin,
            "seed": attack.spec["seed"],
            **roles,
        },
    )
