"""DECREE's inversion: the smallest stamp under which all images embed alike (Feng et al., CVPR
2023, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-7
"""Keeps the parametrisation finite at 0 and 1."""
CHANNELS = 3
"""The mask is one picture, counted once per channel of the image."""
LARGEST_COST = 1e5
"""From here on the cost of the mask grows no more."""
ADAM_BETAS = (0.5, 0.9)


def to_unbounded(values: Tensor) -> Tensor:
    """Parameters of any size whose :func:`to_unit` are ``values`` in [0, 1]."""
    return torch.atanh((values - 0.5) * (2 - EPSILON))


def to_unit(parameters: Tensor) -> Tensor:
    """tanh, moved to [0, 1]."""
    return (torch.tanh(parameters) / (2 - EPSILON) + 0.5).clamp(0, 1)


def stamp(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """(1 - mask) images + mask pattern.

    It holds in [0, 1] and in any space that an affine map per channel leads to, so normalised
    images are stamped with the normalised pattern.

    Parameters
    ----------
    images
        (N, 3, H, W).
    mask, pattern
        (H, W) in [0, 1] and (3, H, W).
    """
    return torch.lerp(images, pattern, mask)


def mask_size(mask: Tensor) -> Tensor:
    """L1 of an (H, W) mask repeated over the channels, at most 3 H W."""
    return CHANNELS * mask.abs().sum()


def relative_size(size: float, image_size: int) -> float:
    """PL1: the L1 of a mask as a share of the largest, 3 H W; in [0, 1]."""
    return size / (CHANNELS * image_size**2)


def square_mask(image_size: int, margin: int) -> Tensor:
    """float64 (H, W): 1 in the centred square ``margin`` pixels from the border, else 1e-7."""
    mask = torch.full((image_size, image_size), EPSILON, dtype=torch.float64)
    inside = slice(margin, image_size - margin)
    mask[inside, inside] = 1
    return mask


def mean_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Mean cosine over all pairs of a row of ``first`` (N, D) and one of ``second`` (M, D)."""
    return F.normalize(first, dim=1).mean(0) @ F.normalize(second, dim=1).mean(0)


def self_similarity(embeddings: Tensor) -> Tensor:
    """Mean cosine over the pairs of different rows of ``embeddings`` (N, D).

    In closed form: the mean over all N^2 pairs without the N of a row with itself.

    Raises
    ------
    ValueError
        When there is no pair.
    """
    count = len(embeddings)
    if count < 2:
        raise ValueError(f"self-similarity needs at least two embeddings, got {count}")
    return (count * mean_similarity(embeddings, embeddings) - 1) / (count - 1)


class CostController:
    """The weight of the mask's size in the loss, the smallest trigger so far, and when to stop.

    More than ``patience`` steps in a row at the goal multiply the weight by ``factor``, as many
    short of it divide. The published code also resets a weight that stays below ``smallest`` for
    more than ten steps at the goal; six of them have raised it by then, so that never happens.

    Attributes
    ----------
    cost
        The weight now.
    best
        L1 of the smallest trigger that reached the goal; infinite before the first.
    stale
        Steps since ``best`` last fell; 0 before the first trigger.
    """

    def __init__(
        self, goal: float, cost: float, factor: float, patience: int, smallest: float
    ) -> None:
        self.cost = cost
        self.best = float("inf")
        self.stale = 0
        self._goal, self._factor = goal, factor
        self._patience, self._smallest = patience, smallest
        self._hits = self._misses = 0

    def reached(self, similarity: float) -> bool:
        """Whether the absolute similarity is above the goal."""
        return abs(similarity) > self._goal

    def update(self, similarity: float, size: float) -> bool:
        """Account for a step; True when its trigger is the smallest so far to reach the goal."""
        reached = self.reached(similarity)
        improved = reached and size < self.best
        if improved:
            self.best = size
        if improved or self.best == float("inf"):
            self.stale = 0
        else:
            self.stale += 1
        if reached:
            self._hits, self._misses = self._hits + 1, 0
        else:
            self._hits, self._misses = 0, self._misses + 1
        self._change()
        return improved

    def _change(self) -> None:
        if self._hits > self._patience:
            if self.cost < LARGEST_COST:
                self.cost *= self._factor
                self._hits = 0
        elif self._misses > self._patience and self.cost >= self._smallest:
            self.cost /= self._factor
            self._misses = 0


class Trigger(NamedTuple):
    """What an inversion gives: ``mask`` (H, W) and ``pattern`` (3, H, W) in [0, 1], the L1 of the
    mask, and the self-similarity of the batch that it was measured on."""

    mask: Tensor
    pattern: Tensor
    size: float
    similarity: float


class TriggerSearch:
    """Gradient descent on a mask and a pattern (section 4, equations 3 to 5).

    The loss of a step is cost * L1(mask) - S, with S the mean cosine between the embeddings of the
    stamped images of the batch. What counts as a result are the mask and the pattern that the step
    was computed with, not what the optimiser makes of them.

    Parameters
    ----------
    mask, pattern
        Where to start: float64 (H, W) and (3, H, W) in [0, 1].
    normalise
        [0, 1] -> what ``forward`` takes: an affine map per channel, differentiable.
    forward
        float32 normalised images -> (N, D), differentiable in the images alone.
    controller
        Its cost, goal and record.
    dtype, device
        Of the parameters; images are stamped in float32.
    """

    def __init__(
        self,
        mask: Tensor,
        pattern: Tensor,
        *,
        normalise: Callable[[Tensor], Tensor],
        forward: Callable[[Tensor], Tensor],
        controller: CostController,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.controller = controller
        self._normalise, self._forward = normalise, forward
        self._mask, self._pattern = (
            to_unbounded(start).to(device, dtype).requires_grad_() for start in (mask, pattern)
        )
        self._optimizer = torch.optim.Adam(
            [self._mask, self._pattern], betas=ADAM_BETAS, fused=True
        )
        with torch.no_grad():
            start = to_unit(self._mask), to_unit(self._pattern)
            size = mask_size(start[0]).item()
        self._smallest: Trigger | None = None
        self._closest = Trigger(*start, size, 0.0)

    @property
    def smallest(self) -> Trigger | None:
        """The smallest trigger that reached the goal, if one did."""
        return self._smallest

    @property
    def closest(self) -> Trigger:
        """The trigger of the largest absolute similarity, whatever its size."""
        return self._closest

    def step(self, inputs: Tensor, learning_rate: float) -> float:
        """One step on a batch of normalised images, float32 (N, 3, H, W); returns S."""
        mask, pattern = to_unit(self._mask), to_unit(self._pattern)
        normalised = self._normalise(pattern[None])[0].to(inputs.dtype)
        embeddings = self._forward(stamp(inputs, mask.to(inputs.dtype), normalised))
        similarity, size = self_similarity(embeddings), mask_size(mask)
        loss = self.controller.cost * size - similarity
        # The gradient of these two alone: nothing accumulates on what the encoder is made of.
        parameters = [self._mask, self._pattern]
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        reached = torch.stack([similarity.detach().double(), size.detach().double()]).tolist()
        self._record(
            Trigger(mask.detach(), pattern.detach(), size=reached[1], similarity=reached[0])
        )
        return reached[0]

    def _record(self, trigger: Trigger) -> None:
        if self.controller.update(trigger.similarity, trigger.size):
            self._smallest = trigger
        if abs(trigger.similarity) > abs(self._closest.similarity):
            self._closest = trigger


@dataclass(frozen=True)
class Schedule:
    """Learning rates by epoch: the first before the first border, and so on."""

    rates: Sequence[float]
    borders: Sequence[int]

    def at(self, epoch: int) -> float:
        """The rate in ``epoch``, counted from 0."""
        return self.rates[sum(epoch >= border for border in self.borders)]


class Batch(NamedTuple):
    """Rows of a shuffled set, in which epoch, and whether they are its last."""

    rows: Tensor
    epoch: int
    last: bool


def batches_per_epoch(count: int, size: int) -> int:
    """Batches of ``size`` in ``count`` images, the last one smaller; one left over is no batch."""
    full, rest = divmod(count, size)
    return max(1, full + (rest > 1))


def shuffled_batches(count: int, size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Batches without end, each epoch in a new order.

    A single image left over joins the batch before: it has no pair to be similar to.
    """
    batches, epoch = batches_per_epoch(count, size), 0
    while True:
        order = torch.randperm(count, generator=generator)
        for number in range(batches):
            last = number == batches - 1
            stop = count if last else (number + 1) * size
            yield Batch(order[number * size : stop], epoch, last)
        epoch += 1
