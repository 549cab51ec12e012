"""The command line, as a user who made a mistake meets it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.cli import main


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run the command line in ``tmp_path``; it must fail with status 2 and write nothing."""

    def run(*arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("BENCH_CACHE", raising=False)
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        assert stop.value.code == 2, printed
        assert sorted(tmp_path.rglob("*")) == before
        assert printed.out == ""
        lines = printed.err.strip().splitlines()
        assert len(lines) == 1, printed.err
        return lines[0]

    return run
