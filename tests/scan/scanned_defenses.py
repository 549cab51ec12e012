"""Detectors that write down what a scan shows them, or misbehave in one way each."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bench.api import DefenderView, Defense

seen: dict[str, object] = {}


class _Norm(Defense):
    """Norm of the embedding (nobody's idea)."""

    def fit(self, view: DefenderView) -> None:
        self._encoder = view.encoder

    def score(self, images: Tensor) -> Tensor:
        return self._encoder.embed(images).norm(dim=1)


class Watching(_Norm):
    """Keeps its view."""

    def fit(self, view: DefenderView) -> None:
        super().fit(view)
        seen["view"] = view
        seen["batches"] = []

    def score(self, images: Tensor) -> Tensor:
        seen["batches"].append(images.clone())
        return super().score(images)


class WatchingPool(Watching):
    """Keeps its view, and wants the pool and labels."""

    requires: ClassVar[frozenset] = frozenset({"suspicious", "auxiliary_labels"})


class WantsPool(_Norm):
    """Wants the pool."""

    requires: ClassVar[frozenset] = frozenset({"suspicious"})


class WantsText(_Norm):
    """Wants a text tower."""

    requires: ClassVar[frozenset] = frozenset({"text"})


class WantsLabels(_Norm):
    """Wants labels."""

    requires: ClassVar[frozenset] = frozenset({"auxiliary_labels"})


class WantsTrigger(_Norm):
    """Wants to be told."""

    requires: ClassVar[frozenset] = frozenset({"trigger_support"})


class WantsPackage(_Norm):
    """Wants a library that is not there."""

    needs_packages: ClassVar[tuple[str, ...]] = ("no_such_library",)


class RaisesInFit(_Norm):
    """Fails while fitting."""

    def fit(self, view: DefenderView) -> None:
        raise ArithmeticError("no\nluck")


class ReturnsNan(_Norm):
    """One score is not a number."""

    def score(self, images: Tensor) -> Tensor:
        return super().score(images) * float("nan")


class BadFigures(_Norm):
    """Scores well and draws badly."""

    def figures(self, images: Tensor) -> dict[str, np.ndarray]:
        return {"sketch": np.zeros((1, 2), dtype=np.float32)}


class Judge(_Norm):
    """Has an opinion on the encoder and a picture of the trigger."""

    value: float = 0.7
    rule: float | None = 0.5

    def score_encoder(self) -> float:
        return self.value

    def encoder_threshold(self) -> float | None:
        return self.rule

    def figures(self, images: Tensor) -> dict[str, np.ndarray]:
        return {"inverted_trigger": np.full((len(images), 8, 8, 3), 255, dtype=np.uint8)}


class Random(_Norm):
    """Draws from the generator it is given."""

    def fit(self, view: DefenderView) -> None:
        super().fit(view)
        self._direction = torch.randn(view.encoder.embedding_dim, generator=view.generator)

    def score(self, images: Tensor) -> Tensor:
        return self._encoder.embed(images) @ self._direction
