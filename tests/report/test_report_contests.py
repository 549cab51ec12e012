"""Paired differences, ranks over blocks, verdicts on encoders, published figures."""

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
from bench.report.reported import reported_figures, reported_frame, reported_text
from bench.report.schema import load_results
from bench.report.verdicts import encoders_frame, encoders_text

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


def judged(folder, count, scores=(0.9, 0.1), verdicts=("backdoored", "clean"), **cell):
    keys = []
    for i in range(count):
        row = {
            "encoder_score": scores[0] - i / 100,
            "encoder_score_twin": scores[1] + i / 100,
            "encoder_verdict": verdicts[0],
            "encoder_verdict_twin": verdicts[1],
        }
        encoders = {"victim": f"v{i}", "twin": f"t{i}"}
        keys.append(write_cell(folder, f"x{i}", "d", row=row, encoders=encoders, **cell))
    write_manifest(folder, [f"x{i}" for i in range(count)], ["d"], keys)
    return load_results(folder)


ENCODERS = DeclaredTable(kind="encoders")


def test_verdicts_are_counted_over_encoders(tmp_path):
    [row] = encoders_frame(ENCODERS, judged(tmp_path, 3)).to_dict("records")
    assert [row[n] for n in ("backdoored", "flagged", "clean", "false_alarms")] == [3, 3, 3, 0]
    assert row["accuracy"] == 1
    assert np.isnan(row["auroc"])
    text = encoders_text("encoders", ENCODERS, load_results(tmp_path))
    assert text.rows[0] == ("d", "resnet-simclr", "3 of 3", "0 of 3", "1.000", "–")
    assert "counts only" in " ".join(text.notes)


def test_from_five_of_each_kind_on_there_is_an_auroc(tmp_path):
    [row] = encoders_frame(ENCODERS, judged(tmp_path, 5)).to_dict("records")
    assert row["auroc"] == 1


def test_a_shared_twin_counts_once(tmp_path):
    row = dict.fromkeys(("encoder_score", "encoder_score_twin"), 0.2)
    row |= {"encoder_verdict": "clean", "encoder_verdict_twin": "clean"}
    keys = [
        write_cell(tmp_path, a, "d", row=row, encoders={"victim": a, "twin": "shared"})
        for a in ("x", "y")
    ]
    control = {"victim": "shared", "twin": "shared"}
    keys.append(write_cell(tmp_path, "none", "d", row=row, control=True, encoders=control))
    write_manifest(tmp_path, ["x", "y", "none"], ["d"], keys)
    [row] = encoders_frame(ENCODERS, load_results(tmp_path)).to_dict("records")
    assert (row["backdoored"], row["clean"]) == (2, 1)


@pytest.mark.parametrize(
    ("verdicts", "alarms"), [(("clean", "clean", "backdoored"), 0), (("backdoored", "clean"), 1)]
)
def test_an_encoder_examined_with_several_seeds_counts_once(tmp_path, verdicts, alarms):
    scores = (0.1, 0.5, 0.3)[: len(verdicts)]
    keys = [
        write_cell(
            tmp_path,
            "none",
            "d",
            seed,
            control=True,
            row={"encoder_score": score, "encoder_verdict": verdict},
            encoders={"victim": "shared", "twin": "shared"},
        )
        for seed, (score, verdict) in enumerate(zip(scores, verdicts, strict=True))
    ]
    write_manifest(tmp_path, ["none"], ["d"], keys, seeds=range(len(verdicts)))
    results = load_results(tmp_path)
    [row] = encoders_frame(ENCODERS, results).to_dict("records")
    assert (row["clean"], row["false_alarms"]) == (1, alarms)
    said = f"clean encoder of none, seed 0 0.100 ({verdicts[0]}) and seed 1 0.500 ({verdicts[1]})"
    assert said in " ".join(encoders_text("encoders", ENCODERS, results).notes)


@pytest.mark.parametrize("order", [("x", "y"), ("y", "x")])
def test_all_that_a_detector_said_of_a_clean_encoder_counts(tmp_path, order):
    """Shown images of two attacks it was fitted twice, in one seed."""
    said = {"x": (-0.2, "clean"), "y": (-0.05, "backdoored")}
    keys = [
        write_cell(
            tmp_path,
            attack,
            "d",
            row={
                "encoder_score": 0.0,
                "encoder_verdict": "backdoored",
                "encoder_score_twin": said[attack][0],
                "encoder_verdict_twin": said[attack][1],
            },
            encoders={"victim": attack, "twin": "shared"},
        )
        for attack in order
    ]
    write_manifest(tmp_path, order, ["d"], keys)
    [row] = encoders_frame(ENCODERS, load_results(tmp_path)).to_dict("records")
    assert (row["clean"], row["false_alarms"]) == (1, 1)


def test_victims_of_attacks_that_fail_the_gate_do_not_count_nor_twins_of_no_others(tmp_path):
    results = judged(tmp_path, 2, status="attack-invalid", reason="ASR 0.1")
    [row] = encoders_frame(ENCODERS, results).to_dict("records")
    assert (row["backdoored"], row["clean"], row["not_counted"]) == (0, 0, 4)
    assert np.isnan(row["accuracy"])  # there is nothing to be right on
    notes = " ".join(encoders_text("encoders", ENCODERS, results).notes)
    assert "Not counted: victims of attacks that fail the gate, and their twins (4)." in notes


def test_a_twin_that_a_working_attack_shares_counts_beside_it(tmp_path):
    said = {"x": "ok", "y": "attack-invalid"}
    row = {"encoder_score": 0.5, "encoder_verdict": "backdoored"}
    row |= {"encoder_score_twin": 0.1, "encoder_verdict_twin": "clean"}
    keys = [
        write_cell(
            tmp_path, attack, "d", status=status, row=row, encoders={"victim": attack, "twin": "t"}
        )
        for attack, status in said.items()
    ]
    write_manifest(tmp_path, list(said), ["d"], keys)
    [row] = encoders_frame(ENCODERS, load_results(tmp_path)).to_dict("records")
    assert (row["backdoored"], row["clean"], row["not_counted"]) == (1, 1, 1)


@pytest.mark.parametrize("kind", ["pretrain", "import"])
def test_encoders_that_go_back_to_few_are_said_to_be_near_relatives(tmp_path, kind):
    row = {"encoder_score": 0.5, "encoder_verdict": "backdoored"}
    row |= {"encoder_score_twin": 0.1, "encoder_verdict_twin": "clean"}
    keys = []
    for seed, root in enumerate("aab"):
        stages = [{"kind": kind, "label": f"{kind} x", "key": root, "seconds": 1.0}]
        stages += [{"kind": "pretrain", "label": "fine-tune x", "key": f"f{seed}", "seconds": 1.0}]
        keys.append(write_cell(tmp_path, "x", "d", seed, row=row, provenance={"stages": stages}))
    write_manifest(tmp_path, ["x"], ["d"], keys, seeds=(0, 1, 2))
    notes = " ".join(encoders_text("encoders", ENCODERS, load_results(tmp_path)).notes)
    assert "6 encoders of resnet-simclr go back to 2 trained from scratch or imported" in notes


def test_scores_without_a_rule_have_no_accuracy(tmp_path):
    [row] = encoders_frame(ENCODERS, judged(tmp_path, 2, verdicts=("", ""))).to_dict("records")
    assert np.isnan(row["accuracy"])
    assert row["flagged"] is None or str(row["flagged"]) == "<NA>"


def test_every_published_figure_has_a_traceable_source_and_a_known_column():
    from bench.report.columns import COLUMNS

    figures = reported_figures()
    assert len(figures) >= 8
    for figure in figures:
        assert figure.ours.metric in COLUMNS
        assert "commit" in figure.source
        assert figure.setting


def test_a_published_figure_read_by_knn_stands_beside_ours_by_knn(tmp_path):
    entry = {"encoder": "victim", "probe": "knn", "metric": "clean_accuracy", "value": 0.84}
    row = {"clean_accuracy": 0.57}
    key = write_cell(tmp_path, "ctrl", "d", row=row, downstream=[entry])
    write_manifest(tmp_path, ["ctrl"], ["d"], [key])
    frame = reported_frame(DeclaredTable(kind="reported"), load_results(tmp_path))
    [ours] = [r for r in frame.to_dict("records") if r["metric"] == "clean accuracy"]
    assert ours["measured"] == 0.84
    assert ours["our_setting"].endswith(", knn")


def test_our_figure_is_of_one_target_and_says_what_it_was_judged_on(tmp_path):
    row = {"auroc_all": 0.57, "downstream": "gtsrb", "target": 12}
    other = {**row, "auroc_all": 0.98, "target": 3}
    keys = [write_cell(tmp_path, "badencoder", "dede-ood", row=chosen) for chosen in (row, other)]
    write_manifest(tmp_path, ["badencoder"], ["dede-ood"], keys)
    frame = reported_frame(DeclaredTable(kind="reported"), load_results(tmp_path))
    found = [r for r in frame.to_dict("records") if r["measured"] == 0.57]
    assert found
    assert all(", digits to gtsrb, " in r["our_setting"] for r in found)


def test_published_figures_stand_beside_ours(tmp_path):
    keys = [
        write_cell(tmp_path, "clip-backdoor", "decree", row={"encoder_score": -0.089}),
        write_cell(
            tmp_path,
            "badencoder",
            "dede-ood",
            row={"auroc_all": 0.97, "fpr_median_rule": 0.1, "tpr_median_rule": 0.95},
        ),
    ]
    write_manifest(tmp_path, ["clip-backdoor", "badencoder"], ["decree", "dede-ood"], keys)
    table = DeclaredTable(kind="reported")
    frame = reported_frame(table, load_results(tmp_path))
    ours = {(r["system"], r["metric"], r["published"]): r for r in frame.to_dict("records")}
    assert ours["DeDe", "AUROC", 0.9813]["measured"] == 0.97
    # Over all images, as published, where our own column is over those of other classes.
    assert ours["DeDe", "TPR", 0.9329]["measured"] == pytest.approx(0.9)
    assert ours["DECREE", "PL1", 0.0187]["measured"] == pytest.approx(0.089)
    assert ours["CTRL", "ASR", 0.9]["status"] == "not run"
    text = reported_text("reported", table, load_results(tmp_path))
    assert "github.com/tardisblue9/DeDe" in text.notes[-1]
