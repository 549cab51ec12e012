"""DECREE's trigger inversion by the code of its authors (Feng et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import PrivateAttr
from torch import Tensor

from bench.api import DefenderView, Defense, Encoder, Field, ImageSet, Requirement
from bench.upstream.component import UpstreamComponent
from bench.upstream.formats import write_images
from bench.upstream.job import UpstreamError
from defenses._decree_inversion import Trigger, mask_size
from defenses.decree import Decree
from defenses.upstream._lending import write_encoder

IMAGE_SIZE = 32
PUBLISHED = {"shadow_images": 1000, "batch_size": 128, "max_epochs": 1000}


class UpstreamDecree(UpstreamComponent, Defense):
    """``main`` of DECREE's ``main.py`` with its settings for 32 pixels, on the defender's encoder
    and shadow images. Published values are the defaults; what the code fixes (learning rates after
    epoch 30, the weight of the mask, when to stop) is no parameter.

    The verdict on the encoder is the paper's rule on what it returns. The sample detector on top
    is ours, as for the native entry and by the same code (:class:`defenses.decree.Decree`): neither
    the paper nor its repository scores images.

    - Mask and pattern are kept in floats; the code saves 8-bit pictures.
    - When nothing reached the cosine threshold PL1 counts as 1, and images are scored by the
      trigger of the largest similarity. The code keeps none; it is caught from the parameters of
      the step that had it.
    - Images are normalised as the encoder has it, where the code takes CIFAR-10's statistics.
      These are the same for all but CLIP encoders, on which the code would take ImageNet's.
    - One image less is used where the last batch would have a single one: its similarity to
      nothing is no number, and all parameters after it would be none (docs/upstream-audit.md).

    Attributes
    ----------
    shadow_images
        How many of the auxiliary images the inversion uses, at most; drawn once.
    learning_rate
        Of the first 30 epochs; then it is 0.1, and 0.05 from epoch 50.
    max_epochs
        After which the search is ended with what it has; the code's own end is 1000.
    initial_mask
        ``random``, or the ``square`` of 22 pixels (``orc``).
    pl1_threshold, statistic, gate
        As of the native entry.
    """

    repository: ClassVar[str] = "DECREE"
    requires: ClassVar[frozenset[Requirement]] = frozenset({"gradients", "network"})
    scoring_parameters: ClassVar[frozenset[str]] = Decree.scoring_parameters

    shadow_images: int = Field(PUBLISHED["shadow_images"], ge=2)
    batch_size: int = Field(PUBLISHED["batch_size"], ge=2)
    learning_rate: float = Field(0.5, gt=0)
    cosine_threshold: float = Field(0.99, gt=0, lt=1)
    max_epochs: int = Field(PUBLISHED["max_epochs"], ge=1, le=PUBLISHED["max_epochs"])
    initial_mask: Literal["random", "square"] = "random"
    pl1_threshold: float = Field(0.1, gt=0, le=1)
    statistic: Literal["collapse", "stamped-similarity", "centred"] = "collapse"
    gate: bool = False

    _scorer: Decree | None = PrivateAttr(default=None)

    def reduced(self, images: Mapping[str, int]) -> str:
        parts = []
        shadow = min(self._images, images["auxiliary"])
        if shadow < PUBLISHED["shadow_images"]:
            parts.append(f"{shadow:,} of {PUBLISHED['shadow_images']:,} shadow images")
        if self.batch_size < PUBLISHED["batch_size"]:
            parts.append(f"batches of {self.batch_size} instead of {PUBLISHED['batch_size']}")
        if self.max_epochs < PUBLISHED["max_epochs"]:
            parts.append(f"at most {self.max_epochs} of {PUBLISHED['max_epochs']:,} epochs")
        return ", ".join(parts)

    def check(self, image_size: int) -> None:
        """Refuse other sizes: the code has another set of settings for each.

        Raises
        ------
        ValueError
        """
        if image_size != IMAGE_SIZE:
            raise ValueError(f"DECREE's code is run on {IMAGE_SIZE}-pixel images, not {image_size}")

    def fit(self, view: DefenderView) -> None:
        """Invert a trigger in the authors' process and measure to where stamped images collapse.

        Raises
        ------
        ValueError
            When there are fewer than two auxiliary images, or they are of another size.
        UpstreamError
            When the code saw other images than it was given.
        """
        self.check(view.encoder.image_size)
        shadow = self._shadow(view)
        with self.job(view.encoder.device) as job:
            write_encoder(job.inputs / "encoder.safetensors", view.encoder)
            # The code takes the first tenth of every class, rounded up: of a class each, all.
            write_images(job.inputs / "shadow.npz", shadow.uint8(), torch.arange(len(shadow)))
            job.run(
                {
                    "batch_size": self.batch_size,
                    "learning_rate": self.learning_rate,
                    "cosine_threshold": self.cosine_threshold,
                    "max_epochs": self.max_epochs,
                    "initial_mask": self.initial_mask,
                    "seed": int(torch.randint(2**31, (), generator=view.generator)),
                }
            )
            found = job.arrays("trigger.npz")
        if found["images"] != len(shadow):
            raise UpstreamError(
                f"DECREE's code saw {found['images']:g} of {len(shadow)} shadow images"
            )
        self._scorer = self._native()
        self._scorer.adopt(
            _trigger(found, view.encoder), bool(found["reached"]), shadow, view.encoder
        )

    def score(self, images: Tensor) -> Tensor:
        """float32 (N,), see :meth:`defenses.decree.Decree.score`."""
        return self._fitted().score(images)

    def score_encoder(self) -> float:
        """-PL1, in [-1, 0]; -1 when no trigger reached the cosine threshold."""
        return self._fitted().score_encoder()

    def encoder_threshold(self) -> float:
        """-``pl1_threshold``."""
        return -self.pl1_threshold

    def encoder_in_words(self) -> str:
        return self._fitted().encoder_in_words()

    def figures(self, images: Tensor) -> dict[str, np.ndarray]:
        """``stamped``, ``inverted_trigger`` and ``inverted_mask``."""
        return self._fitted().figures(images)

    def state(self) -> dict[str, Tensor]:
        """What :meth:`defenses.decree.Decree.state` gives."""
        return self._fitted().state()

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        """Restore what :meth:`state` gave."""
        self._scorer = self._native()
        self._scorer.load_state(state, view)

    @property
    def _images(self) -> int:
        """Shadow images at most."""
        return self.given(self.shadow_images)

    def _shadow(self, view: DefenderView) -> ImageSet:
        order = torch.randperm(len(view.auxiliary), generator=view.generator)[: self._images]
        if len(order) > self.batch_size and len(order) % self.batch_size == 1:
            order = order[:-1]
        if len(order) < 2:
            raise ValueError(f"DECREE needs two auxiliary images, got {len(order)}")
        return view.auxiliary.select(order)

    def _native(self) -> Decree:
        return Decree(**{name: getattr(self, name) for name in self.scoring_parameters})

    def _fitted(self) -> Decree:
        if self._scorer is None:
            raise RuntimeError("UpstreamDecree has not been fitted: call fit or load_state first")
        return self._scorer


def _trigger(found: dict[str, np.ndarray], encoder: Encoder) -> Trigger:
    """What the driver left, on the encoder's device and in [0, 1]."""
    mask = torch.from_numpy(found["mask"])
    pattern = torch.from_numpy(found["pattern"]).permute(2, 0, 1) / 255
    size, similarity = float(mask_size(mask)), float(found["similarity"])
    return Trigger(mask.to(encoder.device), pattern.to(encoder.device), size, similarity)
