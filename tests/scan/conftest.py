"""A small encoder as files of every kind, images as files, and the command to scan them with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from click.testing import Result
from scanned_files import noise, smooth, write_files
from typer.testing import CliRunner

from bench.encoders.encoder import Encoder
from bench.scan.command import scan


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    made = Encoder.initialise(
        "resnet-narrow", {"width": 8}, generator=torch.Generator().manual_seed(3)
    )
    made.network.eval()
    return made


@pytest.fixture
def checkpoint(encoder: Encoder, tmp_path: Path) -> Path:
    """A foreign file: weights and nothing else."""
    torch.save(encoder.network.state_dict(), tmp_path / "epoch_3.pth")
    return tmp_path / "epoch_3.pth"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Sixty images; the last six are noise."""
    write_files(tmp_path / "images", torch.cat([smooth(54, 1), noise(6, 2)]))
    return tmp_path / "images"


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Two hundred clean ones."""
    write_files(tmp_path / "clean", smooth(200, 4))
    return tmp_path / "clean"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run ``bench scan`` in a folder of its own; an exception is in the result."""
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(scan)

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def refusal(command: Callable[..., Result], tmp_path: Path) -> Callable[..., str]:
    """The one line that a refused scan says; nothing may be written."""
    from bench.errors import InputError

    def call(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        result = command(*arguments)
        assert isinstance(result.exception, InputError), (result.exception, result.output)
        message = str(result.exception)
        assert "\n" not in message
        assert sorted(tmp_path.rglob("*")) == before
        return message

    return call
