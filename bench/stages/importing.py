"""The stage that takes in somebody's encoder, with a smoke test before anything is spent on it."""

from __future__ import annotations

from pathlib import Path

from bench.data.splits import permuted_rows
from bench.encoders.checkpoints import import_checkpoint
from bench.encoders.encoder import Encoder
from bench.errors import InputError
from bench.evaluation.smoke import smoke_test
from bench.graph import Stage
from bench.workspace import Workspace, write_json


def import_encoder(stage: Stage, workspace: Workspace, folder: Path) -> None:
    """Load an encoder file, look at its embeddings, and store it in the form of our own.

    Raises
    ------
    InputError
        When no number from this encoder could mean anything.
    """
    spec, victim = stage.spec["encoder"], stage.spec["victim"]
    encoder = load_encoder(workspace.file(spec["checkpoint"]), spec).to(workspace.device)
    train = workspace.images(stage.inputs["train"])
    rows = permuted_rows(len(train), stage.spec["train"], train.name)
    test = workspace.images(stage.inputs["test"])
    # Files may lie by class, and a first look must see them all.
    order = permuted_rows(len(rows), {"seed": 0, "start": 0, "stop": len(rows)}, train.name)
    queries = permuted_rows(len(test), {"seed": 0, "start": 0, "stop": len(test)}, test.name)
    seen = smoke_test(encoder, train.select(rows[order]), test.select(queries))
    if seen.fatal:
        raise InputError("; ".join(seen.problems))
    encoder.save(folder / "encoder.safetensors")
    write_json(folder / "metrics.json", {f"smoke_{name}": v for name, v in seen.figures.items()})
    write_json(folder / "smoke.json", {"problems": list(seen.problems), **seen.figures})
    if victim is not None:
        write_json(folder / "triggers.json", {"trigger": victim["trigger"]})
        write_json(
            folder / "victim.json",
            {
                "attack": {"name": "imported"},
                "target": victim["target"],
                "clean_twin": victim["twin"],
                "poisoned": None,
            },
        )


def load_encoder(path: Path, spec: dict) -> Encoder:
    """One of our encoder files, or a foreign checkpoint of the architecture that ``spec`` names.

    Raises
    ------
    ValueError
        When the file or the architecture does not fit.
    """
    if spec["architecture"] is None:
        encoder = Encoder.load(path)
        if encoder.image_size != spec["image_size"]:
            raise InputError(
                f"{path.name} is an encoder of {encoder.image_size}-pixel images; the data set's "
                f"have {spec['image_size']}"
            )
        return encoder
    return import_checkpoint(
        path,
        spec["architecture"],
        spec["settings"],
        mean=spec["mean"],
        std=spec["std"],
        image_size=spec["image_size"],
    )
