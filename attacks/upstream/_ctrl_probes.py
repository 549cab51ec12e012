"""Probes of CTRL's code: trigger, losses, poisoned set, learning rates, kNN monitor, network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.fft import dctn, idctn
from torch.nn.functional import normalize

from attacks.ctrl import CTRL
from attacks.triggers import SpectralTrigger
from bench.api import ImageSet, PoisonerWorld
from bench.encoders.architectures import build
from bench.encoders.objectives import byol_loss, nt_xent
from bench.encoders.ssl import SSLRecipe
from bench.evaluation.nearest import knn_predict
from bench.progress import Silent
from bench.upstream import probing
from bench.upstream.probes import EXACT, Figure, Probe, Tolerance, finding
from bench.workspace import StepCounter

REPOSITORY = "CTRL"
IMPORTS = ("cv2", "natsort", "warmup_scheduler")
NEAR, VERY_NEAR = Tolerance(absolute=1e-5), Tolerance(absolute=2e-6)
FOUR_DIGITS = Tolerance(absolute=6e-5)
CLASSES = 10
PARTS = {"0": "conv1", "1": "bn1", "3": "layer1", "4": "layer2", "5": "layer3", "6": "layer4"}


def vote(_: Path) -> Mapping[str, Any]:
    return {
        str(temperature): knn_predict(*probing.vote(), 10, k=200, temperature=temperature)
        for temperature in (0.5, 0.1)
    }


def triggered(_: Path) -> Mapping[str, Any]:
    trigger = SpectralTrigger(transport="float")
    ramp = (torch.arange(3072) % 256).float().view(1, 3, 32, 32) / 255
    grey, ramp = trigger(torch.full((1, 3, 32, 32), 0.5)), trigger(ramp)
    newer = {"grey_with_this_kornia": grey, "ramp_with_this_kornia": ramp}
    return {"grey": grey, "ramp": ramp, **newer}


def transforms(_: Path) -> Mapping[str, Any]:
    spectrum = dctn(probing.ramp()[..., 0].astype(float), norm="ortho")
    return {"dct": spectrum, "idct": idctn(spectrum, norm="ortho")}


def losses(_: Path) -> Mapping[str, Any]:
    torch.manual_seed(0)
    features = normalize(torch.randn(6, 2, 16), dim=-1)
    torch.manual_seed(1)
    views = [torch.randn(4, 8) for _ in range(4)]
    # CTRL multiplies by temperature / base temperature.
    return {
        "loss": nt_xent(*features.unbind(1), 0.5) * 0.5 / 0.07,
        "byol": byol_loss(*views),
    }


def poisoned(_: Path) -> Mapping[str, Any]:
    total = 50_000
    labels = torch.randint(CLASSES, (total,), generator=torch.Generator().manual_seed(0))
    # One grey image in every row: what is stamped plays no part here.
    pixels = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8).expand(total, -1, -1, -1)
    names = tuple(str(number) for number in range(CLASSES))
    world = PoisonerWorld(
        candidates=torch.arange(total),
        target=0,
        class_name="0",
        generator=torch.Generator(),
        progress=StepCounter(Silent(), None),
    )
    found = CTRL(poison_rate=0.01).poison(ImageSet(pixels, labels=labels, class_names=names), world)
    return {"rows": found.rows, "labels_changed": 0}


def rates(_: Path) -> Mapping[str, Any]:
    recipe = SSLRecipe(schedule="epoch-cosine", epochs=100, warmup_epochs=10, learning_rate=0.06)
    found = [recipe.learning_rate_at(97 * epoch, 97) for epoch in range(100)]
    return {"rates": np.delete(found, 11)}


def layout(_: Path) -> Mapping[str, Any]:
    state = {}
    for name, value in build("resnet18-cifar").state_dict().items():
        part, _, rest = name.removeprefix("f.").partition(".")
        state[f"backbone.{PARTS[part]}.{rest.replace('downsample', 'shortcut')}"] = value
    return {"backbone": probing.described(state)}


def at_epoch(epoch: int):
    """Reads the rate of an epoch after 11, which is left out."""
    return lambda rates: rates[epoch - 1]


def image_figures() -> dict[str, tuple[Figure, ...]]:
    at = "triggers.json/P6"
    grey = (
        Figure(f"{at}/grey/mean", lambda x: x.mean(dtype=float)),
        Figure(f"{at}/grey/min", np.min),
        Figure(f"{at}/grey/max", np.max),
        Figure(f"{at}/grey/norm", lambda x: np.linalg.norm(x - 0.5)),
        Figure(f"{at}/grey/first_row", lambda x: x[0, :, 0, :4], FOUR_DIGITS),
        Figure(f"{at}/grey/last_pixel", lambda x: x[0, :, -1, -1], FOUR_DIGITS),
    )
    ramp = (
        Figure(f"{at}/ramp/sum", lambda x: x.sum(dtype=float), Tolerance(absolute=2e-4)),
        Figure(f"{at}/ramp/first_pixel", lambda x: x[0, :, 0, 0]),
        Figure(f"{at}/ramp/last_pixel", lambda x: x[0, :, -1, -1]),
    )
    return {"grey": grey, "ramp": ramp}


def rate_figures() -> tuple[Figure, ...]:
    at = "encoders.json/epoch_cosine"
    return (
        Figure(f"{at}/warmup_step", lambda rates: rates[1] - rates[0]),
        *(Figure(f"{at}/values/{epoch}", at_epoch(epoch)) for epoch in (12, 13, 14, 99)),
    )


def probe(identity: str, what: str, tolerance: Tolerance, **options: Any) -> Probe:
    imports = (*IMPORTS, *options.pop("imports", ()))
    return Probe(identity, REPOSITORY, what, tolerance, imports=imports, **options)


PROBES = (
    probe(
        "P5",
        "CLTrainer.knn_predict",
        EXACT,
        native=vote,
        golden={
            name: (Figure(f"evaluation.json/knn_vote/predictions/{number}/classes"),)
            for number, name in enumerate(("0.5", "0.1"))
        },
    ),
    probe(
        "P6",
        "PoisonFre.Poison_Frequency_Diff: magnitude 100 on U and V at (15, 15) and (31, 31)",
        VERY_NEAR,
        native=triggered,
        golden=image_figures(),
        # A thirtieth of a grey level, see the audit.
        tolerances={f"{name}_with_this_kornia": Tolerance(2e-4) for name in ("grey", "ramp")},
        imports=("kornia",),
        explained="U35",
    ),
    probe(
        "P7",
        "dct_2d, idct_2d: scipy's orthonormal transforms",
        # Theirs is float32, and the largest coefficient is 4,080.
        Tolerance(absolute=1e-4, relative=1e-6),
        native=transforms,
        golden={
            "dct": (
                Figure("ctrl.json/transforms/largest", np.max),
                Figure("ctrl.json/transforms/first", lambda x: x[0, :4]),
            )
        },
    ),
    probe(
        "P8",
        "SupConLoss without labels, negcos",
        NEAR,
        native=losses,
        golden={
            "loss": (
                Figure("ctrl.json/recipe/supcon_loss/value"),
                Figure("encoders.json/nt_xent/supcon_value"),
            ),
            "positive": (Figure("ctrl.json/supcon_parts/positive"),),
            "negative": (Figure("ctrl.json/supcon_parts/negative"),),
            "byol": (Figure("encoders.json/byol_loss/value"),),
        },
        explained="U28",
    ),
    probe(
        "P9",
        "PoisonAgent: rows poisoned of 50,000 at 1 %",
        EXACT,
        native=poisoned,
        golden={"rows": (Figure("ctrl.json/poisoned_set/poisoned", len),)},
        imports=("kornia",),
    ),
    probe(
        "P10",
        "CLTrainer.train_freq: learning rate of 100 epochs, without epoch 11",
        Tolerance(absolute=1e-4),
        native=rates,
        golden={"rates": rate_figures()},
        explained="U27",
    ),
    probe(
        "P20",
        "SimCLRModel, BYOL: names, shapes, parameters",
        EXACT,
        native=layout,
        golden={
            "tensors": (Figure("clip.json/ctrl_simclr/tensors"),),
            "parameters": (Figure("clip.json/ctrl_simclr/parameters"),),
            "byol_tensors": (Figure("clip.json/ctrl_simclr/byol_tensors"),),
        },
    ),
    finding("U26", REPOSITORY, "end of main_worker", "ends_with", imports=(*IMPORTS, "kornia")),
    finding(
        "U29",
        REPOSITORY,
        "test images scored of 10,000",
        "clean",
        "triggered",
        imports=(*IMPORTS, "kornia"),
    ),
    finding(
        "U30",
        REPOSITORY,
        "disable_normalize without and with its option",
        "disabled",
        imports=(*IMPORTS, "kornia"),
    ),
    finding(
        "U32",
        REPOSITORY,
        "BYOL: convolutions equal at the start",
        "equal_convolutions",
        "convolutions",
        imports=IMPORTS,
    ),
    finding("U33", REPOSITORY, "the trigger on no images", "returns", imports=IMPORTS),
    finding("U34", REPOSITORY, "load_model", "asks_for", imports=IMPORTS),
)
