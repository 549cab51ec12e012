"""Columns that the report makes from the scores on the clean twin."""

from __future__ import annotations

import pandas as pd
import pytest
from stored_cells import write_cell, write_manifest

from bench.report.contests import ranking, ranks_frame
from bench.report.declared import DeclaredTable
from bench.report.leaderboard import leaderboard, over_seeds
from bench.report.pivot import pivot_frame
from bench.report.schema import load_results

CHOSEN = {"rule": "clean-id", "nominal_fpr": 0.1, "threshold": 9.0, "tpr": 0.5, "fpr": 0.0}
ROW = {"threshold_source": "clean-id", "tpr_calibrated": 0.5, "fpr_calibrated": 0.0, "target": 3}


def scores(encoder: str, shift: float) -> pd.DataFrame:
    """Nineteen calibration images (0 to 18), ten test images, one of them of the target class."""
    parts = [("calibration", "clean", -1, float(value)) for value in range(19)]
    for condition, base in (("clean", 0.0), ("triggered", 8.5), ("decoy", -100.0)):
        for image in range(10):
            label = 3 if image == 0 else 1
            parts.append(("test", condition, label, base + image + shift))
    frame = pd.DataFrame(parts, columns=["split", "condition", "label", "score"])
    return frame.assign(image=range(len(frame)), encoder=encoder)


def stored(tmp_path, seed=0, twin=0.0, **row):
    key = write_cell(
        tmp_path,
        "x",
        "d",
        seed,
        row={**ROW, **row},
        thresholds=[CHOSEN],
        calibrated={"rule": "clean-id", "nominal_fpr": 0.1},
    )
    frame = pd.concat([scores("victim", 50.0), scores("twin", twin)], ignore_index=True)
    frame.to_parquet(tmp_path / "cells" / key / "scores.parquet")
    return key


def results(tmp_path, keys, seeds=(0,)):
    write_manifest(tmp_path, ["x"], ["d"], keys, seeds=list(seeds))
    return load_results(tmp_path)


def test_the_twin_has_a_threshold_of_its_own(tmp_path):
    [row] = leaderboard(results(tmp_path, [stored(tmp_path)])).to_dict("records")
    # floor(0.1 * 20) = 2nd largest of 0..18: 17. Triggered images of other classes: 9.5 to 17.5.
    assert row["tpr_calibrated_placebo"] == pytest.approx(1 / 9)
    assert row["auroc_decoy_placebo"] == 0


def test_the_threshold_follows_the_rule_of_the_row(tmp_path):
    chosen = {**CHOSEN, "rule": "own-auxiliary"}
    key = write_cell(
        tmp_path, "x", "d", row={**ROW, "threshold_source": "own-auxiliary"}, thresholds=[chosen]
    )
    scores("twin", 0.0).to_parquet(tmp_path / "cells" / key / "scores.parquet")
    [row] = leaderboard(results(tmp_path, [key])).to_dict("records")
    assert pd.isna(row["tpr_calibrated_placebo"])  # none of its auxiliary images has a score


@pytest.mark.parametrize(
    ("victim", "twin", "expected"),
    [(0.9, 0.7, 0.2), (0.9, 0.2, 0.4), (0.3, 0.2, 0.0), (0.4, 0.7, -0.2)],
)
def test_what_the_twin_has_is_taken_off_and_chance_at_least(tmp_path, victim, twin, expected):
    key = stored(tmp_path, auroc_vs_decoy=victim, auroc_vs_decoy_placebo=twin)
    [row] = leaderboard(results(tmp_path, [key])).to_dict("records")
    assert row["auroc_vs_decoy_excess"] == pytest.approx(expected)


def test_it_is_taken_off_the_mean_over_seeds(tmp_path):
    pairs = ((0.9, 0.6), (0.8, 0.2))  # of each alone: 0.3 and 0.3, chance taken for 0.2
    keys = [
        stored(tmp_path, seed, twin, auroc_vs_decoy=victim, auroc_vs_decoy_placebo=twin)
        for seed, (victim, twin) in enumerate(pairs)
    ]
    stored_results = results(tmp_path, keys, (0, 1))
    [row] = over_seeds(stored_results).to_dict("records")
    assert row["auroc_vs_decoy_excess"] == pytest.approx(0.85 - 0.5)
    table = DeclaredTable(metrics=("auroc_vs_decoy_excess",))
    [shown] = pivot_frame(table, stored_results)["auroc_vs_decoy_excess"]
    assert shown == pytest.approx(0.85 - 0.5)


def test_sets_below_chance_take_nothing_from_others(tmp_path):
    """An excess is one of the seeds of a setting, and only then averaged over settings."""
    row = {"auroc_vs_decoy_placebo": 0.5}
    keys = [
        write_cell(tmp_path, "x", "d", row={**row, "auroc_vs_decoy": value, "downstream": name})
        for name, value in (("one", 0.9), ("two", 0.3))
    ]
    write_manifest(tmp_path, ["x"], ["d"], keys)
    table = DeclaredTable(kind="ranks", metric="auroc_vs_decoy_excess")
    [scores, *_] = ranking(table, load_results(tmp_path))
    assert scores.to_numpy().tolist() == [[pytest.approx(0.2)]]


def test_ranks_go_by_it(tmp_path):
    keys = []
    for defense, sides in {"a": (0.99, 0.98), "b": (0.8, 0.5)}.items():
        row = dict(zip(("auroc_vs_decoy", "auroc_vs_decoy_placebo"), sides, strict=True))
        keys.append(write_cell(tmp_path, "x", defense, row=row))
    write_manifest(tmp_path, ["x"], ["a", "b"], keys)
    stored_results = load_results(tmp_path)
    for metric, first in (("auroc_vs_decoy", "a"), ("auroc_vs_decoy_excess", "b")):
        table = DeclaredTable(kind="ranks", metric=metric)
        assert ranks_frame(table, stored_results)["defense"][0] == first


def test_a_placebo_at_another_threshold_than_the_tables_is_refused():
    with pytest.raises(ValueError, match="the protocol's threshold"):
        DeclaredTable(
            metrics=("tpr",), controls=("tpr_calibrated_placebo",), threshold_rule="median-test"
        )


def test_without_a_twin_or_scores_there_is_nothing(tmp_path):
    keys = [
        write_cell(tmp_path, "x", "d", status="uncontrolled"),
        write_cell(tmp_path, "y", "d", status="failed", reason="broken"),
    ]
    write_manifest(tmp_path, ["x", "y"], ["d"], keys)
    frame = leaderboard(load_results(tmp_path))
    assert frame[["tpr_calibrated_placebo", "auroc_vs_decoy_excess"]].isna().all(axis=None)
