"""What the two attacks of DRUPE's repository share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch

from attacks.triggers import CarriesPatch
from bench.api import AttackerWorld, Field, ModelPoisoning, Victim
from bench.encoders.encoder import Encoder
from bench.encoders.weights import load_strictly
from bench.upstream.component import UpstreamComponent
from bench.upstream.formats import write_images, write_trigger
from bench.upstream.job import UpstreamJob

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
PUBLISHED_EPOCHS, PUBLISHED_BATCH, PUBLISHED_SHADOW = 120, 256, 10_000


class DrupeTraining(UpstreamComponent, CarriesPatch, ModelPoisoning):
    """Published values for CIFAR-10 are the defaults.

    ``transport`` is what triggered test images go through; the code stamps 8-bit images and trains
    on them as they are.
    """

    version: ClassVar[int] = 2
    repository: ClassVar[str] = "DRUPE"
    imports: ClassVar[tuple[str, ...]] = ("cv2", "ot")

    mode: str
    references: int = Field(3, ge=1)
    epochs: int = Field(PUBLISHED_EPOCHS, ge=1)
    batch_size: int = Field(PUBLISHED_BATCH, ge=3)
    """Of two images the code clusters one each, and skips the batch."""
    learning_rate: float = Field(0.05, gt=0)
    lambda1: float = Field(1.0, ge=0)
    lambda2: float = Field(1.0, ge=0)

    def reduced(self, images: Mapping[str, int]) -> str:
        parts = []
        shadow = self.given(images["shadow"])
        if shadow < PUBLISHED_SHADOW:
            parts.append(f"{shadow:,} of {PUBLISHED_SHADOW:,} shadow images")
        if self.epochs < PUBLISHED_EPOCHS:
            parts.append(f"{self.epochs} of {PUBLISHED_EPOCHS} epochs")
        if self.batch_size < PUBLISHED_BATCH:
            parts.append(f"batches of {self.batch_size} instead of {PUBLISHED_BATCH}")
        return ", ".join(parts)

    def driver(self) -> Path:
        return Path(__file__).with_name("_drupe_driver.py")

    def implant(self, world: AttackerWorld) -> Victim:
        """Fine-tune the encoder in the authors' process.

        Raises
        ------
        ValueError
            When the encoder is normalised otherwise than the code does it, or there are fewer
            images than one batch.
        """
        encoder, shadow = world.encoder, world.shadow
        if (encoder.mean, encoder.std) != (CIFAR_MEAN, CIFAR_STD):
            raise ValueError("DRUPE's code normalises as CIFAR-10; this encoder does not")
        order = torch.randperm(len(shadow), generator=world.generator)[: self.max_images]
        if len(order) < self.batch_size:
            raise ValueError(f"batch_size {self.batch_size} leaves no batch of {len(order)} images")
        trigger = self.trigger(encoder.image_size)
        with self.job(encoder.device) as job:
            encoder.save(job.inputs / "encoder.safetensors")
            write_images(job.inputs / "train.npz", shadow.select(order).uint8())
            write_images(job.inputs / "references.npz", world.references.uint8())
            write_trigger(job.inputs / "trigger.npz", trigger, encoder.image_size)
            job.run(
                {
                    "mode": self.mode,
                    "epochs": self.epochs,
                    "batch_size": self.batch_size,
                    "learning_rate": self.learning_rate,
                    "lambda1": self.lambda1,
                    "lambda2": self.lambda2,
                    "seed": int(torch.randint(2**31, (), generator=world.generator)),
                }
            )
            metrics = _adopt(job, encoder)
        encoder.network.eval()
        return Victim(encoder, trigger, metrics)


def _adopt(job: UpstreamJob, encoder: Encoder) -> dict[str, float]:
    """Load what the process left into ``encoder``; figures of the last epoch."""
    tensors = job.tensors("model.safetensors")
    load_strictly(encoder.network, tensors, "DRUPE's encoder")
    figures = job.arrays("figures.npz")
    return {name: float(value) for name, value in figures.items()}
