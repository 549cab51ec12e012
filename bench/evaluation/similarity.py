"""How much more alike triggered images are to an encoder than clean ones."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["backdoor_z_score"]


def backdoor_z_score(
    clean: Tensor,
    triggered: Tensor,
    *,
    spread: Literal["deviation", "variance"] = "deviation",
    images: int = 500,
) -> float | None:
    """The backdoor z-score of Carlini and Terzis, "Poisoning and Backdooring Contrastive Learning"
    (ICLR 2022), section 5.1: (mean similarity of triggered pairs - of clean pairs) / spread of
    clean pairs.

    Parameters
    ----------
    clean, triggered
        (N, D) and (M, D) embeddings of any length.
    spread
        The standard deviation, as in the paper, or the variance, as in DECREE's code.
    images
        How many of each are compared, all pairs including an image with itself.

    Returns
    -------
    float or None
        None when all clean embeddings point one way: their similarities have no spread.
    """
    alike, others = (_similarities(embeddings[:images]) for embeddings in (triggered, clean))
    variance = float(others.var(correction=0))
    if not variance > 0:
        return None
    width = variance if spread == "variance" else math.sqrt(variance)
    return float(alike.mean() - others.mean()) / width


def _similarities(embeddings: Tensor) -> Tensor:
    unit = functional.normalize(embeddings.float(), dim=1)
    return torch.mm(unit, unit.T)
