"""A third party's defense, installed through its entry point: no file of the project is touched."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

PACKAGE = Path(__file__).resolve().parents[1] / "plugin_package"
COMMANDS = """
import json, sys
from bench.cli import main
from bench.session import Session
Session.render = lambda self: None  # plots take longer than all the rest
for arguments in json.loads({arguments!r}):
    sys.argv = ["bench", *arguments]
    print("$", *arguments, flush=True)
    try:
        main()
    except SystemExit as stop:
        print("exit status", stop.code, flush=True)
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip has installed the package into."""
    pytest.importorskip("setuptools", reason="the package is built without a network")
    folder = tmp_path_factory.mktemp("plugin")
    source, target = folder / "source", folder / "site-packages"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("__pycache__"))
    options = "--quiet --no-deps --no-build-isolation --no-index --disable-pip-version-check"
    command = [sys.executable, "-m", "pip", "install", *options.split()]
    done = subprocess.run(
        [*command, "--target", str(target), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def test_installed_defense_is_listed_checked_and_run(
    installed: Path, in_another_process: Callable, tmp_path: Path, tiny: dict
):
    tiny["matrix"] = {
        "attacks": ["none"],
        "defenses": [{"defense": "mean-brightness", "parameters": {"power": 2}}],
    }
    tiny["profiles"]["tiny"]["pretraining"]["batch_size"] = 256
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(tiny, sort_keys=False))
    commands = [
        ["list", "defenses", "--json"],
        ["check", "defense", "mean-brightness"],
        ["run"],
        ["export", "--format", "csv"],
    ]
    code = COMMANDS.format(arguments=json.dumps(commands))
    done = in_another_process(code, tmp_path, installed)
    listed, checked, ran, exported = (
        part.split("\n", 1)[1] for part in done.stdout.split("$ ")[1:]
    )
    assert done.stdout.count("exit status 0") == len(commands), done.stdout + done.stderr
    origins = {
        entry["name"]: entry["origin"] for entry in json.loads(listed.split("exit status")[0])
    }
    assert origins["mean-brightness"] == "bench-mean-brightness"
    assert origins["knn-distance"] == "built-in"
    assert "ok    state survives a file" in checked
    assert "1 cells, 0 failed" in ran
    assert ",mean-brightness," in exported
