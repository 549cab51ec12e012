"""Labels for images that have none: those of their neighbours in the victim's embedding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.api import ImageSet

QUERIES = 1024


@dataclass(frozen=True)
class NeighbourLabels:
    """A vote among the nearest labelled embeddings by cosine; the lowest label wins a tie.

    Attributes
    ----------
    bank
        float32 (M, D), of unit length.
    labels
        int64 (M,) on the bank's device.
    neighbours
        How many vote, at most M.
    """

    bank: Tensor
    labels: Tensor
    neighbours: int

    @classmethod
    def of(cls, images: ImageSet, embeddings: Tensor, neighbours: int) -> NeighbourLabels:
        """The labels of ``images``, whose ``embeddings`` (M, D) are given.

        Raises
        ------
        ValueError
            When they have no labels or are fewer than ``neighbours``.
        """
        if not images.labelled:
            raise ValueError(
                f"{images.name} has no labels, and the objective label-assisted needs them: take "
                "a labelled auxiliary set, or the objective variance"
            )
        if len(images) < neighbours:
            raise ValueError(
                f"neighbours is {neighbours} but there are {len(images)} auxiliary images"
            )
        return cls(F.normalize(embeddings), images.labels.to(embeddings.device), neighbours)

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        return int(self.labels.max()) + 1

    def __call__(self, embeddings: Tensor) -> Tensor:
        """float32 (N, D) -> int64 (N,)."""
        votes = []
        for queries in F.normalize(embeddings).split(QUERIES):
            nearest = (queries @ self.bank.T).topk(self.neighbours, dim=1, sorted=False).indices
            counts = F.one_hot(self.labels[nearest], self.classes).sum(dim=1)
            votes.append(counts.argmax(dim=1))
        return torch.cat(votes)
