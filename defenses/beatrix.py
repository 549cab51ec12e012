"""Deviation of the correlations between feature maps from those of clean images."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import PrivateAttr
from torch import Tensor

from bench.api import DefenderView, Defense, Encoder, Field, Requirement


class Beatrix(Defense):
    """Gram-matrix deviations (Ma et al., "The 'Beatrix' Resurrections: Robust Backdoor Detection
    via Gram Matrices", NDSS 2023, section IV).

    Adapted: all clean images are one class, and deviations in a seeded draw of ``channels`` of the
    deepest ``layers`` are averaged, where the published code has all channels of one layer and 30
    images of each class. They count beyond ``tolerance`` median absolute deviations of
    ``fitting_images``, relative to the bound or, where that is larger, to the mean median of all
    entries of an order: silent entries have no bound, and would count without limit.
    """

    requires: ClassVar[frozenset[Requirement]] = frozenset({"features"})
    scoring_parameters: ClassVar[frozenset[str]] = frozenset({"tolerance"})
    powers: int = Field(8, ge=1, le=16)  # orders of the Gram matrix, (F^p F^pT)^(1/p)
    tolerance: float = Field(10.0, ge=0)
    layers: int = Field(3, ge=1)
    channels: int = Field(48, ge=1)
    fitting_images: int = Field(500, ge=2)
    _state: dict[str, Tensor] = PrivateAttr()
    _encoder: Encoder = PrivateAttr()

    def fit(self, view: DefenderView) -> None:
        """Median and deviation of every Gram entry; ValueError for fewer than 2 images."""
        if (count := len(view.auxiliary)) < 2:
            raise ValueError(f"a median deviation needs 2 auxiliary images or more, not {count}")
        rows = torch.randperm(count, generator=view.generator)[: self.fitting_images]
        names, self._encoder, self._state = view.encoder.layers[-self.layers :], view.encoder, {}
        for name, maps in view.encoder.features(view.auxiliary.float(rows), names).items():
            drawn = torch.randperm(maps.shape[1], generator=view.generator)[: self.channels]
            grams = gram_powers(maps[:, drawn.to(maps.device)], self.powers)
            median = grams.median(dim=0).values  # the lower one of an even number
            bounds = torch.stack([median, (grams - median).abs_().median(dim=0).values])
            self._state |= {f"{name}.channels": drawn, f"{name}.bounds": bounds.cpu()}

    def score(self, images: Tensor) -> Tensor:
        """float32 (N,) from 0, within all bounds: mean relative deviation; memory is bounded."""
        size, names = max(1, 256 * 32**2 // images.shape[-1] ** 2), self._encoder.layers
        parts = (self._encoder.features(p, names[-self.layers :]) for p in images.split(size))
        found = [torch.stack([self._deviation(*layer) for layer in p.items()]) for p in parts]
        return torch.cat(found, dim=1).mean(dim=0).cpu()

    def _deviation(self, name: str, maps: Tensor) -> Tensor:
        drawn, bounds = (self._state[f"{name}.{k}"].to(maps.device) for k in ("channels", "bounds"))
        median, reach = bounds[0], self.tolerance * bounds[1]
        offsets = gram_powers(maps[:, drawn], self.powers).sub_(median)
        least = median.abs().mean(dim=1, keepdim=True).clamp_min(1e-12)
        bound = torch.where(offsets < 0, median - reach, median + reach).abs_().maximum(least)
        return offsets.abs_().sub_(reach).clamp_min_(0).div_(bound).mean(dim=(1, 2))

    def state(self) -> dict[str, Tensor]:
        """Per layer ``channels`` (C,) and ``bounds`` (2, powers, pairs): medians, deviations."""
        return self._state

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        """Restore what :meth:`state` gave."""
        self._state, self._encoder = state, view.encoder


def gram_powers(maps: Tensor, powers: int) -> Tensor:
    """(N, C, h, w) -> signed roots of the upper triangles, (N, powers, C (C + 1) / 2)."""
    peak = maps.flatten(2).abs().amax(dim=2, keepdim=True).clamp_min(1e-12)  # no overflow
    scaled, corner = maps.flatten(2) / peak, torch.ones(maps.shape[1], maps.shape[1]).triu()
    chosen = corner.flatten().nonzero().T.to(maps.device).expand(len(maps), -1)
    scale, power, found = (peak @ peak.mT).flatten(1).gather(1, chosen), scaled, []
    for order in range(1, powers + 1):
        entries = (power @ power.mT).flatten(1).gather(1, chosen)
        found.append(entries.abs().pow_(1 / order).mul_(entries.sign_()).mul_(scale))
        power = power * scaled
    return torch.stack(found, dim=1)
