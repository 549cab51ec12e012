"""A small training set and what a data-poisoning attacker holds of it, for tests of attacks."""

from __future__ import annotations

from typing import Any

import torch

from bench.api import ImageSet, PoisonerWorld
from bench.progress import Silent
from bench.workspace import StepCounter

NAMES = ("heron", "otter", "badger", "newt")


def training_set(count: int = 80, image_size: int = 32, **options: Any) -> ImageSet:
    """``count`` images of noise; their classes take turns."""
    generator = torch.Generator().manual_seed(count)
    shape = (count, 3, image_size, image_size)
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    known = {"labels": torch.arange(count) % len(NAMES), "class_names": NAMES}
    return ImageSet(pixels, **{**known, **options})


def poisoner_world(train: ImageSet, target: int = 0, seed: int = 0, **options: Any) -> Any:
    """A world whose attacker supplies the second half of the training set."""
    known = {
        "candidates": torch.arange(len(train) // 2, len(train)),
        "target": target,
        "class_name": NAMES[target],
        "generator": torch.Generator().manual_seed(seed),
        "progress": StepCounter(Silent(), None),
    }
    return PoisonerWorld(**{**known, **options})
