"""How unusual the pixels are, whatever the encoder."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import PrivateAttr
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional as F

from bench.api import DefenderView, Defense, Field


class PixelOnly(Defense):
    """Squared Mahalanobis distance of the pixels (Tipping and Bishop, "Probabilistic Principal
    Component Analysis", JRSS B 1999, section 3.2): a control that never calls the encoder.

    Victim and clean twin score alike: what it detects was never about the backdoor, and what beats
    it by little may owe its score to the patch. Images larger than ``side`` pixels are averaged
    down to it; ``components`` have a variance of their own, all other directions share one.
    """

    reference: ClassVar[bool] = True

    components: int = Field(64, ge=1)
    side: int = Field(32, ge=1)

    _state: dict[str, Tensor] = PrivateAttr()

    def fit(self, view: DefenderView) -> None:
        """Principal components of the auxiliary images, from ``view.seed``.

        Raises
        ------
        ValueError
            When images or pixels are too few for the components, or all images are the same.
        """
        pixels = torch.cat([self._pixels(part) for part in view.auxiliary.batches(1000)])
        count, dimensions = pixels.shape
        limit = min(count - 1, dimensions)
        if self.components >= limit:
            raise ValueError(
                f"components is {self.components} but must be below {limit} for {count} auxiliary "
                f"images of {dimensions} values"
            )
        mean, variance = pixels.mean(dim=0), pixels.double().var(dim=0).sum().item()
        if variance == 0:
            raise ValueError("all auxiliary images are equal: their pixels have no covariance")
        pca = PCA(self.components, svd_solver="randomized", random_state=view.seed % 2**32)
        own = torch.from_numpy(pca.fit(pixels.numpy()).explained_variance_).double()
        rest = torch.tensor([(variance - own.sum().item()) / (dimensions - self.components)])
        # What varies in no auxiliary image still needs a variance to be divided by.
        variances = torch.cat([own, rest]).clamp_min(1e-6 * variance / dimensions)
        axes = torch.from_numpy(pca.components_).float().contiguous()
        self.load_state({"mean": mean, "axes": axes, "variances": variances}, view)

    def score(self, images: Tensor) -> Tensor:
        """float32 (N,): squared distance, of the order of the number of pixel values for an image
        like the auxiliary ones."""
        mean, axes, variances = (self._state[k].double() for k in ("mean", "axes", "variances"))
        offsets = self._pixels(images).double() - mean
        squares = (offsets @ axes.T).square()
        rest = offsets.square().sum(dim=1) - squares.sum(dim=1)
        return ((squares / variances[:-1]).sum(dim=1) + rest / variances[-1]).float()

    def state(self) -> dict[str, Tensor]:
        """``mean`` (P,), ``axes`` (C, P) and ``variances`` (C + 1,), the last that of the rest."""
        return self._state

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        """Restore what :meth:`state` gave."""
        self._state = {name: tensor.cpu() for name, tensor in state.items()}

    def _pixels(self, images: Tensor) -> Tensor:
        large = images.shape[-1] > self.side
        return (F.adaptive_avg_pool2d(images, self.side) if large else images).flatten(1).cpu()
