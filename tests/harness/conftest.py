"""The command line, as a user who made a mistake meets it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.cli import main


@pytest.fixture
def entered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process, which has torch loaded: (status, stdout, stderr)."""

    def run(*arguments: str, cwd: Path) -> tuple[int, str, str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return (end.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entered: Callable[..., tuple[int, str, str]]
) -> Callable[..., str]:
    """Run the command line in ``tmp_path``; it must fail with status 2 and write nothing."""

    def run(*arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.delenv("BENCH_CACHE", raising=False)
        status, out, said = entered(*arguments, cwd=tmp_path)
        assert status == 2, said
        assert sorted(tmp_path.rglob("*")) == before
        assert out == ""
        lines = said.strip().splitlines()
        assert len(lines) == 1, said
        return lines[0]

    return run
