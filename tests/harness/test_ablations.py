"""The ablations that docs/ablations.md offers, pasted into a tiny experiment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from bench.report.leaderboard import leaderboard
from bench.report.schema import load_results

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ablations.md"


def test_every_entry_of_the_page_runs_and_scoring_entries_share_a_fit(tiny, warm_session_of):
    [block] = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    entries = yaml.safe_load(block)
    tiny["matrix"] = {"attacks": ["badencoder"], "defenses": ["dede", *entries]}
    session = warm_session_of(tiny)
    assert session.run().failed == {}
    frame = leaderboard(load_results(session.results)).set_index("defense")
    assert len(frame) == 1 + len(entries) == 15
    assert frame["auroc"].between(0, 1).all()
    assert frame.loc["dede-20-percent", "auxiliary"] == "in-distribution, 20 % triggered"
    assert frame["analysis"].to_dict() == {
        label: label in ("dede-outside", "dede-another") for label in frame.index
    }
    fits = {
        cell.identity["defense"]: cell.stage.inputs["victim"].inputs["fit"].key
        for cell in session.cells
    }
    assert fits["dede"] == fits["dede-visible-10"] == fits["dede-outside"] == fits["dede-another"]
    assert len(set(fits.values())) == 12
    assert frame["auroc"].to_dict() != pytest.approx(
        dict.fromkeys(frame.index, frame["auroc"].iloc[0])
    )
