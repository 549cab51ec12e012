"""SimCLR pretraining (Chen et al. 2020) as the published CIFAR-10 encoders were made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.api import Component, Field, Progress
from bench.data.augmentation import Augmentation
from bench.data.imageset import ImageSet
from bench.encoders.architectures import SimCLR, projector
from bench.encoders.encoder import Encoder
from bench.encoders.randomness import seeded, stream

__all__ = ["SimCLRRecipe", "nt_xent", "pretrain"]


class SimCLRRecipe(Component):
    """Hyper-parameters of SimCLR pretraining; the defaults are BadEncoder's published ones.

    Attributes
    ----------
    epochs
        Passes over the images; the last incomplete batch of each is dropped.
    batch_size
        Images per step; twice as many views go through the network.
    learning_rate, weight_decay
        Of Adam.
    temperature
        Of the NT-Xent loss.
    schedule
        ``constant`` as published, or ``cosine`` to zero, which short runs profit from.
    warmup_epochs
        Linear warm-up of the learning rate.
    projector_hidden, projector_out
        Sizes of the projector; the hidden one is the embedding's unless given.
    crop_scale
        Smallest share of the area that a random crop keeps (CTRL's recipe: 0.2).
    loss_scale
        Factor on the loss; 0.5 / 0.07 reproduces the SupCon loss of CTRL's code. Adam ignores it
        but for its epsilon and the weight decay.
    joint_batch_norm
        Both views in one batch, with common batch-norm statistics: a few per cent faster.
        Published: each view by itself.
    """

    version: ClassVar[int] = 1

    epochs: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=256, ge=2)
    optimizer: Literal["adam"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-6, ge=0)
    temperature: float = Field(default=0.5, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: int = Field(default=0, ge=0)
    projector_hidden: int | None = Field(default=None, ge=1)
    projector_out: int = Field(default=128, ge=1)
    crop_scale: float = Field(default=0.08, gt=0, le=1)
    loss_scale: float = Field(default=1.0, gt=0)
    joint_batch_norm: bool = False

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of the 0-based ``step``."""
        warmup = self.warmup_epochs * steps_per_epoch
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if self.schedule == "constant":
            return self.learning_rate
        share = (step - warmup) / max(1, self.epochs * steps_per_epoch - warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy, mean over the 2B anchors.

    Chen et al. 2020, equation 1: -log(exp(z.z+ / t) / sum over all others of exp(z.z' / t)).

    Parameters
    ----------
    first, second
        float32 (B, P) projections of the two views; scaled to unit length here.
    temperature
        t > 0.
    """
    views = F.normalize(torch.cat([first, second]), dim=1)
    similarity = (views @ views.T / temperature).fill_diagonal_(-math.inf)
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    return F.cross_entropy(similarity, partner)


def pretrain(
    recipe: SimCLRRecipe,
    architecture: str,
    settings: Mapping[str, Any] | None,
    images: ImageSet,
    *,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    progress: Progress,
) -> tuple[Encoder, dict[str, float]]:
    """Train an encoder on unlabelled images.

    Initialisation, batch order and views come from three streams of ``generator``: two runs on
    image sets of one length differ by their pixels alone (victim and clean twin).

    Parameters
    ----------
    images
        Their side becomes the encoder's; kept as uint8 on the device.
    generator
        On the CPU; the only source of randomness. The global generators are left alone.
    precision
        ``float32``, or ``bfloat16`` for autocast (about a third faster on a CPU that has it).
    progress
        Sees every step and may end the training early.

    Returns
    -------
    Encoder
        In eval mode, parameters frozen, on ``device``.
    dict
        ``loss_first`` and ``loss_last``, means over the first and the last epoch that ran (without
        ``loss_scale``), and ``steps``.

    Raises
    ------
    ValueError
        When a batch is larger than the set or the precision is unknown.
    FloatingPointError
        When the loss is no longer finite.
    """
    if recipe.batch_size > len(images):
        raise ValueError(
            f"batch_size {recipe.batch_size} exceeds the {len(images)} images of {images.name}"
        )
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be float32 or bfloat16, got {precision!r}")
    initial, order, views = (stream(generator) for _ in range(3))
    encoder = Encoder.initialise(
        architecture, settings, generator=initial, image_size=images.image_size
    )
    with seeded(initial):
        head = projector(encoder.embedding_dim, recipe.projector_hidden, recipe.projector_out)
    model = SimCLR(encoder.network, head).to(device).train()
    model = model.to(memory_format=torch.channels_last)
    losses = _train(recipe, model, encoder, images.to(device), order, views, precision, progress)
    encoder.network.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    per_epoch = len(images) // recipe.batch_size
    metrics = {
        "loss_first": float(losses[:per_epoch].mean()),
        "loss_last": float(losses[(len(losses) - 1) // per_epoch * per_epoch :].mean()),
        "steps": float(len(losses)),
    }
    return encoder, metrics


def _train(
    recipe: SimCLRRecipe,
    model: SimCLR,
    encoder: Encoder,
    images: ImageSet,
    order: torch.Generator,
    views: torch.Generator,
    precision: str,
    progress: Progress,
) -> Tensor:
    """Run the steps; float32 (steps,) losses on the CPU."""
    augment = Augmentation(crop_scale=(recipe.crop_scale, 1.0))
    optimizer = torch.optim.Adam(
        model.parameters(),
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    per_epoch = len(images) // recipe.batch_size
    losses: list[Tensor] = []
    for step in progress.track(range(recipe.epochs * per_epoch), "pretrain"):
        position = step % per_epoch
        if position == 0:
            _check_finite(losses)
            permutation = torch.randperm(len(images), generator=order)
        batch = images.float(permutation[position * recipe.batch_size :][: recipe.batch_size])
        pair = [encoder.normalise(augment(batch, views)) for _ in range(2)]
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step, per_epoch)
        loss = nt_xent(
            *_project(model, pair, precision, recipe.joint_batch_norm), recipe.temperature
        )
        optimizer.zero_grad(set_to_none=True)
        (loss * recipe.loss_scale).backward()
        optimizer.step()
        losses.append(loss.detach())
    _check_finite(losses)
    return torch.stack(losses).cpu()


def _project(
    model: SimCLR, pair: list[Tensor], precision: str, joint: bool
) -> tuple[Tensor, Tensor]:
    batches = [torch.cat(pair)] if joint else pair
    batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
    low = precision == "bfloat16"
    with torch.autocast(batches[0].device.type, torch.bfloat16, enabled=low):
        projections = torch.cat([model(batch) for batch in batches]).float()
    first, second = projections.chunk(2)
    return first, second


def _check_finite(losses: list[Tensor]) -> None:
    # Once per epoch: reading a loss waits for the accelerator.
    if losses and not torch.isfinite(losses[-1]):
        raise FloatingPointError(f"the SimCLR loss is {float(losses[-1])} at step {len(losses)}")
