"""How strong must a poisoning attack be to take at a small scale? One training, many answers.

    python benchmarks/poisoning_sweep.py --epochs 12 --record benchmarks/poisoning_sweep.csv

Every class of CIFAR-10 gets a trigger of its own on some of its training images, then one encoder
is pretrained on all of them with CTRL's recipe in the geometry of `cifar10-small`. For each trigger
it prints the attack success rate (kNN, held-out images of other classes), the same for unstamped
images (the floor), and the mean cosine between an image's embedding and its stamped self: where
that is near 1 the encoder does not see the trigger, and nothing can be learnt about it.

An exploration: it may poison more of a class than the attacker of the protocol owns.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from recording import replace
from torch import Tensor
from torch.nn.functional import cosine_similarity

from attacks.ctrl import CTRLRecipe
from attacks.triggers import PatchTrigger, SpectralTrigger
from bench.api import ImageSet, Trigger, stamped_files
from bench.configfile import ConfigFile
from bench.data.sources import open_source
from bench.encoders.encoder import Encoder
from bench.encoders.ssl import pretrain
from bench.evaluation.downstream import attack_success_rate, clean_accuracy
from bench.evaluation.nearest import knn_predict
from bench.progress import reporter
from bench.session import data_roots
from bench.workspace import StepCounter

QUERIES, BANK = 2500, 11000


def spectral(magnitude: float, low: int, high: int, channels: tuple[int, ...]) -> Trigger:
    return SpectralTrigger(
        magnitude=magnitude, positions=((low, low), (high, high)), channels=channels
    )


# Class -> (trigger, images of the class that carry it). Chroma (1, 2) is where CTRL hides.
PLAN: dict[int, tuple[Trigger, int]] = {
    0: (spectral(100, 15, 31, (1, 2)), 450),
    1: (spectral(100, 15, 31, (1, 2)), 4000),
    2: (spectral(800, 15, 31, (1, 2)), 900),
    3: (spectral(800, 11, 27, (1, 2)), 900),
    4: (spectral(800, 11, 27, (1, 2)), 2000),
    5: (spectral(800, 11, 27, (1, 2)), 4000),
    6: (spectral(400, 15, 31, (0,)), 4000),
    7: (PatchTrigger(), 450),
    8: (PatchTrigger(), 2000),
    9: (PatchTrigger(), 4000),
}


def poisoned(train: ImageSet, plan: dict[int, tuple[Trigger, int]]) -> ImageSet:
    pixels = train.uint8()
    for target, (trigger, count) in plan.items():
        rows = (train.labels == target).nonzero().squeeze(1)[:count]
        pixels[rows] = stamped_files(train, rows, trigger)
    return ImageSet(pixels, labels=train.labels, class_names=train.class_names)


def measured(
    encoder: Encoder, bank: ImageSet, queries: ImageSet, plan: dict[int, tuple[Trigger, int]]
) -> list[dict[str, Any]]:
    def embed(images: ImageSet, trigger: Trigger | None = None) -> Tensor:
        batches = images.batches(1000)
        return torch.cat([encoder.embed(trigger(b) if trigger else b) for b in batches])

    known, plain = embed(bank), embed(queries)
    classes = len(bank.class_names)

    def predict(features: Tensor) -> Tensor:
        return knn_predict(features, known, bank.labels, classes, temperature=0.1)

    clean, rows = predict(plain), []
    for target, (trigger, count) in plan.items():
        stamped = embed(queries, trigger)
        success, floor = (
            attack_success_rate(found, queries.labels, target).non_target
            for found in (predict(stamped), clean)
        )
        rows.append(
            {
                "trigger": trigger.describe(),
                "poisoned": count,
                "attack_success_rate": round(success, 3),
                "floor": round(floor, 3),
                "cosine_to_clean": round(float(cosine_similarity(plain, stamped).mean()), 3),
                "clean_accuracy": round(clean_accuracy(clean, queries.labels), 3),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    file = ConfigFile(Path("bench.yaml"))
    source = open_source("cifar10", file.config.datasets["cifar10"], data_roots(file), file.root)
    whole = source.load("train")
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    queries, train = whole.select(order[:QUERIES]), whole.select(order[2 * QUERIES :])
    recipe = CTRLRecipe(epochs=arguments.epochs, warmup_epochs=1, schedule="cosine")
    encoder, _ = pretrain(
        recipe,
        "resnet-narrow",
        {"width": arguments.width, "stem_stride": 2},
        poisoned(train, PLAN),
        generator=torch.Generator().manual_seed(0),
        precision="bfloat16",
        progress=StepCounter(reporter(), None),
    )
    rows = measured(encoder, train.select(torch.arange(BANK)), queries, PLAN)
    for row in rows:
        print(row)
    if arguments.record is not None:
        replace(arguments.record, rows)


if __name__ == "__main__":
    main()
