"""What the heatmap, the curves and the files show: the numbers of the stored cells."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from stored_cells import write_cell, write_manifest

from bench.report.curves import cell_scores
from bench.report.plots import draw_all, heatmap_figure, histogram_figure, roc_figure, slug
from bench.report.plots.curves import roc
from bench.report.plots.selection import attack_cells, defense_order
from bench.report.schema import load_cells, load_results
from bench.report.style import SERIES, encoded, palette, plot_style, shortened

HOSTILE = "$x_%{}&<b> ü漢 \\frac{1}"


def _cell(folder, attack, defense):
    identity = (attack, defense)
    return next(c for c in load_cells(folder) if (c.row["attack"], c.row["defense"]) == identity)


def _column(folder, attack):
    return next(c for c in attack_cells(load_results(folder)) if c.name == attack)


def _scores(column):
    return {cell.key: cell_scores(cell) for cell in column.measured}


def _luminance(color) -> float:
    return float(np.dot(to_rgb(color), (0.299, 0.587, 0.114)))


def _visible(figure):
    return [axis for axis in figure.axes if axis.get_visible()]


def test_the_thinned_curve_has_the_area_of_the_row(make_results):
    cell = _cell(make_results(count=4000), "badencoder", "dede")
    for encoder, metric in (("victim", "auroc"), ("twin", "auroc_placebo")):
        false, true = roc(cell_scores(cell), encoder)
        assert len(false) < 1500
        assert np.trapezoid(true, false) == pytest.approx(cell.row[metric], abs=1e-3)


def test_triggered_images_of_the_target_class_are_not_drawn(make_results):
    scores = cell_scores(_cell(make_results(count=200), "badencoder", "dede"))
    assert len(scores["victim", "clean"]) == 200
    assert len(scores["victim", "triggered"]) == len(scores["twin", "triggered"]) == 180


def test_histograms_mark_the_calibrated_threshold(make_results):
    column = _column(make_results(count=2000, shifts={"dede": 2.0}), "badencoder")
    figure = histogram_figure(column, _scores(column))
    marked = [line.get_xdata()[0] for line in figure.axes[0].lines]
    assert marked == [column.cells[0].calibrated["threshold"]] == [1.645]


def test_histograms_draw_every_curve_to_its_own_peak(make_results):
    column = _column(make_results(count=2000), "badencoder")
    figure = histogram_figure(column, _scores(column))
    for axis in _visible(figure):
        peaks = [patch.get_data().values.max() for patch in axis.patches]
        assert peaks == [1.0] * 4
    assert "own peak" in figure.legends[0].get_title().get_text()


def test_histograms_take_a_logarithm_where_clean_scores_would_be_one_bar(make_results):
    folder = make_results(shifts={"dede": 2.0})
    column = _column(folder, "badencoder")
    plain = _scores(column)
    wide = {
        key: {place: np.exp(4 * values) for place, values in scores.items()}
        for key, scores in plain.items()
    }
    with plot_style():
        axes = [histogram_figure(column, scores).axes[0] for scores in (plain, wide)]
        assert [axis.get_xscale() for axis in axes] == ["linear", "log"]
        assert axes[1].get_xlabel() == "log scale"
        ticks = [label.get_text() for label in axes[1].get_xticklabels()]
    assert not any("$" in text for text in ticks)


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
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    assert len(hatched) == 2


def test_the_heatmap_averages_all_measured_seeds_and_says_the_worst_status(tmp_path):
    statuses = ("ok", "attack-weak", "failed")
    keys = [write_cell(tmp_path, "a", "d", seed, status=s) for seed, s in enumerate(statuses)]
    write_manifest(tmp_path, ["a"], ["d"], keys, seeds=(0, 1, 2))
    figure = heatmap_figure(load_results(tmp_path))
    auroc = np.mean([cell.row["auroc"] for cell in load_cells(tmp_path)[:2]])
    assert f"{auroc:.2f}\nweak 2/3" in [text.get_text() for text in figure.axes[0].texts]
    assert "mean over seeds 0, 1, 2" in figure.get_suptitle()


def test_the_heatmap_stripes_what_is_inverted(tmp_path):
    keys = [write_cell(tmp_path, "a", d, row={"auroc": v}) for d, v in (("d", 0.1), ("e", 0.5))]
    write_manifest(tmp_path, ["a"], ["d", "e"], keys)
    axis = heatmap_figure(load_results(tmp_path)).axes[0]
    assert [patch.get_y() for patch in axis.patches if set(patch.get_hatch()) == {"\\"}] == [-0.5]


def test_references_come_last_whatever_the_manifest_says(tmp_path):
    names = {"pixels": True, "dede": False, "knn": False}
    keys = [write_cell(tmp_path, "a", name, reference=last) for name, last in names.items()]
    write_manifest(tmp_path, ["a"], names, keys)
    results = load_results(tmp_path)
    assert defense_order(results) == ["dede", "knn", "pixels"]
    ticks = [label.get_text() for label in heatmap_figure(results).axes[0].get_yticklabels()]
    assert ticks == ["dede", "knn", "pixels"]
    column = attack_cells(results)[0]
    panels = _visible(roc_figure(column, _scores(column)))
    assert panels[-1].get_title() == "pixels"


@pytest.mark.parametrize("status", ["ok", "uncontrolled"])
def test_curves_and_histograms_show_a_placebo_only_where_there_is_a_twin(make_results, status):
    special = {("drupe", name): (status, "") for name in ("dede", "kmeans", "knn")}
    column = _column(make_results(special=special), "drupe")
    scores = _scores(column)
    shown = [
        [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        for figure in (roc_figure(column, scores), histogram_figure(column, scores))
    ]
    there = status == "ok"
    assert ("placebo (clean twin)" in shown[0]) == there
    assert ("triggered, clean twin (placebo)" in shown[1]) == there
    assert len(shown[0]) == 3 + there


def test_a_roc_panel_holds_its_defense_its_numbers_and_the_others_behind(make_results):
    column = _column(make_results(), "badencoder")
    figure = roc_figure(column, _scores(column))
    for axis, cell in zip(_visible(figure), column.measured, strict=True):
        assert axis.get_title() == cell.row["defense"]
        numbers = f"AUROC {cell.row['auroc']:.3f}, placebo {cell.row['auroc_placebo']:.3f}"
        assert numbers in [text.get_text() for text in axis.texts]
        labels = [line.get_label() for line in axis.lines]
        assert labels.count("other defenses") == 2
        assert labels.count("victim") == labels.count("placebo (clean twin)") == 1
        victim = axis.lines[labels.index("victim")].get_xydata().T
        assert np.trapezoid(victim[1], victim[0]) == pytest.approx(cell.row["auroc"], abs=0.01)
        assert axis.child_axes[0].get_xscale() == "log"


def test_constant_scores_give_the_diagonal_in_the_logarithmic_inset_too(tmp_path):
    key = write_cell(tmp_path, "a", "d")
    write_manifest(tmp_path, ["a"], ["d"], [key])
    column = attack_cells(load_results(tmp_path))[0]
    constant = {place: np.zeros(50) for place in cell_scores(column.cells[0])}
    inset = roc_figure(column, {key: constant}).axes[0].child_axes[0]
    for line in inset.lines[1:]:
        np.testing.assert_allclose(*line.get_xydata().T, atol=1e-9)


def test_without_colour_series_differ_in_dash_or_clearly_in_lightness(make_results):
    for one, other in itertools.combinations(SERIES.values(), 2):
        differ = abs(_luminance(one["color"]) - _luminance(other["color"]))
        assert one["linestyle"] != other["linestyle"] or differ > 0.2
    column = _column(make_results(), "badencoder")
    lines = {
        line.get_label(): (line.get_linestyle(), line.get_color())
        for line in roc_figure(column, _scores(column)).axes[0].lines
    }
    for (dash, color), (other_dash, other) in itertools.combinations(lines.values(), 2):
        assert dash != other_dash or abs(_luminance(color) - _luminance(other)) > 0.2


def test_no_two_of_a_hundred_labels_share_colour_and_marker_nor_of_thirteen_a_marker():
    codes = palette(str(place) for place in range(100))
    assert len(set(codes.values())) == 100
    assert len({marker for _, marker in list(codes.values())[:13]}) == 13


def test_curves_show_the_lowest_seed_that_was_measured_and_say_so(make_results):
    columns = attack_cells(load_results(make_results(seeds=(5, 2, 7))))
    assert {cell.seed for column in columns for cell in column.cells} == {2}
    assert columns[0].title == "badencoder (seed 2)"
    assert columns[-1].title == "none (control, seed 2)"


def test_one_seed_needs_no_mention_and_a_shared_status_is_named_once(make_results):
    special = {("drupe", name): ("attack-weak", "") for name in ("dede", "kmeans", "knn")}
    special |= {("badencoder", "knn"): ("attack-weak", "")}
    folder = make_results(special=special)
    assert _column(folder, "drupe").title == "drupe (attack-weak)"
    mixed = _column(folder, "badencoder")
    assert mixed.title == "badencoder"
    titles = [axis.get_title() for axis in _visible(roc_figure(mixed, _scores(mixed)))]
    assert sorted(titles) == ["dede", "kmeans", "knn (attack-weak)"]


def test_labels_that_look_alike_get_different_file_names():
    taken: set[str] = set()
    names = [slug(label, taken) for label in ("a b", "A B", "a/b", "..", "")]
    assert len(set(names)) == len(names)
    assert all("/" not in name and "." not in name and name for name in names)


def test_long_labels_make_file_names_that_a_file_system_takes():
    taken: set[str] = set()
    names = [slug("x" * 300 + end, taken) for end in ("a", "b")]
    assert names[0] != names[1]
    assert max(map(len, names)) < 80


def test_a_long_label_loses_its_middle():
    assert shortened("a" * 40, 40) == "a" * 40
    short = shortened("begin-" + "x" * 60 + "-end", 20)
    assert len(short) == 20
    assert short.startswith("begin-")
    assert short.endswith("-end")
    assert "…" in short


def test_png_files_have_a_palette_and_show_what_was_drawn(make_results):
    results = load_results(make_results())
    with plot_style():
        figure = heatmap_figure(results)
        content = encoded(figure)["png"]
        exact = io.BytesIO()
        figure.savefig(exact, format="png", bbox_inches="tight", pad_inches=0.06)
    with Image.open(io.BytesIO(content)) as stored, Image.open(exact) as drawn:
        assert stored.mode == "P"
        assert stored.size == drawn.size
        difference = np.subtract(stored.convert("RGB"), drawn.convert("RGB"), dtype=int)
    assert np.abs(difference).mean() < 1
    assert len(content) < 0.6 * len(exact.getvalue())


def _stems(folder):
    """Names of all plots, neither laid out nor encoded: that takes most of the time."""
    with plot_style():
        return {stem for stem, _ in draw_all(load_results(folder))}


def _everything(folder):
    with plot_style():
        return {stem: encoded(figure) for stem, figure in draw_all(load_results(folder))}


@pytest.mark.filterwarnings("ignore:Glyph")
def test_every_plot_takes_any_label(tmp_path):
    keys = [
        write_cell(tmp_path, HOSTILE, f"{HOSTILE}{name}", pictures=True, inverted=name == "a")
        for name in ("a", "b", "_c", "x" * 200)
    ]
    keys.append(write_cell(tmp_path, HOSTILE + " (x)", "d", status="attack-weak", figures=True))
    write_manifest(tmp_path, [HOSTILE], [HOSTILE], keys)
    stems = set(_everything(tmp_path))
    assert {"heatmap", "cost", "downstream", "triggers", "inverted_triggers"} <= stems
    assert {stem.split("_")[0] for stem in stems} >= {"embedding", "roc", "scores"}


def test_a_run_of_one_cell_gets_every_plot(tmp_path):
    key = write_cell(tmp_path, "a", "d", figures=True, inverted=True, pictures=True)
    write_manifest(tmp_path, ["a"], ["d"], [key])
    assert _stems(tmp_path) == {
        *("heatmap", "cost", "downstream", "triggers", "inverted_triggers"),
        *("embedding_a", "roc_a", "scores_a", "reconstructions_a_d"),
    }


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_a_run_without_measured_cells_has_a_heatmap_and_what_its_attacks_look_like(
    tmp_path, status
):
    keys = [
        write_cell(tmp_path, "a", "d", status=status, reason="boom"),
        write_cell(tmp_path, "b", "d", status=status, reason="boom", pictures=True),
    ]
    write_manifest(tmp_path, ["a", "b"], ["d"], keys)
    assert _stems(tmp_path) == {"heatmap", "triggers", "embedding_b"}


def test_cells_without_pictures_give_no_plot_of_the_attack(make_results):
    stems = _stems(make_results(count=60))
    assert not [stem for stem in stems if stem.startswith(("embedding", "triggers", "inverted"))]
