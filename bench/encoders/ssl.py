"""Self-supervised pretraining: SimCLR (Chen et al. 2020) and BYOL (Grill et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bench.component import Component, Field, Progress
from bench.data.augmentation import Augmentation
from bench.data.imageset import ImageSet
from bench.encoders.encoder import Encoder
from bench.encoders.objectives import BYOL, SimCLR
from bench.encoders.randomness import stream

__all__ = ["SSLRecipe", "pretrain"]


class SSLRecipe(Component):
    """Hyper-parameters of self-supervised pretraining; the defaults are those of the published
    BadEncoder encoders (SimCLR on CIFAR-10).

    Attributes
    ----------
    ssl
        ``simclr`` or ``byol``.
    epochs
        Passes over the images; the last incomplete batch of each is dropped.
    batch_size
        Images per step; twice as many views go through the network.
    optimizer, learning_rate, momentum, weight_decay
        ``momentum`` is SGD's alone.
    temperature
        Of SimCLR's NT-Xent loss.
    schedule
        ``constant`` as published, ``cosine`` by step to zero, which short runs profit from, or
        ``epoch-cosine``: the schedule of CTRL's code, constant within an epoch, see
        :meth:`learning_rate_at`.
    warmup_epochs
        Linear warm-up of the learning rate.
    projector_hidden, projector_out, projector_batch_norm
        The projector; its hidden width is the embedding's (BYOL: 2048) unless given. Without
        batch norm its first layer has a bias (CTRL's code). BYOL's is always normalised, and its
        predictor is shaped alike.
    crop_scale
        Smallest share of the area that a random crop keeps (CTRL: 0.2).
    loss_scale
        Factor on the loss; 0.5 / 0.07 reproduces the SupCon loss of CTRL's code. Adam ignores it
        but for its epsilon and the weight decay.
    joint_batch_norm
        Both views in one batch, with common batch-norm statistics (CTRL's SimCLR; a few per cent
        faster). BadEncoder's and BYOL's: each view by itself.
    normalise_input
        False leaves pixels in [0, 1], as CTRL's code does; the encoder then carries mean 0 and
        deviation 1, so that nothing downstream can mix them up.
    target_momentum
        Of BYOL's exponential moving average.
    target_initialisation
        Whether BYOL's target starts as a copy of the online network (paper) or from a draw of its
        own (CTRL's code).
    """

    version: ClassVar[int] = 1

    ssl: Literal["simclr", "byol"] = "simclr"
    epochs: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=256, ge=2)
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-6, ge=0)
    temperature: float = Field(default=0.5, gt=0)
    schedule: Literal["constant", "cosine", "epoch-cosine"] = "constant"
    warmup_epochs: int = Field(default=0, ge=0)
    projector_hidden: int | None = Field(default=None, ge=1)
    projector_out: int = Field(default=128, ge=1)
    projector_batch_norm: bool = True
    crop_scale: float = Field(default=0.08, gt=0, le=1)
    loss_scale: float = Field(default=1.0, gt=0)
    joint_batch_norm: bool = False
    normalise_input: bool = True
    target_momentum: float = Field(default=0.996, ge=0, le=1)
    target_initialisation: Literal["online", "random"] = "online"

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of the 0-based ``step``.

        ``epoch-cosine`` is what CTRL's code computes for epoch e of E, with W warm-up epochs:
        lr e / W up to e = W (so epoch 0 learns nothing), then lr (1 + cos(pi (e - W - 1) / E)) / 2.
        """
        epoch, warmup = step // steps_per_epoch, self.warmup_epochs
        if self.schedule == "epoch-cosine":
            if epoch <= warmup:
                return self.learning_rate * (epoch / warmup if warmup else 1.0)
            angle = math.pi * (epoch - warmup - 1) / self.epochs
            return self.learning_rate * 0.5 * (1 + math.cos(angle))
        if epoch < warmup:
            return self.learning_rate * (step + 1) / (warmup * steps_per_epoch)
        if self.schedule == "constant":
            return self.learning_rate
        share = (step - warmup * steps_per_epoch) / max(1, (self.epochs - warmup) * steps_per_epoch)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))

    def optimiser(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Adam or SGD over ``parameters``, fused."""
        common = {"lr": self.learning_rate, "weight_decay": self.weight_decay, "fused": True}
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, momentum=self.momentum, **common)
        return torch.optim.Adam(parameters, **common)


def pretrain(
    recipe: SSLRecipe,
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
    raw = {} if recipe.normalise_input else {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    encoder = Encoder.initialise(
        architecture, settings, generator=initial, image_size=images.image_size, **raw
    )
    model = (BYOL if recipe.ssl == "byol" else SimCLR).around(encoder.network, recipe, initial)
    model = model.to(device, memory_format=torch.channels_last).train()
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
    recipe: SSLRecipe,
    model: SimCLR | BYOL,
    encoder: Encoder,
    images: ImageSet,
    order: torch.Generator,
    views: torch.Generator,
    precision: str,
    progress: Progress,
) -> Tensor:
    """Run the steps; float32 (steps,) losses on the CPU."""
    augment = Augmentation(crop_scale=(recipe.crop_scale, 1.0))
    optimizer = recipe.optimiser([p for p in model.parameters() if p.requires_grad])
    per_epoch = len(images) // recipe.batch_size
    autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16")
    # One buffer: small tensors kept from every step would pin the memory between them.
    losses = torch.zeros(recipe.epochs * per_epoch, device=images.device)
    done = 0
    for step in progress.track(range(recipe.epochs * per_epoch), "pretrain"):
        position = step % per_epoch
        if position == 0:
            check_finite(losses[:done])
            permutation = torch.randperm(len(images), generator=order)
        batch = images.float(permutation[position * recipe.batch_size :][: recipe.batch_size])
        pair = [encoder.normalise(augment(batch, views)) for _ in range(2)]
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step, per_epoch)
        loss = model.loss(pair, autocast)
        optimizer.zero_grad(set_to_none=True)
        (loss * recipe.loss_scale).backward()
        optimizer.step()
        losses[step], done = loss.detach(), step + 1
    check_finite(losses[:done])
    return losses[:done].cpu()


def check_finite(losses: Tensor) -> None:
    """Raise when the last of (steps,) losses is not finite.

    To be called once per epoch: reading a loss waits for the accelerator.
    """
    if len(losses) and not torch.isfinite(losses[-1]):
        raise FloatingPointError(f"the loss is {float(losses[-1])} at step {len(losses)}")
