"""What a step of DECREE's inversion costs: milliseconds, ours against a naive reading.

    python benchmarks/decree_step.py [--threads 1] [--record benchmarks/decree_step.csv]

The naive reading stamps image by image, normalises the clean and the stamped image each time, in
float64, takes the similarity from the whole matrix of pairs, and lets the encoder's weights gather
gradients that nobody uses. Ours stamps normalised images at once, takes the closed form, and
differentiates the mask and the pattern alone. Both go through the same network. The stamping alone
is timed as well, forward and backward, because the network dominates a step. Ours and the naive
one take turns; the median of several steps after a warm-up. ``--record`` appends a row each with
commit and machine. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from recording import append
from torch import Tensor
from torch.nn import functional as F

from bench.encoders.encoder import Encoder
from bench.provenance import code_version, hardware
from defenses._decree_inversion import (
    ADAM_BETAS,
    EPSILON,
    CostController,
    TriggerSearch,
    stamp,
    to_unbounded,
    to_unit,
)

RATE = 0.5
COST = 1e-3


class Naive:
    """A step of the same arithmetic without any of the savings."""

    def __init__(self, encoder: Encoder, mask: Tensor, pattern: Tensor) -> None:
        self._encoder = encoder
        self._theta = [
            to_unbounded(start).to(encoder.device).requires_grad_() for start in (mask, pattern)
        ]
        self._optimizer = torch.optim.Adam(self._theta, lr=RATE, betas=ADAM_BETAS)

    def stamped(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float32 normalised stamped images, and the mask repeated over the channels."""
        mask, pattern = (torch.tanh(theta) / (2 - EPSILON) + 0.5 for theta in self._theta)
        mask, pattern = mask.clamp(0, 1).repeat(3, 1, 1), (pattern * 255).clamp(0, 255)
        clean, stamped = [], []  # nothing ever reads the clean ones
        for image in images:
            image = image.double()
            result = ((1 - mask) * image + mask * pattern).clamp(0, 255)
            clean.append(self._encoder.normalise(image / 255).float())
            stamped.append(self._encoder.normalise(result / 255).float())
        return torch.stack(stamped), mask

    def step(self, images: Tensor) -> float:
        """One step on uint8 (N, 3, H, W); returns the similarity."""
        stamped, mask = self.stamped(images)
        embeddings = F.normalize(self._encoder.network(stamped), dim=1)
        different = ~torch.eye(len(images), dtype=torch.bool, device=embeddings.device)
        similarity = (embeddings @ embeddings.T).masked_select(different).mean()
        loss = COST * mask.abs().sum() - similarity
        # Clears the mask and the pattern alone: the encoder's gradients grow from step to step.
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return similarity.item()


def median_milliseconds(
    functions: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Milliseconds of one call of each, the functions taking turns."""
    measured: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start = _now(device)
            function()
            if repeat:  # the first is a warm-up
                measured[name].append(1000 * (_now(device) - start))
    return {name: statistics.median(values) for name, values in measured.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def costs(encoder: Encoder, batch_size: int, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step, and of the stamping in it, for the naive reading and for ours.

    Raises
    ------
    AssertionError
        When the first steps of the two do not see the same similarity.
    """
    device, side = encoder.device, encoder.image_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (batch_size, 3, side, side), generator=generator)
    pixels = pixels.to(device, torch.uint8)
    inputs = encoder.normalise(pixels.float() / 255)
    start = torch.rand(4, side, side, dtype=torch.float64, generator=generator)
    naive_encoder = encoder.clone()
    naive_encoder.network.eval()
    naive = Naive(naive_encoder, start[0], start[1:])
    ours = TriggerSearch(
        start[0],
        start[1:],
        normalise=encoder.normalise,
        forward=encoder.forward_normalised,
        controller=CostController(0.99, COST, 5.0, 5, 1e-5),
        dtype=torch.float32,
        device=device,
    )
    torch.testing.assert_close(naive.step(pixels), ours.step(inputs, RATE), rtol=0, atol=1e-4)
    theta = [
        to_unbounded(part).to(device, torch.float32).requires_grad_()
        for part in (start[0], start[1:])
    ]

    def stamping() -> None:
        mask, pattern = map(to_unit, theta)
        stamp(inputs, mask, encoder.normalise(pattern)).sum().backward()

    return {
        "step": median_milliseconds(
            {"naive": lambda: naive.step(pixels), "ours": lambda: ours.step(inputs, RATE)},
            repeats,
            device,
        ),
        "stamping": median_milliseconds(
            {"naive": lambda: naive.stamped(pixels)[0].sum().backward(), "ours": stamping},
            repeats,
            device,
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="resnet-narrow")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    encoder = Encoder.initialise(
        arguments.architecture, generator=torch.Generator().manual_seed(0)
    ).to(arguments.device)
    machine = hardware(arguments.device)
    described = f"{machine.get('accelerator', machine['processor'])}, {machine['cores']} cores"
    measured = costs(encoder, arguments.batch_size, arguments.repeats)
    print(f"{code_version()}, {described}, {arguments.threads} threads")
    print(f"{arguments.architecture}, {encoder.image_size} px, batch {arguments.batch_size}")
    print(f"{'':<10}{'naive':>10}{'ours':>10}  ms")
    for part, milliseconds in measured.items():
        naive, mine = milliseconds["naive"], milliseconds["ours"]
        print(f"{part:<10}{naive:>10.1f}{mine:>10.1f}  {naive / mine:.2f} times as fast")
    if arguments.record:
        shared = {
            "code": code_version(),
            "threads": arguments.threads,
            "architecture": arguments.architecture,
            "image_size": encoder.image_size,
            "batch_size": arguments.batch_size,
        }
        rows = [
            {**shared, "part": part, "reading": reading, "milliseconds": f"{value:.1f}"}
            for part, milliseconds in measured.items()
            for reading, value in milliseconds.items()
        ]
        append(arguments.record, [{**row, "machine": described} for row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
