"""Probes of DECREE's code: inversion, stamping, losses, z-score, kNN monitor, encoders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attacks.badencoder import consistency
from attacks.triggers import read_patch
from bench.encoders.architectures import build
from bench.encoders.contrastive import contrastive_loss
from bench.evaluation.nearest import knn_predict
from bench.evaluation.similarity import backdoor_z_score
from bench.upstream import probing
from bench.upstream.probes import EXACT, Figure, Probe, Tolerance, finding
from bench.upstream.probing import digest
from defenses._decree_inversion import (
    CostController,
    mask_size,
    mean_similarity,
    self_similarity,
    square_mask,
    stamp,
    to_unbounded,
    to_unit,
)

REPOSITORY = "DECREE"
FILE = "decree.json"
TRIGGERS = {
    "small": ("trigger/trigger_pt_white_21_10_ap_replace.npz", 32),
    "large": ("trigger/trigger_pt_white_185_24.npz", 224),
}
TIGHT = Tolerance(absolute=1e-12)


def own_similarity(_: Path) -> Mapping[str, Any]:
    return {"value": self_similarity(probing.uneven()[0])}


def mutual_similarity(_: Path) -> Mapping[str, Any]:
    return {"value": mean_similarity(*probing.uneven())}


def parametrisation(_: Path) -> Mapping[str, Any]:
    parameters = to_unbounded(torch.linspace(0, 1, 9, dtype=torch.float64))
    return {"parameters": parameters, "values": to_unit(parameters)}


def composite(_: Path) -> Mapping[str, Any]:
    count = torch.arange(48, dtype=torch.float64)
    mask = to_unit((count[:16] - 8) / 5).view(4, 4)
    pattern = to_unit(2 * torch.sin(count)).view(4, 4, 3).permute(2, 0, 1)
    images = (torch.arange(96) % 256).view(2, 4, 4, 3).permute(0, 3, 1, 2).double() / 255
    stamped = 255 * stamp(images, mask, pattern).permute(0, 2, 3, 1)
    return {"size": mask_size(mask), "stamped": stamped}


def controller(_: Path) -> Mapping[str, Any]:
    steps = CostController(goal=0.99, cost=1e-3, factor=5.0, patience=5, smallest=1e-5)
    weights = []
    for step, similarity in enumerate([1.0] * 14 + [0.5] * 40 + [1.0] * 30):
        steps.update(similarity, 1000 - step if step < 8 else 2000)
        weights.append(steps.cost)
    return {"weights": weights, "stale": steps.stale, "best": steps.best}


def masks(_: Path) -> Mapping[str, Any]:
    return {"small": square_mask(32, 5), "large": square_mask(224, 24)}


def stamped(checkout: Path) -> Mapping[str, Any]:
    found = {}
    for name, (file, side) in TRIGGERS.items():
        image = torch.from_numpy(probing.gradient(side, side)).permute(2, 0, 1)[None].float() / 255
        pixels = read_patch(checkout / file, side)(image).mul(255).round().byte()
        found[name] = pixels[0].permute(1, 2, 0)
    return found


def vote(_: Path) -> Mapping[str, Any]:
    queries, bank, _ = probing.waves()
    labels = torch.arange(64) % 4
    return {"classes": knn_predict(queries[:6], bank, labels, 4, k=10, temperature=0.5)}


def image_loss(_: Path) -> Mapping[str, Any]:
    return {"loss": consistency(*probing.waves()[:2])}


def text_loss(_: Path) -> Mapping[str, Any]:
    return {"loss": contrastive_loss(*probing.waves()[:2], math.exp(0.5))}


def z_score(_: Path) -> Mapping[str, Any]:
    return {"z": backdoor_z_score(*probing.raw_waves(), spread="variance")}


def architectures(_: Path) -> Mapping[str, Any]:
    clip, simclr = build("clip-rn50-visual"), build("resnet18-cifar")
    tower = {name.removeprefix("visual."): value for name, value in clip.state_dict().items()}
    return {
        "clip": probing.described(tower),
        "clip_parameters": probing.parameters(clip),
        "simclr": probing.described(simclr.state_dict()),
        "simclr_parameters": probing.parameters(simclr),
    }


def changes(weights: np.ndarray) -> np.ndarray:
    """The new weight wherever it changes."""
    before = np.concatenate([[1e-3], weights[:-1]])
    return weights[weights != before]


def changing_steps(weights: np.ndarray) -> np.ndarray:
    return np.flatnonzero(weights != np.concatenate([[1e-3], weights[:-1]]))


def stamp_figures(name: str) -> tuple[Figure, ...]:
    at = f"triggers.json/D8/trigger_white_{'21_10' if name == 'small' else '185_24'}.npz"
    total = Figure(f"{at}/sum", lambda pixels: pixels.sum(dtype=np.int64))
    return total, Figure(f"{at}/sha16", digest)


def probe(identity: str, what: str, tolerance: Tolerance, **options: Any) -> Probe:
    return Probe(identity, REPOSITORY, what, tolerance, **options)


PROBES = (
    probe(
        "D1",
        "utils.compute_self_cos_sim",
        TIGHT,
        native=own_similarity,
        golden={"value": (Figure(f"{FILE}/D1"),)},
    ),
    probe(
        "D2",
        "utils.compute_cos_sim",
        TIGHT,
        native=mutual_similarity,
        golden={"value": (Figure(f"{FILE}/D2"),)},
    ),
    probe(
        "D3",
        "main.main: parameters of a start, and back",
        TIGHT,
        native=parametrisation,
        golden={
            # The inner ones are given to ten digits.
            "parameters": (Figure(f"{FILE}/D3/parameters", tolerance=Tolerance(1e-10)),),
            "values": (Figure(f"{FILE}/D3/values"),),
        },
    ),
    probe(
        "D4",
        "main.main: stamped batch and size of the mask",
        Tolerance(absolute=1e-9),
        native=composite,
        golden={
            "size": (Figure(f"{FILE}/D4/size"),),
            "stamped": (
                Figure(f"{FILE}/D4/sum", np.sum),
                Figure(f"{FILE}/D4/pixel", lambda batch: batch[1, 2, 3]),
            ),
        },
    ),
    probe(
        "D5",
        "PL1: size / (3 H W)",
        golden={"": (Figure(f"{FILE}/D5/relative"),)},
        tolerance=Tolerance(absolute=1e-6),
        fixed="a division that its code leaves to the reader",
    ),
    probe(
        "D6",
        "main.main: weight of the size, early stop",
        TIGHT,
        native=controller,
        tolerances={"best": Tolerance(relative=1e-12)},
        golden={
            "weights": (
                Figure(f"{FILE}/D6/steps", changing_steps),
                Figure(f"{FILE}/D6/weights", changes),
            ),
            "stale": (Figure(f"{FILE}/D6/stale"),),
            "best": (Figure(f"{FILE}/D6/best"),),
            "steps_towards_a_reset": (Figure(f"{FILE}/D6/steps_towards_a_reset"),),
        },
        explained="U21",
    ),
    probe(
        "D7",
        "main.generate_mask",
        Tolerance(absolute=1e-9),
        native=masks,
        golden={
            "small": (Figure(f"{FILE}/D7/small", np.sum),),
            "large": (Figure(f"{FILE}/D7/large", np.sum),),
        },
    ),
    probe(
        "D8",
        "BadEncoderDataset: stamping, the large trigger with the leading axis its file lacks",
        EXACT,
        native=stamped,
        golden={name: stamp_figures(name) for name in TRIGGERS},
        explained="U11",
    ),
    probe(
        "D9",
        "evaluation.knn_predict",
        EXACT,
        native=vote,
        golden={"classes": (Figure(f"{FILE}/D9"),)},
    ),
    probe(
        "D10",
        "attack_encoder.train: first term",
        Tolerance(absolute=1e-6),
        native=image_loss,
        golden={"loss": (Figure("badencoder.json/D10"),)},
    ),
    probe(
        "D11",
        "attack_encoder.train_text: loss",
        Tolerance(absolute=1e-5),
        native=text_loss,
        golden={"loss": (Figure("clip.json/text_on_pair_loss/value"),)},
        imports=("ftfy", "regex"),
    ),
    probe(
        "D12",
        "compute_zscore.main: mean, variance and z",
        Tolerance(relative=1e-5),
        native=z_score,
        golden={name: (Figure(f"{FILE}/D12/{name}"),) for name in ("mean", "variance", "z")},
        explained="U23",
    ),
    probe(
        "D13",
        "get_encoder_architecture_usage: names, shapes, parameters",
        EXACT,
        native=architectures,
        golden={
            "clip": (Figure("clip.json/architectures/clip_rn50_visual/tensors", len),),
            "clip_parameters": (Figure("clip.json/architectures/clip_rn50_visual/parameters"),),
            "simclr": (Figure("clip.json/architectures/simclr_resnet18/tensors", len),),
            "simclr_parameters": (Figure("clip.json/architectures/simclr_resnet18/parameters"),),
        },
    ),
    finding("U11", REPOSITORY, "the 24-pixel trigger as published", "pixels_changed"),
    finding(
        "U12",
        REPOSITORY,
        "what BackdoorImageNet multiplies images with",
        "smallest",
        "largest",
        tolerance=Tolerance(absolute=1e-5),
    ),
    finding("U14", REPOSITORY, "captions of clean images", "captions"),
    finding("U15", REPOSITORY, "BadEncoderImgText", "pixels_changed", "caption"),
    finding("U16", REPOSITORY, "loading what the attack saves", "ends_with"),
    finding(
        "U17", REPOSITORY, "gradient left on the encoder's weights", "after_six_over_after_three"
    ),
    finding(
        "U18",
        REPOSITORY,
        "the mask that is saved",
        "size",
        "size_of_the_picture",
        tolerance=Tolerance(absolute=1e-5),
    ),
    finding("U20", REPOSITORY, "compute_self_cos_sim of one image", "similarity"),
    finding("U25", REPOSITORY, "encoder of the usage moco", "ends_with"),
)
