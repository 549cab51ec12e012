"""What an outer iteration of ASSET costs with features computed once, against computing them in
every inner step.

    python benchmarks/asset_iteration.py [--threads 2] [--record benchmarks/asset_iteration.csv]

The published loop computes the features of both batches in each of the 2 x 10 (DeDe's port) or
2 x 100 (ASSET) inner steps of an outer iteration, with gradients that nothing uses. Ours computes
them once. Both separation networks start alike and are compared: they must say the same. The
encoder is the published ResNet-18, flattened before it pools: 8,192 features of a 32-pixel image.
The published iteration is long, so its features are computed in a few inner steps only and the
time is multiplied; ``--whole`` computes them all. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.provenance import code_version, hardware
from defenses._asset_networks import detector_network
from defenses._asset_separation import adjusted_outlyingness, separate, separation_net

CASES = ((128, 10, 512), (512, 100, 128))
"""Batch, inner iterations, width: DeDe's port and ASSET."""
SAMPLED_ITERATIONS = 1
LEARNING_RATE = 1e-4


def encoder(seed: int) -> Callable[[Tensor], Tensor]:
    """Images -> 8,192 features, in training mode as published."""
    network = detector_network("resnet18", 10, seed).train()
    return nn.Sequential(*list(network.children())[:-2], nn.Flatten())


def ours(
    features: Callable[[Tensor], Tensor], pool: Tensor, base: Tensor, iterations: int, hidden: int
) -> tuple[float, float, Tensor]:
    """Seconds for the features, for all of it, and the outputs."""
    start = time.perf_counter()
    with torch.no_grad():
        of_pool, of_base = features(pool), features(base)
    embedded = time.perf_counter() - start
    outputs = separate(
        of_pool, of_base, 0, hidden=hidden, iterations=iterations, learning_rate=LEARNING_RATE
    )
    return embedded, time.perf_counter() - start, outputs


def published(
    features: Callable[[Tensor], Tensor], pool: Tensor, base: Tensor, iterations: int, hidden: int
) -> tuple[float, Tensor]:
    """Seconds for ``iterations`` with the features computed in each step, and the outputs."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = separation_net(8192, hidden)
    nn.init.zeros_(net[-2].weight)
    nn.init.zeros_(net[-2].bias)
    optimizers = [torch.optim.Adam(net.parameters(), LEARNING_RATE) for _ in range(2)]
    criterion = nn.MSELoss()
    start = time.perf_counter()
    for _ in range(iterations):
        for optimizer, images, wanted in zip(optimizers, (pool, base), (1.0, 0.0), strict=True):
            optimizer.zero_grad()
            outputs = net(features(images))
            criterion(outputs, torch.full_like(outputs, wanted)).backward()
            optimizer.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        return seconds, net(features(pool))[:, 0]


def compare(batch: int, iterations: int, hidden: int, whole: bool) -> list[str]:
    """One row: batch, iterations, width, milliseconds of features, of ours, of the published."""
    generator = torch.Generator().manual_seed(0)
    pool, base = (torch.rand(batch, 3, 32, 32, generator=generator) for _ in range(2))
    features = encoder(1)
    ours(features, pool[:8], base[:8], 1, hidden)
    sampled = iterations if whole else min(SAMPLED_ITERATIONS, iterations)
    _, _, same_steps = ours(features, pool, base, sampled, hidden)
    seconds, outputs = published(features, pool, base, sampled, hidden)
    torch.testing.assert_close(outputs, same_steps, rtol=1e-3, atol=1e-4)
    embedded, total, _ = ours(features, pool, base, iterations, hidden)
    adjusted_outlyingness(base[:, 0, 0, 0])  # imports what it needs
    outliers = time.perf_counter()
    adjusted_outlyingness(torch.rand(batch, generator=generator))
    outliers = time.perf_counter() - outliers
    theirs = seconds * iterations / sampled
    return [
        *(str(value) for value in (batch, iterations, hidden)),
        *(f"{1000 * value:.0f}" for value in (embedded, total, outliers, theirs)),
        f"{theirs / total:.1f}",
        "measured" if sampled == iterations else f"from {sampled} of {iterations}",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = hardware("cpu")
    described = f"{machine['processor']}, {machine['cores']} cores"
    print(f"{code_version()}, {described}, {arguments.threads} threads, 8,192 features, ms")
    header = [
        "batch", "inner_iterations", "width", "features", "ours", "outlyingness", "published",
        "ratio", "published_time",
    ]  # fmt: skip
    print(*(f"{name:>17}" for name in header))
    rows = []
    for case in CASES:
        row = compare(*case, arguments.whole)
        print(*(f"{value:>17}" for value in row), flush=True)
        rows.append([code_version(), str(arguments.threads), *row, described])
    if arguments.record:
        new = not arguments.record.exists()
        with arguments.record.open("a", newline="") as stream:
            writer = csv.writer(stream)
            if new:
                writer.writerow(["code", "threads", *header, "machine"])
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
