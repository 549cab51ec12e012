"""Stages that run a defense: fit and score. All that a defense is shown is built here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bench.api import DefenderView, Defense
from bench.data.imageset import ImageSet
from bench.data.splits import check_disjoint, permuted_rows
from bench.encoders.defender import DefenderEncoder
from bench.figures import figure_fault
from bench.graph import Stage
from bench.memory import PeakMemory, clock
from bench.stages.bundle import (
    Bundle,
    as_float,
    build_bundle,
    stamp_images,
    stored_type,
    to_uint8,
)
from bench.stages.probing import BATCH, evaluation_images
from bench.workspace import Workspace, generator_for, write_json, write_scores, write_tensors


@dataclass
class Fitted:
    """A fitted defense, the encoder it was fitted on, and its clean images for a threshold."""

    defense: Defense
    encoder: DefenderEncoder
    threshold_images: ImageSet


class AuxiliaryEmbeddings:
    """Embeds the auxiliary set when a defense asks, once per encoder for all defenses."""

    def __init__(self, stage: Stage, workspace: Workspace, images: ImageSet) -> None:
        self._stage = stage
        self._workspace = workspace
        self._images = images
        self.seconds = 0.0

    def __call__(self) -> Tensor:
        spec = self._stage.spec
        chosen = [repr(spec["auxiliary"]), spec["held_out_auxiliary"]]
        if "poison_rate" in spec["auxiliary"]:
            chosen.append(self._stage.inputs["audit"].key)
        embeddings, self.seconds = self._workspace.embeddings(
            self._stage.inputs["encoder"],
            ("auxiliary", self._stage.inputs["auxiliary"].key, *chosen),
            lambda: self._images.batches(BATCH),
        )
        return embeddings.clone()


def fit(stage: Stage, workspace: Workspace, folder: Path) -> dict[str, float]:
    """Fit a defense on one encoder; returns its cost."""
    defense = workspace.component("defenses", stage)
    told = "trigger_support" in defense.requires
    audit = stage.inputs.get("audit") if told else None
    view, fitted, embeddings = _prepare(stage, defense, workspace, audit)
    # Embedded before the clock starts; charged below as if this defense alone had asked for it.
    embeddings()
    charged, embeddings.seconds = embeddings.seconds, 0.0
    with PeakMemory(workspace.device) as memory:
        start = clock(workspace.device)
        fitted.defense.fit(view)
        seconds = clock(workspace.device) - start
    asked = embeddings.seconds > 0
    state = fitted.defense.state()
    if state is not None:
        write_tensors(folder / "state.safetensors", state)
    write_json(folder / "fit.json", {"state": state is not None})
    workspace.fitted.get(_fitted_key(stage, fitted.defense), lambda: fitted)
    return {
        "fit_seconds": seconds + (charged if asked else 0.0),
        "peak_memory_mb": memory.peak_mb,
    }


def restore(stage: Stage, workspace: Workspace) -> Fitted:
    """The fitted defense of a score stage: from memory, the fit's state, or a repeated fit."""
    fit_stage, audit = stage.inputs["fit"], stage.inputs["audit"]
    defense: Defense = workspace.component("defenses", stage)
    told = "trigger_support" in defense.requires

    def load() -> Fitted:
        view, fitted, _ = _prepare(fit_stage, defense, workspace, audit if told else None)
        if workspace.json(fit_stage, "fit.json")["state"]:
            defense.load_state(workspace.tensors(fit_stage, "state.safetensors"), view)
        else:
            defense.fit(view)
        return fitted

    key = _fitted_key(fit_stage, defense)
    return workspace.fitted.get((key, audit.key) if told else key, load)


def _fitted_key(stage: Stage, defense: Defense) -> tuple[str, str]:
    """One fit may serve under several values of the scoring parameters."""
    return stage.key, repr(sorted(defense.parameters().items()))


def _prepare(
    stage: Stage, defense: Defense, workspace: Workspace, support_of: Stage | None = None
) -> tuple[DefenderView, Fitted, AuxiliaryEmbeddings]:
    """What ``defense`` is given in a fit stage; the trigger's support is that of an audit."""
    spec = stage.spec
    owned = _auxiliary(stage, workspace)
    held_out = max(1, round(len(owned) * spec["held_out_auxiliary"]))
    threshold_images = owned.select(torch.arange(held_out))
    owned = owned.select(torch.arange(held_out, len(owned)))
    labelled = "auxiliary_labels" in defense.requires
    # A copy: a view would carry the rows and the storage of the whole training set with it.
    auxiliary = ImageSet(
        owned.uint8().to(workspace.device),
        labels=owned.labels if labelled else None,
        class_names=owned.class_names if labelled else (),
        name=owned.name,
    )
    embeddings = AuxiliaryEmbeddings(stage, workspace, auxiliary)
    encoder = DefenderEncoder(
        workspace.encoder(stage.inputs["encoder"]),
        defense.requires,
        equal_length=spec.get("embeddings") == "equal-length",
    )
    view = DefenderView(
        encoder=encoder,
        auxiliary=auxiliary,
        # A function: the object behind it would lead a defense to the whole workspace.
        embed_auxiliary=lambda: encoder.shown(embeddings()),
        suspicious=_suspicious(stage, workspace) if "suspicious" in spec else None,
        base=_base(stage, workspace, labelled) if "base" in spec else None,
        trigger_support=(
            None
            if support_of is None
            else workspace.trigger(support_of).support(encoder.image_size).to(workspace.device)
        ),
        seed=int(torch.randint(2**31, (), generator=workspace.generator(stage, "seed"))),
        generator=workspace.generator(stage),
        progress=workspace.progress,
        precision=workspace.environment.precision,
    )
    return view, Fitted(defense, encoder, threshold_images), embeddings


def _auxiliary(stage: Stage, workspace: Workspace) -> ImageSet:
    images = workspace.images(stage.inputs["auxiliary"])
    chosen = stage.spec["auxiliary"]
    rows = chosen.get("rows")
    if rows is None:
        count = min(chosen["first"], len(images))
        rows = {"seed": chosen["seed"], "start": 0, "stop": count}
    owned = images.select(permuted_rows(len(images), rows, images.name))
    if "poison_rate" not in chosen:
        return owned
    pixels = owned.uint8().clone()
    order = torch.randperm(len(pixels), generator=generator_for(stage.spec["seed"], "owned", ""))
    triggered = order[: round(len(pixels) * chosen["poison_rate"])]
    pixels[triggered] = _stamped(pixels[triggered], stage, workspace)
    labels = owned.labels if owned.labelled else None
    return ImageSet(pixels, labels=labels, class_names=owned.class_names, name=owned.name)


def _poisoned(stage: Stage) -> bool:
    return "poison_rate" in stage.spec["auxiliary"]


def _base(stage: Stage, workspace: Workspace, labelled: bool) -> ImageSet:
    """The small clean set beside a suspicious pool."""
    train = workspace.images(stage.inputs["train"])
    base = train.select(permuted_rows(len(train), stage.spec["base"]["rows"], train.name))
    return ImageSet(
        base.uint8().to(workspace.device),
        labels=base.labels if labelled else None,
        class_names=base.class_names if labelled else (),
        name="base",
    )


def _stamped(pixels: Tensor, stage: Stage, workspace: Workspace) -> Tensor:
    """uint8 images as an attacker stores them: files, whatever the trigger's transport."""
    return to_uint8(workspace.trigger(stage.inputs["audit"])(pixels.float() / 255))


def _suspicious(stage: Stage, workspace: Workspace) -> ImageSet:
    """An unlabelled, shuffled pool of which the protocol's rate carries the trigger."""
    chosen = stage.spec["suspicious"]
    train = workspace.images(stage.inputs["train"])
    rows = permuted_rows(len(train), chosen["rows"], train.name)
    if stage.inputs["train"].key == stage.inputs["auxiliary"].key:
        owned = permuted_rows(len(train), stage.spec["auxiliary"]["rows"], train.name)
        check_disjoint({"suspicious": rows, "auxiliary": owned})
    pool = train.select(rows).uint8()
    stamped = round(len(pool) * chosen["poison_rate"])
    pool[:stamped] = _stamped(pool[:stamped], stage, workspace)
    # The generator has no attack in it: the placebo's pool is the same pixels in the same order.
    order = torch.randperm(len(pool), generator=generator_for(stage.spec["seed"], "pool", ""))
    return ImageSet(pool[order].to(workspace.device), name="suspicious pool")


def score(stage: Stage, workspace: Workspace, folder: Path) -> dict[str, float]:
    """Score the test images under every condition, calibration and held-out auxiliary images."""
    spec, encoder_stage = stage.spec, stage.inputs["fit"].inputs["encoder"]
    fitted = restore(stage, workspace)
    bundle = _bundle(stage, workspace)
    embeddings, seconds = workspace.embeddings(
        encoder_stage,
        ("bundle", _bundle_key(stage)),
        lambda: (
            as_float(bundle.images[chunk].to(workspace.device))
            for chunk in bundle.chunks(spec["score_batch"])
        ),
    )
    scorer = Scorer(fitted, type(fitted.defense).__name__)
    hits = fitted.encoder.hits
    with PeakMemory(workspace.device) as memory:
        start = clock(workspace.device)
        scores = np.concatenate(
            [
                scorer.score(bundle.images[chunk].to(workspace.device), embeddings[chunk])
                for chunk in bundle.chunks(spec["score_batch"])
            ]
        )
        elapsed = clock(workspace.device) - start
    charged = (fitted.encoder.hits - hits) * seconds / len(embeddings)
    frame = _score_frame(
        bundle,
        scores,
        _own_scores(scorer, fitted.threshold_images, spec["score_batch"], workspace.device),
        # What the defender holds for clean; some of it may carry the trigger.
        "owned" if _poisoned(stage.inputs["fit"]) else "clean",
    )
    write_scores(folder / "scores.parquet", frame)
    of_encoder = {"encoder_weights": workspace.weights(encoder_stage)}
    write_json(folder / "score.json", encoder_verdict(fitted.defense) | of_encoder)
    _figures(stage, workspace, fitted, folder)
    return {
        "score_ms_per_image": 1000 * (elapsed + charged) / len(scores),
        "peak_memory_mb": memory.peak_mb,
    }


def _own_scores(scorer: Scorer, own: ImageSet, batch: int, device: str) -> np.ndarray:
    """float32: scores of the defender's held-out auxiliary images."""
    starts = range(0, len(own), batch)
    return np.concatenate([scorer.score(own.uint8(slice(i, i + batch)).to(device)) for i in starts])


def _score_frame(
    bundle: Bundle, scores: np.ndarray, own_scores: np.ndarray, own_condition: str
) -> pd.DataFrame:
    """All scores in the stored layout and order."""
    scored = {
        "image": bundle.image,
        "split": bundle.split,
        "condition": bundle.condition,
        "score": scores,
    }
    own = {
        "image": np.arange(len(own_scores)),
        "split": "auxiliary",
        "condition": own_condition,
        "score": own_scores,
    }
    frame = pd.concat([pd.DataFrame(scored), pd.DataFrame(own)], ignore_index=True)
    frame = frame.sort_values(["split", "condition", "image"], kind="stable", ignore_index=True)
    frame["image"] = frame["image"].astype(np.int32)
    return frame


class Scorer:
    """Calls a defense on one batch and checks what comes back."""

    def __init__(self, fitted: Fitted, name: str) -> None:
        self._fitted = fitted
        self._name = name

    def score(self, images: Tensor, embeddings: Tensor | None = None) -> np.ndarray:
        """Images as a bundle stores them -> float32 (N,), finite.

        Raises
        ------
        TypeError, ValueError
            When the defense returns another type or length, a non-finite score, or changed the
            images it was given.
        """
        batch = as_float(images)
        if embeddings is not None:
            self._fitted.encoder.remember(batch, embeddings)
        version = batch._version
        result = self._fitted.defense.score(batch)
        if batch._version != version:
            raise ValueError(f"{self._name}.score changed the images it was given")
        return checked_scores(result, len(batch), self._name)


def checked_scores(result: object, count: int, name: str) -> np.ndarray:
    """float32 (count,) of a defense's answer, or an error that says what is wrong with it."""
    if isinstance(result, Tensor):
        result = result.detach().cpu().float().numpy()
    if not isinstance(result, np.ndarray):
        raise TypeError(
            f"{name}.score must return a tensor or an array, not {type(result).__name__}"
        )
    if not np.issubdtype(result.dtype, np.floating):
        raise TypeError(f"{name}.score must return floats, not {result.dtype}")
    if result.shape != (count,):
        raise ValueError(f"{name}.score returned shape {result.shape} for {count} images")
    with np.errstate(over="ignore"):
        scores = result.astype(np.float32)
    wrong = int((~np.isfinite(scores)).sum())
    if wrong:
        raise ValueError(f"{name}.score returned {wrong} non-finite of {count} scores, as float32")
    return scores


def _bundle_key(stage: Stage) -> tuple[str, ...]:
    audit, train, test = (stage.inputs[name].key for name in ("audit", "train", "test"))
    spec = stage.spec
    chosen = (spec["calibration"], spec["test_images"], spec["split_seed"], spec["score_batch"])
    return audit, train, test, repr(chosen)


def _bundle(stage: Stage, workspace: Workspace) -> Bundle:
    def build() -> Bundle:
        audit, spec = stage.inputs["audit"], stage.spec
        train = workspace.images(stage.inputs["train"])
        rows = permuted_rows(len(train), spec["calibration"], train.name)
        stamps = {"clean": None, "triggered": workspace.trigger(audit)}
        decoy = workspace.trigger(audit, "decoy")
        if decoy is not None:
            stamps["decoy"] = decoy
        return build_bundle(
            evaluation_images(stage, workspace), train.select(rows), stamps, spec["split_seed"]
        )

    return workspace.bundles.get(_bundle_key(stage), build)


def encoder_verdict(defense: Defense) -> dict[str, Any]:
    """``encoder_score`` and ``encoder_verdict`` of a fitted defense: None and empty without an
    opinion, ``backdoored`` above its threshold, ``clean`` otherwise.

    Raises
    ------
    ValueError
        When one of the two numbers is not finite.
    """
    value, threshold = defense.score_encoder(), defense.encoder_threshold()
    for name, number in (("score_encoder", value), ("encoder_threshold", threshold)):
        if number is not None and not np.isfinite(number):
            raise ValueError(f"{type(defense).__name__}.{name} returned {number}")
    if value is None:
        return {"encoder_score": None, "encoder_verdict": ""}
    rule = "" if threshold is None else "backdoored" if value > threshold else "clean"
    return {"encoder_score": float(value), "encoder_verdict": rule}


def _figures(stage: Stage, workspace: Workspace, fitted: Fitted, folder: Path) -> None:
    """Pictures of a few test images of other classes than the target, clean and triggered."""
    audit, count = stage.inputs["audit"], stage.spec["figure_images"]
    if count == 0 or type(fitted.defense).figures is Defense.figures:
        return
    test = evaluation_images(stage, workspace)
    others = torch.from_numpy(np.flatnonzero(test.labels != audit.spec["target"]))[:count]
    chosen = test.select(others)
    conditions = {"clean": None, "triggered": workspace.trigger(audit)}
    dtype = stored_type(conditions.values())
    inputs = torch.cat([stamp_images(chosen, trigger, dtype) for trigger in conditions.values()])
    figures = fitted.defense.figures(as_float(inputs.to(workspace.device)))
    pictures = inputs if dtype == torch.uint8 else to_uint8(inputs)
    arrays = {
        "input": pictures.permute(0, 2, 3, 1).numpy(),
        "condition": np.repeat(np.array(list(conditions)), len(others)),
        "image": np.tile(others.numpy(), len(conditions)),
    }
    for name, array in figures.items():
        fault = figure_fault(name, array, len(inputs))
        if fault:
            raise ValueError(f"{type(fitted.defense).__name__}.figures: {fault}")
        arrays[name] = array
    np.savez_compressed(folder / "figures.npz", **arrays)
