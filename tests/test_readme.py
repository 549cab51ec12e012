"""What the README says works."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from bench.cli import app

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def test_defense_of_the_readme_runs_as_it_stands(tiny, session_of, plug_in, tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    (tmp_path / "readme_defense.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    plug_in("defenses", my_defense="readme_defense:MyDefense")
    tiny["matrix"] = {"attacks": ["badencoder"], "defenses": ["my-defense"]}
    session = session_of(tiny)
    assert session.run().failed == {}
    text = (session.results / "leaderboard.md").read_text()
    assert "| my-defense |" in text


def test_commands_and_files_that_the_readme_names_exist():
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    known |= {group.typer_instance.info.name for group in app.registered_groups}
    named = set(re.findall(r"`bench ([\w-]+)", README))
    assert named <= known, named - known
    root = Path(__file__).resolve().parents[1]
    for path in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (root / path).exists(), path
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    makefile = (root / "Makefile").read_text()
    assert targets == ["leaderboard", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


def test_profiles_of_the_experiment_are_sound():
    """bench.yaml itself, every component and parameter of every profile."""
    from bench.configfile import ConfigFile

    root = Path(__file__).resolve().parents[1]
    file = ConfigFile(root / "bench.yaml")
    file.check_components()
    assert {"quick", "cifar10-small", "paper"} <= set(file.config.profiles)
    labels = [entry.label for entry in file.config.matrix.defenses]
    assert {"dede-id", "dede-ood"} <= set(labels)
    assert str(Path.home()) not in yaml.safe_dump(file.yaml.data)
