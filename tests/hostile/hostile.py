"""All cases, with every library loaded that they need, so that forks find it there.

    python tests/hostile/hostile.py FILE.json

runs those that are not long, each in a fork of its own, and writes what came of them.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / place) for place in ("hostile", "harness", "report", "", "..")]

import hostile_caches  # noqa: F401, E402
import hostile_checkpoints  # noqa: F401, E402
import hostile_code  # noqa: F401, E402
import hostile_configs  # noqa: F401, E402
import hostile_images  # noqa: F401, E402
import hostile_markup  # noqa: F401, E402
import hostile_results  # noqa: F401, E402
import open_clip  # noqa: F401, E402
import sklearn.datasets  # noqa: E402
import sklearn.ensemble  # noqa: F401, E402
import torchvision.datasets  # noqa: F401, E402
from campaign import CASES, Case, Ran, run_forked  # noqa: E402

import bench.report.export  # noqa: E402
import bench.report.rendering  # noqa: E402
import bench.running  # noqa: E402
import bench.scan.examining  # noqa: E402
import bench.session  # noqa: E402
import bench.stages  # noqa: F401, E402
from bench import registry  # noqa: E402
from bench.encoders.architectures import find  # noqa: E402

__all__ = ["CASES", "warm_up"]


def warm_up() -> None:
    """Import what commands import when they run."""
    for group in registry.GROUPS:
        for entry in registry.entries(group).values():
            importlib.import_module(entry.module)
    registry.entries.cache_clear()  # a case may bring a plug-in
    for architecture in ("resnet-narrow", "template-clip"):
        find(architecture).skeleton({})
    gc.collect()
    gc.freeze()  # or every fork's first collection copies all pages that it shares


def run_in_scratch(chosen: Case) -> Ran:
    """Run a case in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "case"
        folder.mkdir()
        return run_forked(chosen, folder)


if __name__ == "__main__":
    warm_up()
    found = [asdict(run_in_scratch(chosen)) for chosen in CASES if not chosen.long]
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")
