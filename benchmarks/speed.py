"""Milliseconds per image of the four costs that a run is made of, on this machine.

    python benchmarks/speed.py [--profile cifar10-small] [--record benchmarks/speed.csv]

SimCLR pretraining (per view), BadEncoder fine-tuning (per shadow image), DeDe's fit (per image and
epoch) and DeDe's score (per image), with the profile's own settings and images, each after a short
warm-up. ``--record`` appends a row per cost with commit and machine, so that later changes can be
compared. Run it on a quiet machine: another busy process costs far more than its share.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from attacks.badencoder import BadEncoder
from bench.api import AttackerWorld, DefenderView
from bench.configfile import ConfigFile
from bench.encoders.defender import DefenderEncoder
from bench.encoders.encoder import Encoder
from bench.encoders.ssl import SSLRecipe, pretrain
from bench.provenance import code_version, hardware
from bench.session import Selection, Session
from defenses.dede import Dede

WARM_UP = 3


class StepClock:
    """A progress that stops after ``steps`` and times all but the first few."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self.seconds_per_step = 0.0

    def track(self, items: Iterable[Any], what: str, total: int | None = None) -> Iterator[Any]:
        start = 0.0
        for done, item in enumerate(items):
            if done == WARM_UP:
                start = time.perf_counter()
            if done == self._steps + WARM_UP:
                break
            yield item
        self.seconds_per_step = (time.perf_counter() - start) / self._steps


def measure(session: Session, steps: int) -> dict[str, float]:
    """Cost -> milliseconds per image."""
    profile, config = session.profile, session.file.config
    source = session.sources[profile.dataset]
    images = source.load("train").without_labels()
    device = torch.device(session.environment.device)
    architecture, settings = profile.encoder.architecture, profile.encoder.settings
    encoder = Encoder.initialise(
        architecture, settings, generator=torch.Generator().manual_seed(0)
    ).to(device)
    images = images.to(device)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    def simclr(clock: StepClock) -> int:
        recipe = SSLRecipe.model_validate(profile.pretraining)
        pretrain(
            recipe,
            architecture,
            settings,
            images,
            generator=generator(),
            device=device,
            precision=profile.precision,
            progress=clock,
        )
        return 2 * recipe.batch_size

    def badencoder(clock: StepClock) -> int:
        attack = BadEncoder.model_validate(config.component_parameters(profile, "badencoder", {}))
        shadow = min(profile.splits.shadow, len(images) - 3)
        attack.implant(
            AttackerWorld(
                encoder=encoder.clone(),
                shadow=images.select(torch.arange(shadow)),
                references=images.select(torch.arange(shadow, shadow + 3)),
                target=0,
                generator=generator(),
                progress=clock,
                precision=profile.precision,
            )
        )
        return min(attack.batch_size, shadow)

    defense = Dede.model_validate(config.component_parameters(profile, "dede", {}))

    def dede(clock: StepClock) -> int:
        auxiliary = images.select(torch.arange(min(profile.splits.auxiliary, len(images))))
        wrapped = DefenderEncoder(encoder)
        defense.fit(
            DefenderView(
                encoder=wrapped,
                auxiliary=auxiliary,
                embed_auxiliary=lambda: wrapped.embed(auxiliary.float()),
                generator=generator(),
                seed=0,
                progress=clock,
                precision=profile.precision,
            )
        )
        return defense.batch_size

    figures = {
        "SimCLR pretraining, per view": timed(simclr, steps),
        "BadEncoder fine-tuning, per shadow image": timed(badencoder, steps),
        "DeDe fit, per image and epoch": timed(dede, steps),
    }
    batch = images.float(slice(0, profile.score_batch))
    defense.score(batch)
    start = time.perf_counter()
    for _ in range(3):
        defense.score(batch)
    figures["DeDe score, per image"] = (time.perf_counter() - start) / 3 / len(batch) * 1000
    return figures


def timed(work: Callable[[StepClock], int], steps: int) -> float:
    """Milliseconds per image of a training loop that returns its batch size."""
    clock = StepClock(steps)
    batch = work(clock)
    return 1000 * clock.seconds_per_step / batch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("bench.yaml"))
    parser.add_argument("--profile", default="cifar10-small")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    session = Session(ConfigFile(arguments.config), Selection(profile=arguments.profile))
    session.set_up_torch()
    machine = hardware(session.environment.device)
    described = f"{machine.get('accelerator', machine['processor'])}, {machine['cores']} cores"
    print(f"{code_version()}, {described}, {session.environment.threads} threads")
    rows = []
    for what, milliseconds in measure(session, arguments.steps).items():
        print(f"{what:<42}{milliseconds:8.3f} ms  ({1000 / milliseconds:,.0f} per second)")
        rows.append([code_version(), arguments.profile, what, f"{milliseconds:.4f}", described])
    if arguments.record:
        new = not arguments.record.exists()
        with arguments.record.open("a", newline="") as stream:
            writer = csv.writer(stream)
            if new:
                writer.writerow(["code", "profile", "cost", "milliseconds", "machine"])
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
