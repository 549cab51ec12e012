"""Whether a piece of the image, pasted elsewhere, takes the image's cluster along."""

from __future__ import annotations

import torch
from pydantic import PrivateAttr
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from bench.api import DefenderView, Defense, Encoder, Field


class PatchSearch(Defense):
    """Patch transplant (Tejankar et al., "Defending Against Patch-based Backdoor Attacks on
    Self-Supervised Learning", CVPR 2023, section 3), adapted to test time.

    The paper cuts a candidate patch from an image by Grad-CAM, pastes it on clean images and counts
    how many join the image's cluster. That k-means consistency under transplant is kept; Grad-CAM
    is not, as the maps of small encoders are too coarse to find a patch: every window of a grid is
    pasted on one image, the best on the others, and the count becomes the mean gain in the chance
    of one cluster. Neither search over clusters nor final classifier is used. ``clusters`` are of
    centred unit embeddings, joined by softmax of cosines at ``temperature``; ``windows`` per axis,
    half a side each; ``flips`` pasted on. Costs ``windows**2 + flips`` embeddings: 12.
    """

    clusters: int = Field(20, ge=2)
    temperature: float = Field(0.1, gt=0)
    windows: int = Field(3, ge=2)
    flips: int = Field(3, ge=1)
    _state: dict[str, Tensor] = PrivateAttr()
    _encoder: Encoder = PrivateAttr()

    def fit(self, view: DefenderView) -> None:
        """Cluster the auxiliary embeddings, draw images to paste on; ValueError for too few."""
        if (count := len(view.auxiliary)) < (least := max(self.clusters, self.flips)):
            raise ValueError(f"clusters and flips need {least} auxiliary images, there are {count}")
        drawn = torch.randperm(count, generator=view.generator)[: self.flips]
        mean = (embeddings := view.embed_auxiliary().double().cpu()).mean(dim=0)
        points = F.normalize(embeddings - mean, dim=1)
        found = KMeans(self.clusters, n_init=4, random_state=view.seed % 2**32).fit(points.numpy())
        centres = F.normalize(torch.from_numpy(found.cluster_centers_), dim=1)
        flips = view.auxiliary.uint8(drawn)
        self.load_state({"mean": mean, "centres": centres, "flips": flips}, view)

    def score(self, images: Tensor) -> Tensor:
        """float32 (N,) in [-1, 1]: the best window's mean gain in the chance of one cluster."""
        own, images = self._membership(images), images.to(self._encoder.device)
        first, *others = self._state["flips"].to(images.device).float().div(255).split(1)
        masks = _grid(images.shape[-1], self.windows).to(images.device)
        gains = torch.stack([self._gain(own, images, mask, first) for mask in masks])
        # Rounding must not choose between windows that change nothing: the first one then.
        best = (gains - 1e-5 * torch.arange(len(gains))[:, None]).argmax(dim=0)
        chosen, total = masks[best.to(images.device)], gains.gather(0, best[None])[0]
        total += sum(self._gain(own, images, chosen, other) for other in others)
        return (total / self.flips).float()

    def _gain(self, own: Tensor, images: Tensor, mask: Tensor, flip: Tensor) -> Tensor:
        moved = self._membership(torch.where(mask, images, flip)) - self._membership(flip)
        return (own * moved).sum(dim=1)

    def _membership(self, images: Tensor) -> Tensor:
        offsets = self._encoder.embed(images).double().cpu() - self._state["mean"]
        cosines = F.normalize(offsets, dim=1) @ self._state["centres"].T
        return (cosines / self.temperature).softmax(dim=1)

    def state(self) -> dict[str, Tensor]:
        """``mean`` (D,), ``centres`` (k, D) and ``flips``, uint8 (F, 3, H, W)."""
        return self._state

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        """Restore what :meth:`state` gave."""
        self._state, self._encoder = {k: v.cpu() for k, v in state.items()}, view.encoder


def _grid(side: int, count: int) -> Tensor:
    """bool (count^2, 1, side, side): evenly spaced windows of half the side, from edge to edge."""
    starts = torch.linspace(0, side - side // 2, count).round().long()[:, None]
    along = (starts <= torch.arange(side)) & (torch.arange(side) < starts + side // 2)
    return (along[:, None, :, None] & along[None, :, None, :]).reshape(-1, 1, side, side)
