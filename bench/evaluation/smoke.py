"""A first look at a foreign encoder, before anything expensive is spent on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bench.data.imageset import ImageSet
from bench.encoders.encoder import Encoder
from bench.evaluation.downstream import clean_accuracy
from bench.evaluation.nearest import knn_predict

__all__ = ["SmokeTest", "first_look", "smoke_test"]

BANK_IMAGES, QUERY_IMAGES = 2000, 500
_BATCH = 512  # all of them as floats would be 1.5 GB at 224 pixels
COLLAPSED = 0.995
"""Mean cosine between embeddings of different images from which they hardly differ."""
DEAD_SHARE = 0.5
"""Share of constant dimensions from which an embedding looks wrong."""
CHANCE_FACTOR = 1.5
"""A kNN accuracy below this many times chance looks like an encoder that sees nothing."""


@dataclass(frozen=True)
class SmokeTest:
    """What was measured and what looks wrong.

    Attributes
    ----------
    figures
        ``mean_norm``, ``mean_cosine`` (over pairs of different images), ``constant_dimensions``
        (share); of :func:`smoke_test` also ``knn_accuracy`` and ``chance`` (the share of the
        commonest class). Empty when embeddings are not finite.
    problems
        Sentences; empty when nothing looks wrong.
    fatal
        Whether no number from this encoder could mean anything.
    """

    figures: dict[str, float]
    problems: tuple[str, ...]
    fatal: bool


def smoke_test(encoder: Encoder, train: ImageSet, queries: ImageSet) -> SmokeTest:
    """Embedding statistics, and kNN accuracy against chance.

    Parameters
    ----------
    train, queries
        Labelled images of the encoder's size; the first 2,000 and 500 are used.
    """
    bank = train.select(torch.arange(min(len(train), BANK_IMAGES)))
    queries = queries.select(torch.arange(min(len(queries), QUERY_IMAGES)))
    known, asked = _embedded(encoder, bank), _embedded(encoder, queries)
    if not (torch.isfinite(known).all() and torch.isfinite(asked).all()):
        count = int((~torch.isfinite(torch.cat([known, asked]))).any(1).sum())
        problem = f"{count} of {len(known) + len(asked)} embeddings are not finite"
        return SmokeTest({}, (problem,), fatal=True)
    look = _judged(known)
    figures, problems = dict(look.figures), list(look.problems)
    predictions = knn_predict(asked, known, bank.labels, len(bank.class_names), k=20)
    figures["knn_accuracy"] = float(clean_accuracy(predictions, queries.labels))
    figures["chance"] = float(queries.labels.bincount().max()) / len(queries)
    if figures["knn_accuracy"] < CHANCE_FACTOR * figures["chance"]:
        problems.append(
            f"kNN accuracy {figures['knn_accuracy']:.3f} is near chance ({figures['chance']:.3f}): "
            "check architecture, mean and std"
        )
    return SmokeTest(figures, tuple(problems), fatal=look.fatal)


def first_look(encoder: Encoder, images: ImageSet) -> SmokeTest:
    """The part of :func:`smoke_test` that needs no labels; the first 2,000 ``images`` are used."""
    shown = images.select(torch.arange(min(len(images), BANK_IMAGES)))
    return _judged(_embedded(encoder, shown))


def _embedded(encoder: Encoder, images: ImageSet) -> Tensor:
    return torch.cat([encoder.embed(batch) for batch in images.batches(_BATCH)])


def _judged(embeddings: Tensor) -> SmokeTest:
    broken = int((~torch.isfinite(embeddings)).any(1).sum())
    if broken:
        problem = f"{broken} of {len(embeddings)} embeddings are not finite"
        return SmokeTest({}, (problem,), fatal=True)
    figures = _statistics(embeddings)
    dead = figures["constant_dimensions"]
    if dead == 1.0:
        return SmokeTest(figures, ("every image has the same embedding",), len(embeddings) > 1)
    problems = []
    if figures["mean_cosine"] > COLLAPSED:
        problems.append(
            f"embeddings hardly differ (mean cosine {figures['mean_cosine']:.4f}): is the "
            "normalisation right?"
        )
    if dead > DEAD_SHARE:
        problems.append(f"{dead:.0%} of the dimensions never vary: are all weights there?")
    return SmokeTest(figures, tuple(problems), fatal=False)


def _statistics(embeddings: Tensor) -> dict[str, float]:
    unit = functional.normalize(embeddings, dim=1)
    count = len(unit)
    # Closed form of the mean over pairs of different images.
    cosine = (float(unit.sum(0).square().sum()) - count) / max(1, count * (count - 1))
    spread = embeddings.std(0, correction=0)
    scale = float(embeddings.abs().mean())
    return {
        "mean_norm": float(embeddings.norm(dim=1).mean()),
        "mean_cosine": cosine,
        "constant_dimensions": float((spread <= 1e-6 * scale).float().mean()),
    }
