"""Nearness to the smaller of two clusters of a suspicious pool."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import PrivateAttr
from sklearn.decomposition import PCA
from torch import Tensor

from bench.api import DefenderView, Defense, Encoder, Field, Requirement
from defenses._kmeans import kmeans


class ActivationClustering(Defense):
    """Two clusters of activations, of which the smaller is taken for poison (Chen et al.,
    "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering", SafeAI at
    AAAI 2019, algorithm 1).

    Adapted. The paper clusters each label of a training set by itself; no embedding has a label
    here, so the whole suspicious pool is clustered, and its two clusters may be groups of real
    classes. The paper judges a cluster; here any image is scored by its distances to both centres.
    The paper reduces by independent components, which are whitened principal ones but for a
    rotation that distances do not see: those are taken.

    ``components`` is the dimension that embeddings are reduced to. Of ``restarts`` of 2-means the
    tightest counts: ten, as is usual, tend to miss a small cluster that would be the optimum.
    """

    requires: ClassVar[frozenset[Requirement]] = frozenset({"suspicious"})

    components: int = Field(10, ge=1)
    restarts: int = Field(100, ge=1)

    _state: dict[str, Tensor] = PrivateAttr()
    _encoder: Encoder = PrivateAttr()

    def fit(self, view: DefenderView) -> None:
        """Reduce and cluster the embeddings of the suspicious pool, from ``view.seed``.

        Raises
        ------
        ValueError
            When there are too few images for so many components, or all embeddings are the same.
        """
        if (count := len(view.suspicious)) <= self.components:
            raise ValueError(
                f"components is {self.components}: {count} suspicious images are too few"
            )
        pool = torch.cat([view.encoder.embed(part) for part in view.suspicious.batches(1000)])
        pool = pool.double().cpu().numpy()
        if pool.std(axis=0).max() <= 1e-9 * abs(pool).max():
            raise ValueError("all embeddings of the suspicious pool are equal: no two clusters")
        pca = PCA(min(self.components, pool.shape[1]), svd_solver="full").fit(pool)
        # A dead dimension would be blown up to unit variance, and what is noise in it with it.
        alive = pca.singular_values_ > 1e-6 * pca.singular_values_[0]
        axes = pca.components_[alive] / pca.explained_variance_[alive, None] ** 0.5
        reduced = (pool - pca.mean_) @ axes.T
        found = kmeans(reduced, 2, restarts=self.restarts, seed=view.seed)
        centres = found.cluster_centers_[:: 1 if found.labels_.mean() >= 0.5 else -1].copy()
        arrays = {"mean": pca.mean_, "axes": axes, "centres": centres}
        self.load_state({name: torch.from_numpy(array) for name, array in arrays.items()}, view)

    def score(self, images: Tensor) -> Tensor:
        """float32 (N,): distance to the larger cluster's centre minus that to the smaller one's."""
        mean, axes, centres = (self._state[name] for name in ("mean", "axes", "centres"))
        reduced = (self._encoder.embed(images).double().cpu() - mean) @ axes.T
        smaller, larger = ((reduced - centre).norm(dim=1) for centre in centres)
        return (larger - smaller).float()

    def state(self) -> dict[str, Tensor]:
        """``mean`` (D,), ``axes`` (C, D), ``centres`` (2, C), the smaller first; float64."""
        return self._state

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        """Restore what :meth:`state` gave."""
        self._state = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        self._encoder = view.encoder
