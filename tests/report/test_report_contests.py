"""Paired differences, ranks over blocks."""

from __future__ import annotations

import numpy as np
import pytest
from stored_cells import write_cell, write_manifest

from bench.report.contests import (
    differences_frame,
    differences_text,
    ranking,
    ranks_frame,
    ranks_text,
)
from bench.report.declared import DeclaredTable
from bench.report.plots import plots_of
from bench.report.schema import load_results

AGAINST = DeclaredTable(kind="differences", against="b")
RANKS = DeclaredTable(kind="ranks")


def keep_draws(folder, key, **arrays):
    np.savez(folder / "cells" / key / "draws.npz", **arrays)


def results_of(folder, rows, seeds=(0,), **more):
    """``rows``: (attack, defense, seed, row) each; one folder."""
    keys = [write_cell(folder, a, d, s, row=row, **more) for a, d, s, row in rows]
    attacks = list(dict.fromkeys(row[0] for row in rows))
    defenses = list(dict.fromkeys(row[1] for row in rows))
    write_manifest(folder, attacks, defenses, keys, seeds=seeds)
    return keys


def test_a_difference_is_paired_draw_by_draw(tmp_path):
    common = np.random.default_rng(0).normal(0, 0.05, 500)
    keys = results_of(tmp_path, [("x", "a", 0, {"auroc": 0.80}), ("x", "b", 0, {"auroc": 0.78})])
    keep_draws(tmp_path, keys[0], auroc=0.80 + common)
    keep_draws(tmp_path, keys[1], auroc=0.78 + common)
    [row] = differences_frame(AGAINST, load_results(tmp_path)).to_dict("records")
    assert row["difference"] == pytest.approx(0.02)
    # Each alone varies by 0.05; together they move as one.
    assert (row["low"], row["high"]) == (pytest.approx(0.02), pytest.approx(0.02))
    text = differences_text("t", AGAINST, load_results(tmp_path))
    assert text.rows == (("x", "a", "0.800", "0.780", "+0.020", "[+0.020, +0.020]", "*"),)


def of_seeds(folder, of_a):
    """Defense a with one AUROC per seed, b with 0.5 in each; draws of either around its own."""
    random = np.random.default_rng(1)
    seeds = tuple(range(len(of_a)))
    rows = [("x", "a", seed, {"auroc": value}) for seed, value in enumerate(of_a)]
    rows += [("x", "b", seed, {"auroc": 0.5}) for seed in seeds]
    keys = results_of(folder, rows, seeds=seeds)
    draws = [random.normal(row["auroc"], 0.02, 400) for *_, row in rows]
    for key, values in zip(keys, draws, strict=True):
        keep_draws(folder, key, auroc=values)
    pairs = [mine - other for mine, other in zip(draws, draws[len(seeds) :], strict=False)]
    return [np.quantile(pair, [0.025, 0.975]) for pair in pairs]


def test_over_two_seeds_a_difference_has_the_range_of_their_intervals(tmp_path):
    ends = of_seeds(tmp_path, (0.9, 0.7))
    [row] = differences_frame(AGAINST, load_results(tmp_path)).to_dict("records")
    assert (row["low"], row["high"]) == pytest.approx((ends[1][0], ends[0][1]))
    assert row["difference"] == pytest.approx(0.3)
    assert row["seeds"] == "2/2"


def test_a_difference_that_changes_its_sign_between_seeds_has_no_asterisk(tmp_path):
    """The mean is far from zero, and so is every seed: on both sides."""
    ends = of_seeds(tmp_path, (0.95, 0.95, 0.2))
    assert all(low > 0 or high < 0 for low, high in ends)
    text = differences_text("t", AGAINST, load_results(tmp_path))
    assert text.rows[0][5] == "+0.200"
    assert text.rows[0][-1] == ""


def test_over_three_independent_seeds_a_difference_has_an_interval_of_its_mean(tmp_path):
    ends = np.array(of_seeds(tmp_path, (0.90, 0.88, 0.92)))
    [row] = differences_frame(AGAINST, load_results(tmp_path)).to_dict("records")
    half = 4.302653 * 0.02 / np.sqrt(3)  # the t interval of 0.40, 0.38, 0.42
    low, high = ends.mean(axis=0)
    wanted = (0.4 - np.hypot(half, 0.4 - low), 0.4 + np.hypot(half, high - 0.4))
    assert (row["low"], row["high"]) == pytest.approx(wanted, rel=1e-5)


def test_only_seeds_that_both_have_are_compared(tmp_path):
    rows = [("x", "a", s, {"auroc": 0.9 - 0.1 * s}) for s in (0, 1)]
    results_of(tmp_path, [*rows, ("x", "b", 1, {"auroc": 0.5})], seeds=(0, 1))
    [row] = differences_frame(AGAINST, load_results(tmp_path)).to_dict("records")
    assert (row["value"], row["seeds"]) == (0.8, "1/2")


def test_cells_without_draws_have_no_interval_and_the_notes_say_why(tmp_path):
    results_of(tmp_path, [("x", "a", 0, {}), ("x", "b", 0, {})])
    text = differences_text("t", AGAINST, load_results(tmp_path))
    assert text.rows[0][5:] == ("–", "")
    assert "kept no draws" in " ".join(text.notes)


def test_without_a_decoy_there_is_no_difference_and_a_rerun_is_not_advised(tmp_path):
    table = DeclaredTable(kind="differences", against="b", metric="auroc_vs_decoy")
    results_of(tmp_path, [("x", d, 0, {"auroc_vs_decoy": None}) for d in ("a", "b")])
    notes = " ".join(differences_text("t", table, load_results(tmp_path)).notes)
    assert "no decoy qualified" in notes
    assert "kept no draws" not in notes


def test_what_stands_apart_is_marked_among_differences(tmp_path):
    results_of(tmp_path, [("x", "a", 0, {}), ("x", "b", 0, {})], reduced="smaller")
    text = differences_text("t", AGAINST, load_results(tmp_path))
    assert text.rows[0][1] == "a ¶"
    assert any(note.startswith("¶ reduced") for note in text.notes)


def test_a_gap_is_named_beside_an_attack_whose_label_goes_on(tmp_path):
    rows = [("x", "b", 0, {}), ("x-upstream", "a", 0, {}), ("x-upstream", "b", 0, {})]
    results_of(tmp_path, rows)
    notes = differences_text("t", AGAINST, load_results(tmp_path)).notes
    assert "Without a pair: a on x." in notes


def test_delta_needs_the_draws_of_the_placebo(tmp_path):
    table = DeclaredTable(kind="differences", against="b", metric="auroc_delta")
    keys = results_of(tmp_path, [("x", "a", 0, {}), ("x", "b", 0, {})])
    keep_draws(tmp_path, keys[0], auroc=np.full(9, 0.9), auroc_placebo=np.full(9, 0.6))
    keep_draws(tmp_path, keys[1], auroc=np.full(9, 0.8), auroc_placebo=np.full(9, 0.7))
    [row] = differences_frame(table, load_results(tmp_path)).to_dict("records")
    assert (row["low"], row["high"]) == pytest.approx((0.2, 0.2))
    keep_draws(tmp_path, keys[1], auroc=np.full(9, 0.8))
    [row] = differences_frame(table, load_results(tmp_path)).to_dict("records")
    assert np.isnan(row["low"])


def test_without_the_other_side_there_are_no_rows(tmp_path):
    results_of(tmp_path, [("x", "a", 0, {})])
    text = differences_text("t", AGAINST, load_results(tmp_path))
    assert text.rows == ()
    assert "Without a pair: a on x." in text.notes


def matrix(attacks, missing=()):
    """Three defenses on ``attacks`` blocks; c is worst everywhere."""
    return [
        (f"attack-{i}", d, 0, {"auroc": v + i / 1000})
        for i in range(attacks)
        for d, v in (("a", 0.9), ("b", 0.8), ("c", 0.6))
        if (i, d) not in missing
    ]


def test_ranks_below_ten_blocks_say_why_there_are_no_tests(tmp_path):
    results_of(tmp_path, matrix(3))
    results = load_results(tmp_path)
    assert list(ranks_frame(RANKS, results)["mean_rank"]) == [1, 2, 3]
    text = ranks_text("ranks", RANKS, results)
    assert "3 blocks, and the tests need 10" in " ".join(text.notes)
    assert text.rows[0] == ("a", "1.00", "3")


def test_ranks_from_ten_blocks_on_come_with_tests(tmp_path):
    results_of(tmp_path, matrix(10))
    _, found, _ = ranking(RANKS, load_results(tmp_path))
    assert found.blocks == 10
    assert found.p_values.loc["a", "c"] < 0.05
    notes = " ".join(ranks_text("ranks", RANKS, load_results(tmp_path)).notes)
    assert "Friedman's test over 10 blocks: p = 4.5e-05." in notes
    assert "a and c" in notes


def test_a_critical_difference_diagram_is_drawn_from_ten_blocks_on(tmp_path):
    for count, drawn in ((9, []), (10, ["critical_difference_ranks"])):
        results_of(tmp_path / str(count), matrix(count))
        results = load_results(tmp_path / str(count))
        # The last share of so many: what is of no one attack, one attack to a block.
        stems = [stem for stem, _ in plots_of(results, count, count + 1)]
        assert [stem for stem in stems if stem.startswith("critical")] == drawn


def test_a_block_counts_only_where_every_defense_is_ok(tmp_path):
    results_of(tmp_path, matrix(4, missing={(2, "b")}))
    scores, _, left = ranking(RANKS, load_results(tmp_path))
    assert len(scores) == 3
    assert "attack-2" in left


def test_a_block_needs_every_downstream_set_of_every_defense(tmp_path):
    rows = [
        ("x", d, s, {"auroc": 0.8, "downstream": name})
        for s in (0, 1)
        for d, name in (("a", "easy"), ("a", "hard"), ("b", "easy"))
    ]
    results_of(tmp_path, rows, seeds=(0, 1))
    scores, found, left = ranking(RANKS, load_results(tmp_path))
    assert len(scores) == 0
    assert found is None
    assert "x" in left


def test_defenses_without_a_cell_are_named_and_not_ranked(make_results):
    gone = frozenset((a, "knn") for a in ("none", "badencoder", "drupe"))
    _, found, left = ranking(RANKS, load_results(make_results(absent=gone)))
    assert list(found.ranks.index) == ["dede", "kmeans"]
    assert "Without a cell that counts, hence not ranked: knn." in left


def test_the_worst_status_of_both_sides_is_shown(tmp_path):
    said = {("a", 0): "ok", ("a", 1): "attack-weak", ("b", 0): "attack-invalid", ("b", 1): "ok"}
    keys = [write_cell(tmp_path, "x", d, s, status=status) for (d, s), status in said.items()]
    write_manifest(tmp_path, ["x"], ["a", "b"], keys, seeds=(0, 1))
    [row] = differences_frame(AGAINST, load_results(tmp_path)).to_dict("records")
    assert row["status"] == "attack-invalid"
    assert differences_text("t", AGAINST, load_results(tmp_path)).rows[0][2] == "2/2"


def test_controls_and_invalid_attacks_are_no_blocks(make_results):
    special = {("drupe", d): ("attack-weak", "ASR 0.5") for d in ("dede", "kmeans", "knn")}
    scores, found, left = ranking(RANKS, load_results(make_results(special=special)))
    assert list(scores.index) == ["badencoder / digits / resnet-simclr"]
    assert (found.blocks, left) == (1, "")


def test_seeds_are_one_block(tmp_path):
    rows = [("x", d, s, {"auroc": v + s / 10}) for s in (0, 1) for d, v in (("a", 0.5), ("b", 0.4))]
    results_of(tmp_path, rows, seeds=(0, 1))
    scores, _, _ = ranking(RANKS, load_results(tmp_path))
    assert scores.shape == (1, 2)
    assert scores.iloc[0].to_dict() == pytest.approx({"a": 0.55, "b": 0.45})


def test_references_are_not_ranked(tmp_path):
    keys = [
        write_cell(tmp_path, "x", d, row={"auroc": v}, reference=d == "pixels")
        for d, v in (("a", 0.9), ("pixels", 0.8), ("b", 0.7))
    ]
    write_manifest(tmp_path, ["x"], ["a", "pixels", "b"], keys)
    _, found, left = ranking(RANKS, load_results(tmp_path))
    assert found.ranks.to_dict() == {"a": 1, "b": 2}
    assert left == ""


def test_a_downstream_set_on_which_an_attack_is_skipped_is_no_gap(tmp_path):
    keys = [write_cell(tmp_path, "ctrl", d, row={"auroc": 0.8}) for d in ("a", "b")]
    keys += [
        write_cell(tmp_path, "ctrl", d, status="skipped", row={"downstream": "gtsrb"})
        for d in ("a", "b")
    ]
    write_manifest(tmp_path, ["ctrl"], ["a", "b"], keys)
    scores, _, left = ranking(RANKS, load_results(tmp_path))
    assert (len(scores), left) == (1, "")


def test_an_attack_that_took_in_some_seeds_only_is_named(tmp_path):
    said = {0: "ok", 1: "attack-invalid"}
    keys = [write_cell(tmp_path, "x", d, s, status=said[s]) for d in ("a", "b") for s in said]
    write_manifest(tmp_path, ["x"], ["a", "b"], keys, seeds=(0, 1))
    scores, _, left = ranking(RANKS, load_results(tmp_path))
    assert len(scores) == 0
    assert left == "Left out, without an ok value of every defense in every seed: x."
