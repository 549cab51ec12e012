"""The same matrix through Ray, beside defenses that harm the process they run in."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from experiment import TINY

from bench import registry
from bench.config import StageResources
from bench.configfile import ConfigFile
from bench.graph import Stage
from bench.progress import Logged, PlainLines
from bench.session import Selection, Session

pytest.importorskip("ray", reason="Ray is not installed: pip install 'ssl-backdoor-bench[ray]'")

from bench.executors.ray_cluster import Cluster  # it needs Ray

pytestmark = pytest.mark.slow  # each starts a cluster of its own

WAYWARD = Path(__file__).parent / "wayward_package"
COST = {"fit_seconds", "score_ms_per_image", "peak_memory_mb"}
HARMFUL = [
    "ends-the-process",
    "asks-to-exit",
    "hangs",
    "leaks",
    "forks",
    "prints",
    "fills-the-device",
    "finds-the-device-full",
]


def rows(session: Session) -> dict[tuple[str, str], dict]:
    """(attack, defense) -> the stored row without its cost."""
    found = {}
    for path in (session.results / "cells").glob("*/cell.json"):
        row = json.loads(path.read_text())["row"]
        kept = {name: value for name, value in row.items() if name not in COST}
        found[row["attack"], row["defense"]] = kept
    return found


@pytest.fixture(scope="module")
def ray_run(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """The control of the tiny matrix and eight harmful defenses, two processes at once."""
    folder = tmp_path_factory.mktemp("ray")
    content = copy.deepcopy(TINY)
    content["matrix"]["attacks"] = ["none"]
    content["matrix"]["defenses"] += HARMFUL
    content["profiles"]["tiny"]["resources"] = {
        **{kind: {"cpus": 1} for kind in ("data", "probe", "score", "audit", "evaluate")},
        "fit": {"cpus": 1, "memory_gb": 2, "minutes": 0.5},
    }
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        root = str(Path(__file__).parents[2])
        patch.setenv("PYTHONPATH", f"{WAYWARD}:{root}")
        patch.syspath_prepend(WAYWARD)
        patch.delenv("BENCH_CACHE", raising=False)
        patch.setattr("bench.report.rendering.drawn", lambda *_: {})
        registry.entries.cache_clear()
        with (folder / "shown.txt").open("w") as shown, Logged(PlainLines(shown)) as reporter:
            session = Session(ConfigFile(path), Selection(executor="ray"), reporter)
            session.run()
        yield session
    registry.entries.cache_clear()
    registry.load.cache_clear()


def test_harmless_cells_are_those_of_the_inline_executor(ray_run, tiny_run):
    through_ray, inline = rows(ray_run), rows(tiny_run)
    control = {key: row for key, row in inline.items() if key[0] == "none"}
    assert len(control) == 5
    assert {key: through_ray[key] for key in control} == control


def test_artifacts_are_those_of_the_inline_executor(ray_run, tiny_run):
    """Byte for byte, where a stage wrote numbers and no times."""
    checked = 0
    for path in (ray_run.store.root / "score").rglob("scores.parquet"):
        twin = tiny_run.store.root / path.relative_to(ray_run.store.root)
        if twin.is_file():  # the harmful ones ran here alone
            assert twin.read_bytes() == path.read_bytes()
            checked += 1
    assert checked == 5


@pytest.mark.parametrize(
    ("defense", "reason"),
    [
        ("ends-the-process", "its process died 3 times"),
        ("asks-to-exit", "the component tried to end the process (enough)"),
        ("hangs", "took longer than the 0.5 minutes of a fit stage"),
        ("leaks", "more than the 2048 MB of such a stage"),
        ("fills-the-device", "CUDA out of memory. Tried to allocate 20.00 GiB."),
    ],
)
def test_a_harmful_defense_fails_its_own_cells_with_the_reason(ray_run, defense, reason):
    row = rows(ray_run)["none", defense]
    assert row["status"] == "failed"
    assert reason in row["reason"]


@pytest.mark.parametrize("defense", ["forks", "prints", "finds-the-device-full"])
def test_a_noisy_defense_gets_its_numbers(ray_run, defense):
    assert rows(ray_run)["none", defense]["auroc"] is not None


def test_a_second_run_finds_everything_and_starts_no_cluster(ray_run, monkeypatch):
    monkeypatch.setattr("ray.init", None)
    outcome = Session(ray_run.file, Selection(executor="ray")).run()
    assert outcome.computed == []
    assert len(outcome.failed) == 5


def test_the_log_tells_what_happened(ray_run):
    (log,) = (ray_run.store.root / "logs").glob("*.txt")
    text = log.read_text()
    assert _events(text) == _events((ray_run.file.root / "shown.txt").read_text())
    whose = "for none on digits, seed 0"
    assert f"fit ends-the-process {whose}: its process died; it is begun again" in text
    assert f"fit hangs {whose}: failed: took longer" in text
    for defense in ("fills-the-device", "finds-the-device-full"):
        again = f"fit {defense} {whose}: no device memory; once more, alone on its device"
        assert text.count(again) == 1


def _events(text: str) -> list[str]:
    """What happened, without the lines that say every now and then where the run is."""
    return [line for line in text.splitlines() if not line.startswith("    ")]


def test_without_device_memory_a_stage_gets_a_device_of_its_own():
    """What Ray is asked for: a share at first, all of one the second time."""
    shares = {"fit": StageResources(gpus=0.25), "pretrain": StageResources(gpus=2)}
    cluster = Cluster(None, shares, threads=2, device="cuda")
    fit, pretrain = (Stage(kind, {}, {}, kind) for kind in shares)
    assert cluster.demand(fit)["num_gpus"] == 0.25
    assert cluster.demand(fit, alone=True)["num_gpus"] == 1
    assert cluster.demand(pretrain, alone=True)["num_gpus"] == 2


def test_a_run_that_is_ended_from_outside_says_that_it_goes_on(tmp_path):
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    command = [sys.executable, "-c", "from bench.cli import main; main()", "run"]
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [*command, "--executor", "ray"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root, "BENCH_CACHE": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        lines = iter(process.stdout)
        shown = []
        while not shown or "computed" not in shown[-1]:
            shown.append(next(lines, "computed, the end"))
        assert "the end" not in shown[-1], shown
        process.send_signal(signal.SIGTERM)
        rest = list(lines)
    said = "interrupted; the same command goes on from the last finished stage\n"
    assert (process.returncode, rest[-1:]) == (130, [said]), "".join(rest)
