"""Seconds and memory to plan a large matrix: 50 attacks x 50 defenses x 10 data sets x 5 seeds.

    python benchmarks/plan_large.py [--attacks 50] [--record benchmarks/plan_large.csv]

Writes an experiment to a temporary folder and does what ``bench plan`` does: read the file, check
it, build every cell and stage, look for each in an empty cache, and print how many stages of each
kind there are. Attacks and defenses are built-in ones under many labels, each with a setting of its
own; the data sets are the embedded digits under several names, on which the probes are trained and
the attacks aimed. There is one pretraining set: a profile has no more. Nothing is trained.

``--pretraining-poisoners`` replaces as many attacks by SSLBKD, which poisons the pretraining set
and is therefore skipped on all other data sets. ``--record`` appends a row with commit and machine.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from recording import append

from bench.configfile import ConfigFile
from bench.data.embedded import Digits
from bench.graph import topological
from bench.planning import describe_plan
from bench.provenance import code_version, hardware
from bench.session import Selection, Session

SIZES = ("attacks", "defenses", "downstreams", "seeds")
ATTACKS = (
    ("badencoder", "lambda1", 1.0, 0.01),
    ("drupe", "stage1_spread_weight", 1.0, 0.01),
    ("clip-backdoor", "poison_rate", 0.01, 0.0001),
    ("badclip", "poison_rate", 0.01, 0.0001),
)
"""Attacks that are judged on every data set: a setting to vary, its first value and the step."""

POISONERS = (("sslbkd", "poison_rate", 0.004, 0.0001),)
DEFENSES = (
    ("dede", "mask_ratio", 0.2, 0.01),
    ("decree", "cost_factor", 1.5, 0.01),
    ("asset", "inner_iterations", 10, 1),
    ("knn-distance", "k", 1, 1),
    ("lof", "neighbours", 2, 1),
    ("isolation-forest", "trees", 10, 1),
    ("pixel-only", "components", 8, 1),
)


def entries(kind: str, components: tuple[Any, ...], count: int) -> list[dict[str, Any]]:
    """``count`` entries of a matrix: the components in turn, each time with another value."""
    made = []
    for number in range(count):
        name, setting, first, step = components[number % len(components)]
        value = round(first + step * number, 4)
        made.append({kind: name, "label": f"{name}-{number}", "parameters": {setting: value}})
    return made


def experiment(sizes: dict[str, int], pretraining_poisoners: int = 0) -> dict[str, Any]:
    """bench.yaml as a dictionary: one profile, ``large``, on embedded digits."""
    downstreams = [f"digits-{number}" for number in range(1, sizes["downstreams"])]
    narrow = {"width": 16, "stem_stride": 2}
    return {
        "default_profile": "large",
        "matrix": {
            "attacks": [
                "none",
                *entries("attack", ATTACKS, sizes["attacks"] - 1 - pretraining_poisoners),
                *entries("attack", POISONERS, pretraining_poisoners),
            ],
            "defenses": entries("defense", DEFENSES, sizes["defenses"]),
        },
        "datasets": {
            "photographs": {"source": "photographs"},
            **{name: {"source": "digits"} for name in ["digits", *downstreams]},
        },
        "profiles": {
            "large": {
                "dataset": "digits",
                "out_of_distribution": "photographs",
                "encoder": {"architecture": "resnet-narrow", "settings": narrow},
                "pretraining": {"epochs": 20, "batch_size": 128, "warmup_epochs": 1},
                "clip": {
                    "encoder": {"architecture": "template-clip", "settings": narrow},
                    "pretraining": {"epochs": 10, "batch_size": 128, "warmup_epochs": 1},
                },
                "downstreams": [
                    {"dataset": name, "target": number % 10}
                    for number, name in enumerate(["digits", *downstreams])
                ],
                "splits": {
                    "calibration": 100,
                    "validation": 100,
                    "references": 100,
                    "shadow": 400,
                    "auxiliary": 400,
                    "base": 50,
                    "suspicious": 200,
                },
                "seeds": list(range(sizes["seeds"])),
                "device": "cpu",
                "overrides": {
                    "clip-backdoor": {"recipe": {"epochs": 2, "batch_size": 128}},
                    "badclip": {
                        "patch_size": 4,
                        "recipe": {"epochs": 2, "batch_size": 128, "warmup_steps": 4},
                    },
                    "sslbkd": {"recipe": {"epochs": 6, "batch_size": 128, "warmup_epochs": 1}},
                },
            }
        },
    }


def plan(folder: Path, content: dict[str, Any]) -> tuple[Session, str, dict[str, float]]:
    """Session, text of the plan, and the seconds of each step of ``bench plan``."""
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    seconds, start = {}, time.perf_counter()

    def lap(step: str) -> None:
        nonlocal start
        seconds[step], start = time.perf_counter() - start, time.perf_counter()

    # All data sets are the digits; as the check tells sets by their images, these are to differ.
    Digits.fingerprint = lambda self, split: f"{self.name}/{split}"
    session = Session(ConfigFile(path), Selection(cache=folder / "cache"))
    lap("read the file")
    session.check()
    lap("build and check")
    described = describe_plan(session)
    lap("describe")
    return session, described, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in zip(SIZES, (50, 50, 10, 5), strict=True):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--pretraining-poisoners", type=int, default=0)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    sizes = {name: getattr(arguments, name) for name in SIZES}
    content = experiment(sizes, arguments.pretraining_poisoners)
    with tempfile.TemporaryDirectory() as folder:
        session, described, seconds = plan(Path(folder), content)
    peak, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.process_time()
    stages = topological([cell.stage for cell in session.cells if cell.skip is None])
    skipped = sum(cell.skip is not None for cell in session.cells)
    print("\n".join(described.splitlines()[-16:]))
    print()
    for step, taken in seconds.items():
        print(f"{step:<24}{taken:8.1f} s")
    total = sum(seconds.values())
    counts = Counter(stage.kind for stage in stages)
    print(f"{len(session.cells)} cells ({skipped} skipped), {len(stages)} stages: {dict(counts)}")
    print(f"{total:.1f} s, with imports {cpu:.1f} s of processor time, peak {peak:.0f} MB")
    if arguments.record:
        measured = {"cells": len(session.cells), "stages": len(stages)}
        measured |= {step.replace(" ", "_"): f"{taken:.1f}" for step, taken in seconds.items()}
        measured |= {"seconds": f"{total:.1f}", "cpu_seconds_with_imports": f"{cpu:.1f}"}
        poisoners = {"pretraining_poisoners": arguments.pretraining_poisoners}
        record(arguments.record, {**sizes, **poisoners, **measured, "peak_mb": f"{peak:.0f}"})
    return 0


def record(path: Path, measured: dict[str, Any]) -> None:
    """Append a row with commit and machine."""
    machine = hardware("cpu")
    described = f"{machine['processor']}, {machine['cores']} cores"
    row = {"code": code_version(), **measured, "machine": described}
    append(path, [row])


if __name__ == "__main__":
    sys.exit(main())
