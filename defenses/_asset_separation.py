"""ASSET's inner loop: who in a suspicious batch does not look like the base set, and its threshold.

Section and cell numbers are those of Pan et al., "ASSET: Robust Backdoor Data Detection Across a
Multiplicity of Deep Learning Paradigms" (USENIX Security 2023), and of its demonstration notebook.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from bench.api import seeded_with

Sides = Literal["upper", "both"]
Start = Literal["even", "random"]
Formula = Literal["gaussian", "asset"]
FORMULAS: tuple[Formula, ...] = ("gaussian", "asset")


def adjusted_outlyingness(scores: Tensor) -> Tensor:
    """How far out each score lies, skewness allowed for (Hubert and Van der Veeken, 2008).

    The distance to the median (the lower one of an even number) in units of the distance to the
    whisker of the adjusted boxplot on the same side; its whiskers are 1.5 interquartile ranges
    long, stretched on the side of the longer tail by an exponential of the medcouple.

    Parameters
    ----------
    scores
        (N,) or (N, 1), finite, N >= 1.

    Returns
    -------
    Tensor
        float64 (N,) on the CPU, >= 0; infinite off a median on whose side there is no spread at
        all, 0 at the median.
    """
    # Here, because statsmodels takes a second to import.
    from statsmodels.stats.stattools import medcouple

    values = scores.detach().reshape(-1).double().cpu().numpy()
    ordered = np.sort(values)
    median = ordered[(len(values) - 1) // 2]
    if ordered[0] == ordered[-1]:
        return torch.zeros(len(values), dtype=torch.float64)
    low, high = np.quantile(values, [0.25, 0.75])
    skew = float(medcouple(values))
    below, above = (4, 3) if skew > 0 else (3, 4)
    whisker = 1.5 * (high - low)
    lower = low - math.exp(-below * skew) * whisker
    upper = high + math.exp(above * skew) * whisker
    distance = np.abs(values - median)
    unit = np.where(values > median, upper - median, median - lower)
    with np.errstate(divide="ignore", invalid="ignore"):
        return torch.from_numpy(np.where(distance == 0, 0.0, distance / unit))


def outlying(scores: Tensor, cut: float = 2.0, sides: Sides = "upper") -> Tensor:
    """bool (N,) on the CPU: whose adjusted outlyingness exceeds ``cut``.

    Parameters
    ----------
    sides
        ``upper`` counts only scores above the median, those that a separation network found
        unlike the base set; ``both``, as published, also those that look too much like it.
    """
    chosen = adjusted_outlyingness(scores) > cut
    if sides == "both":
        return chosen
    values = scores.detach().reshape(-1).double().cpu()
    return chosen & (values > values.median())


def separation_net(dimensions: int, hidden: int = 128) -> nn.Sequential:
    """The published "Vnet": two hidden layers with ReLU, one output in (0, 1).

    (N, ``dimensions``) -> (N, 1). 1,065,345 parameters for 8,192 features at the published width.
    """
    return nn.Sequential(
        nn.Linear(dimensions, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 1),
        nn.Sigmoid(),
    )


def separate(
    pool: Tensor,
    base: Tensor,
    seed: int,
    *,
    hidden: int = 128,
    iterations: int = 100,
    learning_rate: float = 1e-4,
    start: Start = "even",
) -> Tensor:
    """Train a new separation network on one batch and say what it makes of the pool's part of it.

    Each iteration takes two steps, each with an Adam of its own: the squared distance of the
    pool's outputs from 1, then that of the base set's from 0. What is like the base set is pulled
    both ways; what is not ends up near 1. The features are constants: the published loop computes
    them anew, with gradients, in each of its 200 steps, and gets the same ones.

    Parameters
    ----------
    pool, base
        float32 (B, D) and (b, D): features of a suspicious batch and of a clean one.
    seed
        What the network is initialised from; the global generator is left alone.
    start
        What the untrained network says. ``even``: 0.5 of every image, its last layer starting at
        zero, so that the outputs tell what was learnt and nothing else. ``random``, as published:
        something about 0.5, and at features far longer than the rest, where the sigmoid is
        saturated and has no gradient, 0 or 1 for good, whichever the initialisation says.

    Returns
    -------
    Tensor
        float32 (B,) in [0, 1], on the device of ``pool``.
    """
    with seeded_with(seed):
        net = separation_net(pool.shape[1], hidden)
    if start == "even":
        last = net[-2]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    net.to(pool.device)
    steps = [
        (torch.optim.Adam(net.parameters(), learning_rate, fused=True), features, wanted)
        for features, wanted in ((pool, 1.0), (base, 0.0))
    ]
    for _ in range(iterations):
        for optimizer, features, wanted in steps:
            optimizer.zero_grad()
            (net(features) - wanted).square().mean().backward()
            optimizer.step()
    with torch.no_grad():
        return net(pool)[:, 0]


def threshold(
    scores: Tensor,
    formula: Formula = "gaussian",
    density: float = 1e-6,
    regularisation: float = 1e-6,
) -> float:
    """The score above which a Gaussian fitted to the lower half of all scores has died away.

    The clean half is taken to be the scores up to the (lower) median; mu and sigma are its mean
    and standard deviation, with ``regularisation`` added to the variance (``get_t`` of the
    published code: a mixture of one component).

    Parameters
    ----------
    scores
        (N,), N >= 1.
    formula
        ``gaussian``: where the density of N(mu, sigma) falls to ``density``,
        mu + sigma sqrt(-2 ln(density sigma sqrt(2 pi))); mu when it never gets that high.
        ``asset``: the published expression, in which part of the logarithm's argument stands
        outside of it, mu + sigma sqrt(-2 ln(density) sigma sqrt(2 pi)).
    """
    values = scores.detach().reshape(-1).double().cpu()
    kept = values[values <= values.median()]
    mean = float(kept.mean())
    deviation = math.sqrt(float(kept.var(correction=0)) + regularisation)
    scale = deviation * math.sqrt(2 * math.pi)
    if formula == "asset":
        return mean + deviation * math.sqrt(-2 * math.log(density) * scale)
    return mean + deviation * math.sqrt(max(0.0, -2 * math.log(density * scale)))
