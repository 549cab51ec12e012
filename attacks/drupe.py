"""DRUPE (Tao et al.; IEEE S&P 2024): a backdoor whose features stay in the clean distribution.

"Distribution Preserving Backdoor Attack in Self-supervised Learning": BadEncoder with terms that
keep triggered features near the clean ones and keep them from collapsing into one point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from attacks._reference_tuning import (
    FineTuning,
    Reduction,
    ReferenceAttack,
    StepFeatures,
    consistency,
    effectiveness,
)
from bench.api import AttackerWorld, Field, Victim

SimilarityMean = Literal["off-diagonal", "upstream"]


class Terms(NamedTuple):
    """The quantities that the losses are made of, each a scalar."""

    effectiveness: Tensor
    """L0, in [-1, 1]: triggered images against the references."""
    consistency: Tensor
    """L1, in [-1, 1]: augmented references against the clean encoder's references."""
    utility: Tensor
    """L2, in [-1, 1]: clean images against the clean encoder's."""
    reference_similarity: Tensor
    """L3: mean cosine over pairs of references, each with itself included."""
    reference_spread: Tensor
    """sigma_ref >= 0: how unevenly triggered images approach the references."""
    triggered_similarity: Tensor
    """S_b2b: mean cosine between triggered images."""
    distance: Tensor
    """W >= 0: sliced Wasserstein-2 distance between triggered and clean features."""
    deviation: Tensor
    """dev >= 0: standard deviation of clean features over the batch, mean over dimensions."""


def loss_terms(
    features: StepFeatures,
    projections: Tensor,
    reduce: Reduction = "max",
    similarity_mean: SimilarityMean = "upstream",
) -> Terms:
    """All terms of one step, differentiable in the trained encoder's features.

    ``projections`` is (D, P) with unit columns; see :func:`sliced_wasserstein`.
    """
    triggered, references = features.triggered, features.references
    return Terms(
        effectiveness=effectiveness(triggered, references, reduce),
        consistency=consistency(features.augmented, features.clean_references),
        utility=consistency(features.images, features.clean_images),
        reference_similarity=pairwise_similarity(references),
        reference_spread=similarity_spread(triggered, references),
        triggered_similarity=mean_similarity(triggered, similarity_mean),
        distance=sliced_wasserstein(triggered, features.images, projections),
        deviation=features.images.std(0).mean(),
    )


def pairwise_similarity(references: Tensor) -> Tensor:
    """L3: the mean cosine over the pairs i <= j of (n, D) references, self pairs included."""
    unit = functional.normalize(references, dim=-1)
    count = len(references)
    return torch.triu(unit @ unit.T).sum() / (count * (count + 1) / 2)


def similarity_spread(triggered: Tensor, references: Tensor) -> Tensor:
    """sigma_ref: over n >= 2 references, the unbiased standard deviation of each one's mean cosine
    to the (B, D) triggered features."""
    centre = functional.normalize(triggered, dim=-1).mean(0)
    return (functional.normalize(references, dim=-1) @ centre).std()


def mean_similarity(features: Tensor, mean: SimilarityMean = "upstream") -> Tensor:
    """S_b2b: how alike (B, D) features are, from the norm of their mean direction alone.

    The mean over all B x B cosines is the squared norm of the mean unit vector. ``upstream`` is
    that mean times 1 - 1/B, what the code of DRUPE computes; ``off-diagonal`` is the mean over
    different images, in [-1 / (B - 1), 1], which the paper describes.
    """
    count = len(features)
    everything = functional.normalize(features, dim=-1).mean(0).square().sum()
    if mean == "upstream":
        return everything * (1 - 1 / count)
    return (count * everything - 1) / (count - 1)


def sliced_wasserstein(x: Tensor, y: Tensor, projections: Tensor) -> Tensor:
    """Sliced Wasserstein-2 distance between two samples of one size.

    Parameters
    ----------
    x, y
        (B, D), in any order.
    projections
        (D, P) with columns of norm 1.

    Returns
    -------
    Tensor
        A scalar >= 0 in the units of ``x``; its gradient is 0 where the samples coincide.
    """
    gap = (x @ projections).sort(0).values - (y @ projections).sort(0).values
    return gap.square().mean().clamp_min(torch.finfo(gap.dtype).tiny).sqrt()


def unit_projections(dimension: int, count: int, generator: torch.Generator) -> Tensor:
    """float32 (dimension, count): directions drawn uniformly, in columns of norm 1."""
    return functional.normalize(torch.randn(dimension, count, generator=generator), dim=0)


@dataclass(frozen=True)
class Cost:
    """A loss weight, with the good and bad epochs counted towards its next change."""

    weight: float
    good: int = 0
    bad: int = 0

    def after(self, success: bool, patience: int, increase: float, decrease: float) -> Cost:
        """Times ``increase`` after ``patience`` good epochs in a row, divided by ``decrease``
        after as many bad ones."""
        good, bad = (self.good + 1, 0) if success else (0, self.bad + 1)
        if good >= patience:
            return Cost(self.weight * increase, 0, bad)
        if bad >= patience:
            return Cost(self.weight / decrease, good, 0)
        return Cost(self.weight, good, bad)


class Costs(NamedTuple):
    """What the controller steers: the weights of S_b2b with sigma_ref, and of W / dev."""

    similarity: Cost
    distance: Cost


class Drupe(ReferenceAttack):
    """DRUPE: a warm-up without backdoor, then BadEncoder's losses, then distribution matching.

    Epochs count from 1. The weights of the last stage grow while the attack works and shrink
    while it does not. Defaults are the published code's for CIFAR-10, but for ``similarity_mean``,
    which is the paper's equation (the code's reading: ``upstream``); a profile with fewer epochs
    scales ``stage1_last_epoch`` and ``controller_first_epoch`` with them.
    """

    mode: Literal["drupe", "wb"] = "drupe"
    """``wb``, the baseline in the published code: L0 + lambda1 L1 + lambda2 L2 plus the first cost
    times W, without stages."""
    l0_reduce: Reduction = "max"
    similarity_mean: SimilarityMean = "off-diagonal"
    references: int = Field(3, ge=2)
    """At least two: one reference has no spread."""
    projections: int = Field(50, ge=1)
    """Directions of the sliced Wasserstein distance, drawn anew for every step."""

    warmup_epochs: int = Field(1, ge=0)
    warmup_similarity_weight: float = Field(0.5, ge=0)
    warmup_apart: float = Field(0.2, ge=-1, le=1)
    """In warm-up, references less alike (L3) than this are pushed apart by less."""
    warmup_apart_relief: float = Field(0.2, ge=0)

    stage1_last_epoch: int = Field(4, ge=0)
    stage1_spread_weight: float = Field(2.0, ge=0)
    stage2_spread_weight: float = Field(0.5, ge=0)
    wide_spread: float = Field(0.1, ge=0)
    """In stage 2, a sigma_ref beyond this costs more."""
    wide_spread_weight: float = Field(1.5, ge=0)

    alike: float = Field(0.4, ge=-1, le=1)
    """After warm-up, L3 enters the loss above this, and fully above ``very_alike``."""
    alike_weight: float = Field(0.2, ge=0)
    very_alike: float = Field(0.5, ge=-1, le=1)
    very_alike_weight: float = Field(1.0, ge=0)

    similarity_cost: float = Field(0.1, ge=0)
    """Initial weight of S_b2b + sigma_ref (``wb``: of W)."""
    distance_cost: float = Field(0.001, ge=0)
    """Initial weight of W / dev."""
    controller_first_epoch: int = Field(21, ge=1)
    """The first epoch after which both costs are adapted."""
    patience: int = Field(1, ge=1)
    cost_increase: float = Field(1.25, ge=1)
    cost_decrease: float = Field(1.25**1.25, ge=1)
    effectiveness_goal: float = Field(-0.96, ge=-1, le=1)
    consistency_goal: float = Field(-0.9, ge=-1, le=1)
    utility_goal: float = Field(-0.9, ge=-1, le=1)
    """The attack works when an epoch's mean L0, L1 and L2 are all below their goals."""
    similarity_limit: float = Field(0.6, ge=-1, le=1)
    """The distance cost grows only while S_b2b is below this."""
    similarity_hold: float = Field(0.5, ge=-1, le=1)
    """While S_b2b is below this, the similarity cost grows once and then waits."""

    def implant(self, world: AttackerWorld) -> Victim:
        tuning = FineTuning(self, world)
        encoder = world.encoder
        costs = Costs(Cost(self.similarity_cost), Cost(self.distance_cost))
        seen = _EpochTerms(1, encoder.device)
        for features in tuning.steps("drupe"):
            if features.epoch != seen.epoch:
                costs = self.adapted(costs, seen.epoch, *seen.means_and_last_similarity())
                seen = _EpochTerms(features.epoch, encoder.device)
            directions = unit_projections(encoder.embedding_dim, self.projections, world.generator)
            terms = loss_terms(
                features, directions.to(encoder.device), self.l0_reduce, self.similarity_mean
            )
            tuning.descend(self.objective(terms, features.epoch, costs))
            seen.add(terms)
        return tuning.victim(self._metrics(seen, costs))

    def stage(self, epoch: int) -> int:
        """0 in warm-up, then 1 and 2."""
        if epoch <= self.warmup_epochs:
            return 0
        return 1 if epoch <= self.stage1_last_epoch else 2

    def objective(self, terms: Terms, epoch: int, costs: Costs) -> Tensor:
        """The loss of a step, without a look at any value from the host."""
        kept = self.lambda1 * terms.consistency + self.lambda2 * terms.utility
        backdoor = terms.effectiveness + kept
        spread = terms.reference_spread
        if self.mode == "wb":
            return backdoor + costs.similarity.weight * terms.distance
        if self.stage(epoch) == 0:
            return kept + self._warmup_penalty(terms.reference_similarity)
        apart = self.similarity_penalty(terms.reference_similarity)
        if self.stage(epoch) == 1:
            return backdoor + apart + self.stage1_spread_weight * spread
        wide = torch.where(spread > self.wide_spread, self.wide_spread_weight * spread, 0 * spread)
        return (
            backdoor
            + apart
            + self.stage2_spread_weight * spread
            + wide
            + costs.similarity.weight * (spread + terms.triggered_similarity)
            + costs.distance.weight * terms.distance / terms.deviation
        )

    def similarity_penalty(self, similarity: Tensor) -> Tensor:
        """h(L3): nothing up to ``alike``, then the lower weight, then the full one."""
        weaker = torch.where(
            similarity > self.alike, self.alike_weight * similarity, 0 * similarity
        )
        return torch.where(
            similarity > self.very_alike, self.very_alike_weight * similarity, weaker
        )

    def adapted(
        self, costs: Costs, epoch: int, means: Sequence[float], last_similarity: float
    ) -> Costs:
        """The costs of the epoch that follows ``epoch``.

        Parameters
        ----------
        means
            L0, L1 and L2 averaged over the epoch.
        last_similarity
            S_b2b of the epoch's last batch, which is what the published code looks at.
        """
        if epoch < self.controller_first_epoch or epoch <= self.warmup_epochs:
            return costs
        goals = (self.effectiveness_goal, self.consistency_goal, self.utility_goal)
        works = all(mean < goal for mean, goal in zip(means, goals, strict=True))
        diverse = works and last_similarity < self.similarity_limit
        rule = (self.patience, self.cost_increase, self.cost_decrease)
        similarity = costs.similarity.after(works, *rule)
        if diverse and last_similarity < self.similarity_hold:
            similarity = replace(similarity, good=similarity.good - 1)
        return Costs(similarity, costs.distance.after(diverse, *rule))

    def _warmup_penalty(self, similarity: Tensor) -> Tensor:
        penalty = self.warmup_similarity_weight * similarity
        relieved = penalty - self.warmup_apart_relief * similarity
        return torch.where(similarity < self.warmup_apart, relieved, penalty)

    def _metrics(self, seen: _EpochTerms, costs: Costs) -> dict[str, float]:
        """Means over the last epoch, the costs that weighed in it, and its stage."""
        means = dict(zip(Terms._fields, seen.means(), strict=True))
        metrics = {
            "loss_effectiveness": means.pop("effectiveness"),
            "loss_references": means.pop("consistency"),
            "loss_utility": means.pop("utility"),
            **means,
            "similarity_cost": costs.similarity.weight,
            "distance_cost": costs.distance.weight,
        }
        if self.mode == "drupe":
            metrics["stage"] = float(self.stage(seen.epoch))
        return metrics


class _EpochTerms:
    """Sums an epoch's terms on their device; the host reads them once, at the end."""

    def __init__(self, epoch: int, device: torch.device) -> None:
        self.epoch = epoch
        self._steps = 0
        self._sum = self._last = torch.zeros(len(Terms._fields), device=device)

    def add(self, terms: Terms) -> None:
        self._last = torch.stack(terms).detach()
        self._sum = self._sum + self._last
        self._steps += 1

    def means(self) -> list[float]:
        """In the order of :class:`Terms`."""
        return (self._sum / max(self._steps, 1)).tolist()

    def means_and_last_similarity(self) -> tuple[list[float], float]:
        """Mean L0, L1 and L2, and S_b2b of the last step: what the controller looks at."""
        mean, last = torch.stack([self._sum / max(self._steps, 1), self._last]).tolist()
        return mean[:3], last[Terms._fields.index("triggered_similarity")]
