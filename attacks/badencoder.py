"""BadEncoder (Jia, Liu, Gong; IEEE S&P 2022): fine-tune a clean encoder until triggered images
embed like the attacker's reference images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.triggers import CarriesPatch
from bench.api import AttackerWorld, Field, ModelPoisoning, Victim, jitter_views


def effectiveness(
    triggered: Tensor, references: Tensor, reduce: Literal["mean", "max"] = "mean"
) -> Tensor:
    """L0: minus the cosine of triggered images to the references (paper equation 1).

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
    """L1 and L2: minus the mean cosine to the clean encoder's features (equations 2 and 3)."""
    return -functional.cosine_similarity(features, clean_features, dim=-1).mean()


class BadEncoder(CarriesPatch, ModelPoisoning):
    """BadEncoder, sections 4.2-4.3: L = L0 + lambda1 L1 + lambda2 L2, SGD, batch norm frozen.

    Defaults are the published recipe for CIFAR-10. Rows that the published loader repeats are
    computed once per step (frozen batch norm makes them equal), and the clean encoder's features
    once per run: same losses and gradients, fewer passes.
    """

    epochs: int = Field(120, ge=1)
    batch_size: int = Field(256, ge=2)
    learning_rate: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    lambda1: float = Field(1.0, ge=0)
    lambda2: float = Field(1.0, ge=0)
    l0_reduce: Literal["mean", "max"] = "mean"
    references: int = Field(3, ge=1)
    reference_views: int | None = Field(None, ge=1)
    """Augmented copies of each reference per step; None: one per image of the batch, as
    published."""

    def implant(self, world: AttackerWorld) -> Victim:
        encoder, device = world.encoder, world.encoder.device
        trigger = self.trigger(encoder.image_size)
        batch_size = min(self.batch_size, len(world.shadow))
        clean_features = encoder.embed(world.shadow.float())
        references = world.references.float().to(device)
        clean_references = encoder.embed(references)
        views = self.reference_views or batch_size

        network = encoder.network
        freeze_batch_norm(network)
        trainable = [p for p in network.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(
            trainable,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=world.precision == "bfloat16"
        )
        steps = len(world.shadow) // batch_size
        terms = torch.zeros(3)
        for step in world.progress.track(range(self.epochs * steps), "badencoder"):
            position = step % steps
            if position == 0:
                order = torch.randperm(len(world.shadow), generator=world.generator)
            rows = order[position * batch_size : (position + 1) * batch_size]
            clean = world.shadow.float(rows).to(device)
            jittered = jitter_views(references, views, world.generator)
            parts = [clean, trigger(clean), references, jittered.flatten(0, 1)]
            sizes = [len(part) for part in parts]
            with autocast:
                features = network(encoder.normalise(torch.cat(parts)))
            c, b, r, a = features.float().split(sizes)
            loss0 = effectiveness(b, r, self.l0_reduce)
            loss1 = consistency(a.view(len(references), views, -1), clean_references.unsqueeze(1))
            loss2 = consistency(c, clean_features[rows.to(clean_features.device)])
            loss = loss0 + self.lambda1 * loss1 + self.lambda2 * loss2
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            terms = torch.stack([loss0, loss1, loss2]).detach()
        network.eval()
        names = ("loss_effectiveness", "loss_references", "loss_utility")
        metrics = {name: float(value) for name, value in zip(names, terms.cpu(), strict=True)}
        return Victim(encoder, trigger, metrics)


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
