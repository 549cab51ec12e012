"""Order, gaps, averages and number formats of the tables."""

from __future__ import annotations

import csv
import io
import json

import pandas as pd
import pytest
from stored_cells import OF_THE_TWIN, write_cell, write_manifest

from bench.report.columns import COLUMNS, LEADERBOARD_COLUMNS
from bench.report.export import export
from bench.report.leaderboard import leaderboard, over_seeds, per_seed, summary
from bench.report.presentation import leaderboard_table
from bench.report.schema import load_results


def test_columns_follow_the_design_and_each_is_described():
    assert LEADERBOARD_COLUMNS[:8] == (
        *("attack", "defense", "dataset", "encoder", "downstream", "target", "profile", "seed"),
    )
    after = LEADERBOARD_COLUMNS.index("code_version") + 1
    assert LEADERBOARD_COLUMNS[after:] == (
        "probe",
        "decoy",
        *("tpr_calibrated_placebo", "auroc_decoy_placebo", "auroc_vs_decoy_excess"),
        "control",
        "transductive",
        "reference",
        "analysis",
        "reduced",
    )
    assert all(column.meaning for column in COLUMNS.values())


def test_rows_are_sorted_within_attack_by_vs_decoy_and_controls_come_last(make_results):
    frame = leaderboard(load_results(make_results()))
    assert list(dict.fromkeys(frame["attack"])) == ["badencoder", "drupe", "none"]
    for attack in ("badencoder", "drupe"):
        rows = frame[frame["attack"] == attack]
        assert list(rows["defense"]) == ["dede", "knn", "kmeans"]
        assert rows["auroc_vs_decoy"].is_monotonic_decreasing
    control = frame[frame["attack"] == "none"]
    assert control["auroc_vs_decoy"].isna().all()
    assert control["auroc_delta"].is_monotonic_decreasing


def test_delta_breaks_ties_of_vs_decoy_and_manifest_order_breaks_the_rest(tmp_path):
    deltas = {"a": 0.1, "b": 0.3, "d": 0.2, "c": 0.2}
    keys = [
        write_cell(tmp_path, "x", name, row={"auroc_vs_decoy": 0.7, "auroc_delta": delta})
        for name, delta in deltas.items()
    ]
    write_manifest(tmp_path, ["x"], deltas, keys)
    assert list(leaderboard(load_results(tmp_path))["defense"]) == ["b", "d", "c", "a"]


def test_rows_that_are_not_ok_come_after_the_valid_ones(make_results):
    special = {("drupe", "dede"): ("failed", "boom"), ("drupe", "knn"): ("skipped", "no text")}
    frame = leaderboard(load_results(make_results(special=special)))
    rows = frame[frame["attack"] == "drupe"]
    assert list(rows["status"]) == ["ok", "skipped", "failed"]
    assert rows["auroc"].isna().tolist() == [False, True, True]


def test_weak_attacks_stay_visible_and_outside_averages(make_results):
    special = {("drupe", name): ("attack-weak", "ASR 0.5") for name in ("dede", "kmeans", "knn")}
    results = load_results(make_results(special=special))
    frame = leaderboard(results)
    assert frame.loc[frame["attack"] == "drupe", "auroc"].notna().all()
    means = summary(results).set_index("defense")
    assert means.loc["dede", "n_attacks"] == 1
    only = frame[(frame["attack"] == "badencoder") & (frame["defense"] == "dede")]
    assert means.loc["dede", "auroc"] == pytest.approx(only["auroc"].item())


UNCONTROLLED = {("drupe", name): ("uncontrolled", "no twin") for name in ("dede", "kmeans", "knn")}


def test_victims_without_a_twin_stay_visible_without_placebo_and_outside_averages(make_results):
    folder = make_results(special=UNCONTROLLED)
    results = load_results(folder)
    frame = leaderboard(results)
    rows = frame[frame["attack"] == "drupe"]
    assert rows["auroc"].notna().all()
    assert rows[list(OF_THE_TWIN)].isna().all(axis=None)
    means = summary(results).set_index("defense")
    assert (means["n_attacks"] == 1).all()
    assert means["auroc_placebo"].notna().all()
    for form in ("markdown", "latex", "html"):
        assert "Uncontrolled: an imported victim" in export(folder, form)
    line = next(
        line for line in export(folder, "markdown").splitlines() if line.startswith("| drupe")
    )
    assert "uncontrolled" in line
    assert "nan" not in line
    assert "Uncontrolled" not in export(make_results("controlled"), "markdown")


def test_victims_without_a_twin_can_be_averaged_over_seeds(make_results):
    frame = over_seeds(load_results(make_results(special=UNCONTROLLED, seeds=(0, 1, 2))))
    rows = frame[frame["attack"] == "drupe"]
    assert (rows["n_seeds"] == 3).all()
    assert rows["auroc"].notna().all()
    assert rows[["auroc_placebo", "auroc_delta"]].isna().all(axis=None)


def test_averages_cover_valid_attacks_without_controls(make_results):
    results = load_results(make_results())
    frame = leaderboard(results)
    kept = frame[~frame["control"]]
    means = summary(results).set_index("defense")
    assert (means["n_attacks"] == 2).all()
    expected = kept.groupby("defense")["auroc_vs_decoy"].mean()
    assert means["auroc_vs_decoy"].to_dict() == pytest.approx(expected.to_dict())


@pytest.mark.parametrize("status", ["failed", "skipped", "not run"])
def test_one_missing_cell_withholds_every_average_and_is_named(make_results, status):
    pair = ("drupe", "knn")
    gone = (
        {"absent": frozenset([pair])} if status == "not run" else {"special": {pair: (status, "r")}}
    )
    folder = make_results(**gone)
    means = summary(load_results(folder)).set_index("defense")
    assert means["auroc"].isna().all()
    assert means.loc["knn", "missing"] == f"drupe ({status})"
    assert means.loc["dede", "missing"] == ""
    assert "No averages" in export(folder, "markdown", "summary")


def test_a_cell_the_manifest_does_not_list_is_history(make_results):
    folder = make_results()
    write_cell(folder, "badencoder", "forgotten")
    frame = leaderboard(load_results(folder))
    assert len(frame) == 9
    assert "forgotten" not in set(frame["defense"])


def test_cells_not_stored_yet_are_counted_in_the_notes(make_results):
    folder = make_results(absent=frozenset([("drupe", "knn")]))
    assert load_results(folder).unfinished == 1
    assert "1 of 9 cells is not stored yet" in export(folder, "markdown")


def test_smoke_cells_enter_no_table_and_the_tables_say_so(make_results):
    folder = make_results(smoke=True)
    assert export(folder, "csv").strip() == ",".join(LEADERBOARD_COLUMNS)
    for form in ("markdown", "latex", "html"):
        assert "smoke run" in export(folder, form)
    assert json.loads(export(folder, "json", "thresholds")) == []


def t_and_sampling(rows: pd.DataFrame, metric: str) -> tuple[float, float]:
    """Half widths squared and added: Student's t of three values, mean distance to each end."""
    values, mean = rows[metric], rows[metric].mean()
    between = 4.302653 * values.std(ddof=1) / 3**0.5
    below, above = mean - rows[f"{metric}_low"].mean(), rows[f"{metric}_high"].mean() - mean
    return mean - (between**2 + below**2) ** 0.5, min(mean + (between**2 + above**2) ** 0.5, 1.0)


def test_an_averaged_row_names_the_code_and_the_decoys_of_all_its_seeds(tmp_path):
    said = [{"code_version": "1", "decoy": "left"}, {"code_version": "2", "decoy": "left"}]
    keys = [write_cell(tmp_path, "x", "d", seed, row=row) for seed, row in enumerate(said)]
    write_manifest(tmp_path, ["x"], ["d"], keys, seeds=(0, 1))
    [row] = over_seeds(load_results(tmp_path)).to_dict("records")
    assert (row["code_version"], row["decoy"]) == ("1; 2", "left")


def test_seeds_that_agree_are_no_better_known_than_their_test_images_allow(tmp_path):
    row = {"auroc": 0.8, "auroc_low": 0.7, "auroc_high": 0.88}
    keys = [write_cell(tmp_path, "x", "d", seed, row=row) for seed in range(3)]
    write_manifest(tmp_path, ["x"], ["d"], keys, seeds=[0, 1, 2])
    [mean] = over_seeds(load_results(tmp_path)).to_dict("records")
    assert (mean["auroc_low"], mean["auroc_high"]) == pytest.approx((0.7, 0.88))


@pytest.mark.parametrize("count", [2, 3])
def test_seeds_are_averaged_and_a_t_interval_needs_three(make_results, count):
    folder = make_results(seeds=tuple(range(count)))
    results = load_results(folder)
    cells = per_seed(results)
    rows = cells[(cells["attack"] == "drupe") & (cells["defense"] == "dede")]
    mean = over_seeds(results)
    assert len(mean) == 9
    row = mean[(mean["attack"] == "drupe") & (mean["defense"] == "dede")].iloc[0]
    assert row["n_seeds"] == count
    for metric in ("auroc", "auroc_vs_decoy"):
        values = list(rows[metric])
        assert row[metric] == pytest.approx(sum(values) / count)
        together = (rows[f"{metric}_low"].min(), rows[f"{metric}_high"].max())
        expected = t_and_sampling(rows, metric) if count == 3 else together
        assert (row[f"{metric}_low"], row[f"{metric}_high"]) == pytest.approx(expected)
    assert "| n |" in export(folder, "markdown")


@pytest.mark.parametrize(
    ("shared", "said"),
    [
        (7, "All seeds share the encoders pretrained with seed 7"),
        ({"1": 0}, "Seeds 0, 1 share the encoders pretrained with seed 0"),
    ],
)
def test_seeds_that_share_a_pretraining_are_said_to_and_are_no_independent_draws(
    make_results, shared, said
):
    folder = make_results(seeds=(0, 1, 2))
    own = over_seeds(load_results(folder))
    assert "share the encoders" not in export(folder, "markdown")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"] = {"profile": {"pretraining_seed": shared}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    results = load_results(folder)
    assert said in export(folder, "markdown")
    mean, cells = over_seeds(results), per_seed(results)
    assert mean["auroc"].equals(own["auroc"])
    row = mean[(mean["attack"] == "drupe") & (mean["defense"] == "dede")].iloc[0]
    mine = cells[(cells["attack"] == "drupe") & (cells["defense"] == "dede")]
    assert row["auroc_low"] == mine["auroc_low"].min()
    assert row["auroc_high"] == mine["auroc_high"].max()


def behind(key: str, kind: str) -> dict[str, object]:
    return {"stages": [{"key": key, "kind": kind, "label": "x"}]}


@pytest.mark.parametrize(
    ("encoders", "provenance"),
    [
        (lambda seed: {"victim": f"v{seed}", "twin": "shared"}, lambda _: {}),
        (lambda seed: {"victim": f"v{seed}", "twin": f"t{seed}"}, lambda _: behind("i", "import")),
        (lambda seed: {"victim": "v", "twin": f"t{seed}"}, lambda _: {}),
    ],
    ids=["one twin", "one import behind all", "one victim"],
)
def test_seeds_that_share_an_encoder_have_no_t_interval(tmp_path, encoders, provenance):
    keys = []
    for seed in range(3):
        keys.append(
            write_cell(
                tmp_path,
                *("x", "d", seed),
                encoders=encoders(seed),
                provenance=provenance(seed),
                row={"auroc": 0.8 + seed / 100, "auroc_low": 0.7, "auroc_high": 0.9 + seed / 100},
            )
        )
    write_manifest(tmp_path, ["x"], ["d"], keys, seeds=[0, 1, 2])
    [row] = over_seeds(load_results(tmp_path)).to_dict("records")
    assert (row["auroc_low"], row["auroc_high"]) == pytest.approx((0.7, 0.92))


@pytest.mark.parametrize(("second", "said"), [("b1", True), ("a0", False)])
def test_one_key_for_encoders_of_other_weights_is_told(tmp_path, second, said):
    encoders = {"victim": "v", "twin": "t"}
    contents = [{"victim": "a0", "twin": "c0"}, {"victim": second, "twin": "c0"}]
    keys = [
        write_cell(tmp_path, "x", defense, encoders=encoders, encoder_weights=content)
        for defense, content in zip(("d", "e"), contents, strict=True)
    ]
    write_manifest(tmp_path, ["x"], ["d", "e"], keys)
    note = "Of 1 encoder there are several versions"
    assert (note in export(tmp_path, "markdown")) == said


def test_encoders_are_never_averaged_with_each_other(tmp_path):
    keys = [
        write_cell(tmp_path, "x", "d", row={"encoder": "resnet-simclr", "auroc": 0.9}),
        write_cell(tmp_path, "y", "d", row={"encoder": "template-clip", "auroc": 0.5}),
    ]
    write_manifest(tmp_path, ["x", "y"], ["d"], keys)
    means = summary(load_results(tmp_path)).set_index("encoder")
    assert means["auroc"].to_dict() == {"resnet-simclr": 0.9, "template-clip": 0.5}
    assert means["n_attacks"].to_dict() == {"resnet-simclr": 1, "template-clip": 1}


SEVERAL = {0: "ok", 1: "attack-invalid", 2: "ok"}


def test_an_attack_that_took_in_some_seeds_only_enters_no_average(tmp_path):
    keys = [write_cell(tmp_path, "x", "d", seed, status=said) for seed, said in SEVERAL.items()]
    keys += [write_cell(tmp_path, "y", "d", seed, row={"auroc": 0.7}) for seed in SEVERAL]
    write_manifest(tmp_path, ["x", "y"], ["d"], keys, seeds=tuple(SEVERAL))
    [row] = summary(load_results(tmp_path)).to_dict("records")
    assert (row["n_attacks"], row["auroc"]) == (1, pytest.approx(0.7))
    assert "Left out, valid in some seeds or sets only: x." in export(
        tmp_path, "markdown", "summary"
    )


def test_an_attack_that_took_on_some_sets_only_enters_no_average(tmp_path):
    keys = [
        write_cell(tmp_path, "x", "d", status=said, row={"downstream": name})
        for name, said in (("cifar10", "ok"), ("gtsrb", "attack-weak"))
    ]
    keys.append(write_cell(tmp_path, "y", "d", row={"downstream": "cifar10", "auroc": 0.7}))
    write_manifest(tmp_path, ["x", "y"], ["d"], keys)
    [row] = summary(load_results(tmp_path)).to_dict("records")
    assert (row["n_attacks"], row["auroc"]) == (1, pytest.approx(0.7))
    text = export(tmp_path, "markdown", "summary")
    assert "Left out, valid in some seeds or sets only: x (cifar10)." in text


def test_further_columns_replace_no_readable_one(tmp_path):
    further = ["decoy", "defense", "tpr_at_01fpr"]
    key = write_cell(tmp_path, "x", "d", reference=True, row={"tpr_at_01fpr": 0.125})
    write_manifest(tmp_path, ["x"], ["d"], [key], tables={"leaderboard": {"columns": further}})
    table = leaderboard_table(load_results(tmp_path))
    row = dict(zip(table.headers, table.rows[0], strict=True))
    assert len(row) == len(table.headers)
    assert (row["decoy used"], row["tpr at 01fpr"]) == ("patch, other colour", "0.125")
    assert (row["decoy"][:2], row["defense"]) == ("0.", "d ‡")


def test_downstream_sets_of_an_attack_are_averaged_before_attacks(tmp_path):
    values = {("x", "cifar10"): 0.9, ("x", "gtsrb"): 0.5, ("y", "cifar10"): 0.8}
    keys = [
        write_cell(tmp_path, attack, "d", row={"downstream": name, "auroc": value})
        for (attack, name), value in values.items()
    ]
    write_manifest(tmp_path, ["x", "y"], ["d"], keys)
    [row] = summary(load_results(tmp_path)).to_dict("records")
    assert (row["n_attacks"], row["auroc"]) == (2, pytest.approx(0.75))


@pytest.mark.parametrize(
    ("victims", "bounds"), [(("v", "v", "v"), (0.68, 0.74)), (("u", "v", "w"), (0.6732, 0.7389))]
)
def test_seeds_that_share_their_victim_are_one_draw_of_it(tmp_path, victims, bounds):
    """Not three, whose spread of nothing would be an interval of nothing."""
    keys = [
        write_cell(
            tmp_path,
            "none",
            "d",
            seed,
            row={"auroc": value, "auroc_low": value - 0.01, "auroc_high": value + 0.03},
            encoders={"victim": victim, "twin": f"twin of {victim}"},
        )
        for seed, (victim, value) in enumerate(zip(victims, (0.69, 0.7, 0.71), strict=True))
    ]
    write_manifest(tmp_path, ["none"], ["d"], keys, seeds=(0, 1, 2))
    [row] = over_seeds(load_results(tmp_path)).to_dict("records")
    assert (row["auroc_low"], row["auroc_high"]) == pytest.approx(bounds, abs=1e-4)


def test_cells_of_another_target_get_their_own_column_of_the_summary(tmp_path):
    keys = [write_cell(tmp_path, "x", "d", row={"target": target}) for target in (0, 12)]
    keys.append(write_cell(tmp_path, "x", "e", row={"target": 0}))
    write_manifest(tmp_path, ["x"], ["d", "e"], keys)
    means = summary(load_results(tmp_path)).set_index("defense")
    assert means.loc["e", "missing"] == "x (12) (not run)"
    assert "| target |" in export(tmp_path, "markdown")


def test_csv_has_six_digits_and_empty_cells_for_missing(make_results):
    folder = make_results(special={("drupe", "knn"): ("failed", "line one\nline two")})
    rows = list(csv.DictReader(io.StringIO(export(folder, "csv"))))
    assert rows[0]["fit_seconds"] == "12.3457"
    assert rows[0]["seed"] == "0"
    failed = next(row for row in rows if row["status"] == "failed")
    assert failed["auroc"] == failed["n_clean"] == ""
    assert failed["reason"] == "line one\nline two"
    assert {row["control"] for row in rows} == {"true", "false"}


def test_long_tables_have_one_row_per_rule_and_number(make_results):
    folder = make_results(special={("drupe", "knn"): ("failed", "boom")})
    rules = pd.read_csv(io.StringIO(export(folder, "csv", "thresholds")))
    assert len(rules) == 8 * 2
    assert set(rules["rule"]) == {"clean-id", "own-auxiliary"}
    numbers = pd.read_csv(io.StringIO(export(folder, "csv", "downstream")))
    assert set(numbers["measured_on"]) == {"victim", "twin"}
    assert set(numbers["encoder"]) == {"resnet-simclr"}
    assert numbers["high"].isna().all()


def test_notes_explain_thresholds_controls_gate_and_transductive_marks(make_results):
    reason = ("skipped", "needs text")
    folder = make_results(special={("drupe", "knn"): reason, ("badencoder", "knn"): reason})
    text = export(folder, "markdown")
    for phrase in (
        "rate of 0.05, never",
        "rule: clean-id",
        "Placebo",
        "Decoy",
        "Validity gate",
        "† transductive",
    ):
        assert phrase in text
    assert "Skipped (needs text): knn on badencoder, knn on drupe." in text
    assert "kmeans †" in text


def test_long_reasons_are_cut_in_the_notes_and_whole_in_the_csv(make_results):
    folder = make_results(special={("drupe", "knn"): ("failed", "word " * 100)})
    assert "word …" in export(folder, "markdown")
    assert "word " * 100 in export(folder, "csv")


def test_unknown_names_are_answered_with_the_valid_ones_and_the_nearest(make_results):
    folder = make_results()
    with pytest.raises(ValueError, match=r"unknown format 'markdwn'.*did you mean 'markdown'"):
        export(folder, "markdwn")
    with pytest.raises(ValueError, match=r"unknown table 'x'; valid: cells, costs"):
        export(folder, "csv", "x")


def test_verdicts_over_seeds_are_counted_where_they_differ(tmp_path):
    said = {0: ("backdoored", "clean"), 1: ("backdoored", ""), 2: ("clean", "clean")}
    keys = [
        write_cell(
            tmp_path, "x", "d", s, row={"encoder_verdict": one, "encoder_verdict_twin": other}
        )
        for s, (one, other) in said.items()
    ]
    write_manifest(tmp_path, ["x"], ["d"], keys, seeds=(0, 1, 2))
    [row] = over_seeds(load_results(tmp_path)).to_dict("records")
    assert row["encoder_verdict"] == "backdoored 2/3, clean 1/3"
    assert row["encoder_verdict_twin"] == "clean 2/3"
