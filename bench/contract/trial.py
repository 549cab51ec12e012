"""One run of a defense on a tiny victim, watched in all it does."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.api import Defense
from bench.contract.findings import ContractError, raised
from bench.contract.watching import (
    NEEDS_CUDA,
    CPUOnly,
    other_global_randomness,
    wants_cuda,
)
from bench.contract.world import World
from bench.stages.detecting import checked_scores, encoder_verdict

PEEKS = (
    "looks for labels, which a defense is shown only if it declares 'auxiliary_labels' in "
    "`requires`, and then those of the auxiliary images alone"
)


class Trial:
    """One instance of a defense on a freshly loaded victim, watched in all it does.

    Parameters
    ----------
    steps
        Training loops are cut to so many.
    seed
        Of the global generators of torch and numpy, which the defense must not use.
    """

    def __init__(self, defense: Defense, world: World, steps: int, seed: int) -> None:
        self.defense = defense
        self.lent = world.show(defense, steps)
        self.changed: list[str] = []
        self._seed = seed

    def fit(self) -> None:
        with self._observed("fit"):
            self.defense.fit(self.lent.view)

    def load_state(self, state: dict[str, Tensor]) -> None:
        with self._observed("load_state"):
            self.defense.load_state(state, self.lent.view)

    def score(self, images: Tensor) -> object:
        """What ``score`` returns for a copy of float32 (N, 3, H, W) ``images``, as it comes."""
        given = images.clone()
        with self._observed("score"):
            result = self.defense.score(given)
        sentence = "score changed the images it was given"
        if not torch.equal(given, images) and sentence not in self.changed:
            self.changed.append(sentence)
        return result

    def scores(self, images: Tensor) -> np.ndarray:
        """float32 (N,), finite, or an error that says what is wrong with the answer."""
        return checked_scores(self.score(images), len(images), type(self.defense).__name__)

    def in_chunks(self, images: Tensor, order: Tensor, size: int) -> np.ndarray:
        """float32 (N,) in the order of ``images``, scored in another one, ``size`` at a time."""
        scores = np.empty(len(images), np.float32)
        for rows in order.split(size):
            scores[rows.numpy()] = self.scores(images[rows])
        return scores

    def opinion(self) -> dict[str, Any]:
        """``encoder_score`` and ``encoder_verdict``."""
        with self._observed("score_encoder"):
            return encoder_verdict(self.defense)

    def figures(self, images: Tensor) -> dict[str, Any]:
        with self._observed("figures"):
            return self.defense.figures(images.clone())

    @contextmanager
    def _observed(self, call: str) -> Iterator[None]:
        lending = self.lent.belongings.during(call, self.changed)
        with other_global_randomness(self._seed), CPUOnly(), lending:
            yield


def in_words(error: Exception, used: set[str], requires: Set[str], call: str = "fit") -> str:
    """What an exception of a defense means in terms of its contract."""
    if isinstance(error, ContractError):
        return str(error)
    if wants_cuda(error):
        return NEEDS_CUDA
    if isinstance(error, PermissionError):
        return f"{call} asks for what it has not declared: {error}"
    undeclared = used - requires
    if "auxiliary_labels" in undeclared and "has no labels" in str(error):
        return f"{call} {PEEKS}"
    for part in ("suspicious", "trigger_support"):
        if part in undeclared:
            fields = "view.suspicious or view.base" if part == "suspicious" else f"view.{part}"
            return (
                f"{call} reads {fields}, which is None unless it declares {part!r} in `requires` "
                f"({raised(error)})"
            )
    return f"{call}: {raised(error)}"
