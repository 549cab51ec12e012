"""Stages that make encoders: data, pretrain, implant."""

from __future__ import annotations

from pathlib import Path

from bench.api import AttackerWorld
from bench.data.splits import check_disjoint, permuted_rows, pick_references
from bench.encoders.checkpoints import import_checkpoint
from bench.encoders.simclr import SimCLRRecipe
from bench.encoders.simclr import pretrain as pretrain_simclr
from bench.errors import InputError
from bench.graph import Stage
from bench.workspace import Workspace, trigger_record, write_json, write_tensors


def data(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """Decode one split of a data set into uint8 tensors."""
    images = workspace.sources[stage.spec["dataset"]].load(stage.spec["split"])
    tensors = {"images": images.uint8()}
    if images.labelled:
        tensors["labels"] = images.labels
    write_tensors(folder / "images.safetensors", tensors)
    write_json(
        folder / "about.json", {"name": images.name, "class_names": list(images.class_names)}
    )


def pretrain(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """Train the clean encoder on every image that is not held out, or import it."""
    if "checkpoint" in stage.spec:
        imported = import_checkpoint(
            workspace.checkpoint,
            stage.spec["architecture"],
            stage.spec["settings"],
            mean=stage.spec["mean"],
            std=stage.spec["std"],
            image_size=stage.spec["image_size"],
        )
        imported.save(folder / "encoder.safetensors")
        write_json(folder / "metrics.json", {})
        return
    train = workspace.images(stage.inputs["train"])
    rows = permuted_rows(len(train), {"all_but": stage.spec["held_out"]}, train.name)
    encoder, metrics = pretrain_simclr(
        SimCLRRecipe.model_validate(stage.spec["recipe"]["parameters"]),
        stage.spec["architecture"],
        stage.spec["settings"],
        train.select(rows).without_labels().to(workspace.device),
        generator=workspace.generator(stage),
        device=workspace.device,
        precision=workspace.environment.precision,
        progress=workspace.progress,
    )
    encoder.save(folder / "encoder.safetensors")
    write_json(folder / "metrics.json", metrics)


def implant(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """Let an attack fine-tune a copy of the clean encoder."""
    spec = stage.spec
    attack = workspace.component("attacks", stage)
    train = workspace.images(stage.inputs["train"])
    downstream = workspace.images(stage.inputs["downstream"])
    shadow = permuted_rows(len(train), spec["shadow"], train.name)
    pool = permuted_rows(len(downstream), spec["references"], downstream.name)
    target = spec["target"]
    if target >= len(downstream.class_names):
        raise InputError(
            f"target class {target} does not exist: {downstream.name} has "
            f"{len(downstream.class_names)} classes"
        )
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
    victim.encoder.save(folder / "encoder.safetensors")
    write_json(folder / "triggers.json", {"trigger": trigger_record(victim.trigger)})
    write_json(folder / "metrics.json", dict(victim.metrics))
    write_json(
        folder / "roles.json",
        {"shadow": shadow.tolist(), "references": references.tolist(), "target": target},
    )
