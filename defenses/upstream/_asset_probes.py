"""Probes of ASSET's code: outlyingness, threshold, networks, poisoned set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from attacks.triggers import PatchTrigger
from bench.upstream import probing
from bench.upstream.probes import EXACT, Figure, Probe, Tolerance, finding
from defenses._asset_networks import detector_network
from defenses._asset_separation import adjusted_outlyingness, separation_net, threshold

REPOSITORY = "ASSET"
IMPORTS = ("cv2", "sklearn", "statsmodels")
FILE = "asset.json"
FEATURES = 8192
VALUES = (0.1, 0.2, 0.25, 0.3, 0.31, 0.33, 0.36, 0.4, 0.45, 0.5, 0.9, 1.5)


def outlyingness(sign: float) -> Mapping[str, Any]:
    values = sign * torch.tensor(VALUES)
    return {
        "outlyingness": adjusted_outlyingness(values),
        "of_a_column": adjusted_outlyingness(values[:, None]),
    }


def variance(_: Path) -> Mapping[str, Any]:
    logits = torch.arange(40, dtype=torch.float64).sin().view(4, 10)
    return {"loss": logits.var(dim=1).mean()}


def published_threshold(_: Path) -> Mapping[str, Any]:
    scores = torch.from_numpy(np.concatenate([np.linspace(0, 2, 40), np.linspace(2, 9, 10)]))
    return {"threshold": threshold(scores, "asset", regularisation=1e-6)}


def detector(_: Path) -> Mapping[str, Any]:
    network, seen = detector_network("resnet18", 10, seed=0).train(), []
    network.layer4.register_forward_hook(lambda *call: seen.append(call[2].flatten(1)))
    with torch.no_grad():
        network(torch.rand(4, 3, 32, 32))
    return {"parameters": probing.parameters(network), "features": seen[0].shape[1]}


def badnets(_: Path) -> Mapping[str, Any]:
    trigger = PatchTrigger(size=4, row=27, column=27, image_size=32)
    pixels = trigger(torch.zeros(1, 3, 32, 32)).mul(255).round().byte()
    return {"stamped": pixels[0].permute(1, 2, 0)}


def separation_network(_: Path) -> Mapping[str, Any]:
    network = separation_net(FEATURES)
    widths = [layer.out_features for layer in network if isinstance(layer, nn.Linear)]
    return {"parameters": probing.parameters(network), "widths": widths}


def box(pixels: np.ndarray) -> list[int]:
    """First and last row and column of what is white."""
    rows, columns = np.nonzero((pixels == 255).all(-1))
    return [int(value) for value in (rows.min(), rows.max(), columns.min(), columns.max())]


def probe(identity: str, what: str, tolerance: Tolerance, **options: Any) -> Probe:
    return Probe(identity, REPOSITORY, what, tolerance, imports=IMPORTS, **options)


def observed(identity: str, what: str, *names: str, **options: Any) -> Probe:
    return finding(identity, REPOSITORY, what, *names, imports=IMPORTS, **options)


PROBES = (
    *(
        probe(
            identity,
            f"adjusted_outlyingness of twelve scores{' with the sign changed' * (sign < 0)}",
            Tolerance(absolute=1e-5),
            native=lambda _, sign=sign: outlyingness(sign),
            golden={
                name: (Figure(f"{FILE}/{identity}"),) for name in ("outlyingness", "of_a_column")
            },
            explained="U52",
        )
        for identity, sign in (("A1", 1.0), ("A2", -1.0))
    ),
    probe(
        "A3",
        "cell 8: variance over the logits of the base set",
        Tolerance(absolute=1e-12),
        native=variance,
        golden={"loss": (Figure(f"{FILE}/A3"),)},
    ),
    probe(
        "A4",
        "get_t",
        Tolerance(absolute=1e-6),
        native=published_threshold,
        golden={"threshold": (Figure(f"{FILE}/A4"),)},
        explained="U55",
    ),
    probe(
        "A5",
        "ResNet18 and the feature map of cell 8",
        EXACT,
        native=detector,
        golden={
            "parameters": (Figure(f"{FILE}/A5/parameters"),),
            "features": (Figure(f"{FILE}/A5/features"),),
        },
        explained="U53",
    ),
    probe(
        "A6",
        "poi_dataset: BadNets patch",
        EXACT,
        native=badnets,
        golden={
            "stamped": (Figure(f"{FILE}/A6/box", box),),
            "label": (Figure(f"{FILE}/A6/label"),),
        },
    ),
    probe(
        "A7",
        "cell 4: the separation network",
        EXACT,
        native=separation_network,
        golden={
            "parameters": (Figure(f"{FILE}/A7/parameters"),),
            "widths": (Figure(f"{FILE}/A7/widths"),),
        },
    ),
    observed(
        "U50",
        "get_result on an untrained network and images that are all alike",
        "in_training_mode",
        "area",
        "area_in_evaluation_mode",
        tolerance=Tolerance(absolute=0.02),
    ),
    observed("U51", "the ascent step without suspicious images", "ends_with"),
    observed("U52", "outliers of scores of which the first is far below", "suspicious"),
    observed(
        "U53",
        "the feature map beside the network's layers",
        "without_relu",
        "with_relu",
    ),
    observed("U54", "features of a batch, computed again", "equal"),
    observed("U58", "helper functions", "labels_changed", "noise_on_a_batch"),
    observed("U59", "outlyingness of equal scores", "outlyingness"),
    observed("U60", "outputs stored in the notebook", "outputs"),
)
