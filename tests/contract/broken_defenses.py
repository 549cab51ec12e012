"""Defenses that break one promise each: those of the harness's tests, and more."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import PrivateAttr
from torch import Tensor
from wayward_defenses import (
    BatchMatcher,
    ChangesImages,
    DuplicateMatcher,
    Harmless,
    PositionGuesser,
    ReturnsNan,
    SeesLabels,
    WrongLength,
    WrongType,
)

from bench.api import DefenderView, Defense, Encoder

__all__ = [
    "BatchMatcher",
    "ChangesImages",
    "DuplicateMatcher",
    "Harmless",
    "PositionGuesser",
    "ReturnsNan",
    "SeesLabels",
    "WrongLength",
    "WrongType",
]


class _Distance(Defense):
    """Distance to a point of the embedding space (2024)."""

    _point: Tensor = PrivateAttr()
    _encoder: Encoder = PrivateAttr()

    def fit(self, view: DefenderView) -> None:
        self._encoder = view.encoder
        self._point = view.embed_auxiliary().mean(dim=0)

    def score(self, images: Tensor) -> Tensor:
        return (self._encoder.embed(images) - self._point).norm(dim=1)


class NonDeterministic(_Distance):
    """Draws from the global generator instead of the view's."""

    def fit(self, view: DefenderView) -> None:
        super().fit(view)
        self._point = self._point + torch.randn(len(self._point))


class MutatesEncoder(_Distance):
    """Reaches behind the wrapper and prunes the network."""

    def fit(self, view: DefenderView) -> None:
        super().fit(view)
        network = view.encoder._DefenderEncoder__encoder.network
        with torch.no_grad():
            next(network.parameters())[0].zero_()


class UnfreezesEncoder(_Distance):
    """Reaches behind the wrapper and leaves the network in another mode."""

    def fit(self, view: DefenderView) -> None:
        super().fit(view)
        view.encoder._DefenderEncoder__encoder.network.train()


class BatchDependent(_Distance):
    """Centres scores on their batch."""

    def score(self, images: Tensor) -> Tensor:
        scores = super().score(images)
        return scores - scores.mean()


class NeedsCuda(_Distance):
    """Puts what it learnt on a device that there need not be."""

    def fit(self, view: DefenderView) -> None:
        super().fit(view)
        self._point = self._point.cuda()


class NoDocstring(_Distance):
    def fit(self, view: DefenderView) -> None:
        super().fit(view)


class ChangesAuxiliary(_Distance):
    """Blackens the images it learns from, behind the copy that it is handed."""

    def fit(self, view: DefenderView) -> None:
        super().fit(view)
        view.auxiliary._storage.zero_()


class HidesThatItPeeks(_Distance):
    """Would use labels and copes without."""

    def fit(self, view: DefenderView) -> None:
        super().fit(view)
        try:
            self._point = self._point + view.auxiliary.labels.float().mean()
        except ValueError:
            self._point = self._point + 1


class LooksBehindTheView(_Distance):
    """Looks for the harness behind what it is given."""

    def fit(self, view: DefenderView) -> None:
        super().fit(view)
        self._point = self._point + len(view.embed_auxiliary._workspace.sources)


class UndeclaredGradients(_Distance):
    """Differentiates without saying so."""

    def score(self, images: Tensor) -> Tensor:
        return self._encoder.forward(images).norm(dim=1)


class UndeclaredPool(_Distance):
    """Reads the suspicious pool without saying so."""

    def fit(self, view: DefenderView) -> None:
        super().fit(view)
        self._point = view.encoder.embed(view.suspicious.float()).mean(dim=0)


class ForgetsPart(_Distance):
    """Stores another point than it uses."""

    def state(self) -> dict[str, Tensor]:
        return {"point": self._point + 1}

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        self._point, self._encoder = state["point"], view.encoder


class ThresholdAlone(_Distance):
    """Has a threshold for a score that it does not give."""

    def encoder_threshold(self) -> float:
        return 2.0


class InfiniteVerdict(_Distance):
    """Divides by nothing."""

    def score_encoder(self) -> float:
        return float("inf")


class TakesName(_Distance):
    """Calls a figure what the harness calls its own."""

    def figures(self, images: Tensor) -> dict[str, np.ndarray]:
        return {"input": np.zeros((len(images), 4, 4, 3), np.uint8)}


class FloatFigures(_Distance):
    """Draws in floats."""

    def figures(self, images: Tensor) -> dict[str, np.ndarray]:
        return {"picture": np.zeros((len(images), 4, 4, 3))}


class VersionZero(_Distance):
    """Counts versions from nothing."""

    version = 0


class ClaimsReference(_Distance):
    """Says that it never calls the encoder."""

    reference = True


class NamesNoParameter(_Distance):
    """Shares fits over a parameter that it has not got."""

    scoring_parameters = frozenset({"ratio"})


class FitsByItsExponent(_Distance):
    """Learns under a parameter that it calls one of scoring alone."""

    scoring_parameters = frozenset({"exponent"})
    exponent: int = 1

    def fit(self, view: DefenderView) -> None:
        super().fit(view)
        self._point = self._point**self.exponent

    def state(self) -> dict[str, Tensor]:
        return {"point": self._point}

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        self._point, self._encoder = state["point"], view.encoder


class AsksForTooMuch(_Distance):
    """Declares what it never uses."""

    requires = frozenset({"gradients", "auxiliary_labels"})


class ReadsText(_Distance):
    """Distance to the caption of an empty room."""

    requires = frozenset({"text"})

    def fit(self, view: DefenderView) -> None:
        self._encoder = view.encoder
        self._point = view.encoder.text.encode_text(["an empty room"])[0]


class TellsTheSupport(_Distance):
    """Looks at nothing but the pixels of the trigger."""

    requires = frozenset({"trigger_support"})
    reference = True

    def fit(self, view: DefenderView) -> None:
        self._point = view.trigger_support.float()

    def score(self, images: Tensor) -> Tensor:
        return (images * self._point).sum(dim=(1, 2, 3))


class TakesTheNetwork(_Distance):
    """Distance in the embeddings of a copy of the network."""

    requires = frozenset({"gradients", "network"})
    _network: torch.nn.Module = PrivateAttr()

    def fit(self, view: DefenderView) -> None:
        self._encoder, (self._network, _, _) = view.encoder, view.encoder.network()
        self._point = self._embedded(view.auxiliary.float(slice(8))).mean(dim=0)

    def score(self, images: Tensor) -> Tensor:
        return (self._embedded(images) - self._point).norm(dim=1)

    @torch.no_grad()
    def _embedded(self, images: Tensor) -> Tensor:
        return self._network(self._encoder.normalise(images))


class Demanding(_Distance):
    """Cannot be made without a strength."""

    strength: float
