"""Defenses that keep what they were given, for tests to look at."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import PrivateAttr
from torch import Tensor

from bench.api import DefenderView, Defense, Encoder, Field

FITS: list[str] = []
"""Names of the defenses that were fitted."""


class KeepsAuxiliary(Defense):
    """Keeps the auxiliary images."""

    _images: Tensor = PrivateAttr()

    def fit(self, view: DefenderView) -> None:
        self._images = view.auxiliary.uint8()
        torch.testing.assert_close(
            view.embed_auxiliary(), view.encoder.embed(view.auxiliary.float())
        )

    def score(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 2, 3))

    def state(self) -> dict[str, Tensor]:
        return {"images": self._images}

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        self._images = state["images"]


class KeepsEmbeddings(KeepsAuxiliary):
    """Keeps what it is told of the auxiliary images, and of those that it scores."""

    _encoder: Encoder = PrivateAttr()

    def fit(self, view: DefenderView) -> None:
        self._images, self._encoder = view.embed_auxiliary(), view.encoder

    def score(self, images: Tensor) -> Tensor:
        return self._encoder.embed(images).norm(dim=1)

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        self._images, self._encoder = state["images"], view.encoder


class WantsNetwork(KeepsAuxiliary):
    """Takes the network itself."""

    requires = frozenset({"network"})


class KeepsBase(KeepsAuxiliary):
    """Keeps the clean base set beside the suspicious pool."""

    requires = frozenset({"suspicious"})

    def fit(self, view: DefenderView) -> None:
        assert not view.base.labelled
        self._images = view.base.uint8()


class WantsLabels(KeepsAuxiliary):
    """Needs the labels of the auxiliary images."""

    requires = frozenset({"auxiliary_labels", "suspicious"})

    def fit(self, view: DefenderView) -> None:
        assert view.auxiliary.labelled
        assert view.base.labelled
        self._images = view.base.uint8()


class Scaled(Defense):
    """Brightness times a factor that fitting never reads."""

    scoring_parameters: ClassVar[frozenset[str]] = frozenset({"factor"})
    factor: float = Field(1.0, gt=0)
    level: float = 0.0

    _offset: Tensor = PrivateAttr()

    def fit(self, view: DefenderView) -> None:
        FITS.append("scaled")
        self._offset = torch.tensor(self.level)

    def score(self, images: Tensor) -> Tensor:
        return self.factor * images.mean(dim=(1, 2, 3)) + self._offset

    def state(self) -> dict[str, Tensor]:
        return {"offset": self._offset}

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        self._offset = state["offset"]


class Verdict(Scaled):
    """Says of every encoder that it is backdoored, if its own threshold is low."""

    threshold: float = 0.5

    def score_encoder(self) -> float:
        return 0.75

    def encoder_threshold(self) -> float:
        return self.threshold


class TellsSupport(Defense):
    """Counts dark pixels where the trigger lies."""

    requires = frozenset({"trigger_support"})
    scoring_parameters: ClassVar[frozenset[str]] = frozenset()

    _support: Tensor = PrivateAttr()

    def fit(self, view: DefenderView) -> None:
        assert view.trigger_support is not None
        self._support = view.trigger_support

    def score(self, images: Tensor) -> Tensor:
        return images.mean(dim=1)[:, self._support].mean(dim=1)


class Reference(Scaled):
    """Never calls the encoder."""

    reference: ClassVar[bool] = True
