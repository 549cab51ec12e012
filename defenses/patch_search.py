"""Whether a piece of the image, pasted elsewhere, takes the image's cluster along."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PrivateAttr
from torch import Tensor
from torch.nn import functional as F

from bench.api import DefenderView, Defense, Encoder, Field, later_field
from defenses._kmeans import kmeans


class PatchSearch(Defense):
    """Patch transplant (Tejankar et al., "Defending Against Patch-based Backdoor Attacks on
    Self-Supervised Learning", CVPR 2023, section 3), adapted to test time.

    The paper cuts a candidate patch from an image by Grad-CAM, pastes it on clean images and counts
    how many join the image's cluster. That k-means consistency under transplant is kept; Grad-CAM
    is not, as the maps of small encoders are too coarse to find a patch: every window of a grid is
    pasted on one image, the best on the others, and the count becomes the mean gain in the chance
    of one cluster. Neither search over clusters nor final classifier is used. Its code has 1,000
    clusters of embeddings as they are, 1,000 images to paste on and windows of 60 of 224 pixels.

    Attributes
    ----------
    clusters, temperature
        Of centred unit embeddings; joined by softmax of cosines at this temperature.
    windows
        Per axis, half a side each.
    flips
        Images pasted on. A score costs ``windows**2 + flips`` embeddings: 12.
    place
        Where a window is pasted: at the ``same`` place, which finds triggers that work at one place
        alone and presumes no less, or, as published, at a ``random`` one, which is drawn once per
        window and image pasted on, so that a score depends on its image alone.
    """

    clusters: int = Field(20, ge=2)
    temperature: float = Field(0.1, gt=0)
    windows: int = Field(3, ge=2)
    flips: int = Field(3, ge=1)
    place: Literal["same", "random"] = later_field("same")
    _state: dict[str, Tensor] = PrivateAttr()
    _encoder: Encoder = PrivateAttr()

    def fit(self, view: DefenderView) -> None:
        """Cluster the auxiliary embeddings, draw images to paste on; ValueError for too few."""
        if (count := len(view.auxiliary)) < (least := max(self.clusters, self.flips)):
            raise ValueError(f"clusters and flips need {least} auxiliary images, there are {count}")
        drawn = torch.randperm(count, generator=view.generator)[: self.flips]
        mean = (embeddings := view.embed_auxiliary().double().cpu()).mean(dim=0)
        points = F.normalize(embeddings - mean, dim=1)
        found = kmeans(points.numpy(), self.clusters, restarts=4, seed=view.seed)
        centres = F.normalize(torch.from_numpy(found.cluster_centers_), dim=1)
        state = {"mean": mean, "centres": centres, "flips": view.auxiliary.uint8(drawn)}
        if self.place == "random":
            side, shape = view.encoder.image_size, (self.flips, self.windows**2, 2)
            state["places"] = torch.randint(side - side // 2 + 1, shape, generator=view.generator)
        self.load_state(state, view)

    def score(self, images: Tensor) -> Tensor:
        """float32 (N,) in [-1, 1]: the best window's mean gain in the chance of one cluster."""
        own, images = self._membership(images), images.to(self._encoder.device)
        windows = torch.arange(self.windows**2)[:, None].expand(-1, len(images))
        gains = torch.stack([self._gain(own, images, window, 0) for window in windows])
        # Rounding must not choose between windows that change nothing: the first one then.
        best = (gains - 1e-5 * torch.arange(len(gains))[:, None]).argmax(dim=0)
        total = gains.gather(0, best[None])[0]
        total += sum(self._gain(own, images, best, other) for other in range(1, self.flips))
        return (total / self.flips).float()

    def _gain(self, own: Tensor, images: Tensor, windows: Tensor, flip: int) -> Tensor:
        """(N,) by pasting each image's window of ``windows`` (N,) on one of the flips."""
        ground = self._state["flips"][flip : flip + 1].to(images.device).float().div(255)
        starts = _grid(images.shape[-1], self.windows)
        places = self._state["places"][flip] if "places" in self._state else starts
        pasted, size = ground.repeat(len(images), 1, 1, 1), images.shape[-1] // 2
        for window in windows.unique().tolist():
            rows = (windows == window).to(images.device)
            (top, left), (row, column) = starts[window].tolist(), places[window].tolist()
            cut = images[rows, :, top : top + size, left : left + size]
            pasted[rows, :, row : row + size, column : column + size] = cut
        moved = self._membership(pasted) - self._membership(ground)
        return (own * moved).sum(dim=1)

    def _membership(self, images: Tensor) -> Tensor:
        offsets = self._encoder.embed(images).double().cpu() - self._state["mean"]
        cosines = F.normalize(offsets, dim=1) @ self._state["centres"].T
        return (cosines / self.temperature).softmax(dim=1)

    def state(self) -> dict[str, Tensor]:
        """``mean`` (D,), ``centres`` (k, D), ``flips``, uint8 (F, 3, H, W), and where places are
        drawn ``places``, int64 (F, W, 2): row and column of a window's upper left corner."""
        return self._state

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        """Restore what :meth:`state` gave."""
        self._state, self._encoder = {k: v.cpu() for k, v in state.items()}, view.encoder


def _grid(side: int, count: int) -> Tensor:
    """int64 (count^2, 2): upper left corners of evenly spaced windows of half the side."""
    starts = torch.linspace(0, side - side // 2, count).round().long()
    return torch.cartesian_prod(starts, starts)
