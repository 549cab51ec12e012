"""CLIP-backdoor (Carlini and Terzis, ICLR 2022) as DECREE's repository trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from attacks.clip_backdoor import CLIPBackdoor
from attacks.triggers import CarriesPatch
from attacks.upstream._clip_training import CLIPTraining
from bench.api import DataPoisoning, Field, ImageSet, PoisonedSet, PoisonerWorld


class UpstreamCLIPBackdoor(CLIPTraining, CarriesPatch, DataPoisoning):
    """``train_text`` of DECREE's ``attack_encoder.py``, epoch by epoch as its script calls it: the
    image tower learns, with batch norm frozen and the text tower as it was.

    The training images are poisoned as by the native attack and carry the harness's captions. The
    repository's own data set needs ImageNet on disk, leaves the images as they are (it reads the
    first row of the trigger file for the whole of it) and captions clean images with classes at
    random (docs/upstream-audit.md). Its crops and flips are used, at the encoder's image size and
    with the encoder's normalisation where the script asks for ImageNet's.
    """

    repository: ClassVar[str] = "DECREE"
    departs: ClassVar[Mapping[str, str]] = {"attack_success_rate": "U71", "clean_accuracy": "U71"}
    poisons: ClassVar[Literal["target-class", "other-classes"]] = "other-classes"
    published_epochs: ClassVar[int] = 30

    poison_rate: float = Field(5e-4, ge=0, le=1)
    epochs: int = Field(published_epochs, ge=1)
    """As many as run. The script runs 19 more than it is asked for, and saves each of those."""
    learning_rate: float = Field(2e-4, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.02, ge=0)
    knn_t: float = 0.5
    """Logarithm of the factor on cosine similarities, under its published name: exp(0.5) = 1.65,
    where CLIP's own is near 100."""

    def poison(self, train: ImageSet, world: PoisonerWorld) -> PoisonedSet:
        shared = ("poison_rate", *CarriesPatch.model_fields)
        native = CLIPBackdoor(**{name: getattr(self, name) for name in shared})
        return native.poison(train, world)

    def training(self) -> dict[str, Any]:
        names = ("epochs", "batch_size", "learning_rate", "momentum", "weight_decay", "knn_t")
        return {name: getattr(self, name) for name in names}
