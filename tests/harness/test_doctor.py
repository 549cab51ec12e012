"""``bench doctor``: what is missing, in words that say what to do about it."""

from __future__ import annotations

import copy

import pytest

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


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing else"])
def test_a_damaged_data_set_is_found(write_config, tiny, tmp_path, content):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.parquet").write_bytes(content)
    tiny["datasets"]["mine"] = {"source": "parquet", "path": "mine"}
    bad = [what for what, good in said(write_config(tiny)).items() if not good]
    assert len(bad) == 1
    assert "dataset mine: parquet: " in bad[0]
    assert "not a readable parquet file" in bad[0]


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
