"""`bench run` and its kin as entered in a shell: what they print, their exit status."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from experiment import COST_COLUMNS, TINY

from bench.cells import CellStore
from bench.configfile import ConfigFile
from bench.session import Selection, Session


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "from bench.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_line_reports_a_finished_run(tiny_run, entered):
    folder = tiny_run.file.path.parent
    ran = command("run", cwd=folder)
    assert ran.returncode == 0
    assert "10 cells, 0 failed; 0 stages computed" in ran.stdout

    def printed(*arguments: str) -> str:
        status, out, _ = entered(*arguments, cwd=folder)
        assert status == 0
        return out

    total = sum(int(part.split()[0]) for part in printed("status").splitlines()[0].split(", "))
    assert total == 10
    assert printed("export", "--format", "csv").startswith("attack,defense,")
    assert "badencoder" in printed("list", "attacks")
    listed = json.loads(printed("list", "defenses", "--json"))
    assert {"dede", "mahalanobis"} <= {row["name"] for row in listed}
    assert "10 cells" in printed("plan")
    assert "profile tiny can run here (bench run)" in printed("doctor")


@pytest.mark.usefixtures("no_plots")
def test_a_table_declared_after_the_run_needs_a_report_only(tiny_run, tmp_path, entered):
    shutil.copytree(tiny_run.results, tmp_path / "results" / "tiny")
    declared = {"mine": {"columns": "defense", "metrics": ["auroc"], "controls": ["auroc_placebo"]}}
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(TINY | {"tables": declared}))
    status, _, said = entered("report", "--all", cwd=tmp_path)
    assert status == 0, said
    table = pd.read_csv(tmp_path / "results" / "tiny" / "tables" / "mine.csv", index_col="attack")
    assert list(table.index) == ["badencoder", "none"]
    stored = pd.read_csv(tiny_run.results / "leaderboard.csv").set_index(["attack", "defense"])
    for defense in ("mahalanobis", "dede-id"):
        value = float(stored.loc[("badencoder", defense), "auroc"])
        assert table.loc["badencoder", f"{defense}/auroc"] == pytest.approx(value)


@pytest.mark.usefixtures("no_plots")
def test_failed_cell_gives_exit_status_one(tmp_path, entered):
    """A rate at which the fine-tuning diverges."""
    broken = yaml.safe_load(yaml.safe_dump(TINY))
    broken["profiles"]["tiny"]["overrides"]["badencoder"]["learning_rate"] = 1e30
    broken["matrix"] = {"attacks": ["none", "badencoder"], "defenses": ["mahalanobis"]}
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(broken))
    status, _, said = entered("run", cwd=tmp_path)
    assert status == 1, said
    assert "failed: badencoder x mahalanobis: implant badencoder on digits, seed 0: " in said
    assert "lower its rate" in said
    table = pd.read_csv(tmp_path / "results" / "tiny" / "leaderboard.csv").set_index("attack")
    assert table["status"].to_dict() == {"none": "ok", "badencoder": "failed"}


def test_two_runs_on_one_cache_agree(tmp_path):
    """Both at once, cold: every stage is computed by one of them, and both end well."""
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(TINY))
    code = "from bench.cli import main; main()"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, "run", "--results", name, "--defenses", "mahalanobis"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    printed = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], printed
    one, two = (
        pd.read_csv(tmp_path / name / "tiny" / "leaderboard.csv").drop(columns=COST_COLUMNS)
        for name in ("one", "two")
    )
    pd.testing.assert_frame_equal(one, two)
    session = Session(ConfigFile(tmp_path / "bench.yaml"), Selection())
    assert CellStore(tmp_path / "one" / "tiny").done(session.cells[3].key)


def test_public_weights_go_where_profiles_look_for_them(tmp_path, entered, monkeypatch):
    """From ``bench.yaml`` on, not into ``BENCH_DATA``, which is where data sets are."""
    asked = []

    def fetched(name: str, root: Path) -> Path:
        asked.append((name, root))
        return root / f"{name}.safetensors"

    monkeypatch.setattr("bench.encoders.pretrained.download_pretrained", fetched)
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "elsewhere"))
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(TINY | {"data_roots": ["data"]}))
    status, out, said = entered("download", "clip-rn50", cwd=tmp_path)
    assert status == 0, said
    [(name, root)] = asked
    assert (name, root.resolve()) == ("clip-rn50", tmp_path / "data")
    assert "clip-rn50.safetensors" in out
