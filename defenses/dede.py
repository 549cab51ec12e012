"""DeDe: a triggered image is one that its own embedding cannot draw."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import PrivateAttr, model_validator
from torch import Tensor

from bench.api import DefenderView, Defense, Encoder, Field, Requirement, seeded_with
from defenses._dede_model import (
    DecoderModel,
    keep_count,
    load_published,
    model_from_state,
    patch_mask,
    patchify,
    random_order,
    reconstruction_loss,
    unpatchify,
)

Positive = Annotated[float, Field(gt=0)]
SCORING_TOKENS = 32_768
"""Patches decoded at once when scoring: bounds memory at 224 px as at 32 px."""
SMALL_ATTENTION = 256
"""Patches up to which whole attention maps are cheap to hold (see ``materialise_attention``)."""


class Dede(Defense):
    """Sample detector of Hou et al., "DeDe: Detecting Backdoor Samples for SSL Encoders via
    Decoders" (CVPR 2025).

    A masked autoencoder learns, on the defender's images, to rebuild an image from the encoder's
    raw embedding and a few visible patches. The embedding of a triggered image is that of the
    target, so what is drawn from it does not match: the score is the squared error summed over the
    hidden patches, in normalised units.

    Three departures from the published script. Batches are drawn in a new seeded order each epoch;
    upstream walks the stored order and drops the same last images every time, which lets the order
    of a file decide what is learnt. The random masks come from seeded draws on the device: one per
    image in training, and one for all images in scoring, so that a score depends on its image
    alone. Where ``test_mask_ratio`` leaves patches visible, they are thus the same of every image.
    And the published in-distribution recipe trains on a set of which 1 % carries the trigger; here
    that is the matrix entry's to say (``auxiliary_poison_rate``).

    The published decoder trains on 50,000 images in distribution or 100,000 outside it, here on
    what the protocol gives a defender: 200 epochs of 10,800 images are 8,400 steps, for 39,000 and
    78,000. Its scripts change settings with the attack (a mask of 0.75 for CTRL, patches of 32 of
    224 pixels for BadCLIP); the benchmark has one for all.

    Attributes
    ----------
    patch_size
        Side of a patch in pixels; must divide the image side.
    mask_ratio, test_mask_ratio
        Share of patches hidden in training and in scoring, in (0, 1) and (0, 1].
        ``int(T * (1 - ratio))`` of T stay visible: at 0.99 none of 64, and the score then depends
        on the image only through its embedding.
    width, encoder_depth, decoder_depth, heads
        Size of the autoencoder; ``heads`` must divide ``width``.
    epochs, batch_size, learning_rate, weight_decay, schedule
        Adam. The published rate is constant; ``cosine`` lets it fall to 0 over the run.
    score_region
        ``all`` hidden pixels, or for analysis alone those ``outside-trigger``: what is left of the
        score when the trigger's own pixels, hard to rebuild on any encoder, do not count. The
        harness tells where they are and marks such rows.
    embedding
        ``own``, or for analysis ``another``: each image is drawn from the embedding of one of the
        defender's images instead, picked by its pixels alone. What a score still tells apart then
        was never in the embedding.
    mean, std
        Normalisation (R, G, B) of the space in which images are rebuilt and errors are summed; the
        CIFAR constants, as published, whatever normalisation the encoder uses itself.
    checkpoint
        A decoder saved by the authors' code. It is loaded instead of training, with its own sizes:
        of the fields above, only ``test_mask_ratio``, ``score_region``, ``embedding``, ``mean``
        and ``std`` then matter.
    """

    scoring_parameters: ClassVar[frozenset[str]] = frozenset(
        {"test_mask_ratio", "score_region", "embedding"}
    )

    patch_size: int = Field(4, ge=1)
    mask_ratio: float = Field(0.9, gt=0, lt=1)
    test_mask_ratio: float = Field(0.99, gt=0, le=1)
    width: int = Field(192, ge=1)
    encoder_depth: int = Field(12, ge=0)
    decoder_depth: int = Field(4, ge=1)
    heads: int = Field(3, ge=1)
    epochs: int = Field(200, ge=1)
    batch_size: int = Field(256, ge=1)
    learning_rate: Positive = 1e-3
    weight_decay: float = Field(1e-6, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    score_region: Literal["all", "outside-trigger"] = "all"
    embedding: Literal["own", "another"] = "own"
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    std: tuple[Positive, Positive, Positive] = (0.2023, 0.1994, 0.2010)
    checkpoint: Path | None = None

    _model: DecoderModel = PrivateAttr()
    _order: Tensor = PrivateAttr()
    _encoder: Encoder | None = PrivateAttr(default=None)
    _support: Tensor | None = PrivateAttr(default=None)
    _others: Tensor | None = PrivateAttr(default=None)

    @property
    def requires(self) -> frozenset[Requirement]:
        """Nothing, but for the analysis outside the trigger."""
        told = self.score_region == "outside-trigger"
        return frozenset({"trigger_support"}) if told else frozenset()

    @property
    def analysis(self) -> bool:
        """Whether the score is that of a control."""
        return super().analysis or self.embedding == "another"

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Dede:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        return self

    def check(self, image_size: int) -> None:
        """Refuse patches that do not tile the images, and a damaged checkpoint."""
        if self.checkpoint is not None:
            load_published(self.checkpoint)
        elif image_size % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide the {image_size}-pixel images"
            )

    def fit(self, view: DefenderView) -> None:
        """Train the decoder on (image, embedding) pairs of the auxiliary set, or load it.

        Raises
        ------
        ValueError
            When the patches do not tile the encoder's images, when nothing is hidden at the ratios
            asked for, or when the checkpoint is unreadable or made for another encoder.
        """
        init_seed, mask_seed = torch.randint(2**62, (2,), generator=view.generator).tolist()
        if self.checkpoint is not None:
            model = load_published(self.checkpoint)
        else:
            model = self._new_model(view.encoder, init_seed)
        # Drawn before training, so that a run cut short scores with the same patches.
        order = random_order(1, model.tokens, view.generator)[0]
        self._adopt(model, order, view)
        if self.checkpoint is None:
            self._train(view, mask_seed)

    def score(self, images: Tensor) -> Tensor:
        """float32 (N,): squared error summed over hidden pixels and channels, normalised units."""
        scores = []
        for predicted, patches, mask in self._rebuilt(images):
            errors = (predicted - patches).square()
            if self._support is not None:
                errors = errors.masked_fill(self._support, 0)
            scores.append((errors.sum(dim=2) * mask).sum(dim=1))
        return torch.cat(scores).cpu()

    def figures(self, images: Tensor) -> dict[str, np.ndarray]:
        """``reconstruction``: what is drawn in the hidden patches, the visible ones as they are."""
        pictures = []
        for predicted, patches, mask in self._rebuilt(images):
            mean, std = self._statistics(patches.device)
            mixed = torch.where(mask[:, :, None] > 0, predicted, patches)
            pixels = unpatchify(mixed, self._model.patch_size) * std + mean
            pictures.append(pixels.clamp(0, 1).mul(255).round().to(torch.uint8).cpu())
        return {"reconstruction": torch.cat(pictures).permute(0, 2, 3, 1).numpy()}

    def state(self) -> dict[str, Tensor]:
        """The decoder's tensors and the fixed permutation of the patches."""
        model = self._fitted().state_dict()
        tensors = {f"model.{key}": tensor.cpu().contiguous() for key, tensor in model.items()}
        return {"order": self._order.cpu(), **tensors}

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        """Restore what :meth:`state` gave."""
        prefix = "model."
        tensors = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        heads = self.heads if self.checkpoint is None else None
        self._adopt(model_from_state(tensors, heads), state["order"], view)

    def _new_model(self, encoder: Encoder, seed: int) -> DecoderModel:
        with seeded_with(seed):
            return DecoderModel(
                image_size=encoder.image_size,
                patch_size=self.patch_size,
                embedding_dim=encoder.embedding_dim,
                width=self.width,
                encoder_depth=self.encoder_depth,
                decoder_depth=self.decoder_depth,
                heads=self.heads,
            )

    def _adopt(self, model: DecoderModel, order: Tensor, view: DefenderView) -> None:
        encoder = view.encoder
        for name in ("image_size", "embedding_dim"):
            ours, theirs = getattr(model, name), getattr(encoder, name)
            if ours != theirs:
                raise ValueError(f"the decoder has {name} {ours}, the encoder {theirs}")
        used = ["test_mask_ratio"] if self.checkpoint else ["test_mask_ratio", "mask_ratio"]
        for name in used:
            ratio = getattr(self, name)
            if keep_count(model.tokens, ratio) == model.tokens:
                raise ValueError(f"{name} {ratio} hides none of the {model.tokens} patches")
        self._model = model.to(encoder.device).eval()
        self._order = order.to(encoder.device)
        self._encoder = encoder
        if self.score_region == "outside-trigger":
            pixels = view.trigger_support.to(encoder.device).float().expand(1, 3, -1, -1)
            self._support = patchify(pixels, model.patch_size) > 0
        if self.embedding == "another":
            self._others = view.embed_auxiliary().to(encoder.device)

    def _train(self, view: DefenderView, mask_seed: int) -> None:
        model, encoder = self._model, view.encoder
        device = torch.device(encoder.device)
        auxiliary = view.auxiliary.to(device)
        # Nothing augments the images, so the frozen encoder sees each of them once.
        embeddings = view.embed_auxiliary().to(device)
        batch_size = min(self.batch_size, len(auxiliary))
        total = self.epochs * (len(auxiliary) // batch_size)
        optimizer = torch.optim.Adam(
            model.parameters(), self.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self._rate(step / total)
        )
        half = view.precision == "bfloat16"
        model.materialise_attention(
            half and device.type == "cpu" and model.tokens <= SMALL_ATTENTION
        )
        masks = torch.Generator(device).manual_seed(mask_seed)
        kept = keep_count(model.tokens, self.mask_ratio)
        batches = _shuffled(len(auxiliary), batch_size, view.generator)
        for _ in view.progress.track(range(total), "dede", total=total):
            rows = next(batches)
            patches = self._patches(auxiliary.float(rows))
            order = random_order(len(rows), model.tokens, masks, device)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                predicted = model(patches, embeddings[rows.to(device)], order, kept)
            mask = patch_mask(order, kept)
            loss = reconstruction_loss(predicted, patches, mask, self.mask_ratio)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        model.materialise_attention(False)

    def _rate(self, done: float) -> float:
        return 1.0 if self.schedule == "constant" else (1 + math.cos(math.pi * done)) / 2

    @torch.inference_mode()
    def _rebuilt(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of (predicted, patches, mask): (n, T, 3pp) twice and (n, T)."""
        model = self._fitted()
        kept = keep_count(model.tokens, self.test_mask_ratio)
        images = images.to(self._order.device)
        # Whole, not in parts: the harness recognises its own batches and need not embed them again.
        if self._others is None:
            embeddings = self._encoder.embed(images)
        else:
            embeddings = self._others[_drawn_by_pixels(images, len(self._others))]
        size = max(1, SCORING_TOKENS // model.tokens)
        for part, embedded in zip(images.split(size), embeddings.split(size), strict=True):
            patches = self._patches(part)
            order = self._order.expand(len(part), -1)
            predicted = model(patches, embedded, order, kept)
            yield predicted, patches, patch_mask(order, kept)

    def _patches(self, images: Tensor) -> Tensor:
        mean, std = self._statistics(images.device)
        return patchify((images - mean) / std, self._model.patch_size)

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        shape = (1, 3, 1, 1)
        mean = torch.tensor(self.mean, device=device).view(shape)
        return mean, torch.tensor(self.std, device=device).view(shape)

    def _fitted(self) -> DecoderModel:
        if self._encoder is None:
            raise RuntimeError("Dede has not been fitted: call fit or load_state first")
        return self._model


def _drawn_by_pixels(images: Tensor, count: int) -> Tensor:
    """int64 (N,) in [0, count): a row for each image that depends on its 8-bit pixels alone."""
    pixels = images.mul(255).round().long().flatten(1)
    weights = torch.randint(2**31, (pixels.shape[1],), generator=torch.Generator().manual_seed(0))
    return (pixels * weights.to(pixels.device)).sum(dim=1) % count


def _shuffled(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers of full batches, epoch after epoch, each in a new order; the rest is dropped."""
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
