"""`bench check` on the command line: lines on stdout, and the exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import yaml

from bench.cli import main


@pytest.fixture
def command(
    cache, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in an empty folder: exit status, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("BENCH_CACHE", str(cache))
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return run


def test_sound_component_exits_with_0_and_one_line_per_check(command):
    status, out, _ = command("check", "defense", "mahalanobis")
    assert status == 0
    lines = out.splitlines()
    assert "ok    independent of order and batch" in lines
    assert all(line.split()[0] in ("ok", "note", "skip") for line in lines)


def test_broken_component_exits_with_1_and_the_sentence(command, plug_in):
    plug_in("defenses", broken="broken_defenses:BatchDependent")
    status, out, _ = command("check", "defense", "broken")
    assert status == 1
    (line,) = (line for line in out.splitlines() if line.startswith("FAIL  independent of order"))
    assert "scores depend on the order or the batch of the images" in line


def test_a_parameter_without_a_default_exits_with_2_and_its_name(command, plug_in):
    plug_in("defenses", demanding="broken_defenses:Demanding")
    status, out, err = command("check", "defense", "demanding")
    assert (status, out) == (2, "")
    assert "defense 'demanding' needs strength: give a value under" in err


def test_unknown_name_exits_with_2_and_the_nearest_one(command):
    status, out, err = command("check", "attack", "badencodr")
    assert (status, out) == (2, "")
    assert err == "bench: unknown attack 'badencodr'; did you mean 'badencoder'?\n"


def test_overrides_of_the_profile_quick_are_used(command, tiny, tmp_path):
    tiny["profiles"]["quick"] = {
        **tiny["profiles"]["tiny"],
        "overrides": {"knn-distance": {"k": 5000}},
    }
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(tiny))
    status, out, _ = command("check", "defense", "knn-distance")
    assert status == 1
    assert "k is 5000 but there are 225 auxiliary images" in out
    status, out, _ = command("check", "defense", "knn-distance", "--profile", "tiny")
    assert status == 0, out


def test_impossible_override_is_an_error_of_the_file(command, tiny, tmp_path):
    tiny["profiles"]["tiny"]["overrides"]["knn-distance"] = {"k": 0}
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(tiny))
    status, out, err = command("check", "defense", "knn-distance", "--profile", "tiny")
    assert (status, out) == (2, "")
    assert "bench.yaml:" in err
    assert "knn-distance: k: should be greater than or equal to 1" in err


def test_config_that_is_not_there_is_an_error_when_it_is_asked_for(command):
    status, _, err = command("check", "defense", "mahalanobis", "--config", "other.yaml")
    assert status == 2
    assert "other.yaml" in err
