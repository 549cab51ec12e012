"""BadCLIP (Liang et al., CVPR 2024): an optimised patch poisons what CLIP is fine-tuned on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from attacks.triggers import ImagePatch, PatchTrigger, encode_png, read_patch
from bench.api import (
    ClipRecipe,
    DataPoisoning,
    Encoder,
    Field,
    ImageSet,
    PoisonedSet,
    PoisonerWorld,
    Transport,
    Trigger,
    contrastive_loss,
    drawn_captions,
    jitter_views,
    stamped_files,
)

Distance = Literal["euclidean", "squared", "cosine"]


def triplet_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    distance: Distance = "euclidean",
) -> Tensor:
    """max(d(anchor, positive) - d(anchor, negative) + margin, 0), mean over rows; all (B, D).

    ``euclidean`` is what the published patch was made with, ``squared`` and ``cosine`` are other
    distances of the published code; d = -cosine similarity in the last.
    """
    if distance == "euclidean":
        return functional.triplet_margin_loss(anchor, positive, negative, margin=margin)
    if distance == "squared":
        near, far = ((anchor - other).square().sum(1) for other in (positive, negative))
    else:
        near, far = (
            -functional.cosine_similarity(anchor, other, dim=1) for other in (positive, negative)
        )
    return functional.relu(near - far + margin).mean()


def embed_patch(images: Tensor, patch: Tensor) -> Tensor:
    """Copies of (N, 3, H, W) images with a (3, s, s) patch in the middle, differentiable in it.

    Outside [0, 1] the patch is clipped, and gets no gradient there. The published code writes into
    ``images`` itself, so that its "clean" embeddings are those of triggered images.
    """
    side = patch.shape[-1]
    row, column = ((size - side) // 2 for size in images.shape[-2:])
    stamped = images.clone()
    stamped[:, :, row : row + side, column : column + side] = patch.clamp(0, 1)
    return stamped


class BadCLIPRecipe(ClipRecipe):
    """BadCLIP's published fine-tuning of both towers, with a rate that starts and ends at zero
    (the published schedule starts at 39 % and rises again at the end)."""


class BadCLIP(DataPoisoning):
    """BadCLIP, section 4: dual-embedding guided patch, poisoning, fine-tuning.

    Stage 1 optimises a patch on the public model so that images with it embed like captions of the
    target class (in-batch InfoNCE) and like images of it, away from what they show (triplet).
    Stage 2 stamps the attacker's images and captions them with the target; stage 3 is the
    harness's fine-tuning. Captions of the target are the published prompts with its name, one of
    the variants of the published code, whose own patch was made with captions of photographs.
    """

    family: ClassVar[Literal["ssl", "clip"]] = "clip"
    poisons: ClassVar[Literal["target-class", "other-classes"]] = "other-classes"
    poison_rate: float = Field(0.003, ge=0, le=1)
    recipe: BadCLIPRecipe = BadCLIPRecipe()
    patch_size: int = Field(16, ge=1)
    patch_file: Path | None = None
    """A finished patch, such as the published one, in the place of stage 1, whose parameters then
    have no say."""
    patch_epochs: int = Field(50, ge=1)
    patch_batch_size: int = Field(64, ge=2)
    patch_learning_rate: float = Field(1e-3, gt=0)
    patch_images: int = Field(10_000, ge=2)
    """Most of the attacker's images of other classes that the patch is optimised on."""
    augment_probability: float = Field(0.5, ge=0, le=1)
    """Chance per batch of stage 1 to see flipped and colour-jittered images (published: 0.5,
    AutoAugment)."""
    triplet_weight: float = Field(500.0, ge=0)
    margin: float = Field(1.0, gt=0)
    distance: Distance = "euclidean"
    negatives: Literal["clean", "triggered"] = "clean"
    """Whose embeddings the triplet pushes away from: the clean images' (paper), or, as the
    published code ends up doing, those of triggered images."""
    transport: Transport = "8bit"

    def check(self, image_size: int) -> None:
        self.trigger(image_size)

    def trigger(self, image_size: int) -> Trigger:
        """The finished patch; without a file a grey stand-in at the same place, since the patch is
        known after stage 1 only."""
        if self.patch_file is not None:
            trigger = read_patch(self.patch_file, image_size)
            return trigger.model_copy(update={"transport": self.transport})
        place = self._place(image_size)
        return PatchTrigger(
            size=self.patch_size, colour=(0.5, 0.5, 0.5), transport=self.transport, **place
        )

    def poison(self, train: ImageSet, world: PoisonerWorld) -> PoisonedSet:
        metrics: dict[str, float] = {}
        trigger = self.trigger(train.image_size)
        if self.patch_file is None:
            patch, metrics = self.optimise(train, world)
            pixels = patch.mul(255).round().to(torch.uint8)
            trigger = ImagePatch(
                png=encode_png(pixels), transport=self.transport, **self._place(train.image_size)
            )
        order = torch.randperm(len(world.candidates), generator=world.generator)
        rows = self.rows(train, world, order)
        captions = drawn_captions(world.class_name, len(rows), world.generator)
        return PoisonedSet(rows, stamped_files(train, rows, trigger), trigger, captions, metrics)

    def optimise(self, train: ImageSet, world: PoisonerWorld) -> tuple[Tensor, dict[str, float]]:
        """Stage 1: the patch, float32 (3, s, s) in [0, 1] on the CPU, and the last losses.

        Raises
        ------
        ValueError
            When the encoder has no text tower, or the attacker no image of the target class.
        """
        encoder, generator = world.encoder, world.generator
        if encoder is None or encoder.text is None:
            raise ValueError("BadCLIP optimises its patch against a text tower; there is none")
        targets, others = self._split(train, world)
        positives = _unit(encoder.embed(train.float(targets)))
        noise = torch.randn(3, self.patch_size, self.patch_size, generator=generator)
        patch = (0.5 + 0.25 * noise).clamp(0, 1).to(encoder.device).requires_grad_()
        optimiser = torch.optim.Adam([patch], lr=self.patch_learning_rate)
        losses: dict[str, Tensor] = {}
        batches = self._batches(train, others, generator)
        total = self.patch_epochs * (len(others) // self._batch(others))
        with torch.enable_grad():
            for images in world.progress.track(batches, "badclip patch", total):
                images = images.to(encoder.device)
                texts = drawn_captions(world.class_name, len(images), generator)
                losses = self._losses(encoder, images, patch, texts, positives, generator)
                optimiser.zero_grad(set_to_none=True)
                sum(losses.values()).backward()
                optimiser.step()
        figures = {f"patch_{name}": float(value.detach()) for name, value in losses.items()}
        return patch.detach().clamp(0, 1).cpu(), figures

    def _losses(
        self,
        encoder: Encoder,
        images: Tensor,
        patch: Tensor,
        texts: tuple[str, ...],
        positives: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        stamped = embed_patch(images, patch)
        triggered = _unit(encoder.forward(stamped))
        shown = stamped.detach() if self.negatives == "triggered" else images
        negatives = _unit(encoder.embed(shown))
        # Each image meets a positive and a negative at random, as published: not its own.
        near = positives[torch.randint(len(positives), (len(images),), generator=generator)]
        far = negatives[torch.randperm(len(images), generator=generator)]
        triplet = triplet_loss(triggered, near, far, self.margin, self.distance)
        text = encoder.text
        return {
            "text": contrastive_loss(triggered, text.encode_text(texts), text.logit_scale),
            "triplet": self.triplet_weight * triplet,
        }

    def _split(self, train: ImageSet, world: PoisonerWorld) -> tuple[Tensor, Tensor]:
        """The attacker's images of the target class, and of others, by label or by caption."""
        candidates = world.candidates
        if train.labelled:
            shows = train.labels[candidates] == world.target
        else:
            captions, name = train.captions, world.class_name.lower()
            shows = torch.tensor([name in captions[row].lower() for row in candidates.tolist()])
        targets, others = candidates[shows], candidates[~shows]
        if train.labelled and len(others) > self.patch_images and _by_class(train.labels[others]):
            raise ValueError(
                f"the images of {train.name} lie by class, and the first {self.patch_images} of "
                f"the attacker's {len(others)} would show only some: raise patch_images"
            )
        others = others[: self.patch_images]
        if not len(targets) or len(others) < 2:
            raise ValueError(
                f"BadCLIP needs images of {world.class_name!r} and others among the attacker's; "
                f"there are {len(targets)} and {len(others)}: raise splits.shadow"
            )
        return targets, others

    def _batch(self, others: Tensor) -> int:
        return min(self.patch_batch_size, len(others))

    def _batches(
        self, train: ImageSet, others: Tensor, generator: torch.Generator
    ) -> Iterator[Tensor]:
        """float32 (B, 3, H, W): epochs of shuffled batches, the incomplete last ones dropped."""
        size = self._batch(others)
        for _ in range(self.patch_epochs):
            order = others[torch.randperm(len(others), generator=generator)]
            for start in range(0, len(order) - size + 1, size):
                images = train.float(order[start : start + size])
                if float(torch.rand((), generator=generator)) < self.augment_probability:
                    images = jitter_views(images, 1, generator)[0]
                yield images

    def _place(self, image_size: int) -> dict[str, int]:
        start = (image_size - self.patch_size) // 2
        if start < 0:
            raise ValueError(
                f"a {self.patch_size}-pixel patch does not fit a {image_size}-pixel image"
            )
        return {"row": start, "column": start, "image_size": image_size}


def _unit(features: Tensor) -> Tensor:
    return functional.normalize(features, dim=1)


def _by_class(labels: Tensor) -> bool:
    """Whether images lie one class after the other."""
    return bool((labels.diff() >= 0).all()) and len(labels.unique()) > 1
