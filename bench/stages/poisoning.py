"""The stage that lets an attack change a training set, and how training takes the change up."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bench.api import DataPoisoning, PoisonedSet, PoisonerWorld
from bench.data.imageset import ImageSet
from bench.data.splits import permuted_rows
from bench.errors import InputError
from bench.graph import Stage
from bench.workspace import Workspace, trigger_record, write_json, write_tensors


def poison(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """Ask an attack what to put in the place of some of its own training images."""
    spec = stage.spec
    attack: DataPoisoning = workspace.component("attacks", stage)
    whole = workspace.images(stage.inputs["train"])
    rows = permuted_rows(len(whole), {"all_but": spec["held_out"]}, whole.name)
    train = whole.select(rows)
    name = class_name(workspace.images(stage.inputs["downstream"]), spec["target"])
    if stage.inputs["train"].key == stage.inputs["downstream"].key:
        target = spec["target"]
    else:
        target = whole.class_names.index(name) if name in whole.class_names else -1
    start = None
    if "encoder" in stage.inputs:
        # A copy: what a third party's attack does to it stays with the attack.
        start = workspace.encoder(stage.inputs["encoder"]).clone()
    owned = permuted_rows(len(whole), spec["candidates"], whole.name)
    world = PoisonerWorld(
        candidates=torch.isin(rows, owned).nonzero().squeeze(1),
        target=target,
        class_name=name,
        generator=workspace.generator(stage),
        progress=workspace.progress,
        encoder=start,
        precision=workspace.environment.precision,
    )
    result = attack.poison(train, world)
    check_poison(result, train, world.candidates, type(attack).__name__)
    write_tensors(folder / "poison.safetensors", {"images": result.images, "rows": result.rows})
    write_json(folder / "triggers.json", {"trigger": trigger_record(result.trigger)})
    write_json(folder / "metrics.json", dict(result.metrics))
    write_json(
        folder / "poisoned.json",
        {
            # Rows of the data set, not of the training set: what disjointness is checked on.
            "poisoned": rows[result.rows].tolist(),
            "labels": train.labels[result.rows].tolist() if train.labelled else None,
            "captions": None if result.captions is None else list(result.captions),
            "training_images": len(train),
            "target": target,
            "class_name": name,
        },
    )


def check_poison(result: PoisonedSet, train: ImageSet, candidates: Tensor, name: str) -> None:
    """Refuse a poisoned set that does not keep its contract.

    Raises
    ------
    ValueError
        Rows that are not the attacker's or stand twice, images of another type or shape, captions
        of another number.
    """
    rows, count = result.rows, len(result.rows)
    if not torch.isin(rows, candidates).all() or len(rows.unique()) != count:
        raise ValueError(f"{name}.poison changed rows that are not the attacker's, or one twice")
    expected = (count, *train.uint8(slice(0, 1)).shape[1:])
    if result.images.dtype != torch.uint8 or tuple(result.images.shape) != expected:
        raise ValueError(
            f"{name}.poison must return uint8 images {expected}, got {result.images.dtype} "
            f"{tuple(result.images.shape)}"
        )
    if result.captions is not None and len(result.captions) != count:
        raise ValueError(f"{name}.poison returned {len(result.captions)} captions for {count} rows")


def poisoned(
    images: ImageSet,
    captions: list[str] | None,
    groups: Tensor | None,
    second_captions: list[str] | None,
    stage: Stage,
    workspace: Workspace,
) -> tuple[ImageSet, list[str] | None, Tensor | None, list[str] | None]:
    """The training images, captions and groups with a poison stage's changes; order kept."""
    tensors = workspace.tensors(stage, "poison.safetensors")
    manifest = workspace.json(stage, "poisoned.json")
    rows = tensors["rows"]
    pixels = images.uint8()
    pixels[rows] = tensors["images"]
    changed = ImageSet(pixels, name=f"{images.name}, poisoned")
    if captions is None or groups is None or manifest["captions"] is None:
        return changed, captions, groups, second_captions
    replaced = dict(zip(rows.tolist(), manifest["captions"], strict=True))
    groups = groups.clone()
    # A class of its own where the training set has none of that name.
    target = manifest["target"]
    groups[rows] = target if target >= 0 else int(groups.max()) + 1
    return changed, _with(captions, replaced), groups, _with(second_captions, replaced)


def _with(captions: list[str] | None, replaced: dict[int, str]) -> list[str] | None:
    if captions is None:
        return None
    return [replaced.get(row, caption) for row, caption in enumerate(captions)]


def class_name(images: ImageSet, target: int) -> str:
    """The name of the target class.

    Raises
    ------
    InputError
        When the set has no such class.
    """
    if target >= len(images.class_names):
        raise InputError(
            f"target class {target} does not exist: {images.name} has "
            f"{len(images.class_names)} classes"
        )
    return images.class_names[target]
