"""BadCLIP (Liang et al., CVPR 2024) by the code of its authors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import field_validator
from torch import Tensor

from attacks._pictures import read_picture
from attacks.badclip import BadCLIP
from attacks.triggers import ImagePatch, PatchTrigger, encode_png
from attacks.upstream._clip_training import CLIPTraining, draw_seed, write_pairs
from bench.api import (
    DataPoisoning,
    Field,
    ImageSet,
    PoisonedSet,
    PoisonerWorld,
    Transport,
    Trigger,
    drawn_captions,
)
from bench.upstream.formats import write_images
from bench.upstream.job import UpstreamJob

PATCH_EPOCHS, PATCH_IMAGES, PATCH_BATCH, WARMUP_STEPS = 50, 10_000, 64, 10_000


class UpstreamBadCLIP(CLIPTraining, DataPoisoning):
    """BadCLIP's three stages: ``optimize_patch``, ``apply_trigger`` and the ``worker`` of its
    ``main.py`` with its loop, schedule and optimiser.

    What the code does stays as it is, also where the paper says otherwise: the patch is stamped
    into the batch itself, so that the triplet's "clean" negatives are triggered images; the patch
    is saved with red and blue exchanged, and read back as saved; the schedule counts epochs from 1,
    so that the warm-up's first steps are left out and the rate rises again in the last epoch
    (docs/upstream-audit.md).

    Instead of CC3M: the attacker's images of the training set. Captions about the target are drawn
    from CLIP's prompts, as natively, where the authors have a list of their own. Nothing is resized
    to 224 pixels.
    """

    repository: ClassVar[str] = "BadCLIP"
    departs: ClassVar[Mapping[str, str]] = {
        "attack_success_rate": "U40, U41, U71",
        "clean_accuracy": "U41, U71",
    }
    imports: ClassVar[tuple[str, ...]] = ("cv2",)
    poisons: ClassVar[Literal["target-class", "other-classes"]] = "other-classes"
    published_epochs: ClassVar[int] = 10

    poison_rate: float = Field(0.003, ge=0, le=1)
    epochs: int = Field(published_epochs, ge=1)
    weight_decay: float = Field(0.1, ge=0)
    warmup_steps: int = Field(WARMUP_STEPS, ge=0)
    patch_size: int = Field(16, ge=1)
    patch_epochs: int = Field(PATCH_EPOCHS, ge=1)
    patch_batch_size: int = Field(PATCH_BATCH, ge=3, le=PATCH_BATCH)
    """The code draws 64 positives and negatives, whatever the batch: a larger one is impossible, a
    smaller one is given no more positives than itself."""
    patch_learning_rate: float = Field(1e-3, gt=0)
    patch_images: int = Field(PATCH_IMAGES, ge=3)
    augment_probability: float = Field(0.5, ge=0, le=1)
    triplet_weight: int = Field(500, ge=0, le=999)
    """In three digits, since the code reads it from the name of the run."""
    margin: float = Field(1.0, ge=0.1, le=9.9)
    """Of the triplet, in tenths: two digits of the name."""
    patch_format: Literal["jpg", "png"] = "jpg"
    """The file that the patch is deployed as; jpg, as published, changes its colours a little."""
    transport: Transport = "8bit"

    @field_validator("margin")
    @classmethod
    def _in_tenths(cls, margin: float) -> float:
        if abs(10 * margin - round(10 * margin)) > 1e-6:
            raise ValueError(f"the code reads the margin in tenths; {margin:g} has more digits")
        return margin

    def reduced(self, images: Mapping[str, int]) -> str:
        parts = [super().reduced(images)]
        patch = []
        if self.patch_epochs < PATCH_EPOCHS:
            patch.append(f"{self.patch_epochs} of {PATCH_EPOCHS} epochs")
        # Those of other classes among the attacker's: fewer still.
        most = min(self.patch_images, self.given(images["shadow"]))
        if most < PATCH_IMAGES:
            patch.append(f"at most {most:,} of {PATCH_IMAGES:,} images")
        if self.patch_batch_size < PATCH_BATCH:
            patch.append(f"batches of {self.patch_batch_size} instead of {PATCH_BATCH}")
        if patch:
            parts.append(f"patch: {' and '.join(patch)}")
        if self.warmup_steps < WARMUP_STEPS:
            parts.append(f"{self.warmup_steps:,} of {WARMUP_STEPS:,} warm-up steps")
        return ", ".join(part for part in parts if part)

    def check(self, image_size: int) -> None:
        self.trigger(image_size)

    def trigger(self, image_size: int) -> Trigger:
        """A grey stand-in at the patch's place: the patch is known after stage 1 only."""
        return PatchTrigger(
            size=self.patch_size,
            colour=(0.5, 0.5, 0.5),
            transport=self.transport,
            **self._place(image_size),
        )

    def poison(self, train: ImageSet, world: PoisonerWorld) -> PoisonedSet:
        """Stages 1 and 2, in one process.

        Raises
        ------
        ValueError
            When the encoder has no text tower, or the attacker too few images of the target class
            or of others for one batch of stage 1.
        """
        encoder, generator = world.encoder, world.generator
        if encoder is None or encoder.text is None:
            raise ValueError("BadCLIP optimises its patch against a text tower; there is none")
        targets, others = self._split(train, world)
        order = torch.randperm(len(world.candidates), generator=generator)
        rows = self.rows(train, world, order)
        captions = drawn_captions(world.class_name, len(rows), generator)
        with self.job(encoder.device) as job:
            encoder.save(job.inputs / "encoder.safetensors")
            for name, chosen in (("patch", others), ("positives", targets)):
                about = drawn_captions(world.class_name, len(chosen), generator)
                write_pairs(job, name, train.select(chosen), about)
            write_images(job.inputs / "clean.npz", train.uint8(rows))
            job.run({**self._stage_1(), "seed": draw_seed(generator)})
            trigger = self._read_patch(job, train.image_size)
            stamped = torch.from_numpy(job.arrays("stamped.npz")["x"])
            losses = job.arrays("losses.npz")
        metrics = {f"patch_{name}": float(value) for name, value in losses.items()}
        return PoisonedSet(
            rows,
            stamped.permute(0, 3, 1, 2).contiguous(),
            trigger,
            captions,
            metrics,
        )

    def training(self) -> dict[str, Any]:
        names = ("epochs", "batch_size", "learning_rate", "weight_decay", "warmup_steps")
        return {"stage": "train", **{name: getattr(self, name) for name in names}}

    def _stage_1(self) -> dict[str, Any]:
        """What the driver is told about the patch.

        The name selects the losses of the published patch and carries their figures.
        """
        margin, weight = f"{round(10 * self.margin):02}", f"{self.triplet_weight:03}"
        return {
            "stage": "poison",
            "name": f"tnature_eda_aug_pos_neg_{margin}_tri*{weight}",
            "patch_size": self.patch_size,
            "patch_file": f"patch.{self.patch_format}",
            "epochs": self.patch_epochs,
            "batch_size": self.patch_batch_size,
            "learning_rate": self.patch_learning_rate,
            "augment_probability": self.augment_probability,
        }

    def _split(self, train: ImageSet, world: PoisonerWorld) -> tuple[Tensor, Tensor]:
        """The attacker's images of the target class and of others that stage 1 is given."""
        targets, others = BadCLIP(patch_images=max(2, len(train)))._split(train, world)
        batch = self.patch_batch_size
        targets = targets[self.chosen(len(targets), world.generator)]
        others = others[self.chosen(len(others), world.generator)][: self.patch_images]
        if min(len(targets), len(others)) < batch:
            raise ValueError(
                f"patch_batch_size {batch} needs as many of the attacker's images of "
                f"{world.class_name!r} and of others; there are {len(targets)} and {len(others)}: "
                "lower it or raise splits.shadow"
            )
        return targets if batch == PATCH_BATCH else targets[:batch], others

    def _read_patch(self, job: UpstreamJob, image_size: int) -> ImagePatch:
        """The patch as its file deploys it."""
        path: Path = job.output(f"patch.{self.patch_format}")
        pixels = torch.from_numpy(read_picture(path)).permute(2, 0, 1)
        return ImagePatch(
            png=encode_png(pixels), transport=self.transport, **self._place(image_size)
        )

    def _place(self, image_size: int) -> dict[str, int]:
        """The middle, rounded as ``apply_trigger`` does."""
        if self.patch_size > image_size:
            raise ValueError(
                f"a {self.patch_size}-pixel patch does not fit a {image_size}-pixel image"
            )
        start = int(image_size // 2 - self.patch_size / 2)
        return {"row": start, "column": start, "image_size": image_size}
