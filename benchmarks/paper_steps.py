"""Seconds and memory per step of every stage of `paper`, on few images: does it run, does it fit?

    python benchmarks/paper_steps.py --family ssl --cache /tmp/paper-steps [--device cuda]
        [--precision float32] [--attacks badencoder] [--steps 4]
        [--record benchmarks/paper_steps.csv]

Models, batch sizes and losses are the profile's; data sets, splits and the number of steps are cut.
A data set that is absent is replaced by ImageNet crops (an out-of-distribution set), and absent
CLIP weights by random ones; both are said on stderr, and neither changes what a step costs.
`seconds_per_step` is the median over the steps after the first; the rest of a stage (reading,
embedding, scoring) is in `seconds`. Memory is the process's peak during the stage, on an
accelerator its own: of a step, without the whole sets of images that a full run holds (45,000 at
224 pixels are 6.8 GB). CLIP-backdoor's share of so few pairs is none. Finished stages are kept in
the cache, so a run that was cut goes on; give a fresh cache to time them anew. A failed stage is a
line on stderr and exit status 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from recording import append
from safetensors.torch import save_file

from bench import registry
from bench.cells import CellStore, RunningMark
from bench.config import Config, Profile
from bench.configfile import ConfigFile
from bench.encoders.architectures import build
from bench.errors import InputError
from bench.executors.computing import Outcome
from bench.executors.inline import InlineExecutor
from bench.graph import Stage, topological
from bench.memory import PeakMemory
from bench.progress import Silent
from bench.provenance import code_version, hardware
from bench.session import Selection, Session, data_roots

PROFILE = "paper"
# Few images, and enough of them for a full batch of everything: at 224 pixels batches are smaller.
IMAGES = {"ssl": 2400, "clip": 800}
"""Images that are kept of a training and of a test set."""
_SMALL = {"calibration": 20, "validation": 20, "references": 80, "shadow": 256}
SPLITS = {
    "ssl": {**_SMALL, "shadow": 640, "auxiliary": 320, "base": 512, "suspicious": 512},
    "clip": {**_SMALL, "auxiliary": 80, "base": 64, "suspicious": 64},
}
"""A tenth of ``auxiliary`` is held out."""
TEST_IMAGES, PROBE_IMAGES = 60, 300
STAND_IN = "imagenet_crops"


class StepTimes(Silent):
    """Notes when the steps of a stage end, by the name of their loop."""

    def __init__(self) -> None:
        self.ends: dict[str, list[float]] = {}

    def start(self, label: str) -> None:
        self.ends = {}

    def step(self, what: str, done: int, total: int | None) -> None:
        self.ends.setdefault(what, []).append(time.perf_counter())

    def loops(self) -> dict[str, tuple[int, float | None]]:
        """Loop -> its steps, and the median seconds from the end of one to the end of the next."""
        return {
            what: (len(ends), _median([b - a for a, b in pairwise(ends)]))
            for what, ends in self.ends.items()
        }


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def cut(
    file: ConfigFile, family: str, precision: str | None, threads: int, weights: Path
) -> Config:
    """The configuration with few images, and with something in place of what is absent."""
    config = file.config
    profile = config.profiles[PROFILE]
    datasets = {
        name: dataset.model_copy(update={"max_images": IMAGES[family]})
        for name, dataset in config.datasets.items()
    }
    for name in [n for n in file.datasets_of(PROFILE) if not _present(file, n)]:
        size = datasets[name].image_size
        print(f"{name} is absent: {STAND_IN} at {size} pixels stands in for it", file=sys.stderr)
        update = {"stored_as": STAND_IN, "image_size": size, "resize": True}
        datasets[name] = datasets[name].model_copy(update=update)
    clip = profile.clip
    if clip is not None and not (file.root / str(clip.encoder.checkpoint)).is_file():
        print("the CLIP weights are absent: random ones stand in for them", file=sys.stderr)
        _random_weights(clip.encoder.architecture, weights)
        encoder = clip.encoder.model_copy(update={"checkpoint": str(weights.resolve())})
        clip = clip.model_copy(update={"encoder": encoder})
    changes = {
        "clip": clip,
        "splits": profile.splits.model_copy(update=SPLITS[family]),
        "probe": profile.probe.model_copy(update={"max_train_images": PROBE_IMAGES}),
        # The published warm-up is longer than what is left of the training.
        "overrides": {**profile.overrides, "badclip": {"recipe": {"warmup_steps": 1}}},
        "test_images": TEST_IMAGES,
        "threads": threads,
        "precision": precision or profile.precision,
    }
    cut_profile: Profile = profile.model_copy(update=changes)
    return config.model_copy(
        update={"datasets": datasets, "profiles": {**config.profiles, PROFILE: cut_profile}}
    )


def of_family(file: ConfigFile, family: str) -> list[str]:
    """The attacks of the profile on encoders of that family, the control among ``ssl``."""
    matrix, _ = file.config.matrix_of(PROFILE)
    return [
        entry.label
        for entry in matrix.attacks
        if registry.load("attacks", entry.component).family == family
    ]


def _present(file: ConfigFile, name: str) -> bool:
    from bench.data.sources import open_source

    try:
        open_source(name, file.config.datasets[name], data_roots(file), file.root)
    except InputError:
        return False
    return True


def _random_weights(architecture: str, path: Path) -> None:
    """Untrained weights under their published names, the same every time."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = build(architecture).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)


def measure(session: Session, record: Path | None) -> list[str]:
    """Run every stage once, print and record what it took; the failures."""
    times = StepTimes()
    session.reporter = times
    session.set_up_torch()
    cells = CellStore(session.results)
    cells.folder.mkdir(parents=True, exist_ok=True)
    executor = InlineExecutor(session.workspace(), cells, times, RunningMark(session.results))
    outcome, failed = Outcome(), {}
    stages = topological([cell.stage for cell in session.cells if not cell.skip])
    for number, stage in enumerate(stages, 1):
        if any(source.key in failed for source in stage.inputs.values()):
            failed[stage.key] = f"{stage.label}: not reached"
            continue
        done = len(outcome.computed)
        start = time.perf_counter()
        with PeakMemory(torch.device(session.environment.device)) as memory:
            reason = executor._attempt(stage, outcome)
        seconds = time.perf_counter() - start
        if reason is not None:
            failed[stage.key] = reason
            print(reason, file=sys.stderr, flush=True)
        elif len(outcome.computed) > done:
            print(f"[{number}/{len(stages)}] {stage.label}: {seconds:.1f} s", flush=True)
            _note(session, stage, times, seconds, memory.peak_mb, record)
    return list(failed.values())


def _note(
    session: Session,
    stage: Stage,
    times: StepTimes,
    seconds: float,
    peak: float,
    record: Path | None,
) -> None:
    """A line per loop of a stage; one without a loop for the others."""
    environment = session.environment
    machine = hardware(environment.device)
    device = f"{machine.get('accelerator', machine['processor'])}, {machine['cores']} cores"
    for loop, (steps, per_step) in (times.loops() or {"": (0, None)}).items():
        row = {
            "code": code_version(),
            "stage": stage.kind,
            "label": stage.label,
            "encoder": _architecture(stage),
            "loop": loop,
            "steps": steps,
            "seconds_per_step": "" if per_step is None else f"{per_step:.4g}",
            "seconds": f"{seconds:.1f}",
            "peak_mb": f"{peak:.0f}",
            "precision": environment.precision,
            "threads": environment.threads,
            "device": device,
        }
        print("   ", *(f"{k}={v}" for k, v in row.items() if k not in ("code", "device")))
        if record is not None:
            append(record, [row])


def _architecture(stage: Stage) -> str:
    """Of the encoder that a stage trains or asks; nothing for those that need none."""
    known = {source.spec.get("architecture") for source in topological([stage])} - {None}
    return "".join(str(name) for name in known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=IMAGES, required=True)
    parser.add_argument("--attacks", help="of the family; all of them otherwise")
    parser.add_argument("--defenses")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps wants at least 2: what is timed lies between two of them")
    file = ConfigFile(Path("bench.yaml"))
    weights = arguments.cache / "random-clip-rn50.safetensors"
    known = of_family(file, arguments.family)
    attacks = tuple(arguments.attacks.split(",")) if arguments.attacks else tuple(known)
    if not set(attacks) <= set(known):
        parser.error(f"--attacks wants some of {', '.join(known)}: others have other batch sizes")
    file.config = cut(file, arguments.family, arguments.precision, arguments.threads, weights)
    selection = Selection(
        profile=PROFILE,
        attacks=attacks,
        defenses=tuple(arguments.defenses.split(",")) if arguments.defenses else None,
        seeds=(0,),
        device=arguments.device,
        limit_steps=arguments.steps,
        cache=arguments.cache,
        results=arguments.cache / "results",
    )
    failures = measure(Session(file, selection), arguments.record)
    if failures:
        raise SystemExit(f"{len(failures)} stages failed or were not reached")


if __name__ == "__main__":
    main()
