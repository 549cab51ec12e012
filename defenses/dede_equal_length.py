"""DeDe, told the direction of an embedding and not its length."""

from __future__ import annotations

import math

from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from defenses.dede import Dede


class DedeEqualLength(Dede):
    """A variant of :class:`defenses.dede.Dede`, not of the paper: the decoder sees all embeddings
    at one length, the square root of their dimension, in training and in scoring.

    The published decoder takes embeddings as they are, so an image may score high because its
    embedding is longer than any it was trained on, whatever it stands for. What a score tells apart
    here was in the direction, which is all that a cosine classifier downstream reads.

    Its parameters are those of ``dede``, without ``checkpoint``: the authors' decoders were trained
    on embeddings as they are.
    """

    @model_validator(mode="after")
    def _trained_here(self) -> DedeEqualLength:
        if self.checkpoint is not None:
            raise ValueError("checkpoint: a published decoder takes embeddings of any length")
        return self

    def _condition(self, embeddings: Tensor) -> Tensor:
        return functional.normalize(embeddings, dim=1) * math.sqrt(embeddings.shape[1])
