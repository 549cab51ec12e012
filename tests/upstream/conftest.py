"""Repositories to run code from: throw-away ones, and the submodules where they are present."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import registry
from bench.api import ImageSet
from bench.config import DatasetConfig
from bench.data.sources import open_source
from bench.errors import InputError

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``third_party/DRUPE`` of our own making, at a commit that is not the pinned one."""
    folder = tmp_path / "third_party" / "DRUPE"
    folder.mkdir(parents=True)
    (folder / "greeting.py").write_text("WORD = 'hello from upstream'\n")
    git = ["git", "-C", str(folder), "-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "ours"], check=True)
    monkeypatch.setenv("BENCH_THIRD_PARTY", str(folder.parent))
    return folder


@pytest.fixture
def upstream() -> Callable[..., object]:
    """Makes an upstream component, or skips with the reason why its code cannot run here."""

    def make(group: str, name: str, **parameters: object) -> object:
        component = registry.load(group, f"{name}@upstream").model_validate(parameters)
        reason = component.absent()
        if reason is not None:
            pytest.skip(reason)
        return component

    return make


@pytest.fixture(scope="session")
def cifar10() -> ImageSet:
    """1,024 labelled test images of CIFAR-10, 32x32."""
    roots = [PROJECT / "data", PROJECT.parent / "shared" / "data"]
    try:
        images = open_source("cifar10", DatasetConfig(), roots, PROJECT).load("test")
    except InputError as error:
        pytest.skip(str(error))
    return images.select(torch.arange(1024))
