"""Distance to the nearest clean embeddings."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PrivateAttr
from torch import Tensor
from torch.nn import functional as F

from bench.api import DefenderView, Defense, Encoder, Field

QUERIES = 1024


class KnnDistance(Defense):
    """Mean distance to the k nearest auxiliary embeddings, after Sun et al., "Out-of-Distribution
    Detection with Deep Nearest Neighbors" (ICML 2022), who take the distance to the k-th, at a k
    chosen on held-out data.

    Attributes
    ----------
    k
        Neighbours averaged over.
    metric
        ``cosine`` (1 - similarity, in [0, 2]) or ``euclidean`` on raw embeddings.
    """

    first_aid: ClassVar[bool] = True

    k: int = Field(10, ge=1)
    metric: Literal["cosine", "euclidean"] = "cosine"

    _bank: Tensor = PrivateAttr()
    _encoder: Encoder = PrivateAttr()

    def fit(self, view: DefenderView) -> None:
        """Keep the auxiliary embeddings.

        Raises
        ------
        ValueError
            When there are fewer than ``k`` auxiliary images.
        """
        if len(view.auxiliary) < self.k:
            raise ValueError(f"k is {self.k} but there are {len(view.auxiliary)} auxiliary images")
        self.load_state({"bank": view.embed_auxiliary()}, view)

    def score(self, images: Tensor) -> Tensor:
        """float32 (N,): mean distance to the nearest ``k``."""
        # float64: 1 - similarity of close neighbours cancels, and must not depend on batching.
        queries, bank = self._prepared(self._encoder.embed(images)), self._prepared(self._bank)
        parts = [self._distances(q, bank) for q in queries.split(QUERIES)]
        nearest = torch.cat([d.topk(self.k, dim=1, largest=False).values.mean(1) for d in parts])
        return nearest.float().cpu()

    def state(self) -> dict[str, Tensor]:
        """The auxiliary embeddings."""
        return {"bank": self._bank.cpu().contiguous()}

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        """Restore what :meth:`state` gave."""
        self._bank, self._encoder = state["bank"].to(view.encoder.device), view.encoder

    def _prepared(self, embeddings: Tensor) -> Tensor:
        wide = embeddings.double()
        return F.normalize(wide, dim=1) if self.metric == "cosine" else wide

    def _distances(self, queries: Tensor, bank: Tensor) -> Tensor:
        if self.metric == "cosine":
            return 1 - queries @ bank.T
        return torch.cdist(queries, bank)
