"""CTRL by the code of its authors (Li et al., ICCV 2023): its poisoning and its SimCLR training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from attacks.triggers import SpectralTrigger
from bench.api import (
    DataPoisoning,
    Field,
    ImageSet,
    PoisonedSet,
    PoisonerWorld,
    Transport,
    Trigger,
)
from bench.encoders.encoder import Encoder
from bench.encoders.weights import load_strictly
from bench.upstream.component import TrainerWorld, TrainsUpstream
from bench.upstream.formats import write_images
from bench.upstream.job import UpstreamError

IMAGE_SIZE = 32
PUBLISHED = {"epochs": 800, "warmup_epochs": 10, "batch_size": 512}


class UpstreamCTRL(TrainsUpstream, DataPoisoning):
    """``PoisonAgent`` chooses the images, ``PoisonFre`` stamps them, and ``CLTrainer.train_freq``
    trains victim and twin on the profile's network. Published values are the defaults.

    The code's own data set, of which it would poison any image, is replaced by the attacker's
    images. What it stamps in floating point is rounded to 8 bits before training, as every
    poisoned image of the benchmark is a file. Of the training images, ``max_images`` are drawn
    at random, so that the number of poisoned ones among them varies around the rate.

    Its schedule trains the first epoch at a learning rate of zero.
    """

    repository: ClassVar[str] = "CTRL"
    imports: ClassVar[tuple[str, ...]] = ("cv2", "kornia", "natsort", "warmup_scheduler")

    magnitude: float = Field(100.0, gt=0, le=1e5)
    """Added to each chosen coefficient of the orthonormal DCT, on the 0-255 scale."""
    positions: tuple[int, int] = (15, 31)
    """Two places on the diagonal of the DCT; the code has no others."""
    channels: tuple[int, ...] = (1, 2)
    """Channels of YUV."""
    window: int = Field(32, ge=4)
    transport: Transport = "8bit"
    """What a triggered test image goes through; training images are 8-bit files."""
    epochs: int = Field(PUBLISHED["epochs"], ge=2)
    warmup_epochs: int = Field(PUBLISHED["warmup_epochs"], ge=1)
    batch_size: int = Field(PUBLISHED["batch_size"], ge=2)
    learning_rate: float = Field(0.06, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    temperature: float = Field(0.5, gt=0)

    def reduced(self, images: Mapping[str, int]) -> str:
        parts = [super().reduced(images)]
        if self.epochs < PUBLISHED["epochs"]:
            parts.append(f"{self.epochs} of {PUBLISHED['epochs']} epochs")
        if self.warmup_epochs < PUBLISHED["warmup_epochs"]:
            parts.append(f"{self.warmup_epochs} of {PUBLISHED['warmup_epochs']} warm-up epochs")
        if self.batch_size < PUBLISHED["batch_size"]:
            parts.append(f"batches of {self.batch_size} instead of {PUBLISHED['batch_size']}")
        return ", ".join(part for part in parts if part)

    def check(self, image_size: int) -> None:
        """Refuse images of another size than CIFAR's, to which the code crops.

        Raises
        ------
        ValueError
            One line: the size, or a window or positions that do not fit.
        """
        if image_size != IMAGE_SIZE:
            raise ValueError(f"CTRL's code takes {IMAGE_SIZE}-pixel images, not {image_size}")
        self.trigger(image_size)

    def trigger(self, image_size: int) -> Trigger:
        return SpectralTrigger(
            magnitude=self.magnitude,
            positions=tuple((place, place) for place in self.positions),
            channels=self.channels,
            window=self.window,
            image_size=image_size,
            transport=self.transport,
        )

    def poison(self, train: ImageSet, world: PoisonerWorld) -> PoisonedSet:
        """Let the authors' code choose and stamp, with the attacker's images as its data set.

        Raises
        ------
        ValueError
            When the images have another size, or the attacker has too few of the class.
        UpstreamError
            When the code stamped another number of images than it was told to.
        """
        self.check(train.image_size)
        candidates, trigger = world.candidates, self.trigger(train.image_size)
        if train.labelled:
            labels = train.labels[candidates]
        else:
            labels = torch.full((len(candidates),), world.target)
        available = int(self.eligible(labels, world.target).sum())
        count = self.checked_count(len(train), available)
        if count == 0:
            # The code cannot: its stamping returns one value less for no images, and unpacks two.
            none = torch.empty(0, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
            return PoisonedSet(candidates[:0], none, trigger)
        with self.job("cpu") as job:
            write_images(job.inputs / "train.npz", train.uint8(candidates), labels)
            job.run(self._poisoning(count, len(candidates), world.target))
            stamped = job.arrays("poisoned.npz")
        rows, images = torch.from_numpy(stamped["rows"]), torch.from_numpy(stamped["images"])
        if len(rows) != count:
            raise UpstreamError(f"CTRL's code stamped {len(rows)} images instead of {count}")
        files = images.mul(255).round().to(torch.uint8)
        return PoisonedSet(candidates[rows], files, trigger)

    def _poisoning(self, count: int, total: int, target: int) -> dict[str, object]:
        """The driver's parameters for stamping ``count`` of ``total`` images.

        The code takes the integer part of ratio times total: the half keeps it at ``count``.
        """
        return {
            "task": "poison",
            "poison_ratio": (count + 0.5) / total,
            "target": target,
            "magnitude": self.magnitude,
            "positions": self.positions,
            "channels": self.channels,
            "window": self.window,
        }

    def train(self, world: TrainerWorld) -> tuple[Encoder, dict[str, float]]:
        """SimCLR by the authors' loop from the given weights.

        The code normalises nothing, and so does the encoder that comes back.

        Raises
        ------
        ValueError
            When the images have another size, or are fewer than one batch.
        FloatingPointError
            When the training diverged.
        """
        start = world.encoder
        self.check(start.image_size)
        rows = self.chosen(len(world.images), world.generator)
        if len(rows) < self.batch_size:
            raise ValueError(f"batch_size {self.batch_size} leaves no batch of {len(rows)} images")
        seed = int(torch.randint(2**31, (), generator=world.generator))
        with self.job(world.device) as job:
            start.save(job.inputs / "encoder.safetensors")
            write_images(job.inputs / "train.npz", world.images.uint8(rows))
            job.run(
                {
                    "task": "train",
                    "seed": seed,
                    "epochs": self.epochs,
                    "warmup_epochs": self.warmup_epochs,
                    "batch_size": self.batch_size,
                    "learning_rate": self.learning_rate,
                    "weight_decay": self.weight_decay,
                    "temperature": self.temperature,
                }
            )
            tensors = job.tensors("last.pth.tar")
            figures = job.arrays("figures.npz")
        return _encoder(start, tensors), {name: float(value) for name, value in figures.items()}


def _encoder(start: Encoder, tensors: dict[str, Tensor]) -> Encoder:
    """The checkpoint's backbone in the network of ``start``, without normalisation."""
    backbone = {
        name.removeprefix("backbone."): value
        for name, value in tensors.items()
        if name.startswith("backbone.")
    }
    broken = [name for name, value in backbone.items() if not value.isfinite().all()]
    if broken:
        raise FloatingPointError(
            f"CTRL's training diverged: {broken[0]} is not finite; lower learning_rate"
        )
    load_strictly(start.network, backbone, "CTRL's last.pth.tar")
    start.network.eval()
    return Encoder(
        start.network,
        start.architecture,
        start.settings,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        image_size=start.image_size,
    )
