"""Defenses that misbehave in one way each, and two that try to cheat."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bench.api import DefenderView, Defense


class _Embedding(Defense):
    """Norm of the embedding: harmless."""

    def fit(self, view: DefenderView) -> None:
        self._encoder = view.encoder

    def score(self, images: Tensor) -> Tensor:
        return self._encoder.embed(images).norm(dim=1)


class Harmless(_Embedding):
    """Norm of the embedding."""


class ReturnsNan(_Embedding):
    """One score is not a number."""

    def score(self, images: Tensor) -> Tensor:
        scores = super().score(images)
        scores[0] = float("nan")
        return scores


class WrongLength(_Embedding):
    """One score too few."""

    def score(self, images: Tensor) -> Tensor:
        return super().score(images)[1:]


class WrongType(_Embedding):
    """A list instead of an array."""

    def score(self, images: Tensor) -> list[float]:
        return super().score(images).tolist()


class ChangesImages(_Embedding):
    """Writes into the images it is given."""

    def score(self, images: Tensor) -> Tensor:
        images.zero_()
        return super().score(images)


class DrawsGrey(_Embedding):
    """Pictures without colours."""

    def figures(self, images: Tensor) -> dict[str, np.ndarray]:
        return {"drawn": np.zeros((len(images), 8, 8), dtype=np.uint8)}


class DrawsInput(_Embedding):
    """A picture under a name of the harness's own."""

    def figures(self, images: Tensor) -> dict[str, np.ndarray]:
        return {"input": np.zeros((len(images), 8, 8, 3), dtype=np.uint8)}


class RaisesInFit(_Embedding):
    """Fails while fitting."""

    def fit(self, view: DefenderView) -> None:
        raise RuntimeError("no luck today")


class PositionGuesser(Defense):
    """Scores an image by where it comes in the batch and in the run."""

    def fit(self, view: DefenderView) -> None:
        self._seen = 0

    def score(self, images: Tensor) -> np.ndarray:
        first, self._seen = self._seen, self._seen + len(images)
        return np.arange(first, self._seen, dtype=np.float32)


class DuplicateMatcher(Defense):
    """Remembers every image and suspects those of which it has seen a near copy."""

    def fit(self, view: DefenderView) -> None:
        self._seen: list[Tensor] = []

    def score(self, images: Tensor) -> Tensor:
        scores = []
        for image in images:
            near = [float((image - other).abs().mean()) for other in self._seen]
            scores.append(-min(near, default=1.0))
            self._seen.append(image)
        return torch.tensor(scores)


class BatchMatcher(Defense):
    """Suspects images that have a near copy in their own batch."""

    def fit(self, view: DefenderView) -> None:
        return None

    def score(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        distances = torch.cdist(flat, flat).fill_diagonal_(float("inf"))
        return (distances.min(1).values < 6.0).float()


class SeesLabels(Defense):
    """Asks for labels it has not declared."""

    def fit(self, view: DefenderView) -> None:
        view.auxiliary.labels  # noqa: B018

    def score(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images))


class UsesSuspicious(Defense):
    """Keeps the suspicious pool it declared."""

    requires = frozenset({"suspicious"})

    def fit(self, view: DefenderView) -> None:
        self._pool = view.suspicious.uint8()

    def score(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 2, 3)) + 0 * len(self._pool)

    def state(self) -> dict[str, Tensor]:
        return {"pool": self._pool}

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        self._pool = state["pool"]
