"""How sparse the neighbourhood of an embedding is beside those of its neighbours."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import PrivateAttr
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from bench.api import DefenderView, Defense, Encoder, Field

TINY = 1e-10  # as in scikit-learn: the density of equal embeddings stays finite


class Lof(Defense):
    """Local outlier factor of the embedding among the auxiliary ones (Breunig, Kriegel, Ng and
    Sander, "LOF: Identifying Density-Based Local Outliers", SIGMOD 2000, definitions 5 to 7).

    Adapted: the paper ranks the points of one set; here the densities are those of the auxiliary
    embeddings alone, as in scikit-learn's novelty mode, so that scored images do not count each
    other as neighbours. Euclidean distances on raw embeddings.

    ``neighbours`` is the paper's MinPts; it advises 10 to 50, and 20 is scikit-learn's default.
    """

    first_aid: ClassVar[bool] = True

    neighbours: int = Field(20, ge=1)

    _index: NearestNeighbors = PrivateAttr()
    _state: dict[str, Tensor] = PrivateAttr()
    _encoder: Encoder = PrivateAttr()

    def fit(self, view: DefenderView) -> None:
        """Density around every auxiliary embedding.

        Raises
        ------
        ValueError
            When there are too few auxiliary images for so many neighbours.
        """
        if (count := len(view.auxiliary)) <= self.neighbours:
            raise ValueError(
                f"neighbours is {self.neighbours}: {count} auxiliary images are too few"
            )
        bank = view.embed_auxiliary().cpu()
        # Without a query an embedding is not its own neighbour.
        distances, nearest = self._indexed(bank).kneighbors()
        radius = distances[:, -1]
        density = _density(distances, radius[nearest])
        arrays = {"bank": bank.numpy(), "radius": radius, "density": density}
        self.load_state({name: torch.from_numpy(a.copy()) for name, a in arrays.items()}, view)

    def score(self, images: Tensor) -> np.ndarray:
        """float32 (N,): mean density of the neighbours over the embedding's own; about 1 inside."""
        embeddings = self._encoder.embed(images).cpu().double().numpy()
        distances, nearest = self._index.kneighbors(embeddings)
        radius, density = (self._state[name].numpy()[nearest] for name in ("radius", "density"))
        return (density.mean(axis=1) / _density(distances, radius)).astype(np.float32)

    def state(self) -> dict[str, Tensor]:
        """``bank`` (M, D), and of each of its embeddings ``radius`` and ``density`` (M,)."""
        return self._state

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        """Restore what :meth:`state` gave."""
        self._state, self._encoder = state, view.encoder
        self._index = self._indexed(state["bank"])

    def _indexed(self, bank: Tensor) -> NearestNeighbors:
        # Exhaustive: trees gain nothing in hundreds of dimensions.
        return NearestNeighbors(n_neighbors=self.neighbours, algorithm="brute").fit(bank.double())


def _density(distances: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Local reachability density from distances to the neighbours and their radii, (N, k) each."""
    return 1 / (np.maximum(distances, radius).mean(axis=1) + TINY)
