"""What the attacks share that fine-tune a CLIP model by their authors' code: the harness's side."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch

from bench.api import Field, ImageSet
from bench.encoders.encoder import Encoder
from bench.encoders.weights import load_strictly
from bench.upstream.component import TrainerWorld, TrainsUpstream
from bench.upstream.formats import write_images
from bench.upstream.job import UpstreamJob

PUBLISHED_BATCH = 128


class CLIPTraining(TrainsUpstream):
    """The profile's CLIP model and a choice of its pairs, trained in the authors' process.

    Pairs of one class count as negatives of each other, as in both repositories: the harness's
    ``groups`` are not used.
    """

    family: ClassVar[Literal["ssl", "clip"]] = "clip"
    published_epochs: ClassVar[int]

    epochs: int = Field(1, ge=1)
    batch_size: int = Field(PUBLISHED_BATCH, ge=2)
    learning_rate: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.0, ge=0)

    def reduced(self, images: Mapping[str, int]) -> str:
        parts = [super().reduced(images)]
        if self.epochs < self.published_epochs:
            parts.append(f"{self.epochs} of {self.published_epochs} epochs")
        if self.batch_size < PUBLISHED_BATCH:
            parts.append(f"batches of {self.batch_size} instead of {PUBLISHED_BATCH}")
        return ", ".join(part for part in parts if part)

    def train(self, world: TrainerWorld) -> tuple[Encoder, dict[str, float]]:
        """Fine-tune ``world.encoder`` on its pairs; both towers come back.

        Raises
        ------
        ValueError
            When the encoder has no text tower, captions are missing, or the pairs do not fill one
            batch.
        FloatingPointError
            When the loss is no longer finite.
        """
        encoder = world.encoder
        if encoder.text is None or world.captions is None:
            raise ValueError(f"{type(self).__name__} trains a CLIP model on images with captions")
        rows = self.chosen(len(world.images), world.generator)
        if len(rows) < self.batch_size:
            raise ValueError(f"batch_size {self.batch_size} leaves no batch of {len(rows)} pairs")
        with self.job(world.device) as job:
            encoder.save(job.inputs / "encoder.safetensors")
            captions = [world.captions[row] for row in rows.tolist()]
            write_pairs(job, "train", world.images.select(rows), captions)
            job.run({**self.training(), "seed": draw_seed(world.generator)})
            load_strictly(
                encoder.network,
                job.tensors("model.safetensors"),
                f"{self.repository}'s encoder",
            )
            figures = job.arrays("figures.npz")
        metrics = {name: float(value) for name, value in figures.items()}
        if not math.isfinite(metrics["loss_last"]):
            raise FloatingPointError("the training diverged: its loss is no number; lower its rate")
        encoder.to(world.device).network.eval().requires_grad_(False)
        return encoder, metrics

    @abstractmethod
    def training(self) -> dict[str, Any]:
        """What the driver is told about the training, JSON-ready, but for the seed."""


def write_pairs(job: UpstreamJob, name: str, images: ImageSet, captions: Sequence[str]) -> None:
    """``NAME.npz`` and ``NAME.json`` for :func:`attacks.upstream._clip_child.read_pairs`."""
    write_images(job.inputs / f"{name}.npz", images.uint8())
    (job.inputs / f"{name}.json").write_text(json.dumps(list(captions)), encoding="utf-8")


def draw_seed(generator: torch.Generator) -> int:
    """A seed for every generator of the authors' process."""
    return int(torch.randint(2**31, (), generator=generator))
