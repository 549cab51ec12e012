"""What reference-based attacks share: fine-tuning a clean encoder until triggered images embed
like the attacker's reference images (BadEncoder; Jia, Liu, Gong; IEEE S&P 2022, section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.triggers import CarriesPatch
from bench.api import AttackerWorld, Field, ModelPoisoning, Victim, jitter_views

Reduction = Literal["mean", "max"]


def effectiveness(triggered: Tensor, references: Tensor, reduce: Reduction = "mean") -> Tensor:
    """L0: minus the cosine of triggered images to the references (BadEncoder, equation 1).

    ``mean`` averages over references as the paper does; ``max`` takes the closest reference of
    each image, as the code of DRUPE does for both methods.

    Parameters
    ----------
    triggered
        (B, D) features of stamped images.
    references
        (n, D), or (n, B, D) when each image has references of its own.
    """
    if references.ndim == 2:
        references = references.unsqueeze(1)
    similarity = functional.cosine_similarity(triggered.unsqueeze(0), references, dim=-1)
    if reduce == "max":
        return -similarity.max(0).values.mean()
    return -similarity.mean()


def consistency(features: Tensor, clean_features: Tensor) -> Tensor:
    """L1 and L2: minus the mean cosine to the clean encoder's features (equations 2 and 3).

    The two (..., D) shapes are broadcast.
    """
    return -functional.cosine_similarity(features, clean_features, dim=-1).mean()


def freeze_batch_norm(network: nn.Module) -> None:
    """Train mode, with every 2-D batch norm in eval and its affine parameters frozen.

    Running statistics then never change and equal rows stay equal, as in the published code.
    """
    network.train()
    network.requires_grad_(True)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.requires_grad_(False)


class ReferenceAttack(CarriesPatch, ModelPoisoning):
    """The hyper-parameters of the fine-tuning; defaults: DRUPE's repository, for CIFAR-10."""

    epochs: int = Field(120, ge=1)
    batch_size: int = Field(256, ge=2)
    learning_rate: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    lambda1: float = Field(1.0, ge=0)
    """Weight of L1: augmented references keep the embedding of the clean encoder."""
    lambda2: float = Field(1.0, ge=0)
    """Weight of L2: clean images keep theirs."""
    reference_views: int | None = Field(None, ge=1)
    """Augmented copies of each reference per step; None: one per image of the batch, as
    published."""


@dataclass(frozen=True)
class StepFeatures:
    """What the losses of one step are made of; all float32 and unnormalised.

    Attributes
    ----------
    epoch
        Counted from 1.
    images, triggered
        (B, D): the trained encoder on a batch of shadow images, and on the same images stamped.
    references
        (n, D): the trained encoder on the references.
    augmented
        (V, n, D): the same on V augmented views of each reference.
    clean_images, clean_references
        (B, D) and (n, D): the clean encoder on ``images`` and ``references``; constants.
    """

    epoch: int
    images: Tensor
    triggered: Tensor
    references: Tensor
    augmented: Tensor
    clean_images: Tensor
    clean_references: Tensor


class FineTuning:
    """One run of SGD with frozen batch norm: yields features, takes losses.

    Rows that the published loader repeats are computed once per step (frozen batch norm makes
    them equal), and the clean encoder's features once per run: same losses and gradients, fewer
    passes. A shadow set smaller than the batch is one batch; of a larger one the incomplete last
    batch of an epoch is dropped.
    """

    def __init__(self, attack: ReferenceAttack, world: AttackerWorld) -> None:
        self._world = world
        self._encoder = encoder = world.encoder
        self._trigger = attack.trigger(encoder.image_size)
        self._batch_size = min(attack.batch_size, len(world.shadow))
        self._epochs = attack.epochs
        self._views = attack.reference_views or self._batch_size
        self._references = world.references.float().to(encoder.device)
        self._clean_images = encoder.embed(world.shadow.float())
        self._clean_references = encoder.embed(self._references)
        freeze_batch_norm(encoder.network)
        self._optimiser = torch.optim.SGD(
            [p for p in encoder.network.parameters() if p.requires_grad],
            lr=attack.learning_rate,
            momentum=attack.momentum,
            weight_decay=attack.weight_decay,
        )

    def steps(self, what: str) -> Iterator[StepFeatures]:
        """The features of every step in turn; :meth:`descend` is due before the next.

        Each epoch draws its order and each step its views from the world's generator.
        """
        shadow, generator = self._world.shadow, self._world.generator
        steps = len(shadow) // self._batch_size
        for step in self._world.progress.track(range(self._epochs * steps), what):
            epoch, position = divmod(step, steps)
            if position == 0:
                order = torch.randperm(len(shadow), generator=generator)
            rows = order[position * self._batch_size : (position + 1) * self._batch_size]
            yield self._features(epoch + 1, rows)

    def descend(self, loss: Tensor) -> None:
        """One step of SGD on ``loss``."""
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._optimiser.step()

    def victim(self, metrics: Mapping[str, float]) -> Victim:
        """The encoder as it is now, in eval mode, with its trigger."""
        self._encoder.network.eval()
        return Victim(self._encoder, self._trigger, metrics)

    def _features(self, epoch: int, rows: Tensor) -> StepFeatures:
        encoder, device = self._encoder, self._encoder.device
        clean = self._world.shadow.float(rows).to(device)
        jittered = jitter_views(self._references, self._views, self._world.generator)
        parts = [clean, self._trigger(clean), self._references, jittered.flatten(0, 1)]
        autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=self._world.precision == "bfloat16"
        )
        with autocast:
            features = encoder.network(encoder.normalise(torch.cat(parts)))
        images, triggered, references, augmented = features.float().split([len(p) for p in parts])
        return StepFeatures(
            epoch=epoch,
            images=images,
            triggered=triggered,
            references=references,
            augmented=augmented.unflatten(0, jittered.shape[:2]),
            clean_images=self._clean_images[rows.to(self._clean_images.device)],
            clean_references=self._clean_references,
        )
