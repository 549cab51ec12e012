"""Probes of the published code: what the table says of agreement, and that there is agreement."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.upstream import parity
from bench.upstream.job import UpstreamJob
from bench.upstream.parity import (
    OUTCOME,
    Result,
    Suite,
    compare,
    merged,
    read_report,
    run_probes,
    suites,
    write_report,
)
from bench.upstream.probes import Figure, Probe, Tolerance

REPOSITORIES = ("DRUPE", "CTRL", "BadCLIP", "DECREE", "ASSET")
GREETING = """
import numpy as np
from bench.upstream import probing

def run(job):
    import greeting
    probing.record(job, {"X1": lambda _: {"word": greeting.WORD, "size": len(greeting.WORD)},
                         "X2": lambda _: {"word": greeting.NOTHING},
                         "X3": lambda _: {"word": "found"}})
"""
PROBE = Probe(
    "X1",
    "DRUPE",
    "a sum",
    Tolerance(absolute=0.01),
    golden={"sum": (Figure("x.json/X1/sums/1"),)},
    native=lambda _: {"sum": 3.0},
)


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    (tmp_path / "x.json").write_text(json.dumps({"X1": {"sums": [1, 3.005], "word": "hello"}}))
    return tmp_path


def verdicts(probe: Probe, golden: Path, reasons=None, **found) -> list[str]:
    suite = Suite("DRUPE", (probe,), Path("driver.py"))
    arrays = {f"X1.{name}": np.asarray(value) for name, value in found.items()}
    return [result.verdict for result in compare(suite, arrays, reasons or {}, golden)]


def test_agreement_of_all_three_is_equal(golden):
    assert verdicts(PROBE, golden, sum=3.001) == ["equal"]


@pytest.mark.parametrize(("ours", "upstream"), [(3.2, 3.0), ([3.0], 3.0), (float("nan"), 3.0)])
def test_ours_that_differs_is_told(golden, ours, upstream):
    probe = replace(PROBE, native=lambda _: {"sum": ours})
    assert verdicts(probe, golden, sum=upstream) == ["differs: native"]


def test_a_golden_figure_that_is_wrong_is_told(golden):
    (golden / "x.json").write_text(json.dumps({"X1": {"sums": [1, 3.5]}}))
    assert verdicts(PROBE, golden, sum=3.0) == ["differs: golden"]


def test_upstream_that_has_moved_away_from_both_is_told(golden):
    assert verdicts(PROBE, golden, sum=4.0) == ["differs: native, golden"]


def test_ours_that_raises_or_lacks_an_array_does_not_pass(golden):
    def broken(_):
        raise RuntimeError

    found = verdicts(replace(PROBE, native=broken), golden, sum=3.0)
    assert "differs: ours raised RuntimeError" in found
    more = replace(PROBE, native=lambda _: {"sum": 3.0, "rest": 1.0})
    assert verdicts(more, golden, sum=3.0) == ["equal", "differs: upstream gave none"]


def test_nothing_passes_without_being_compared(golden):
    assert verdicts(PROBE, golden, sum=3.0, other=1.0)[1].startswith("differs: from nothing")
    assert verdicts(replace(PROBE, native=None), golden) == ["differs: upstream gave no sum"]
    assert verdicts(replace(PROBE, golden=None), golden)[0] == "differs: upstream gave no array"


def test_text_and_exact_numbers_have_no_tolerance(golden):
    word = {"word": (Figure("x.json/X1/word"),)}
    probe = Probe("X1", "DRUPE", "", Tolerance(absolute=1), golden=word)
    assert verdicts(probe, golden, word="hello") == ["as recorded"]
    assert verdicts(probe, golden, word="hullo") == ["differs: golden"]
    exact = replace(PROBE, tolerance=Tolerance(), golden=None)
    assert verdicts(exact, golden, sum=3.0) == ["equal"]
    assert verdicts(exact, golden, sum=np.nextafter(3.0, 4)) == ["differs: native"]


def test_a_figure_is_read_off_the_array_with_a_tolerance_of_its_own(golden):
    first = Figure("x.json/X1/sums/0", lambda array: array[0], Tolerance(absolute=0.5))
    probe = replace(PROBE, golden={"sum": (first,)}, native=None)
    assert verdicts(probe, golden, sum=[1.4, 9.0]) == ["as recorded"]
    assert verdicts(probe, golden, sum=[1.6, 9.0]) == ["differs: golden"]


def test_a_figure_without_an_address_is_an_error(golden):
    probe = replace(PROBE, golden={"sum": (Figure("x.json/X1/sums/7"),)})
    with pytest.raises(KeyError, match="X1/sums/7 is not there"):
        verdicts(probe, golden, sum=3.0)


def test_what_is_not_run_says_why_and_shows_its_figure(golden):
    suite = Suite("DRUPE", (replace(PROBE, fixed="in no submodule"),), Path("driver.py"))
    (row,) = compare(suite, {}, {}, golden)
    assert (row.verdict, row.golden) == ("fixed figure: in no submodule", "3.005")


@pytest.mark.parametrize("name", REPOSITORIES)
def test_absent_submodule_is_skipped_with_the_command_that_fetches_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_THIRD_PARTY", str(tmp_path))
    found = {row.verdict.partition(": ")[2] for row in run_probes(name) if "skip" in row.verdict}
    assert found == {f"bench third-party sync {name}"}


def test_a_repository_without_probes_is_refused():
    with pytest.raises(ValueError, match=r"no probe calls 'DRUPES'; probes call ASSET, BadCLIP"):
        run_probes("DRUPES")


@pytest.fixture
def greeting(repository, golden, monkeypatch) -> Suite:
    """Probes of a throw-away repository: one runs, one fails, two lack what they need."""
    driver = golden / "_x_probes_driver.py"
    driver.write_text(GREETING)
    # The throw-away repository is at no pinned commit.
    monkeypatch.setattr(parity, "UpstreamJob", partial(UpstreamJob, allowed=("DRUPE",)))
    (golden / "x.json").write_text(json.dumps({"X1": {"word": "hello from upstream", "size": 1}}))
    figures = {name: (Figure(f"x.json/X1/{name}"),) for name in ("word", "size")}
    probes = (
        Probe("X1", "DRUPE", "", golden=figures),
        Probe("X2", "DRUPE", ""),
        Probe("X3", "DRUPE", "", imports=("no_such_module",)),
        Probe("X4", "DRUPE", "", files=("no/such/folder",)),
    )
    suite = Suite("DRUPE", probes, driver)
    monkeypatch.setattr(parity, "suites", lambda: [suite])
    return suite


def test_probes_run_in_the_authors_process_and_one_that_fails_stops_no_other(greeting, golden):
    found = {row.probe: row for row in run_probes("DRUPE", golden)}
    assert found["X1.word"].verdict == "as recorded"
    assert found["X1.word"].upstream == "hello from upstream"
    assert found["X1.size"].verdict == "differs: golden"
    assert found["X2"].verdict.startswith("differs: AttributeError: ")
    assert found["X3"].verdict == "skipped: needs no_such_module: pip install -e '.[upstream]'"
    assert found["X4"].verdict == "skipped: no/such/folder is not checked out"


def test_figures_are_regenerated_and_those_that_upstream_does_not_give_are_listed(
    greeting, golden, tmp_path
):
    stale, silent = parity.regenerate(tmp_path / "new", golden)
    assert stale == ["x.json/X1/size"]
    assert list(silent) == ["DRUPE X3", "DRUPE X4", "DRUPE X2"]
    assert "AttributeError" in silent["DRUPE X2"]
    written = json.loads((tmp_path / "new" / "x.json").read_text())
    assert (written["X1"]["word"], written["X1"]["size"]) == ("hello from upstream", 19)


def test_the_report_is_a_table_per_repository_and_a_file_of_values(tmp_path, golden):
    suite = Suite("DRUPE", (PROBE,), Path("driver.py"))
    rows = compare(suite, {"X1.sum": np.asarray(3.2)}, {}, golden)
    write_report([*rows, replace(rows[0], repository="CTRL", what="a | b")], tmp_path / "new")
    table = pd.read_csv(tmp_path / "new" / "parity.csv")
    assert table["verdict"].tolist() == ["differs: native, golden"] * 2
    assert table["upstream"].tolist() == [3.2, 3.2]
    text = (tmp_path / "new" / "parity.md").read_text(encoding="utf-8")
    assert "functions: 2 differs." in text
    assert "## DRUPE" in text
    assert "| X1.sum | a \\| b | 3.2 | 3.005 | 3 | 0.2 | 0.01 | differs: native, golden |" in text


def test_a_report_keeps_what_was_not_compared_again(tmp_path):
    drupe, trained, ctrl = (
        Result("P1.x", "DRUPE", "", verdict="equal", upstream="1"),
        Result("auroc", "DRUPE", "", verdict="agrees", kind=OUTCOME),
        Result("P2.x", "CTRL", "", verdict="equal", golden="nan"),
    )
    write_report([drupe, trained, ctrl], tmp_path)
    before = read_report(tmp_path)
    assert sorted(before, key=str) == sorted([drupe, trained, ctrl], key=str)
    newer = replace(drupe, verdict="differs: native")
    assert merged(before, [newer]) == [ctrl, newer, trained]
    absent = replace(drupe, verdict="skipped: bench third-party sync DRUPE")
    fixed = replace(drupe, verdict="fixed figure: nowhere")
    assert merged(before, [absent, fixed]) == [ctrl, drupe, trained]
    assert merged([], [absent]) == [absent]
    assert "outcomes: 1 agrees." in (tmp_path / "parity.md").read_text(encoding="utf-8")


def test_an_entry_of_the_audit_excuses_no_difference(golden):
    suite = Suite("DRUPE", (replace(PROBE, explained="U1"),), Path("driver.py"))
    for value, audit in ((3.0, "U1"), (4.0, "")):
        (row,) = compare(suite, {"X1.sum": np.asarray(value)}, {}, golden)
        assert row.audit == audit


def test_every_figure_of_every_probe_has_an_address_and_every_driver_is_there():
    names = []
    for suite in suites():
        assert suite.driver.is_file()
        assert {probe.repository for probe in suite.probes if not probe.fixed} <= {suite.repository}
        for probe in suite.probes:
            names.append((suite.repository, probe.id, bool(probe.fixed)))
            for figures in (probe.golden or {}).values():
                for figure in figures:
                    assert figure.stored(parity.GOLDEN).size
    assert len(set(names)) == len(names)
    assert {repository for repository, _, _ in names} == set(REPOSITORIES)


def test_findings_are_entries_of_the_audit():
    audit = (parity.PROJECT / "docs" / "upstream-audit.md").read_text(encoding="utf-8")
    for suite in suites():
        for probe in suite.probes:
            for number in filter(None, probe.explained.split(", ")):
                assert f"### {number}. " in audit, f"{probe.id} names {number}"


@pytest.mark.parametrize("name", REPOSITORIES)
def test_upstream_the_figures_and_ours_agree(name):
    found = run_probes(name)
    ran = [row for row in found if not row.verdict.startswith(("skipped", "fixed figure"))]
    if not ran:
        pytest.skip(next(row.verdict for row in found if row.verdict.startswith("skipped")))
    right = (parity.EQUAL, parity.RECORDED)
    differing = [f"{row.probe} {row.verdict}" for row in ran if row.verdict not in right]
    assert not differing, differing
    assert len(ran) > 10
