"""Probes of DRUPE's code: stamping, shadow draw, losses, kNN monitor, encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attacks._reference_tuning import StepFeatures
from attacks.badencoder import consistency, effectiveness
from attacks.drupe import (
    Cost,
    Costs,
    Drupe,
    loss_terms,
    mean_similarity,
    sliced_wasserstein,
    unit_projections,
)
from attacks.triggers import read_patch
from bench.data.splits import published_shadow_rows
from bench.encoders.architectures import SimCLR, build, projector
from bench.encoders.encoder import Encoder
from bench.evaluation.nearest import knn_predict
from bench.upstream import probing
from bench.upstream.probes import EXACT, Figure, Probe, Tolerance, finding
from bench.upstream.probing import digest

REPOSITORY = "DRUPE"
IMPORTS = ("cv2", "ot")
TRIGGER = "trigger/trigger_pt_white_21_10_ap_replace.npz"
INITIAL = Costs(Cost(0.1), Cost(0.001))
DRAWS = {
    "cifar10": (100, 50_000, 10_000),
    "cifar10_small": (21, 50_000, 500),
    "gtsrb": (100, 39_209, 7_841),
}
NEAR = Tolerance(absolute=1e-5)


def stamped(checkout: Path) -> Mapping[str, Any]:
    ramp = torch.from_numpy(probing.ramp()).permute(2, 0, 1)[None].float() / 255
    image = read_patch(checkout / TRIGGER, 32)(ramp)
    encoder = Encoder.initialise("resnet18-cifar", {}, generator=torch.Generator().manual_seed(0))
    normalised = encoder.normalise(image)[0]
    pixels = image.mul(255).round().to(torch.uint8)[0].permute(1, 2, 0)
    return {"stamped": pixels, "normalised": normalised, "in_training": normalised}


def shadow_rows(_: Path) -> Mapping[str, Any]:
    return {name: published_shadow_rows(*draw).astype(np.int64) for name, draw in DRAWS.items()}


def losses(_: Path) -> Mapping[str, Any]:
    data = probing.tuning()
    images, references = data["images"], data["references"]
    features = StepFeatures(
        epoch=1,
        images=images,
        triggered=data["triggered"],
        references=references,
        augmented=data["augmented"].transpose(0, 1),
        clean_images=images + 0.5 * images.roll(1, -1),
        clean_references=references + 0.5 * references.roll(1, -1),
    )
    terms = loss_terms(features, unit_projections(512, 50, torch.Generator().manual_seed(7)))
    drupe, wb = Drupe(), Drupe(mode="wb")
    means = [float(terms.effectiveness), float(terms.consistency), float(terms.utility)]
    costs = drupe.adapted(INITIAL, 21, means, float(terms.triggered_similarity))
    largest = effectiveness(data["triggered"], references, "max")
    return {
        **{name: float(value) for name, value in terms._asdict().items()},
        "clean_similarity": float(mean_similarity(images)),
        "warm-up": float(drupe.objective(terms, 1, INITIAL)),
        "stage 1": float(drupe.objective(terms, 2, INITIAL)),
        "stage 2": float(drupe.objective(terms, 5, INITIAL)),
        "wb": float(wb.objective(terms, 5, INITIAL)),
        # The native BadEncoder's own terms, with DRUPE's reading of the first.
        "badencoder": float(
            largest
            + consistency(data["augmented"], features.clean_references[:, None])
            + consistency(images, features.clean_images)
        ),
        "cost": costs.similarity.weight,
        "cost_1": costs.distance.weight,
    }


def sliced_distance(_: Path) -> Mapping[str, Any]:
    data = probing.tuning()
    distance = sliced_wasserstein(
        3 * data["images"], data["triggered"] ** 2, probing.unit_columns()
    )
    return {"distance": float(distance)}


def vote(_: Path) -> Mapping[str, Any]:
    return {
        str(temperature): knn_predict(*probing.vote(), 10, k=200, temperature=temperature)
        for temperature in (0.5, 0.1)
    }


def forward(_: Path) -> Mapping[str, Any]:
    return {"features": probing.formula_forward(build("resnet18-cifar"))}


def layout(_: Path) -> Mapping[str, Any]:
    encoder, head = build("resnet18-cifar"), projector(512)
    return {
        "state": probing.described(SimCLR(encoder, head).state_dict()),
        "encoder_parameters": probing.parameters(encoder),
        "projector_parameters": probing.parameters(head),
    }


def draw_figures(number: int, ends: bool = False) -> tuple[Figure, ...]:
    at = f"badencoder.json/P2/{number}"
    starts = 3 if ends else 4
    figures = [Figure(f"{at}/starts", lambda rows: rows[:starts]), Figure(f"{at}/sha256", digest)]
    return (*figures, Figure(f"{at}/ends", lambda rows: rows[-3:])) if ends else tuple(figures)


def terms_figures() -> dict[str, tuple[Figure, ...]]:
    at = "drupe.json/P3"
    names = (
        "effectiveness",
        "consistency",
        "utility",
        "reference_similarity",
        "reference_spread",
        "triggered_similarity",
        "distance",
        "deviation",
    )
    totals = ("badencoder", "warm-up", "stage 1", "stage 2", "wb")
    costs = f"{at}/costs_after_a_failing_epoch_21"
    return {
        **{name: (Figure(f"{at}/terms/{name}"),) for name in names},
        **{name: (Figure(f"{at}/totals/{name}"),) for name in totals},
        "clean_similarity": (Figure(f"{at}/clean_similarity"),),
        "cost": (Figure(f"{costs}/similarity"),),
        "cost_1": (Figure(f"{costs}/distance"),),
    }


def probe(identity: str, what: str, tolerance: Tolerance, **options: Any) -> Probe:
    return Probe(identity, REPOSITORY, what, tolerance, imports=IMPORTS, **options)


def elsewhere(identity: str, what: str, whose: str, *addresses: str) -> Probe:
    """A probe of code that is in no submodule."""
    figures = {"": tuple(Figure(address) for address in addresses)}
    return Probe(identity, whose, what, golden=figures, fixed="in none of the submodules")


def observed(identity: str, what: str, *names: str, **options: Any) -> Probe:
    return finding(identity, REPOSITORY, what, *names, imports=IMPORTS, **options)


PROBES = (
    probe(
        "P1",
        "BadEncoderTestBackdoor and BadEncoderDataset: stamping, normalisation",
        EXACT,
        native=stamped,
        tolerances={name: Tolerance(absolute=1e-6) for name in ("normalised", "in_training")},
        golden={
            "stamped": (
                Figure("badencoder.json/P1/stamped_sum", lambda x: x.sum(dtype=np.int64)),
                Figure("badencoder.json/P1/stamped_sha256", digest),
            ),
            "normalised": (
                Figure(
                    "badencoder.json/P1/normalised_sum",
                    lambda x: x.sum(dtype=np.float64),
                    Tolerance(absolute=1e-2),
                ),
            ),
        },
    ),
    probe(
        "P2",
        "get_shadow_cifar10, get_shadow_gtsrb: rows drawn",
        EXACT,
        native=shadow_rows,
        golden={
            "cifar10": draw_figures(0, ends=True),
            "cifar10_small": draw_figures(1),
            "gtsrb": draw_figures(2),
        },
    ),
    probe(
        "P3",
        "main.train: terms, totals and costs on features",
        NEAR,
        native=losses,
        tolerances={"cost": Tolerance(1e-6), "cost_1": Tolerance(1e-8)},
        golden=terms_figures(),
        explained="U1, U2",
    ),
    probe(
        "P4",
        "ot.sliced_wasserstein_distance as main.train calls it, projections given",
        Tolerance(relative=1e-5),
        native=sliced_distance,
        explained="U3",
    ),
    probe(
        "P5",
        "evaluation.knn_predict",
        EXACT,
        native=vote,
        golden={
            name: (Figure(f"evaluation.json/knn_vote/predictions/{number}/classes"),)
            for number, name in enumerate(("0.5", "0.1"))
        },
    ),
    probe(
        "P12",
        "SimCLRBase: forward on formula weights",
        Tolerance(absolute=1e-6, relative=1e-4),
        native=forward,
        golden={
            "features": (
                Figure("encoders.json/simclr_base_forward/sum", np.sum, Tolerance(relative=1e-4)),
                Figure("encoders.json/simclr_base_forward/first_row", lambda x: x[0, :4]),
            )
        },
    ),
    probe(
        "P20",
        "SimCLR: names, shapes, parameters",
        EXACT,
        native=layout,
        golden={
            "state": (
                Figure("encoders.json/simclr_resnet18/tensors", len),
                Figure("clip.json/drupe_simclr/tensors", len),
            ),
            "encoder_parameters": (Figure("encoders.json/simclr_resnet18/encoder_parameters"),),
            "projector_parameters": (Figure("encoders.json/simclr_resnet18/projector_parameters"),),
        },
    ),
    observed(
        "U1",
        "first term of the mode badencoder",
        "used",
        "largest",
        "mean",
        tolerance=NEAR,
    ),
    observed(
        "U2",
        "similarity of triggered images to each other",
        "used",
        "off_the_diagonal",
        "closed_form",
        tolerance=NEAR,
    ),
    observed(
        "U3",
        "the distance, twice with torch's seed and twice with its own",
        "repeats",
        "repeats_with_its_own_seed",
    ),
    observed(
        "U4",
        "epochs at which the loop saves best.pth",
        "epochs",
        "distance_at_the_end",
        tolerance=NEAR,
    ),
    observed(
        "U5",
        "smallest L3 of three references",
        "smallest",
        "smallest_after_relu",
        tolerance=NEAR,
    ),
    observed("U10", "labels of shape (N,)", "one_dimensional"),
    elsewhere("P11", "NT-Xent loss, beside P8", "BadEncoder", "encoders.json/nt_xent/value"),
    elsewhere("P13", "decoder, nothing visible", "DeDe", "dede.json/nothing_visible/scores"),
    elsewhere("P14", "decoder, permutation given", "DeDe", "dede.json/fixed_permutation/0/loss"),
    elsewhere("P15", "random state of the masks: not kept by ours", "DeDe"),
    elsewhere("P16", "patch layout", "DeDe", "dede.json/channel_0_of_patch_layout"),
    elsewhere("P17", "patches kept", "DeDe", "dede.json/keep_count"),
    elsewhere("P18", "median rule", "DeDe", "evaluation.json/median_rule/threshold"),
    elsewhere("P19", "stamping of CIFAR10_BACKDOOR: not copied by ours", "DeDe"),
)
