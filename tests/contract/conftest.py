"""One tiny victim for all tests of the contract suite."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.contract import Finding, World, check

REPOSITORY = Path(__file__).resolve().parents[2]
# The misbehaving components of the harness's tests serve here too.
sys.path.append(str(REPOSITORY / "tests" / "harness"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contract")


@pytest.fixture(scope="session")
def world(cache: Path) -> World:
    """Its victims are trained when first asked for."""
    return World(cache)


@pytest.fixture
def findings_of(
    world: World, plug_in: Callable[..., None]
) -> Callable[[str, str], dict[str, Finding]]:
    """Offer a class as a third party's component and check it; findings by what was looked at."""

    def findings(kind: str, target: str) -> dict[str, Finding]:
        plug_in(f"{kind}s", under_test=target)
        return {finding.check: finding for finding in check(kind, "under-test", world)}

    return findings


@pytest.fixture
def in_another_process(cache: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run Python code in a folder, with other folders first among those that modules come from."""

    def run(code: str, folder: Path, *first: Path) -> subprocess.CompletedProcess:
        search = [*map(str, first), str(REPOSITORY)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(search),
            "PYTHONDONTWRITEBYTECODE": "1",
            "BENCH_CACHE": str(cache),
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
