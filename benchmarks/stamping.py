"""Milliseconds to stamp 10,000 images with each kind of trigger, on this machine.

    python benchmarks/stamping.py [--threads 2] [--record benchmarks/stamping.csv]

float32 images of 32x32 in memory, through ``trigger(images)`` with its usual 8-bit transport; the
median of several repeats after a warm-up. ``--record`` appends a row per trigger with commit and
machine. Run it on a quiet machine: another busy process costs far more than its share.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from attacks.triggers import (
    BlendedTrigger,
    ImagePatch,
    PatchTrigger,
    SinusoidalTrigger,
    SpectralTrigger,
    encode_png,
)
from bench.api import Trigger
from bench.provenance import code_version, hardware

IMAGES = 10_000


def triggers() -> list[Trigger]:
    """One of each kind."""
    pixels = torch.randint(256, (3, 8, 8), generator=torch.Generator().manual_seed(0))
    return [
        PatchTrigger(),
        ImagePatch(png=encode_png(pixels.to(torch.uint8)), row=12, column=12),
        SpectralTrigger(),
        BlendedTrigger(seed=0),
        SinusoidalTrigger(),
    ]


def median_milliseconds(trigger: Trigger, images: Tensor, repeats: int) -> float:
    """Milliseconds of one pass over ``images``."""
    trigger(images)
    measured = []
    for _ in range(repeats):
        start = time.perf_counter()
        trigger(images)
        measured.append(1000 * (time.perf_counter() - start))
    return statistics.median(measured)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = hardware("cpu")
    described = f"{machine['processor']}, {machine['cores']} cores"
    print(f"{code_version()}, {described}, {arguments.threads} threads, {IMAGES:,} images of 32x32")
    images = torch.rand(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = []
    for trigger in triggers():
        milliseconds = median_milliseconds(trigger, images, arguments.repeats)
        print(f"{trigger.name:<14}{milliseconds:8.1f} ms")
        rows.append(
            [code_version(), arguments.threads, trigger.name, f"{milliseconds:.1f}", described]
        )
    if arguments.record:
        new = not arguments.record.exists()
        with arguments.record.open("a", newline="") as stream:
            writer = csv.writer(stream)
            if new:
                writer.writerow(["code", "threads", "trigger", "milliseconds", "machine"])
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
