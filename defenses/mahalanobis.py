"""Mahalanobis distance to the clean embeddings."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import PrivateAttr
from sklearn.covariance import LedoitWolf
from torch import Tensor

from bench.api import DefenderView, Defense, Encoder


class Mahalanobis(Defense):
    """Squared Mahalanobis distance to the auxiliary embeddings (Lee et al., "A Simple Unified
    Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks", NeurIPS 2018),
    with one Gaussian, as nothing is labelled, of the embedding alone, where the paper combines
    layers and perturbs inputs, and the shrunk covariance of Ledoit and Wolf (2004), which stays
    invertible when dimensions are many or dead.
    """

    first_aid: ClassVar[bool] = True

    _mean: Tensor = PrivateAttr()
    _precision: Tensor = PrivateAttr()
    _encoder: Encoder = PrivateAttr()

    def fit(self, view: DefenderView) -> None:
        """Estimate mean and precision of the auxiliary embeddings.

        Raises
        ------
        ValueError
            When all auxiliary embeddings are the same: no covariance can be inverted.
        """
        embeddings = view.embed_auxiliary().double().cpu().numpy()
        if not np.ptp(embeddings, axis=0).any():
            raise ValueError("all auxiliary embeddings are equal: they have no covariance")
        gaussian = LedoitWolf().fit(embeddings)
        self.load_state(
            {
                "mean": torch.from_numpy(gaussian.location_),
                "precision": torch.from_numpy(gaussian.precision_),
            },
            view,
        )

    def score(self, images: Tensor) -> Tensor:
        """float32 (N,): squared distance, about D for an image like the auxiliary ones."""
        offsets = self._encoder.embed(images).double().cpu() - self._mean
        return ((offsets @ self._precision) * offsets).sum(dim=1).float()

    def state(self) -> dict[str, Tensor]:
        """``mean`` (D,) and ``precision`` (D, D), float64."""
        return {"mean": self._mean, "precision": self._precision}

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        """Restore what :meth:`state` gave."""
        self._mean, self._precision = state["mean"].cpu(), state["precision"].cpu()
        self._encoder = view.encoder
