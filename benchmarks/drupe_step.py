"""What a step of DRUPE costs: rows through the network and milliseconds, ours against the
published loader's.

    python benchmarks/drupe_step.py [--architecture resnet-narrow] [--batch-size 256] [--steps 5]

The published code sends every stamped image and every reference through the network once per
reference and per image, and the clean encoder's features again in every step: (1 + n) B frozen and
(1 + 3 n) B trainable rows for n references, 4 B and 10 B for three. Ours sends each distinct row
once, 2 B + n + n V for V views per reference. The published batches are rebuilt here from random
images and go through the same network, losses and optimiser. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attacks._reference_tuning import StepFeatures, freeze_batch_norm
from attacks.drupe import Cost, Costs, Drupe, loss_terms, unit_projections
from bench.api import AttackerWorld, ImageSet, jitter_views
from bench.encoders.encoder import Encoder
from bench.provenance import code_version, hardware

WARM_UP = 1


class StepClock:
    """A progress that stops after some steps; it times all but the first and counts the rows that
    go through each of the named networks."""

    def __init__(self, steps: int, device: torch.device, **networks: nn.Module) -> None:
        self._steps, self._device = steps, device
        self._rows = Counter()
        self.milliseconds_per_step = 0.0
        self.rows_before_first_step: dict[str, int] = {}
        self.rows_per_step: dict[str, float] = {}
        for name, network in networks.items():
            network.register_forward_pre_hook(partial(self._count, name))

    def track(self, items: Iterable[Any], what: str, total: int | None = None) -> Iterator[Any]:
        self.rows_before_first_step = dict(self._rows)
        for done, item in enumerate(items):
            if done == WARM_UP:
                before, start = Counter(self._rows), self._now()
            if done == WARM_UP + self._steps:
                break
            yield item
        self.milliseconds_per_step = 1000 * (self._now() - start) / self._steps
        passed = self._rows - before
        self.rows_per_step = {name: rows / self._steps for name, rows in passed.items()}

    def _count(self, name: str, _network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._rows[name] += len(inputs[0])

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def ours(
    attack: Drupe, encoder: Encoder, images: ImageSet, steps: int, precision: str
) -> StepClock:
    """The attack itself."""
    clock = StepClock(steps, encoder.device, trained=encoder.network)
    shadow = len(images) - attack.references
    attack.implant(
        AttackerWorld(
            encoder=encoder,
            shadow=images.select(torch.arange(shadow)),
            references=images.select(torch.arange(shadow, len(images))),
            target=0,
            generator=torch.Generator().manual_seed(0),
            progress=clock,
            precision=precision,
        )
    )
    return clock


def published(
    attack: Drupe, encoder: Encoder, images: ImageSet, steps: int, precision: str
) -> StepClock:
    """The published rows through the same network."""
    frozen, device = encoder.clone(), encoder.device
    clock = StepClock(steps, device, trained=encoder.network, frozen=frozen.network)
    freeze_batch_norm(encoder.network)
    frozen.network.eval()
    optimiser = torch.optim.SGD(
        [p for p in encoder.network.parameters() if p.requires_grad],
        lr=attack.learning_rate,
        momentum=attack.momentum,
        weight_decay=attack.weight_decay,
    )
    generator = torch.Generator().manual_seed(0)
    batch, count = attack.batch_size, attack.references
    costs = Costs(Cost(attack.similarity_cost), Cost(attack.distance_cost))
    trigger = attack.trigger(encoder.image_size)
    references = images.float(slice(-count, None))
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")

    def forward(which: Encoder, rows: Tensor) -> Tensor:
        return which.network(which.normalise(rows)).float()

    for epoch in clock.track(range(1, attack.epochs + 1), "published"):
        clean = images.float(slice(0, batch)).to(device)
        views = jitter_views(references, batch, generator)
        with autocast:
            with torch.no_grad():
                clean_images = forward(frozen, clean)
                repeated = [forward(frozen, r.expand_as(clean)) for r in references]
            features = forward(encoder, clean)
            stamped = [forward(encoder, trigger(clean)) for _ in range(count)]
            targets = [forward(encoder, r.expand_as(clean)) for r in references]
            augmented = [forward(encoder, views[:, i]) for i in range(count)]
        terms = loss_terms(
            StepFeatures(
                epoch=epoch,
                images=features,
                # Every copy takes part in the backward pass, as in the published losses.
                triggered=torch.stack(stamped).mean(0),
                references=torch.stack(targets).mean(1),
                augmented=torch.stack(augmented, 1),
                clean_images=clean_images,
                clean_references=torch.stack(repeated).mean(1),
            ),
            unit_projections(features.shape[1], attack.projections, generator).to(device),
        )
        optimiser.zero_grad(set_to_none=True)
        attack.objective(terms, epoch, costs).backward()
        optimiser.step()
    return clock


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="resnet-narrow")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--references", type=int, default=3)
    parser.add_argument("--reference-views", type=int, help="default: one per image, as published")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    encoder = Encoder.initialise(arguments.architecture, generator=generator)
    encoder.to(arguments.device)
    attack = Drupe(
        batch_size=arguments.batch_size,
        references=arguments.references,
        reference_views=arguments.reference_views,
        epochs=arguments.steps + WARM_UP + 1,
        # Every step with all terms of the loss.
        warmup_epochs=0,
        stage1_last_epoch=0,
    )
    side = encoder.image_size
    pixels = torch.randint(
        256, (attack.batch_size + attack.references, 3, side, side), generator=generator
    )
    images = ImageSet(pixels.to(torch.uint8)).to(arguments.device)
    rest = (images, arguments.steps, arguments.precision)
    mine = ours(attack, encoder.clone(), *rest)
    theirs = published(attack, encoder.clone(), *rest)
    machine = hardware(arguments.device)
    described = f"{machine.get('accelerator', machine['processor'])}, {machine['cores']} cores"
    print(f"{code_version()}, {described}, {torch.get_num_threads()} threads")
    print(f"{arguments.architecture}, batch {attack.batch_size}, {attack.references} references")
    print(f"{'':<12}{'trained rows':>14}{'frozen rows':>13}{'ms per step':>13}")
    for name, clock in (("published", theirs), ("ours", mine)):
        rows = clock.rows_per_step
        print(
            f"{name:<12}{rows['trained']:>14.0f}{rows.get('frozen', 0):>13.0f}"
            f"{clock.milliseconds_per_step:>13.1f}"
        )
    ratio = theirs.milliseconds_per_step / mine.milliseconds_per_step
    once = mine.rows_before_first_step["trained"]
    print(f"ours computes the {once} clean rows once per run; {ratio:.2f} times as fast per step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
