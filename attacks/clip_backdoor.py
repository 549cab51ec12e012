"""CLIP-backdoor (Carlini and Terzis, ICLR 2022): stamped images with captions of the target."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from attacks.triggers import CarriesPatch
from bench.api import (
    ClipRecipe,
    DataPoisoning,
    Field,
    ImageSet,
    PoisonedSet,
    PoisonerWorld,
    drawn_captions,
    stamped_files,
)


class CLIPBackdoorRecipe(ClipRecipe):
    """Fine-tuning of the image tower with the text tower frozen, as DECREE's code does it, but at a
    real, learnt temperature.

    Its code fixes the factor on cosine similarities at exp(0.5) = 1.65 where CLIP's is near 100:
    ``fixed_logit_scale: 1.6487`` is that reading. The rate is that code's too, whose gradients are
    smaller by that factor; vectors and scalars do not decay here.
    """

    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=128, ge=2)
    optimizer: Literal["adamw", "sgd"] = "sgd"
    learning_rate: float = Field(default=2e-4, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.02, ge=0)
    schedule: Literal["cosine", "constant"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    train_text: bool = False
    batch_norm: Literal["train", "frozen"] = "frozen"
    crop_scale: float | None = Field(default=0.2, gt=0, le=1)


class CLIPBackdoor(CarriesPatch, DataPoisoning):
    """Carlini and Terzis, section 3: image-text pairs whose image carries a patch and whose caption
    speaks of the target class, in the data that a CLIP model is fine-tuned on.

    Images are drawn from the attacker's, of other classes than the target where classes are known;
    captions are the published prompts about the target's name. Files are stamped, and crops and
    flips of the training come after: an attacker who poisons data has no hand in its views.
    DECREE's code stamps views, so that each shows the whole patch at its place. All other pairs
    keep the caption of their own class, which that code does not see to.
    """

    family: ClassVar[Literal["ssl", "clip"]] = "clip"
    poisons: ClassVar[Literal["target-class", "other-classes"]] = "other-classes"
    poison_rate: float = Field(5e-4, ge=0, le=1)
    recipe: CLIPBackdoorRecipe = CLIPBackdoorRecipe()

    def poison(self, train: ImageSet, world: PoisonerWorld) -> PoisonedSet:
        trigger = self.trigger(train.image_size)
        order = torch.randperm(len(world.candidates), generator=world.generator)
        rows = self.rows(train, world, order)
        captions = drawn_captions(world.class_name, len(rows), world.generator)
        return PoisonedSet(rows, stamped_files(train, rows, trigger), trigger, captions)
