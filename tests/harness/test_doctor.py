"""``bench doctor``: what is missing, in words that say what to do about it."""

from __future__ import annotations

import copy

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.doctor import Finding, findings
from bench.listing import Kind, listing


def said(config) -> dict[str, bool]:
    """Each line of the doctor and whether it is well."""
    return {found.what: found.good for found in findings(config, None)}


def test_a_profile_lacks_a_data_set(write_config, tiny):
    tiny["datasets"]["svhn"] = {}
    tiny["profiles"]["other"] = {**tiny["profiles"]["tiny"], "dataset": "svhn"}
    tiny["profiles"]["other"]["downstreams"] = [{"dataset": "svhn", "target": 0}]
    lines = said(write_config(tiny))
    assert lines["profile other cannot run yet: data set svhn (bench download svhn)"]
    assert all(lines.values())


def test_a_data_set_that_no_command_fetches_is_put_there_by_hand(write_config, tiny):
    tiny["datasets"]["rare"] = {}
    tiny["profiles"]["other"] = {**tiny["profiles"]["tiny"], "out_of_distribution": "rare"}
    lines = said(write_config(tiny))
    assert lines["profile other cannot run yet: data set rare (see its line above)"]
    (above,) = [what for what in lines if what.startswith("dataset rare is absent: ")]
    assert (
        "put parquet files or image folders there, or name a source and a path in the config"
        in above
    )


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing else"])
def test_a_damaged_data_set_is_found(write_config, tiny, tmp_path, content):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.parquet").write_bytes(content)
    tiny["datasets"]["mine"] = {"source": "parquet", "path": "mine"}
    tiny["profiles"]["other"] = {**tiny["profiles"]["tiny"], "out_of_distribution": "mine"}
    lines = said(write_config(tiny))
    bad = [what for what, good in lines.items() if not good]
    assert len(bad) == 1
    assert "dataset mine: parquet: " in bad[0]
    assert "not a readable parquet file" in bad[0]
    assert lines["profile other cannot run yet: a readable data set mine"]


def test_a_named_path_that_leads_nowhere_is_a_defect(write_config, tiny):
    tiny["datasets"]["mine"] = {"source": "folder", "path": "nowhere"}
    tiny["datasets"]["long"] = {"source": "folder", "path": "n" * 300}
    lines = said(write_config(tiny))
    assert not lines["dataset mine is absent: dataset 'mine': no folder nowhere"]
    assert lines["profile tiny can run here (bench run)"]  # what comes after is said as well
    assert sum(not good for good in lines.values()) == 2


def test_the_command_says_it_in_lines_and_ends_with_one(write_config, tiny):
    tiny["datasets"]["mine"] = {"source": "folder", "path": "no\x1b]0;where\x07"}
    ran = CliRunner().invoke(app, ["doctor", "--config", str(write_config(tiny))])
    assert ran.exit_code == 1
    assert "BAD  dataset mine is absent: dataset 'mine': no folder no\\x1b]0;where" in ran.stdout
    assert "\x1b" not in ran.stdout


def test_a_profile_that_skips_what_is_not_fetched_says_so(
    write_config, tiny, tmp_path, monkeypatch
):
    monkeypatch.setenv("BENCH_THIRD_PARTY", str(tmp_path / "nothing"))
    lines = said(write_config(tiny))
    assert lines["profile tiny can run here (bench run)"]
    authors = copy.deepcopy(tiny)
    authors["matrix"]["attacks"].append({"attack": "ctrl", "backend": "upstream"})
    lines = said(write_config(authors))
    what = "profile tiny can run here (bench run), but some of it is skipped until: "
    assert lines[what + "bench third-party sync CTRL"]


def test_resources_that_no_stage_gets_on_this_machine_are_named(write_config, tiny, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    tiny["profiles"]["tiny"]["resources"] = {"fit": {"cpus": 64, "gpus": 1}, "score": {"cpus": 2}}
    (line,) = [what for what in said(write_config(tiny)) if what.startswith("profile tiny")]
    assert line.endswith(
        "through Ray only on a cluster with larger nodes: a fit stage takes cpus 64 of 2"
    )


def test_a_cache_that_cannot_be_written(write_config, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    found = list(findings(write_config(tiny), tmp_path / "file" / "cache"))[-1]
    assert found == Finding(
        False, f"cache {tmp_path / 'file' / 'cache'}: cannot write: Not a directory"
    )


def test_listed_data_sets_say_what_is_there(write_config, tiny):
    tiny["datasets"]["svhn"] = {}
    described = {
        row["name"]: row["description"] for row in listing(Kind.datasets, write_config(tiny))
    }
    assert described["digits"] == "32 px, 1,397 training images, 400 test images, digits"
    assert described["svhn"] == "32 px, absent (bench download svhn)"
