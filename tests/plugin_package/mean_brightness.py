"""Brightness of an image, from a package of its own."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bench.api import DefenderView, Defense, Field


class MeanBrightness(Defense):
    """How far the mean of all pixels lies from that of the auxiliary images: a control that never
    looks at the encoder.

    Attributes
    ----------
    power
        What the distance is raised to.
    """

    version: ClassVar[int] = 1
    reference: ClassVar[bool] = True
    power: float = Field(1.0, gt=0)

    _mean: float = 0.0

    def fit(self, view: DefenderView) -> None:
        self._mean = float(view.auxiliary.float().mean())

    def score(self, images: Tensor) -> Tensor:
        return (images.mean(dim=(1, 2, 3)) - self._mean).abs() ** self.power

    def state(self) -> dict[str, Tensor]:
        return {"mean": torch.tensor(self._mean, dtype=torch.float64)}

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        self._mean = float(state["mean"])
