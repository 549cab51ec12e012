"""What the plots show: the numbers of the stored cells."""

from __future__ import annotations

import numpy as np
import pytest

from bench.report.curves import cell_scores
from bench.report.pictures import reconstruction_rows
from bench.report.plots import (
    _by_column,
    _codes,
    _roc,
    draw_all,
    heatmap_figure,
    histogram_figure,
    roc_figure,
    slug,
)
from bench.report.schema import load_cells, load_results
from bench.report.style import plot_style


def _cell(folder, attack, defense):
    identity = (attack, defense)
    return next(c for c in load_cells(folder) if (c.row["attack"], c.row["defense"]) == identity)


def test_the_thinned_curve_has_the_area_of_the_row(make_results):
    cell = _cell(make_results(count=4000), "badencoder", "dede")
    for encoder, metric in (("victim", "auroc"), ("twin", "auroc_placebo")):
        false, true = _roc(cell_scores(cell), encoder)
        assert len(false) < 1500
        assert np.trapezoid(true, false) == pytest.approx(cell.row[metric], abs=1e-3)


def test_triggered_images_of_the_target_class_are_not_drawn(make_results):
    scores = cell_scores(_cell(make_results(count=200), "badencoder", "dede"))
    assert len(scores["victim", "clean"]) == 200
    assert len(scores["victim", "triggered"]) == len(scores["twin", "triggered"]) == 180


def test_histograms_mark_the_calibrated_threshold(make_results):
    cell = _cell(make_results(count=2000), "badencoder", "dede")
    figure = histogram_figure("badencoder", [cell], {cell.key: cell_scores(cell)})
    marked = [line.get_xdata()[0] for line in figure.axes[0].lines]
    assert marked == [cell.calibrated["threshold"]] == [1.645]


def test_the_heatmap_writes_the_value_or_the_status_of_every_cell(make_results):
    special = {("drupe", "knn"): ("failed", "boom"), ("drupe", "dede"): ("attack-weak", "ASR 0.4")}
    folder = make_results(special=special)
    figure = heatmap_figure(load_results(folder))
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert "failed" in shown
    assert f"{_cell(folder, 'drupe', 'dede').row['auroc']:.2f}\nweak" in shown
    assert f"{_cell(folder, 'none', 'dede').row['auroc']:.2f}" in shown
    assert [axis.get_title() for axis in figure.axes[:4]] == [
        *("AUROC", "placebo AUROC", "decoy AUROC", "AUROC vs decoy"),
    ]


@pytest.mark.parametrize("status", ["ok", "uncontrolled"])
def test_curves_and_histograms_show_a_placebo_only_where_there_is_a_twin(make_results, status):
    special = {("drupe", name): (status, "") for name in ("dede", "kmeans", "knn")}
    results = load_results(make_results(special=special))
    cells = _by_column(results)["drupe"]
    scores = {cell.key: cell_scores(cell) for cell in cells}
    curves = roc_figure("drupe", cells, scores, _codes(results))
    histograms = histogram_figure("drupe", cells, scores)
    shown = [
        [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        for figure in (curves, histograms)
    ]
    there = status == "ok"
    assert ("placebo (clean twin)" in shown[0]) == there
    assert ("triggered, clean twin (placebo)" in shown[1]) == there
    assert len(shown[0]) == 3 + there


def test_curves_show_the_lowest_seed_that_was_measured(make_results):
    results = load_results(make_results(seeds=(5, 2, 7)))
    assert {cell.seed for cells in _by_column(results).values() for cell in cells} == {2}


def test_a_defense_keeps_its_colour_in_every_curve_figure(make_results):
    special = {("drupe", "dede"): ("failed", "boom")}
    results = load_results(make_results(special=special))
    colours: dict[str, set] = {}
    with plot_style():
        for stem, figure in draw_all(results):
            for line in figure.axes[0].lines if stem.startswith("roc_") else ():
                name = str(line.get_label()).split("\n")[0]
                if name in ("dede", "knn", "kmeans"):
                    colours.setdefault(name, set()).add(line.get_color())
    assert {name: len(found) for name, found in colours.items()} == dict.fromkeys(colours, 1)
    assert set(colours) == {"dede", "knn", "kmeans"}


def test_reconstruction_rows_pair_the_same_images_by_condition_and_encoder(make_results):
    figures = _cell(make_results(figures=True), "badencoder", "dede").figures()
    rows = reconstruction_rows(figures)
    assert [label.replace("\n", " ") for label, _ in rows] == [
        *("clean input", "reconstruction (victim)", "reconstruction (twin)"),
        *("triggered input", "reconstruction (victim)", "reconstruction (twin)"),
    ]
    np.testing.assert_array_equal(rows[0][1], figures["input"][:4])
    np.testing.assert_array_equal(rows[3][1], figures["input"][4:])
    changed = (rows[0][1] != rows[3][1]).any(axis=(0, 3))
    assert changed[21:31, 21:31].any()
    assert not changed[:21].any()


def test_labels_that_look_alike_get_different_file_names():
    taken: set[str] = set()
    names = [slug(label, taken) for label in ("a b", "A B", "a/b", "..", "")]
    assert len(set(names)) == len(names)
    assert all("/" not in name and "." not in name and name for name in names)
