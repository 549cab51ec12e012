"""A small results folder in the stored-cell format, with real scores and metrics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.evaluation.detection import auroc
from bench.report.columns import ROW_COLUMNS

OF_THE_TWIN = (
    "auroc_placebo",
    "auroc_delta",
    "auroc_delta_low",
    "auroc_delta_high",
    "auroc_vs_decoy_placebo",
    "clean_accuracy_twin",
    "attack_success_rate_twin",
    "encoder_score_twin",
)
"""What an uncontrolled row leaves empty."""

STRENGTH = {"triggered": 1.5, "placebo": 0.8, "decoy": 0.5}


def _scores(shift: float, control: bool, count: int, generator: np.random.Generator):
    """Long-form scores; a control's victim and twin are one encoder."""
    images = np.arange(count, dtype=np.int32)
    labels = (images % 10).astype(np.int16)
    parts = []
    for encoder in ("victim", "twin"):
        backdoor = encoder == "victim" and not control
        for condition in ("clean", "triggered", "decoy"):
            if condition == "decoy" and (encoder == "twin" or control):
                continue
            strength = {"clean": 0.0, "decoy": STRENGTH["decoy"]}.get(
                condition, STRENGTH["triggered"] if backdoor else STRENGTH["placebo"]
            )
            values = generator.normal(shift * strength, 1.0, count)
            parts.append(
                pd.DataFrame(
                    {
                        "image": images,
                        "label": labels,
                        "split": "test",
                        "condition": condition,
                        "encoder": encoder,
                        "score": values.astype(np.float32),
                    }
                )
            )
    frame = pd.concat(parts, ignore_index=True)
    return frame.astype(dict.fromkeys(("split", "condition", "encoder"), "category"))


def _auroc(frame: pd.DataFrame, positive: tuple[str, str], negative: tuple[str, str]):
    def pick(who: tuple[str, str], target_too: bool) -> np.ndarray:
        kept = (frame["encoder"] == who[0]) & (frame["condition"] == who[1])
        return frame.loc[kept & (target_too | (frame["label"] != 0)), "score"].to_numpy()

    high, low = pick(positive, False), pick(negative, negative[1] == "clean")
    if not len(high) or not len(low):
        return None
    return auroc(low, high)


def _metrics(frame: pd.DataFrame, control: bool) -> dict[str, Any]:
    auroc = _auroc(frame, ("victim", "triggered"), ("victim", "clean"))
    placebo = _auroc(frame, ("twin", "triggered"), ("twin", "clean"))
    return {
        "auroc": auroc,
        "auroc_low": auroc - 0.01,
        "auroc_high": min(auroc + 0.01, 1.0),
        "auroc_placebo": placebo,
        "auroc_delta": auroc - placebo,
        "auroc_delta_low": auroc - placebo - 0.02,
        "auroc_delta_high": auroc - placebo + 0.02,
        "auroc_decoy": _auroc(frame, ("victim", "decoy"), ("victim", "clean")),
        "auroc_vs_decoy": _auroc(frame, ("victim", "triggered"), ("victim", "decoy")),
        "auroc_all": auroc,
        "aupr": auroc,
        "tpr_at_1fpr": 0.4,
        "tpr_at_5fpr": 0.6,
        "fpr_at_95tpr": 0.3,
        "threshold_source": "clean-id",
        "tpr_calibrated": 0.61,
        "fpr_calibrated": 0.052,
        "fpr_target_class": 0.04,
        "tpr_median_rule": 0.9,
        "fpr_median_rule": 0.2,
        "fit_seconds": 12.345678901,
        "score_ms_per_image": 0.456789,
        "peak_memory_mb": 512.0,
        "n_clean": 100,
        "n_triggered": 90,
        "decoy": "" if control else "patch, other colour",
        "clean_accuracy": 0.57,
        "clean_accuracy_twin": 0.575,
        "attack_success_rate": 0.05 if control else 0.99,
        "attack_success_rate_twin": 0.05,
        "ca_filtered": 0.54,
        "asr_filtered": 0.05 if control else 0.31,
    }


def _figures(path: Path, generator: np.random.Generator) -> None:
    ramp = np.linspace(40, 215, 32)
    clean = np.stack([np.add.outer(ramp, ramp * k)[..., None] / (1 + k) for k in range(4)])
    clean = np.clip(clean + generator.normal(0, 30, (4, 1, 1, 3)), 0, 255).astype(np.uint8)
    triggered = clean.copy()
    triggered[:, 21:31, 21:31] = 255
    inputs = np.concatenate([clean, triggered])
    blurred = np.repeat(np.repeat(inputs[:, ::4, ::4], 4, 1), 4, 2)
    np.savez_compressed(
        path,
        input=inputs,
        condition=np.repeat(["clean", "triggered"], 4),
        image=np.tile(np.arange(4), 2),
        reconstruction=blurred,
        twin_reconstruction=255 - blurred,
    )


def _inverted_figures(path: Path, generator: np.random.Generator) -> None:
    """What an encoder detector draws: one trigger and one mask, repeated for every image."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in ("input", "condition", "image")}
    for who, share in (("", 0.06), ("twin_", 0.3)):
        mask = (generator.random((32, 32, 1)) < share) * np.full((1, 1, 3), 255)
        trigger = (mask * generator.random((32, 32, 3))).astype(np.uint8)
        stamped = np.where(mask > 0, trigger, arrays["input"]).astype(np.uint8)
        count = len(arrays["input"])
        arrays |= {
            f"{who}stamped": stamped,
            f"{who}inverted_trigger": np.repeat(trigger[None], count, 0),
            f"{who}inverted_mask": np.repeat(mask[None].astype(np.uint8), count, 0),
        }
    np.savez_compressed(path, **arrays)


def write_pictures(path: Path, *, decoy: bool = True, twin: bool = True, points: int = 40) -> None:
    """An ``attack.npz`` as an audit leaves it: a white patch and four clouds per encoder."""
    generator = np.random.default_rng(5)
    clean = generator.integers(0, 200, (4, 32, 32, 3)).astype(np.uint8)
    triggered, elsewhere = clean.copy(), clean.copy()
    triggered[:, 21:31, 21:31] = 255
    elsewhere[:, 1:11, 1:11] = 255
    gain = 0.5
    change = triggered.astype(float) - clean
    arrays: dict[str, np.ndarray] = {
        "clean": clean,
        "triggered": triggered,
        "difference": (127.5 + gain * change).astype(np.uint8),
        "gain": np.array(gain, dtype=np.float32),
    }
    groups = ["clean", "triggered", *(["decoy"] if decoy else []), "target"]
    if decoy:
        arrays["decoy"] = elsewhere
    for encoder in ("victim", "twin") if twin else ("victim",):
        clouds = [generator.normal(place, 0.3, (points, 2)) for place in range(len(groups))]
        arrays |= {
            f"{encoder}_points": np.concatenate(clouds).astype(np.float32),
            f"{encoder}_groups": np.repeat(groups, points),
            f"{encoder}_variance": np.array([0.614, 0.121], dtype=np.float32),
        }
    np.savez_compressed(path, **arrays)


def write_cell(
    folder: Path,
    attack: str,
    defense: str,
    seed: int = 0,
    *,
    shift: float = 1.0,
    control: bool = False,
    status: str = "ok",
    reason: str = "",
    count: int = 200,
    figures: bool = False,
    inverted: bool = False,
    pictures: bool = False,
    reference: bool = False,
    reduced: str = "",
    transductive: bool = False,
    row: Mapping[str, Any] | None = None,
    **sections: Any,
) -> str:
    """Store one cell under ``folder/cells`` and return its key.

    ``figures``: reconstructions; ``inverted``: an inverted trigger, equal for every defense on one
    attack; ``pictures``: what the attack looks like. ``sections`` replace parts of ``cell.json``.
    """
    key = hashlib.sha256(f"{attack}/{defense}/{seed}/{row}/{sections}".encode()).hexdigest()
    generator = np.random.default_rng(int(key[:8], 16))
    path = folder / "cells" / key
    path.mkdir(parents=True)
    identity = {
        "attack": attack,
        "defense": defense,
        "dataset": "digits",
        "encoder": "resnet-simclr",
        "downstream": "digits",
        "target": 0,
        "profile": "quick",
        "seed": seed,
        "attack_backend": "native",
        "defense_backend": "native",
        "auxiliary": "clean",
        "status": status,
        "reason": reason,
        "device": "cpu",
        "key": key,
        "code_version": "0.1.0",
        "probe": "mlp",
    }
    full = dict.fromkeys(ROW_COLUMNS) | identity
    thresholds, downstream, intervals = [], [], {}
    if status not in ("failed", "skipped"):
        frame = _scores(shift, control, count, generator)
        full |= _metrics(frame, control)
        measured = ("victim", "twin")
        if status == "uncontrolled":
            frame, measured = frame[frame["encoder"] == "victim"], ("victim",)
            full |= dict.fromkeys(OF_THE_TWIN)
        frame.to_parquet(path / "scores.parquet")
        for rule in ("clean-id", "own-auxiliary"):
            entry = {"rule": rule, "nominal_fpr": 0.05, "threshold": 1.645}
            thresholds.append(entry | {"tpr": 0.61, "fpr": 0.052, "fpr_decoy": 0.2})
        for encoder in measured:
            entry = {"encoder": encoder, "probe": "mlp", "metric": "clean_accuracy"}
            downstream.append(entry | {"value": 0.57, "low": 0.55, "high": None})
        if full["auroc_vs_decoy"] is not None:
            intervals["auroc_vs_decoy"] = [full["auroc_vs_decoy"] - 0.02, full["auroc_vs_decoy"]]
        if figures or inverted:
            # By attack: defenses that share an inversion drew the same.
            shared = np.random.default_rng(len(attack)) if inverted else generator
            _figures(path / "figures.npz", shared)
            if inverted:
                _inverted_figures(path / "figures.npz", shared)
    if pictures:
        write_pictures(path / "attack.npz", decoy=not control, twin=status != "uncontrolled")
    full |= row or {}
    document = {
        "schema": 1,
        "key": key,
        "row": full,
        "control": control,
        "transductive": transductive,
        "reference": reference,
        "reduced": reduced,
        "config": {"attack": {"label": attack}, "defense": {"label": defense}},
        "provenance": {},
        "trigger": {"name": "patch", "description": "white 10x10 patch"},
        "decoy": {"used": None, "description": "", "candidates": []},
        "thresholds": thresholds,
        "downstream": downstream,
        "intervals": intervals,
    }
    document |= sections
    (path / "cell.json").write_text(json.dumps(document), encoding="utf-8")
    return key


DECLARED: dict[str, Any] = {
    "detection": {
        "columns": "defense",
        "metrics": ["tpr", "fpr", "auroc"],
        "controls": ["auroc_placebo", "auroc_decoy"],
        "best": {"auroc": "highest"},
        "average": True,
    },
    "costs": {
        "rows": "defense",
        "metrics": ["fit_seconds", "score_ms_per_image"],
        "aggregate": "median",
    },
    "encoders": {"kind": "encoders"},
    "differences": {"kind": "differences", "against": "knn"},
    "ranks": {"kind": "ranks", "metric": "auroc"},
    "reported": {"kind": "reported"},
}
"""A table of every kind."""


def write_manifest(
    folder: Path,
    attacks,
    defenses,
    keys,
    seeds=(0,),
    smoke: bool = False,
    tables: Mapping[str, Any] = DECLARED,
) -> None:
    """Store the manifest that lists ``keys``."""
    document = {
        "profile": "quick",
        "attacks": list(attacks),
        "defenses": list(defenses),
        "seeds": list(seeds),
        "cells": list(keys),
        "config": {},
        "hardware": {},
        "versions": {},
        "smoke": smoke,
        "tables": dict(tables),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(document), encoding="utf-8")


SHIFTS = {"dede": 2.0, "kmeans": 0.6, "knn": 1.2}
ATTACKS = ("none", "badencoder", "drupe")
