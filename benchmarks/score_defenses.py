"""Milliseconds per scored image and seconds of fitting of every built-in defense.

    python benchmarks/score_defenses.py [--profile quick] [--defenses a,b] [--limit-steps 50]
        [--record benchmarks/score_defenses.csv]

An untrained encoder of the profile's architecture stands for the victim: costs do not depend on its
weights. Parameters, images, split sizes, batch of a score stage, precision and threads are the
profile's; a defense that asks for a pool gets one whose poisoned share carries a white square. The
first row is what one embedding costs, charged in every row that asks for embeddings, as no two
defenses share them here. ``--limit-steps`` cuts training loops; seconds are then those of the cut
fit, and the row says so. A failed fit is a line on stderr and exit status 1. ``--record`` appends
a row per defense with commit and machine. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench import registry
from bench.api import DefenderView, Defense, ImageSet
from bench.config import Profile
from bench.configfile import ConfigFile
from bench.encoders.defender import DefenderEncoder
from bench.encoders.encoder import Encoder
from bench.progress import Silent
from bench.provenance import code_version, hardware
from bench.session import Selection, Session
from bench.workspace import StepCounter

REPEATS = 3
HEADER = [
    "code",
    "profile",
    "defense",
    "fit_seconds",
    "limit_steps",
    "score_ms_per_image",
    "images",
    "threads",
    "machine",
]


@dataclass(frozen=True)
class Cost:
    """What a defense takes; no ``fit_seconds`` for an embedding alone."""

    name: str
    fit_seconds: float | None
    score_milliseconds: float


class Bystander:
    """Shows defenses a profile's images and untrained encoders.

    Parameters
    ----------
    count
        Images that are scored; the profile's train set starts over when it is too small.
    limit_steps
        Steps after which training loops are cut, None for whole fits.
    """

    def __init__(self, session: Session, count: int, limit_steps: int | None) -> None:
        self.profile: Profile = session.profile
        self._parameters = session.file.config.component_parameters
        self._device = torch.device(session.environment.device)
        self._poison_rate = session.file.config.protocol.poison_rate
        self._progress = StepCounter(Silent(), limit_steps)
        self._train = session.sources[self.profile.dataset].load("train")
        splits = self.profile.splits
        roles = ("auxiliary", "base", "suspicious")
        sizes = [min(getattr(splits, role), len(self._train) // 4) for role in roles]
        stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        self._rows = {
            role: torch.arange(stop - size, stop)
            for role, size, stop in zip(roles, sizes, stops, strict=True)
        }
        scored = torch.arange(stops[-1], stops[-1] + count) % len(self._train)
        self._scored = self._train.float(scored).to(self._device)

    def defense(self, name: str) -> Defense:
        """A new instance with the profile's parameters."""
        component = registry.load("defenses", name)
        return component.model_validate(self._parameters(self.profile, name, {}))

    def embedding(self) -> Cost:
        """What :meth:`Encoder.embed` takes."""
        return Cost("(an embedding)", None, self._per_image(self._encoder(frozenset()).embed))

    def cost(self, name: str) -> Cost:
        """Fit a defense and let it score."""
        defense = self.defense(name)
        view = self._view(defense.requires)
        start = time.perf_counter()
        defense.fit(view)
        seconds = time.perf_counter() - start
        return Cost(name, seconds, self._per_image(defense.score))

    def _per_image(self, score: Callable[[Tensor], object]) -> float:
        batches = self._scored.split(self.profile.score_batch)
        score(batches[0])
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            for batch in batches:
                score(batch)
            seconds.append(time.perf_counter() - start)
        return 1000 * statistics.median(seconds) / len(self._scored)

    def _encoder(self, requires: frozenset[str]) -> DefenderEncoder:
        settings = self.profile.clip.encoder if "text" in requires else self.profile.encoder
        encoder = Encoder.initialise(
            settings.architecture,
            settings.settings,
            generator=torch.Generator().manual_seed(0),
        )
        return DefenderEncoder(encoder.to(self._device), requires)

    def _view(self, requires: frozenset[str]) -> DefenderView:
        encoder, labelled = self._encoder(requires), "auxiliary_labels" in requires
        auxiliary, pooled = self._images("auxiliary", labelled), "suspicious" in requires
        return DefenderView(
            encoder=encoder,
            auxiliary=auxiliary,
            embed_auxiliary=lambda: torch.cat([encoder.embed(b) for b in auxiliary.batches(1000)]),
            generator=torch.Generator().manual_seed(1),
            seed=2,
            progress=self._progress,
            suspicious=self._pool() if pooled else None,
            base=self._images("base", labelled) if pooled else None,
            trigger_support=self._square() if "trigger_support" in requires else None,
            precision=self.profile.precision,
        )

    def _images(self, role: str, labelled: bool) -> ImageSet:
        chosen = self._train.select(self._rows[role])
        return ImageSet(
            chosen.uint8().to(self._device),
            labels=chosen.labels if labelled else None,
            class_names=chosen.class_names if labelled else (),
            name=role,
        )

    def _pool(self) -> ImageSet:
        pixels = self._images("suspicious", labelled=False).uint8().clone()
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(3))
        poisoned = order[: round(len(pixels) * self._poison_rate)].to(pixels.device)
        pixels[poisoned] = pixels[poisoned].masked_fill(self._square(), 255)
        return ImageSet(pixels, name="suspicious")

    def _square(self) -> Tensor:
        """bool (S, S): a tenth of the area, in a corner."""
        side = self._train.image_size
        square = torch.zeros(side, side, dtype=torch.bool, device=self._device)
        square[-side // 3 :, -side // 3 :] = True
        return square


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("bench.yaml"))
    parser.add_argument("--profile", default="quick")
    parser.add_argument(
        "--defenses", help="names, separated by commas; all built-in ones otherwise"
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--limit-steps", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    session = Session(ConfigFile(arguments.config), Selection(profile=arguments.profile))
    session.set_up_torch()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    machine = hardware(session.environment.device)
    described = f"{machine.get('accelerator', machine['processor'])}, {machine['cores']} cores"
    print(f"{code_version()}, {described}, {torch.get_num_threads()} threads")
    bystander = Bystander(session, arguments.images, arguments.limit_steps)
    costs, failed = [bystander.embedding()], False
    print(_line(costs[0]), flush=True)
    for name in _chosen(arguments.defenses):
        try:
            costs.append(bystander.cost(name))
        except (ValueError, RuntimeError) as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            failed = True
        else:
            print(_line(costs[-1]), flush=True)
    if arguments.record:
        _record(arguments, costs, described)
    return int(failed)


def _chosen(names: str | None) -> list[str]:
    if names:
        return [registry.find("defenses", name).name for name in names.split(",")]
    known = registry.entries("defenses").values()
    return [entry.name for entry in known if entry.origin == "built-in"]


def _line(cost: Cost) -> str:
    fit = "" if cost.fit_seconds is None else f"   fit {cost.fit_seconds:8.2f} s"
    return f"{cost.name:<24}{cost.score_milliseconds:8.3f} ms per image{fit}"


def _record(arguments: argparse.Namespace, costs: list[Cost], described: str) -> None:
    new = not arguments.record.exists()
    with arguments.record.open("a", newline="") as stream:
        writer = csv.writer(stream)
        if new:
            writer.writerow(HEADER)
        for cost in costs:
            writer.writerow(
                [
                    code_version(),
                    arguments.profile,
                    cost.name,
                    "" if cost.fit_seconds is None else f"{cost.fit_seconds:.2f}",
                    "" if arguments.limit_steps is None else arguments.limit_steps,
                    f"{cost.score_milliseconds:.4f}",
                    arguments.images,
                    torch.get_num_threads(),
                    described,
                ]
            )


if __name__ == "__main__":
    sys.exit(main())
