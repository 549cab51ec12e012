"""Isolation forest on the clean embeddings."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import PrivateAttr
from sklearn.ensemble import IsolationForest as Forest
from torch import Tensor

from bench.api import DefenderView, Defense, Encoder, Field


class IsolationForest(Defense):
    """How few random cuts set an embedding apart from the auxiliary ones (Liu, Ting and Zhou,
    "Isolation Forest", ICDM 2008).

    Attributes
    ----------
    trees
        Trees in the forest.
    subsample
        Auxiliary embeddings each tree is grown on; all of them when there are fewer.
    """

    first_aid: ClassVar[bool] = True

    trees: int = Field(100, ge=1)
    subsample: int = Field(256, ge=2)

    _forest: Forest = PrivateAttr()
    _encoder: Encoder = PrivateAttr()

    def fit(self, view: DefenderView) -> None:
        """Grow the forest on the auxiliary embeddings, from ``view.seed``."""
        self._encoder = view.encoder
        embeddings = view.embed_auxiliary().cpu().numpy()
        forest = Forest(
            n_estimators=self.trees,
            max_samples=min(self.subsample, len(embeddings)),
            random_state=view.seed % 2**32,
        )
        self._forest = forest.fit(embeddings)

    def score(self, images: Tensor) -> np.ndarray:
        """float32 (N,) in (0, 1): the anomaly score of the paper, 0.5 for an average image."""
        embeddings = self._encoder.embed(images).cpu().numpy()
        return (-self._forest.score_samples(embeddings)).astype(np.float32)
