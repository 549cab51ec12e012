"""Published figures beside ours."""

from __future__ import annotations

import pytest
from stored_cells import write_cell, write_manifest

from bench.report.declared import DeclaredTable
from bench.report.reported import reported_figures, reported_frame, reported_text
from bench.report.schema import load_results


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
