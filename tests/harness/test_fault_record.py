"""The record of the fault campaign, and what may pass in it."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def problem(monkeypatch):
    """The judge of the campaign, which ``benchmarks/`` has."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import fault_judging

    yield fault_judging.problem
    sys.modules.pop("fault_judging")


def test_every_fault_on_record_was_survived(problem):
    record = pd.read_csv(ROOT / "results" / "robustness" / "faults.csv", dtype=str)
    assert {what: problem(row) for what, row in record.T.items() if problem(row)} == {}
    counts = Counter(record["fault"])
    assert counts["kill the run"] >= 200
    damages = {f"{what} {how}" for what in ("artifact", "cell") for how in ("truncated", "flipped")}
    places = {"disk full (cache)", "read-only results", "cache vanishes", "the clock jumps"}
    places |= {"cache on a slow file system", "two drivers on one cache", "artifacts swapped"}
    killed = {f"ray: kill {what}" for what in ("a worker", "a node", "the driver")}
    assert damages | places | killed <= set(counts)


@pytest.mark.parametrize(
    ("fault", "detail", "outcome", "what"),
    [
        ("kill the run", "any moment", "-36 stored, 0 in all, all whole", "is gone"),
        ("kill the run", "any moment", "+3 stored, 9 in all, A PART READS AS A WHOLE", "A PART"),
        ("resume after kills", "5 kills", "other tables", "other tables"),
        ("ray: kill a worker", "after 9 s, too late, run ended with 0", "identical", "before"),
        ("ray: kill a node", "after 9 s, killed, run ended with 1", "identical", "with 1, not"),
        ("disk full (cache)", "64k: run ended with 0", "identical", "with 0, not with 2"),
        ("disk full (cache)", "64k", "identical", "with None, not with 2"),
        ("files from the future", "all", "+1 stored, 2 in all, all whole", "+1 stored"),
    ],
)
def test_a_line_that_must_not_pass_does_not(problem, fault, detail, outcome, what):
    assert what in problem({"fault": fault, "detail": detail, "outcome": outcome})
