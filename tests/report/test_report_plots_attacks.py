"""What attacks look like: embeddings, triggers, inverted triggers, reconstructions."""

from __future__ import annotations

import numpy as np
import pytest
from stored_cells import write_cell, write_manifest

from bench.report.pictures import reconstruction_rows
from bench.report.plots import (
    draw_all,
    embedding_figure,
    inverted_triggers_figure,
    reconstruction_figure,
    triggers_figure,
)
from bench.report.plots.attacks import GROUPS
from bench.report.plots.inversions import inversions
from bench.report.plots.reconstructions import reconstruction_blocks
from bench.report.plots.selection import attack_cells
from bench.report.schema import load_results
from bench.report.style import plot_style


@pytest.fixture
def columns(tmp_path):
    """Attacks a and none (a control), defenses e and d with one inversion, plain f."""
    keys = []
    row = {"encoder_score": -0.06, "encoder_verdict": "backdoored"}
    row |= {"encoder_score_twin": -0.148, "encoder_verdict_twin": "clean"}
    for attack in ("a", "none"):
        shown = {"control": attack == "none", "pictures": True}
        keys += [
            write_cell(tmp_path, attack, defense, inverted=True, row=row, **shown)
            for defense in ("d", "e")
        ]
        keys.append(write_cell(tmp_path, attack, "f", **shown))
    write_manifest(tmp_path, ["none", "a"], ["e", "d", "f"], keys)
    return attack_cells(load_results(tmp_path))


def _texts(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def test_embeddings_have_a_panel_per_encoder_and_a_marker_per_group(columns):
    pictures = columns[0].pictures
    figure = embedding_figure(columns[0], pictures)
    assert [axis.get_title() for axis in figure.axes] == ["victim", "clean twin"]
    for axis, encoder in zip(figure.axes, ("victim", "twin"), strict=True):
        assert axis.get_xlabel() == "first component (61 % of variance)"
        assert axis.get_ylabel() == "second (12 % of variance)"
        assert len(axis.collections) == 4
        for cloud, name in zip(axis.collections, GROUPS, strict=True):
            chosen = pictures[f"{encoder}_points"][pictures[f"{encoder}_groups"] == name]
            np.testing.assert_array_equal(np.asarray(cloud.get_offsets()), chosen)
    assert len({marker for _, marker, _ in GROUPS.values()}) == 4
    shapes = {cloud.get_paths()[0].vertices.tobytes() for cloud in figure.axes[0].collections}
    assert len(shapes) == 4
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["clean", "clean, target class", "decoy", "triggered"]


def test_embeddings_without_a_twin_or_a_decoy_show_what_there_is(tmp_path):
    key = write_cell(tmp_path, "a", "d", status="uncontrolled", pictures=True, control=True)
    write_manifest(tmp_path, ["a"], ["d"], [key])
    column = attack_cells(load_results(tmp_path))[0]
    figure = embedding_figure(column, column.pictures)
    assert [axis.get_title() for axis in figure.axes] == ["victim"]
    assert len(figure.axes[0].collections) == 3
    assert "uncontrolled" in figure.get_suptitle()


def test_the_gallery_shows_controls_last_and_states_the_gain(columns):
    figure = triggers_figure(columns)
    grid = np.array(figure.axes).reshape(2, 4)
    assert [axis.get_ylabel() for axis in grid[:, 0]] == ["a", "none\n(control)"]
    assert [axis.get_title() for axis in grid[0]] == [
        *("clean", "triggered", "difference × 0.5", "decoy"),
    ]
    for axis, name in zip(grid[0], ("clean", "triggered", "difference", "decoy"), strict=True):
        strip = np.asarray(axis.images[0].get_array())
        for place in range(2):
            start = place * 34
            expected = columns[0].pictures[name][-place]  # the first and the last
            np.testing.assert_array_equal(strip[:, start : start + 32], expected)
    assert "no decoy" in _texts(figure)  # the control has none


def test_one_inversion_is_drawn_once_with_its_verdicts_whoever_shares_it(columns):
    entries = inversions(columns)
    assert [(entry.attack, entry.defenses) for entry in entries] == [
        ("a", ("e", "d")),
        ("none (control)", ("e", "d")),
    ]
    figure = inverted_triggers_figure(columns)
    titles = [axis.get_title() for axis in figure.axes[:3]]
    assert titles == [
        *("true trigger", "victim: backdoored\nscore −0.060", "twin: clean\nscore −0.148"),
    ]
    assert "a\ne, d" in _texts(figure)
    assert "inverted trigger and inverted mask" in figure.get_supxlabel()


def test_an_inversion_stands_beside_the_true_trigger_and_what_it_changes(columns):
    entry = inversions(columns)[0]
    np.testing.assert_array_equal(entry.true[0], columns[0].pictures["triggered"][0])
    changed = entry.true[1].max(axis=-1) > 0
    assert changed[21:31, 21:31].all()
    assert changed.sum() == 100
    figures = columns[0].in_display_order[0].figures()
    np.testing.assert_array_equal(entry.victim[0], figures["inverted_trigger"][0])
    np.testing.assert_array_equal(entry.twin[1], figures["twin_inverted_mask"][0])


def test_without_pictures_of_the_attack_the_true_trigger_comes_from_the_inputs(tmp_path):
    key = write_cell(tmp_path, "a", "d", inverted=True)
    write_manifest(tmp_path, ["a"], ["d"], [key])
    column = attack_cells(load_results(tmp_path))[0]
    (entry,) = inversions([column])
    assert (entry.true[1].max(axis=-1) > 0)[:21].sum() == 0
    figures = column.cells[0].figures()
    triggered = figures["input"][figures["condition"] == "triggered"]
    np.testing.assert_array_equal(entry.true[0], triggered[0])
    assert entry.verdicts == ("no verdict\nno score", "no verdict\nno score")


def test_other_verdicts_on_the_same_inversion_are_entries_of_their_own(tmp_path):
    keys = [
        write_cell(tmp_path, "a", name, inverted=True, row={"encoder_score": score})
        for name, score in (("d", -0.1), ("e", -0.2))
    ]
    write_manifest(tmp_path, ["a"], ["d", "e"], keys)
    entries = inversions(attack_cells(load_results(tmp_path)))
    assert [entry.defenses for entry in entries] == [("d",), ("e",)]


def test_many_inversions_go_into_two_columns_and_none_is_lost(tmp_path):
    names = [f"attack-{place}" for place in range(11)]
    keys = [write_cell(tmp_path, name, "d", inverted=True, count=40) for name in names]
    write_manifest(tmp_path, names, ["d"], keys)
    figure = inverted_triggers_figure(attack_cells(load_results(tmp_path)))
    assert len(figure.axes) == 6 * 6
    assert _texts(figure) == [f"{name}\nd" for name in _across(names, 6)]


def _across(names, down):
    """Row by row, of names that fill columns of ``down``."""
    return [name for line in range(down) for name in names[line::down]]


def test_reconstruction_blocks_pair_the_same_images_by_condition_and_encoder(make_results):
    folder = make_results(figures=True)
    cell = next(cell for cell in load_results(folder).cells if cell.figures())
    figures = cell.figures()
    blocks = reconstruction_blocks(figures)
    assert [condition for condition, _ in blocks] == ["clean", "triggered"]
    for _, rows in blocks:
        assert [label.replace("\n", " ") for label, _ in rows] == [
            *("input", "reconstruction (victim)", "reconstruction (clean twin)"),
        ]
    (_, clean), (_, triggered) = blocks
    np.testing.assert_array_equal(clean[0][1], figures["input"][:4])
    np.testing.assert_array_equal(triggered[0][1], figures["input"][4:])
    np.testing.assert_array_equal(triggered[2][1], figures["twin_reconstruction"][4:])
    changed = (clean[0][1] != triggered[0][1]).any(axis=(0, 3))
    assert changed[21:31, 21:31].any()
    assert not changed[:21].any()
    assert len(reconstruction_figure("a", "d", figures).axes) == 3 * 2


def test_images_that_are_not_there_in_every_condition_give_no_reconstruction(make_results):
    folder = make_results(figures=True)
    cell = next(cell for cell in load_results(folder).cells if cell.figures())
    figures = cell.figures()
    for change in ({"image": np.arange(8)}, {"condition": np.repeat("other", 8)}):
        assert reconstruction_blocks(figures | change) == []
        assert reconstruction_rows(figures | change) == []


def test_what_defenses_drew_alike_is_one_file_and_inverted_figures_are_in_none(columns, tmp_path):
    with plot_style():
        drawn = dict(draw_all(load_results(tmp_path)))
    names = [stem for stem in drawn if stem.startswith("reconstructions")]
    assert names == ["reconstructions_a_e", "reconstructions_none_e"]
    figure = drawn["reconstructions_a_e"]
    assert figure.get_suptitle() == "e, d on a"
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert not any("inverted" in label for label in labels)
    assert any("stamped" in label for label in labels)
