"""Declared pivot tables: places, gaps, best marks, averages, thresholds, context."""

from __future__ import annotations

import re

import pytest
from stored_cells import DECLARED, write_cell, write_manifest

from bench.report.columns import COLUMNS
from bench.report.declared import BUILT_IN, RATES, DeclaredTable
from bench.report.export import export
from bench.report.pivot import pivot, pivot_frame
from bench.report.pivot_text import SHORT, pivot_text
from bench.report.schema import load_results

DETECTION = DeclaredTable(
    columns="defense",
    metrics=("tpr", "fpr", "auroc"),
    controls=("auroc_placebo",),
    best={"auroc": "highest"},
    average=True,
)


def lines(table, results, name="detection"):
    text = pivot_text(name, table, results)
    return {row[0]: row for row in text.rows}, text


def test_headings_name_columns_that_exist():
    assert set(SHORT) <= {*COLUMNS, *RATES}


def test_rows_are_attacks_and_columns_the_defenses_in_the_matrix_order(make_results):
    results = load_results(make_results())
    rows, text = lines(DETECTION, results)
    assert list(rows)[:3] == ["badencoder", "drupe", "none (control)"]
    assert text.headers == ("attack", *("TPR", "FPR", "AUROC", "placebo") * 3)
    assert [span[0] for span in text.spans()] == ["", "dede", "kmeans †", "knn"]
    cell = next(c for c in results.cells if (c.row["attack"], c.row["defense"]) == ("drupe", "knn"))
    assert rows["drupe"][-4:-1] == ("0.610", "0.052", f"{cell.row['auroc']:.3f}")


def test_best_and_second_best_stand_among_the_ok_cells_of_a_row(make_results):
    results = load_results(make_results(special={("drupe", "dede"): ("attack-weak", "ASR 0.5")}))
    _, text = lines(DETECTION, results)
    auroc = [3, 7, 11]  # of dede, kmeans, knn
    assert [text.style(0, i) for i in auroc] == [{"best"}, set(), {"second"}]
    assert [text.style(1, i) for i in auroc] == [{"dim"}, set(), {"best"}]  # no second of two
    # A control is not a contest.
    assert not any({"best", "second"} & text.style(2, i) for i in auroc)


def test_controls_are_grey_and_invalid_numbers_are_said_to_be(make_results):
    special = {("drupe", d): ("attack-invalid", "ASR 0.1") for d in ("dede", "kmeans", "knn")}
    special[("badencoder", "knn")] = ("attack-weak", "ASR 0.5")
    rows, text = lines(DETECTION, load_results(make_results(special=special)))
    assert "drupe (invalid)" in rows
    assert text.style(0, 4) == {"grey"}
    assert rows["badencoder"][11].endswith(" (weak)")
    assert "fails the validity gate" in " ".join(text.notes)


def test_gaps_say_what_they_are(make_results):
    special = {("drupe", "dede"): ("failed", "boom"), ("drupe", "knn"): ("skipped", "no text")}
    folder = make_results(special=special, absent=frozenset({("badencoder", "kmeans")}))
    rows, text = lines(DETECTION, load_results(folder))
    assert rows["drupe"][1:5] == ("failed", "", "", "")
    assert rows["drupe"][9:13] == ("skipped", "", "", "")
    assert rows["badencoder"][5:9] == ("not run", "", "", "")
    assert "not stored yet" in text.notes[0]


def test_a_row_and_a_column_without_any_cell_are_not_hidden(make_results):
    gone = frozenset({("drupe", d) for d in ("dede", "kmeans", "knn")}) | {("badencoder", "knn")}
    gone |= {("none", "knn")}
    rows, text = lines(DETECTION, load_results(make_results(absent=gone)))
    assert rows["drupe"][1::4] == ("not run",) * 3
    assert [span[0] for span in text.spans()][-1] == "knn"


def test_averages_are_over_complete_columns_only(make_results):
    special = {("drupe", "knn"): ("failed", "boom")}
    results = load_results(make_results(special=special))
    rows, text = lines(DETECTION, results)
    mean = rows["mean over 2 attacks (resnet-simclr)"]
    ok = [c.row["auroc"] for c in results.cells if c.row["defense"] == "dede" and not c.control]
    assert mean[3] == f"{sum(ok) / 2:.3f}"
    assert mean[9:13] == ("–",) * 4
    assert "No mean where an attack is missing or not ok: knn" in " ".join(text.notes)


def test_seeds_are_averaged_and_missing_ones_counted(make_results, tmp_path):
    keys = [
        write_cell(tmp_path, "x", "d", seed, row={"auroc": value})
        for seed, value in ((0, 0.6), (1, 0.8), (2, 0.7))
    ]
    keys += [write_cell(tmp_path, "x", "e", 0, row={"auroc": 0.5})]
    write_manifest(tmp_path, ["x"], ["d", "e"], keys, seeds=(0, 1, 2))
    rows, text = lines(DETECTION, load_results(tmp_path))
    assert rows["x"][3] == "0.700"
    assert rows["x"][7] == "0.500 (1/3 seeds)"
    assert rows["mean over 1 attack (resnet-simclr)"][3::4][:2] == ("0.700", "–")
    assert text.style(0, 3) == frozenset()  # a contest needs two complete columns


def test_an_attack_that_fails_the_gate_in_a_seed_is_in_no_mean(tmp_path):
    """Also where a defense has no cell in that seed."""
    keys = [
        *(write_cell(tmp_path, "x", defense) for defense in ("d", "e")),
        write_cell(tmp_path, "x", "d", 1, status="attack-weak"),
        *(
            write_cell(tmp_path, "y", defense, seed, row={"auroc": 0.75})
            for defense in ("d", "e")
            for seed in (0, 1)
        ),
    ]
    write_manifest(tmp_path, ["x", "y"], ["d", "e"], keys, seeds=(0, 1))
    rows, _ = lines(DETECTION, load_results(tmp_path))
    assert rows["mean over 1 attack (resnet-simclr)"][3::4] == ("0.750", "0.750")


@pytest.mark.parametrize("status", ["failed", "attack-weak"])
def test_a_set_without_numbers_that_count_is_a_gap_in_the_mean_of_its_attack(tmp_path, status):
    keys = [
        write_cell(tmp_path, "x", "d", row={"downstream": "cifar10", "auroc": 0.9}),
        write_cell(tmp_path, "x", "d", status=status, row={"downstream": "gtsrb"}),
    ]
    write_manifest(tmp_path, ["x"], ["d"], keys)
    rows, _ = lines(DETECTION, load_results(tmp_path))
    assert rows["mean over 1 attack (resnet-simclr)"][4] == "–"


def test_cells_that_differ_in_an_unshown_field_get_rows_of_their_own(tmp_path):
    keys = [
        write_cell(tmp_path, "x", "d", row={"downstream": name, "auroc": value})
        for name, value in (("cifar10", 0.9), ("gtsrb", 0.5))
    ]
    write_manifest(tmp_path, ["x"], ["d"], keys)
    found = pivot(DETECTION, load_results(tmp_path))
    assert found.fields == ("attack", "downstream")
    assert [row["d"].values["auroc"] for row in found.rows.values()] == [0.9, 0.5]


def test_without_columns_nothing_is_pooled_unseen(make_results):
    table = DeclaredTable(rows=("defense",), metrics=("auroc",))
    found = pivot(table, load_results(make_results()))
    assert found.fields == ("defense", "attack")
    assert len(found.rows) == 9


def test_rows_of_one_attack_are_averaged_before_attacks(tmp_path):
    values = {("x", "cifar10"): 0.9, ("x", "gtsrb"): 0.5, ("y", "cifar10"): 0.8}
    keys = [
        write_cell(tmp_path, a, "d", row={"downstream": name, "auroc": value})
        for (a, name), value in values.items()
    ]
    write_manifest(tmp_path, ["x", "y"], ["d"], keys)
    rows, _ = lines(DETECTION, load_results(tmp_path))
    assert rows["mean over 2 attacks (resnet-simclr)"][4] == "0.750"


def test_a_set_on_which_an_attack_is_skipped_is_no_gap_in_its_mean(tmp_path):
    keys = [
        write_cell(tmp_path, "x", "d", row={"downstream": "cifar10", "auroc": 0.9}),
        write_cell(tmp_path, "x", "d", status="skipped", row={"downstream": "gtsrb"}),
    ]
    write_manifest(tmp_path, ["x"], ["d"], keys)
    rows, _ = lines(DETECTION, load_results(tmp_path))
    assert rows["mean over 1 attack (resnet-simclr)"][4] == "0.900"


def test_reduced_rows_and_references_are_apart(tmp_path):
    values = {"a": 0.7, "b": 0.8, "reduced": 0.9, "reference": 0.95}
    keys = [
        write_cell(
            tmp_path,
            "x",
            d,
            row={"auroc": value},
            reduced="fewer images" if d == "reduced" else "",
            reference=d == "reference",
        )
        for d, value in values.items()
    ]
    write_manifest(tmp_path, ["x"], list(values), keys)
    _, text = lines(DETECTION, load_results(tmp_path))
    spans = [span[0] for span in text.spans()]
    assert spans == ["", "a", "b", "reduced ¶", "reference ‡"]
    assert [text.style(0, i) for i in (3, 7, 11, 15)] == [set(), {"best"}, set(), set()]
    # The mean line: not of what is reduced, though of the reference.
    assert [text.rows[-1][i] for i in (3, 7, 11, 15)] == ["0.700", "0.800", "–", "0.950"]
    assert not any("Without a mean" in note and "reduced" in note for note in text.notes)


def test_an_auroc_at_chance_is_never_the_best(tmp_path):
    keys = [write_cell(tmp_path, "x", d, row={"auroc": v}) for d, v in (("a", 0.4), ("b", 0.3))]
    write_manifest(tmp_path, ["x"], ["a", "b"], keys)
    _, text = lines(DETECTION, load_results(tmp_path))
    assert not any({"best", "second"} & style for style in text.styles.values())


def test_who_alone_is_above_chance_is_the_best(tmp_path):
    values = {"a": 0.4, "b": 0.9, "c": 0.3}
    keys = [write_cell(tmp_path, "x", d, row={"auroc": v}) for d, v in values.items()]
    write_manifest(tmp_path, ["x"], list(values), keys)
    _, text = lines(DETECTION, load_results(tmp_path))
    assert [text.style(0, i) for i in (3, 7, 11)] == [set(), {"best"}, set()]


def test_fixed_metrics_say_on_how_many_seeds_they_rest_and_enter_no_mean_then(tmp_path):
    keys = [write_cell(tmp_path, "x", "d", seed) for seed in (0, 1)]
    keys.append(write_cell(tmp_path, "y", "d", 0))
    write_manifest(tmp_path, ["x", "y"], ["d"], keys, seeds=(0, 1))
    table = DeclaredTable(
        columns="defense", fixed=("clean_accuracy",), metrics=("auroc",), average=True
    )
    rows, _ = lines(table, load_results(tmp_path))
    assert (rows["x"][1], rows["y"][1]) == ("0.570", "0.570 (1/2 seeds)")
    assert rows["mean over 2 attacks (resnet-simclr)"][1:] == ("–", "–")


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (("tpr_median_rule", "auroc"), "TPR median rule: Thresholds: the median of all test"),
        (("tpr_at_1fpr",), "TPR@1%: read off the ROC curve of the test images"),
        (("fpr_target_class",), "Thresholds were chosen on clean data at a nominal"),
        (("auroc",), "AUROC needs no threshold"),
    ],
)
def test_every_kind_of_rate_has_its_own_note(make_results, metrics, said):
    results = load_results(make_results())
    _, text = lines(DeclaredTable(columns="defense", metrics=metrics), results)
    [note] = [note for note in text.notes if "hreshold" in note]
    assert note.startswith(said)


def test_a_poisoned_tenth_is_not_called_clean(tmp_path):
    owned = {"auxiliary": "in-distribution, 20 % triggered", "threshold_source": "own-auxiliary"}
    key = write_cell(tmp_path, "x", "d", row=owned)
    write_manifest(tmp_path, ["x"], ["d"], [key])
    _, text = lines(DETECTION, load_results(tmp_path))
    assert any("Not clean: the images that d owns" in note for note in text.notes)


def test_a_reduced_attack_carries_the_mark_and_its_defenses_do_not(tmp_path):
    keys = [
        write_cell(tmp_path, a, "d", reduced="smaller" if a == "theirs" else "")
        for a in ("ours", "theirs")
    ]
    write_manifest(tmp_path, ["ours", "theirs"], ["d"], keys)
    rows, text = lines(DETECTION, load_results(tmp_path))
    assert list(rows)[:2] == ["ours", "theirs ¶"]
    assert text.spans()[1][0] == "d"


def test_defenses_may_be_rows_and_best_is_then_down_the_column(make_results):
    table = DeclaredTable(
        rows=("defense",), columns="attack", metrics=("auroc",), best={"auroc": "highest"}
    )
    _, text = lines(table, load_results(make_results()))
    assert text.headers == ("defense", "AUROC", "AUROC", "AUROC")
    assert [span[0] for span in text.spans()] == ["", "badencoder", "drupe", "none (control)"]
    assert text.style(0, 2) == {"best"}
    assert [row[0] for row in text.rows] == ["dede", "kmeans †", "knn"]


def test_aggregates_say_so_and_take_every_measured_cell(make_results):
    special = {("drupe", "knn"): ("failed", "boom")}
    results = load_results(make_results(special=special))
    table = DeclaredTable(rows=("defense",), metrics=("fit_seconds",), aggregate="median")
    rows, text = lines(table, results)
    assert rows["knn"][1] == "12.3"
    assert "The median over all cells that were measured" in text.notes[0]


def test_where_chooses_by_pattern(make_results):
    results = load_results(make_results())
    table = DETECTION.model_copy(update={"where": {"defense": ("k*",), "attack": ("badencoder",)}})
    found = pivot(table, results)
    assert list(found.rows) == [("badencoder",)]
    assert found.columns == ("kmeans", "knn")


def test_rates_follow_the_threshold_rule_of_the_table(tmp_path):
    thresholds = [
        {"rule": "clean-id", "nominal_fpr": 0.05, "threshold": 1.0, "tpr": 0.61, "fpr": 0.052},
        {"rule": "clean-id", "nominal_fpr": 0.01, "threshold": 2.0, "tpr": 0.30, "fpr": 0.011},
        {"rule": "median-test", "nominal_fpr": None, "threshold": 0.0, "tpr": 0.9, "fpr": 0.2},
    ]
    key = write_cell(tmp_path, "x", "d", thresholds=thresholds)
    write_manifest(tmp_path, ["x"], ["d"], [key])
    results = load_results(tmp_path)

    def rates(**settings):
        table = DeclaredTable(columns="defense", metrics=("tpr", "fpr"), **settings)
        place = pivot(table, results).rows[("x",)]["d"]
        return place.values["tpr"], place.values["fpr"], pivot_text("t", table, results).notes

    assert rates()[:2] == (0.61, 0.052)
    assert rates(threshold_fpr=0.01)[:2] == (0.30, 0.011)
    assert "nominal false positive rate of 0.01" in " ".join(rates(threshold_fpr=0.01)[2])
    assert rates(threshold_rule="median-test")[:2] == (0.9, 0.2)
    assert "median of all test scores" in " ".join(rates(threshold_rule="median-test")[2])
    assert rates(threshold_rule="own-auxiliary")[:2] == (None, None)


def test_metrics_of_the_attack_stand_once_per_row(make_results):
    table = DeclaredTable(
        rows=("attack", "downstream"),
        columns="defense",
        fixed=("clean_accuracy", "attack_success_rate"),
        metrics=("auroc",),
    )
    rows, text = lines(table, load_results(make_results()))
    assert text.headers[:4] == ("attack", "downstream", "CA", "ASR")
    assert rows["badencoder"][1:4] == ("digits", "0.570", "0.990")


def test_a_fixed_metric_on_which_cells_disagree_is_left_empty(tmp_path):
    keys = [
        write_cell(tmp_path, "x", d, row={"clean_accuracy": v}) for d, v in (("a", 0.5), ("b", 0.6))
    ]
    write_manifest(tmp_path, ["x"], ["a", "b"], keys)
    table = DeclaredTable(columns="defense", fixed=("clean_accuracy",), metrics=("auroc",))
    rows, _ = lines(table, load_results(tmp_path))
    assert rows["x"][1] == "–"


def test_the_frame_holds_the_numbers_with_the_status_of_each(make_results):
    special = {("drupe", "dede"): ("failed", "boom")}
    frame = pivot_frame(DETECTION, load_results(make_results(special=special)))
    assert list(frame.columns[:4]) == ["attack", "dede/status", "dede/seeds", "dede/tpr"]
    drupe = frame.set_index("attack").loc["drupe"]
    assert drupe["dede/status"] == "failed"
    assert drupe["dede/seeds"] == 0
    assert str(drupe["dede/auroc"]) == "nan"
    assert drupe["knn/auroc"] > 0.5


def test_a_run_without_cells_gives_a_table_that_says_so(make_results):
    text = pivot_text("t", DETECTION, load_results(make_results(smoke=True)))
    assert all(set(row[1:]) <= {"not run", ""} for row in text.rows)
    assert "smoke run" in text.notes[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ["aurok"]}, "unknown metric 'aurok'; did you mean 'auroc'"),
        ({"metrics": ["auroc"], "rows": "atack"}, "unknown field 'atack'; did you mean 'attack'"),
        ({"metrics": ["auroc"], "columns": "attack"}, "both in rows and in columns"),
        ({}, "metrics is missing"),
        ({"metrics": ["auroc"], "best": {"tpr": "highest"}}, "unknown metric of the table 'tpr'"),
        (
            {
                "metrics": ["auroc"],
                "fixed": ["clean_accuracy"],
                "best": {"clean_accuracy": "highest"},
            },
            "unknown metric of the table 'clean_accuracy'",
        ),
        (
            {"metrics": ["asr_filtered"], "threshold_fpr": 0.01},
            "asr_filtered is at the protocol's threshold",
        ),
        ({"metrics": ["auroc"], "against": "x"}, "a table of kind 'pivot' has no 'against'"),
        ({"kind": "encoders", "rows": "defense"}, "a table of kind 'encoders' has no 'rows'"),
        ({"kind": "differences"}, "against is missing"),
        (
            {"metrics": ["tpr"], "threshold_rule": "median-test", "threshold_fpr": 0.1},
            "has no nominal rate",
        ),
        ({"metrics": ["auroc"], "where": {"sed": ["0"]}}, "unknown field 'sed'"),
        ({"metrics": ["auroc"], "average": True}, "average needs attack among the rows"),
        ({"metrics": ["auroc", "auroc"]}, "metrics names something twice"),
        ({"metrics": ["auroc"], "rows": []}, "at least 1 item"),
    ],
)
def test_declarations_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DeclaredTable.model_validate(settings)


@pytest.mark.parametrize("status", ["ok", "attack-weak", "failed", "skipped"])
@pytest.mark.parametrize("form", ["csv", "json", "markdown", "latex", "html"])
def test_a_run_of_one_cell_gives_every_table(tmp_path, status, form):
    reason = "" if status == "ok" else "for a reason"
    key = write_cell(tmp_path, "x", "knn", status=status, reason=reason)
    write_manifest(tmp_path, ["x"], ["knn"], [key])
    for table in (*BUILT_IN, *DECLARED):
        text = export(tmp_path, form, table)
        assert text.endswith("\n")
        cells = re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL)
        assert "nan" not in re.findall(r"[\w.]+", cells.lower())
    said = {
        "ok": "| x | 0.610 |",
        "attack-weak": "| x (weak) | 0.610 |",
        "failed": "| x | failed |",
        "skipped": "| x | skipped |",
    }
    assert said[status] in export(tmp_path, "markdown", "detection")
