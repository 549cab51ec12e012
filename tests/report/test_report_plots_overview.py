"""Plots over all attacks: downstream, cost, critical difference."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stored_cells import write_cell, write_manifest

from bench.report.plots import cost_figure, critical_difference_figure, downstream_figure
from bench.report.plots.cost import costs, ladder
from bench.report.plots.downstream import MEASURES
from bench.report.plots.selection import attack_cells, defense_order
from bench.report.schema import load_results
from bench.report.style import encoded, plot_style

ROOT = Path(__file__).resolve().parents[2]


def _run(folder, cells):
    """Store (attack, defense, options) and read them back."""
    keys = [write_cell(folder, attack, defense, **more) for attack, defense, more in cells]
    attacks, defenses = (list(dict.fromkeys(c[place] for c in cells)) for place in (0, 1))
    write_manifest(folder, attacks, defenses, keys)
    return load_results(folder)


def _overlaps(figure, texts) -> list[tuple[str, str]]:
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    return [(a, b) for (a, one), (b, two) in itertools.combinations(boxes, 2) if one.overlaps(two)]


def _panel(figure, name):
    return next(axis for axis in figure.axes if axis.get_title().split("\n")[0] == name)


def test_downstream_shows_before_after_and_the_twin(tmp_path):
    results = _run(tmp_path, [("a", "d", {}), ("a", "e", {"shift": 0.2})])
    figure = downstream_figure(attack_cells(results), defense_order(results))
    axis = _panel(figure, "a")
    row = results.cells[0].row
    assert [label.get_text() for label in axis.get_yticklabels()] == ["d", "e"]
    for before, after, _, color, (tick, marker), dash in MEASURES:
        mine = [line for line in axis.lines if line.get_color() == color]
        twins = [line for line in mine if line.get_linestyle() == dash]
        assert [line.get_xdata()[0] for line in twins] == [row[f"{before}_twin"]]
        ticks = [line.get_xdata()[0] for line in mine if line.get_marker() == tick]
        assert ticks == [row[before]] * 2
        afters = [line for line in mine if line.get_marker() == marker]
        assert [line.get_xdata()[0] for line in afters] == [row[after]] * 2
        assert all(line.get_markerfacecolor() == color for line in afters)
    assert not [patch for patch in axis.patches if patch.get_hatch()]


def test_without_colour_accuracy_and_success_differ_by_marker_and_dash():
    markers = [marker for measure in MEASURES for marker in measure.markers]
    assert len(set(markers)) == len(markers)
    assert len({measure.dash for measure in MEASURES}) == len(MEASURES)


@pytest.mark.parametrize("status", ["attack-weak", "attack-invalid", "uncontrolled"])
def test_an_invalid_attack_is_named_hatched_and_hollow(tmp_path, status):
    results = _run(tmp_path, [("a", "d", {"status": status}), ("b", "d", {})])
    figure = downstream_figure(attack_cells(results), defense_order(results))
    axis = _panel(figure, "a")
    assert axis.get_title() == f"a\n({status})"
    assert [patch.get_hatch() for patch in axis.patches] == ["////"]
    for _, _, _, color, (_, marker), _ in MEASURES:
        hollow = [line for line in axis.lines if line.get_marker() == marker]
        assert [line.get_markerfacecolor() for line in hollow] == ["white"]
        assert [line.get_markeredgecolor() for line in hollow] == [color]
    assert "hollow: attack not valid" in [t.get_text() for t in figure.legends[0].get_texts()]


def test_downstream_says_what_failed_and_what_was_not_run_and_puts_controls_last(tmp_path):
    cells = [
        ("none", "d", {"control": True}),
        ("none", "e", {"control": True}),
        ("a", "d", {"status": "failed"}),
        ("a", "e", {}),
        ("b", "e", {}),
    ]
    results = _run(tmp_path, cells)
    figure = downstream_figure(attack_cells(results), defense_order(results))
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    assert titles == ["a", "b", "none\n(control)"]
    assert [text.get_text() for text in _panel(figure, "a").texts] == ["failed"]
    assert [text.get_text() for text in _panel(figure, "b").texts] == ["not run"]


def test_downstream_stays_legible_with_seven_attacks_and_sixteen_defenses(tmp_path):
    attacks, defenses = [f"attack-{i}" for i in range(7)], [f"some-defense-{i}" for i in range(16)]
    cells = [(a, d, {"count": 20}) for a in attacks for d in defenses]
    results = _run(tmp_path, cells)
    with plot_style():
        figure = downstream_figure(attack_cells(results), defense_order(results))
        for axis in figure.axes[:2]:
            assert _overlaps(figure, axis.get_yticklabels()) == []
        assert _overlaps(figure, [axis.title for axis in figure.axes if axis.get_visible()]) == []


def test_costs_average_complete_attacks_and_name_the_others(tmp_path):
    cells = [
        ("a", "d", {"row": {"fit_seconds": 10.0, "auroc": 0.9, "auroc_placebo": 0.6}}),
        ("a", "e", {"row": {"fit_seconds": 1.0, "auroc": 0.5, "auroc_placebo": 0.4}}),
        ("b", "d", {"row": {"fit_seconds": 30.0, "auroc": 0.7, "auroc_placebo": 0.5}}),
        ("b", "e", {"row": {"fit_seconds": 3.0, "auroc": 0.3, "auroc_placebo": 0.2}}),
        ("c", "d", {"row": {"auroc": 0.11}}),
        ("c", "e", {"status": "failed"}),
        ("w", "d", {"status": "attack-weak"}),
        ("none", "d", {"control": True}),
    ]
    (entry,) = costs(_run(tmp_path, cells))
    assert entry.complete == ("a", "b")
    assert dict(entry.incomplete) == {"c": ("e",)}
    assert entry.means.loc["d", "auroc"] == pytest.approx(0.8)
    assert entry.means.loc["e", "auroc_placebo"] == pytest.approx(0.3)
    assert entry.means.loc["d", "fit_seconds"] == pytest.approx(20)
    assert entry.single[["defense", "attack", "auroc"]].values.tolist() == [["d", "c", 0.11]]


def test_costs_ask_for_every_seed_and_leave_reduced_rows_out(tmp_path):
    cells = [("a", "d", {"seed": 0}), ("a", "d", {"seed": 1}), ("a", "e", {"seed": 0})]
    cells += [("b", "d", {"reduced": "fewer epochs"}), ("a", "f", {"reduced": "fewer epochs"})]
    (entry,) = costs(_run(tmp_path, cells))
    assert entry.complete == ()
    assert dict(entry.incomplete) == {"a": ("e",)}
    assert len(entry.means) == 0
    assert set(entry.single["defense"]) == {"d", "e"}


def _markers(axis, filled):
    """(x, y) of single full-strength markers, filled or hollow."""
    return [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in axis.lines
        if len(line.get_xdata()) == 1
        and line.get_alpha() is None
        and (line.get_markerfacecolor() != "white") == filled
    ]


def test_the_cost_plot_joins_each_point_to_its_hollow_placebo(tmp_path):
    cells = [
        ("a", "d", {"row": {"fit_seconds": 10.0, "auroc": 0.9, "auroc_placebo": 0.6}}),
        ("a", "e", {"row": {"fit_seconds": 0.0, "auroc": 0.5, "auroc_placebo": 0.4}}),
    ]
    with plot_style():
        figure = cost_figure(_run(tmp_path, cells))
    fit, labels, score = figure.axes
    assert fit.get_xscale() == score.get_xscale() == "log"
    assert _markers(fit, True) == [(10.0, 0.9), (0.01, 0.5)]
    assert _markers(fit, False) == [(10.0, 0.6), (0.01, 0.4)]
    joined = [line.get_xydata().tolist() for line in fit.lines if len(line.get_xdata()) == 2]
    assert [[10.0, 0.6], [10.0, 0.9]] in joined
    assert "less than 0.01 stands at 0.01" in fit.get_xlabel()
    assert fit.get_title(loc="left") == "resnet-simclr: mean over a"
    assert [text.get_text() for text in labels.texts] == ["d", "e"]


def test_without_a_complete_attack_the_cost_plot_has_faint_points_only_and_says_why(tmp_path):
    results = _run(tmp_path, [("a", "d", {}), ("b", "e", {})])
    with plot_style():
        figure = cost_figure(results)
    fit = figure.axes[0]
    assert _markers(fit, True) == _markers(fit, False) == []
    assert len([line for line in fit.lines if line.get_alpha() == 0.3]) == 2
    caption = fit.get_title(loc="left")
    assert "no mean" in caption
    assert "not in the mean: a (lacks e)" in caption
    assert "not in the mean: b (lacks d)" in caption


def test_encoders_are_never_averaged_with_each_other(tmp_path):
    results = _run(tmp_path, [("a", "d", {}), ("b", "d", {"row": {"encoder": "clip"}})])
    assert [(entry.encoder, entry.complete) for entry in costs(results)] == [
        ("resnet-simclr", ("a",)),
        ("clip", ("b",)),
    ]
    with plot_style():
        assert len(cost_figure(results).axes) == 6


def test_there_is_no_cost_plot_without_a_valid_attack(tmp_path):
    cells = [("a", "d", {"status": "attack-invalid"}), ("none", "d", {"control": True})]
    assert cost_figure(_run(tmp_path, cells)) is None


def test_sixteen_labels_of_equal_auroc_do_not_overlap(tmp_path):
    cells = [("a", f"some-defense-{i}", {"row": {"auroc": 0.999}}) for i in range(16)]
    with plot_style():
        figure = cost_figure(_run(tmp_path, cells))
        texts = figure.axes[1].texts
        assert len(texts) == 16
        assert _overlaps(figure, texts) == []


def test_a_ladder_keeps_order_gap_and_bounds():
    wanted = np.array([0.99, 1.0, 1.0, 0.2, 1.0])
    places = ladder(wanted, 0.0, 1.0, 0.1)
    assert np.diff(np.sort(places)).min() > 0.1 - 1e-9
    assert places.min() >= 0
    assert places.max() <= 1 + 1e-9
    assert places[3] == pytest.approx(0.2)
    assert places[0] < places[[1, 2, 4]].min()
    crowded = np.sort(ladder(np.ones(40), 0.0, 1.0, 0.1))
    np.testing.assert_allclose(np.diff(crowded), 1 / 39)


HOSTILE = "$x_%{}&<b> ü"


def _ranked():
    names = ["dede", "knn", "{label}", HOSTILE]
    ranks = pd.Series([1.2, 1.9, 3.1, 3.8], index=names)
    apart = pd.DataFrame(0.001, index=names, columns=names)
    for one, other in (("dede", "knn"), ("{label}", HOSTILE)):
        apart.loc[one, other] = apart.loc[other, one] = 0.4
    return ranks, apart


def test_the_diagram_names_every_rank_and_joins_what_does_not_differ():
    ranks, p_values = _ranked()
    with plot_style():
        figure = critical_difference_figure(ranks, p_values, f"by {HOSTILE}")
        axis = figure.axes[0]
        shown = [text.get_text().strip() for text in axis.texts]
        assert _overlaps(figure, axis.texts) == []
    assert sorted(shown) == sorted(["dede  1.20", "knn  1.90", "3.10  {label}", f"3.80  {HOSTILE}"])
    bars = sorted(
        tuple(sorted(line.get_xdata())) for line in axis.lines if line.get_linewidth() == 3
    )
    assert bars == [(1.2, 1.9), (3.1, 3.8)]
    assert [cloud.get_offsets()[0, 0] for cloud in axis.collections] == [1.2, 1.9, 3.8, 3.1]
    assert axis.get_xlim() == (1, 4)
    assert figure.get_suptitle() == f"by {HOSTILE}"


def test_the_diagram_takes_p_values_in_any_order_and_ignores_their_diagonal():
    ranks, p_values = _ranked()
    shuffled = p_values.iloc[[2, 0, 3, 1], [3, 1, 0, 2]]
    p_values = p_values.where(~np.eye(4, dtype=bool))
    with plot_style():
        files = [
            encoded(critical_difference_figure(ranks, values, "t"))
            for values in (p_values, shuffled)
        ]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda ranks, p: (ranks.iloc[:1], p),
        lambda ranks, p: (ranks, p.drop(index="dede")),
        lambda ranks, p: (ranks, p.where(np.triu(np.ones((4, 4))) > 0, 0.9)),
    ],
)
def test_a_diagram_of_incomplete_statistics_is_refused(change):
    with pytest.raises(ValueError, match=r"two distinct labels|missing or not symmetric"):
        critical_difference_figure(*change(*_ranked()), "t")


def test_the_diagram_has_the_same_bytes_in_processes_with_other_string_hashes(tmp_path):
    code = (
        "import hashlib, numpy as np, pandas as pd\n"
        "from bench.report.plots import critical_difference_figure\n"
        "from bench.report.style import encoded, plot_style\n"
        "names = [f'd{i}' for i in range(9)]\n"
        "ranks = pd.Series(np.linspace(1, 9, 9), index=names)\n"
        "p = pd.DataFrame(np.abs(np.subtract.outer(ranks.values, ranks.values)) < 3,\n"
        "                 index=names, columns=names).astype(float)\n"
        "with plot_style():\n"
        "    files = encoded(critical_difference_figure(ranks, p, 't'))\n"
        "print({k: hashlib.sha256(v).hexdigest() for k, v in files.items()})\n"
    )
    seen = set()
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PATH": "", "MPLCONFIGDIR": str(tmp_path)},
        )  # fmt: skip
        seen.add(run.stdout)
    assert len(seen) == 1


def test_drawing_a_run_does_not_load_the_library_of_the_diagram():
    code = (
        "import sys, bench.report.plots\n"
        "assert 'scikit_posthocs' not in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
