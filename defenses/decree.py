"""DECREE: an encoder is backdoored when a small stamp makes all images embed alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import PrivateAttr, model_validator
from torch import Tensor
from torch.nn import functional as F

from bench.api import DefenderView, Defense, Encoder, Field, ImageSet, Requirement
from defenses._decree_inversion import (
    CostController,
    Schedule,
    Trigger,
    TriggerSearch,
    batches_per_epoch,
    relative_size,
    shuffled_batches,
    square_mask,
    stamp,
)

Positive = Annotated[float, Field(gt=0)]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EMBED_BATCH = 256
"""Shadow images stamped at once when the collapse direction is measured: bounds memory."""


class Decree(Defense):
    """Encoder detector of Feng et al., "Detecting Backdoors in Pre-trained Encoders" (CVPR 2023),
    and, on top of it, a sample detector of our own.

    **The encoder detector is the paper's.** A mask and a pattern are optimised until all shadow
    images embed alike when stamped (mean cosine above ``cosine_threshold``) while the mask is kept
    small; a backdoor allows a far smaller mask than a clean encoder does. PL1 is the L1 of the
    smallest such mask as a share of the largest, and the encoder counts as backdoored when it is
    below ``pl1_threshold``. :meth:`score_encoder` is -PL1. When no trigger reached the cosine
    threshold PL1 counts as 1, the whole image. The rule is borderline at 32 pixels: BadEncoder's
    10x10 patch is itself 0.0977 of the image, just under the threshold of 0.1, so that only an
    inversion that finds less than the true patch condemns the encoder clearly.

    **The sample detector is OUR adaptation**; neither the paper nor its code scores images. If the
    inversion found the backdoor, truly triggered images embed near the direction c to which the
    stamped shadow images collapse; ``statistic`` says how that is scored, ``gate`` whether images
    are scored at all on an encoder that the paper's rule calls clean. When nothing reached the
    cosine threshold, c comes from the trigger that came closest. An image of the target class may
    well embed near c without a trigger. A trigger that is no patch (spectral, optimised), or one
    that switches on so sharply that no gradient leads to it, need not be found; and where clean
    images embed nearly alike to begin with, a small stamp suffices without any backdoor.

    Departures from the published code, none of which changes what is computed: images are
    normalised once and stamped in normalised space, the similarity is a closed form, the encoder is
    frozen (its weights gather gradients upstream), mask and pattern are float32 (``precision``),
    and the result is kept in floats instead of 8-bit pictures. Two change it: normalisation is the
    encoder's own (``normalisation``), and shadow images come from the defender's auxiliary set,
    where the published code takes a tenth of the test set.

    Defaults are the published ones for 32-pixel images. For 224 pixels the paper's setting is
    ``batch_size: 32, learning_rate_epochs: [200, 500], smallest_cost: 1e-7, stop_patience: 35,
    square_margin: 24, shadow_images: 10000`` (6 GB once normalised).

    Attributes
    ----------
    shadow_images
        How many of the auxiliary images the inversion uses, at most; drawn once.
    batch_size, max_epochs
        Images are drawn in a new order each epoch; a single one left over joins the batch before.
    learning_rates, learning_rate_epochs
        Adam's rates, and the epochs (from 0) at which the second and the third begin.
    cosine_threshold
        Absolute mean cosine above which a trigger works, in (0, 1).
    initial_cost, cost_factor, cost_patience, smallest_cost
        Weight of the mask's L1 in the loss: multiplied by the factor after more than
        ``cost_patience`` successful steps in a row, divided after as many failed ones unless it is
        below ``smallest_cost``.
    stop_patience, stop_check
        Stop once the smallest trigger has not shrunk for more than this many steps and the
        similarity is above the threshold: its mean over the epoch, asked at the end of each
        (``epoch``, as published), or that of the step, asked after each (``step``, sooner, with
        somewhat larger masks).
    initial_mask, square_margin
        ``random`` in [0, 1], as published, or a ``square`` that leaves ``square_margin`` pixels
        free on each side (the published code's other start). The pattern starts random.
    normalisation
        In the inversion: ``encoder``, its own, or ``imagenet``, which the published code applies
        to CLIP encoders whatever they were trained with. Images are always scored with its own.
    precision
        Type of the mask's and the pattern's parameters; published: float64.
    pl1_threshold
        PL1 below which the encoder counts as backdoored. The published code has no value; 0.1 is
        the paper's.
    statistic
        ``collapse``: cos(e(x), c). ``stamped-similarity``: cos(e(x), e(stamp(x))), with x stamped
        by the inverted trigger; two forward passes. ``centred``: cos(e(x), c) - cos(e(x), c0) with
        c0 the mean direction of clean shadow images, for encoders whose embeddings fill a narrow
        cone.
    gate
        True is strict DECREE: all scores are 0 when PL1 is not below ``pl1_threshold``.
    """

    requires: ClassVar[frozenset[Requirement]] = frozenset({"gradients"})
    first_aid: ClassVar[bool] = True
    scoring_parameters: ClassVar[frozenset[str]] = frozenset({"statistic", "gate", "pl1_threshold"})

    shadow_images: int = Field(1000, ge=2)
    batch_size: int = Field(128, ge=2)
    max_epochs: int = Field(1000, ge=1)
    learning_rates: tuple[Positive, Positive, Positive] = (0.5, 0.1, 0.05)
    learning_rate_epochs: tuple[int, int] = (30, 50)
    cosine_threshold: float = Field(0.99, gt=0, lt=1)
    initial_cost: Positive = 1e-3
    cost_factor: float = Field(5.0, gt=1)
    cost_patience: int = Field(5, ge=0)
    smallest_cost: Positive = 1e-5
    stop_patience: int = Field(10, ge=0)
    stop_check: Literal["epoch", "step"] = "epoch"
    initial_mask: Literal["random", "square"] = "random"
    square_margin: int = Field(5, ge=0)
    normalisation: Literal["encoder", "imagenet"] = "encoder"
    precision: Literal["float32", "float64"] = "float32"
    pl1_threshold: float = Field(0.1, gt=0, le=1)
    statistic: Literal["collapse", "stamped-similarity", "centred"] = "collapse"
    gate: bool = False

    _encoder: Encoder | None = PrivateAttr(default=None)
    _mask: Tensor = PrivateAttr()
    _pattern: Tensor = PrivateAttr()
    _collapse: Tensor = PrivateAttr()
    _clean: Tensor = PrivateAttr()
    _relative_size: float = PrivateAttr(default=1.0)

    @model_validator(mode="after")
    def _epochs_ascend(self) -> Decree:
        first, second = self.learning_rate_epochs
        if not 0 <= first <= second:
            raise ValueError(
                f"learning_rate_epochs must ascend from 0, got {first} and then {second}"
            )
        return self

    def check(self, image_size: int) -> None:
        """Refuse a square start that leaves no pixel."""
        if self.initial_mask == "square" and 2 * self.square_margin >= image_size:
            raise ValueError(
                f"square_margin {self.square_margin} leaves no pixel of {image_size}-pixel images"
            )

    def fit(self, view: DefenderView) -> None:
        """Invert a trigger on shadow images and measure to where stamped ones collapse.

        Raises
        ------
        ValueError
            When there are fewer than two auxiliary images, or the square start leaves no pixel.
        """
        if len(view.auxiliary) < 2:
            raise ValueError(f"DECREE needs two auxiliary images, got {len(view.auxiliary)}")
        self.check(view.encoder.image_size)
        order = torch.randperm(len(view.auxiliary), generator=view.generator)
        shadow = view.auxiliary.select(order[: self.shadow_images])
        search = self._searched(shadow, view)
        found = search.smallest or search.closest
        self.adopt(found, search.smallest is not None, shadow, view.encoder)

    def adopt(self, trigger: Trigger, reached: bool, shadow: ImageSet, encoder: Encoder) -> None:
        """Score by ``trigger`` from now on, whoever inverted it.

        Parameters
        ----------
        reached
            Whether it reached the cosine threshold; PL1 counts as 1 otherwise.
        shadow
            The images of which the directions of collapse are measured.
        """
        self._mask, self._pattern = trigger.mask.float(), trigger.pattern.float()
        self._encoder = encoder
        self._collapse = _mean_direction(
            encoder.embed(self._stamped(batch)) for batch in _batches(shadow, encoder)
        )
        self._clean = _mean_direction(encoder.embed(batch) for batch in _batches(shadow, encoder))
        self._relative_size = relative_size(trigger.size, encoder.image_size) if reached else 1.0

    def score(self, images: Tensor) -> Tensor:
        """float32 (N,): how near an image embeds to the collapse; a cosine in [-1, 1], a difference
        of two for ``centred``, 0 behind a closed ``gate``."""
        encoder = self._fitted()
        if self.gate and self._relative_size >= self.pl1_threshold:
            return torch.zeros(len(images))
        # Whole, not in parts: the harness recognises its own batches and need not embed them again.
        embedded = F.normalize(encoder.embed(images), dim=1)
        if self.statistic == "stamped-similarity":
            stamped = [
                encoder.embed(self._stamped(part.to(encoder.device)))
                for part in images.split(EMBED_BATCH)
            ]
            return (embedded * F.normalize(torch.cat(stamped), dim=1)).sum(dim=1).cpu()
        scores = (embedded * self._collapse).sum(dim=1)
        if self.statistic == "centred":
            scores = scores - (embedded * self._clean).sum(dim=1)
        return scores.cpu()

    def score_encoder(self) -> float:
        """-PL1, in [-1, 0]; -1 when no trigger reached the cosine threshold."""
        self._fitted()
        return -self._relative_size

    def encoder_threshold(self) -> float:
        """-``pl1_threshold``: above it an encoder counts as backdoored."""
        return -self.pl1_threshold

    def encoder_in_words(self) -> str:
        """How much of the image the inverted trigger covers, beside the rule."""
        self._fitted()
        found = f"inverted a trigger covering {100 * self._relative_size:.1f} % of the image"
        if self._relative_size >= 1:
            found = "found no trigger that makes all images embed alike"
        return f"{found} (rule: below {100 * self.pl1_threshold:g} %)"

    def figures(self, images: Tensor) -> dict[str, np.ndarray]:
        """``stamped``: each image under the inverted trigger; ``inverted_trigger`` (mask times
        pattern) and ``inverted_mask``, the same for every image."""
        count, device = len(images), self._fitted().device
        trigger = (self._mask * self._pattern).expand(count, -1, -1, -1)
        mask = self._mask.expand(count, 3, -1, -1)
        pictures = {
            "stamped": self._stamped(images.to(device)),
            "inverted_trigger": trigger,
            "inverted_mask": mask,
        }
        return {name: _pixels(picture) for name, picture in pictures.items()}

    def state(self) -> dict[str, Tensor]:
        """``mask`` (H, W) and ``pattern`` (3, H, W) in [0, 1], the unit directions ``collapse`` and
        ``clean`` (D,), all float32, and ``pl1``, one float64: 1 when nothing was found."""
        self._fitted()
        tensors = {
            "mask": self._mask,
            "pattern": self._pattern,
            "collapse": self._collapse,
            "clean": self._clean,
            "pl1": torch.tensor([self._relative_size], dtype=torch.float64),
        }
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        """Restore what :meth:`state` gave."""
        device = view.encoder.device
        self._mask, self._pattern = state["mask"].to(device), state["pattern"].to(device)
        self._collapse, self._clean = state["collapse"].to(device), state["clean"].to(device)
        self._relative_size = state["pl1"].item()
        self._encoder = view.encoder

    def _searched(self, shadow: ImageSet, view: DefenderView) -> TriggerSearch:
        """The search after its last step."""
        encoder, count = view.encoder, len(shadow)
        normalise = encoder.normalise if self.normalisation == "encoder" else _imagenet
        search = self._start(encoder, normalise, view.generator)
        # The images never change: they are normalised once, not once per step.
        inputs = torch.cat([normalise(batch) for batch in _batches(shadow, encoder)])
        rates = Schedule(self.learning_rates, self.learning_rate_epochs)
        size = min(self.batch_size, count)
        total = self.max_epochs * batches_per_epoch(count, size)
        batches = shuffled_batches(count, size, view.generator)
        similarities: list[float] = []
        for _ in view.progress.track(range(total), "decree", total=total):
            batch = next(batches)
            chosen = inputs[batch.rows.to(inputs.device)]
            similarities.append(search.step(chosen, rates.at(batch.epoch)))
            if self._stops(search.controller, similarities, batch.last):
                break
            if batch.last:
                similarities.clear()
        return search

    def _start(
        self, encoder: Encoder, normalise: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> TriggerSearch:
        side = encoder.image_size
        random = torch.rand(4, side, side, dtype=torch.float64, generator=generator)
        square = self.initial_mask == "square"
        return TriggerSearch(
            square_mask(side, self.square_margin) if square else random[0],
            random[1:],
            normalise=normalise,
            forward=encoder.forward_normalised,
            controller=CostController(
                goal=self.cosine_threshold,
                cost=self.initial_cost,
                factor=self.cost_factor,
                patience=self.cost_patience,
                smallest=self.smallest_cost,
            ),
            dtype=getattr(torch, self.precision),
            device=encoder.device,
        )

    def _stops(self, controller: CostController, similarities: list[float], last: bool) -> bool:
        """Whether to stop, given the similarities of this epoch so far."""
        if controller.stale <= self.stop_patience:
            return False
        if self.stop_check == "step":
            return controller.reached(similarities[-1])
        return last and controller.reached(sum(similarities) / len(similarities))

    def _stamped(self, images: Tensor) -> Tensor:
        return stamp(images, self._mask, self._pattern)

    def _fitted(self) -> Encoder:
        if self._encoder is None:
            raise RuntimeError("Decree has not been fitted: call fit or load_state first")
        return self._encoder


def _batches(images: ImageSet, encoder: Encoder) -> Iterator[Tensor]:
    return (batch.to(encoder.device) for batch in images.batches(EMBED_BATCH))


def _mean_direction(batches: Iterable[Tensor]) -> Tensor:
    """float32 (D,): the mean of unit embeddings, itself of unit length."""
    return F.normalize(torch.cat([F.normalize(b, dim=1) for b in batches]).mean(0), dim=0)


def _imagenet(images: Tensor) -> Tensor:
    mean, std = (
        images.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (images - mean) / std


def _pixels(images: Tensor) -> np.ndarray:
    pixels = images.clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
