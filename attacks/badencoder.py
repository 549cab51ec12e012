"""BadEncoder (Jia, Liu, Gong; IEEE S&P 2022): triggered images embed like references."""

from __future__ import annotations

from typing import ClassVar

import torch

from attacks._reference_tuning import (
    FineTuning,
    Reduction,
    ReferenceAttack,
    consistency,
    effectiveness,
    freeze_batch_norm,
)
from bench.api import AttackerWorld, Field, Victim

__all__ = ["BadEncoder", "consistency", "effectiveness", "freeze_batch_norm"]


class BadEncoder(ReferenceAttack):
    """BadEncoder, sections 4.2-4.3: L = L0 + lambda1 L1 + lambda2 L2, SGD, batch norm frozen.

    Defaults are those of the victims in DeDe's comparison, BadEncoder as DRUPE's repository runs it
    on CIFAR-10 (a learning rate of 0.05, 120 epochs, 10,000 shadow images, three references), with
    the paper's mean over references. BadEncoder's own code has 0.001, 200 epochs, all 50,000
    training images as shadow set and one reference per target. Rows that the published loader
    repeats are computed once per step (frozen batch norm makes them equal), and the clean encoder's
    features once per run: same losses and gradients, fewer passes.
    """

    version: ClassVar[int] = 2

    l0_reduce: Reduction = "mean"
    references: int = Field(3, ge=1)

    def implant(self, world: AttackerWorld) -> Victim:
        tuning = FineTuning(self, world)
        terms = torch.zeros(3)
        for features in tuning.steps("badencoder"):
            loss0 = effectiveness(features.triggered, features.references, self.l0_reduce)
            loss1 = consistency(features.augmented, features.clean_references)
            loss2 = consistency(features.images, features.clean_images)
            tuning.descend(loss0 + self.lambda1 * loss1 + self.lambda2 * loss2)
            terms = torch.stack([loss0, loss1, loss2]).detach()
        names = ("loss_effectiveness", "loss_references", "loss_utility")
        return tuning.victim(dict(zip(names, terms.tolist(), strict=True)))
