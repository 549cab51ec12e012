"""Projection on the direction in which a suspicious pool varies most."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import PrivateAttr
from torch import Tensor

from bench.api import DefenderView, Defense, Encoder, Field, Requirement


class SpectralSignatures(Defense):
    """Spectral signature of the embedding (Tran, Li and Madry, "Spectral Signatures in Backdoor
    Attacks", NeurIPS 2018, algorithm 1).

    Adapted, twice. The paper ranks the samples of a poisoned training set within each label; no
    embedding has a label here, so the whole pool is one class, and the spread of the real classes
    competes with the backdoor for the top direction. And it removes training samples; here centre
    and direction are those of the suspicious pool, and any image is scored by its projection.

    Attributes
    ----------
    directions
        Top right-singular vectors on which the squared projections are summed; 1 in the paper.
    """

    requires: ClassVar[frozenset[Requirement]] = frozenset({"suspicious"})

    directions: int = Field(1, ge=1)

    _mean: Tensor = PrivateAttr()
    _top: Tensor = PrivateAttr()
    _encoder: Encoder = PrivateAttr()

    def fit(self, view: DefenderView) -> None:
        """Centre and top singular directions of the pool's embeddings.

        Raises
        ------
        ValueError
            When the pool or the embedding is too small, or all embeddings are the same.
        """
        limit = min(len(view.suspicious) - 1, view.encoder.embedding_dim)
        if limit < self.directions:
            raise ValueError(
                f"directions is {self.directions} but {len(view.suspicious)} suspicious images "
                f"in {view.encoder.embedding_dim} dimensions have at most {max(limit, 0)}"
            )
        pool = torch.cat([view.encoder.embed(part) for part in view.suspicious.batches(1000)])
        pool = pool.double().cpu()
        mean = pool.mean(dim=0)
        _, values, vectors = torch.linalg.svd(pool - mean, full_matrices=False)
        # Rounding of the mean leaves something of order 1e-16 where nothing varies.
        if values[0] <= 1e-9 * pool.norm():
            raise ValueError("all embeddings of the suspicious pool are equal: nothing varies")
        self.load_state({"mean": mean, "top": vectors[: self.directions].contiguous()}, view)

    def score(self, images: Tensor) -> Tensor:
        """float32 (N,): squared length of the projection, in squared units of the embedding."""
        offsets = self._encoder.embed(images).double().cpu() - self._mean
        return (offsets @ self._top.T).square().sum(dim=1).float()

    def state(self) -> dict[str, Tensor]:
        """``mean`` (D,) and ``top`` (directions, D), float64."""
        return {"mean": self._mean, "top": self._top}

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        """Restore what :meth:`state` gave."""
        self._mean, self._top, self._encoder = state["mean"].cpu(), state["top"].cpu(), view.encoder
