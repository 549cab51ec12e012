"""Reading stored cells, rendering whole files, knowing when nothing changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stored_cells import write_cell, write_manifest

from bench.report.drawing import drawn
from bench.report.export import export
from bench.report.rendering import _digest, is_current, render
from bench.report.schema import ReportError, load_cells, load_manifest, load_results
from bench.store import seal

TWO = {"dede": 2.0, "knn": 1.2}
ROOT = Path(__file__).resolve().parents[2]


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "cells" not in path.parts
    }


def test_rendering_and_exporting_need_neither_torch_nor_plugins(tmp_path):
    key = write_cell(tmp_path, "a", "d", figures=True, count=60)
    write_manifest(tmp_path, ["a"], ["d"], [key])
    code = (
        "import sys, bench.report.rendering\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from bench.report.export import export\n"
        "bench.report.rendering.render(sys.argv[1]); export(sys.argv[1], 'html')\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'torch', 'attacks', 'defenses'}, loaded\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_render_writes_every_table_and_plot(make_results):
    folder = make_results(figures=True, shifts=TWO)
    paths = render(folder)
    names = {str(path.relative_to(folder)) for path in paths}
    stems = ["heatmap"]
    stems += [f"{kind}_{name}" for kind in ("roc", "scores") for name in ("badencoder", "none")]
    stems += ["reconstructions_badencoder_dede", "reconstructions_drupe_dede"]
    assert {f"plots/{stem}.{end}" for stem in stems for end in ("png", "pdf")} <= names
    assert {f"leaderboard.{end}" for end in ("csv", "md", "tex", "html")} <= names
    assert {f"tables/{name}.csv" for name in ("summary", "thresholds", "downstream")} <= names
    assert all(path.stat().st_size > 0 for path in paths)
    assert all((folder / name).read_bytes()[:4] == b"\x89PNG" for name in names if "png" in name)
    assert (folder / "leaderboard.tex").read_text() == export(folder, "latex")
    assert not list(folder.rglob("*.tmp"))


def test_two_renders_give_the_same_bytes_in_other_processes_and_another_folder(tmp_path):
    """One process, or two with other string hashes that share the plots."""
    first, second = (tmp_path / name for name in ("first", "second"))
    for folder in (first, second):
        keys = [
            write_cell(folder, "a", "d", figures=True, inverted=True, pictures=True, count=80),
            write_cell(folder, "a", "e", shift=0.5, pictures=True, count=80),
        ]
        write_manifest(folder, ["a"], ["d", "e"], keys)
    render(first)
    code = (
        "import functools, sys, bench.report.rendering as rendering\n"
        "rendering.drawn = functools.partial(rendering.drawn, processes=2)\n"
        "rendering.render(sys.argv[1])\n"
    )
    command = [sys.executable, "-c", code, str(second)]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert _files(second) == _files(first)
    assert {"plots/heatmap.png", "plots/inverted_triggers.pdf"} <= set(_files(first))


def test_every_status_can_be_drawn(make_results):
    special = {
        ("badencoder", "dede"): ("failed", "boom"),
        ("badencoder", "knn"): ("attack-weak", "ASR 0.4"),
        ("badencoder", "kmeans"): ("attack-invalid", "ASR 0.1"),
        ("drupe", "dede"): ("uncontrolled", "no twin"),
        **{("none", name): ("skipped", "no text") for name in ("dede", "kmeans", "knn")},
    }
    folder = make_results(special=special, absent=frozenset([("drupe", "knn")]), seeds=(1, 3))
    names = {path.name for path in render(folder)}
    assert {"heatmap.png", "roc_badencoder.png", "roc_drupe.png"} <= names
    assert "roc_none.png" not in names


def test_plots_take_any_label_and_constant_scores(tmp_path):
    labels = ["$x_{$", "a/../b", "A/../B"]
    keys = [write_cell(tmp_path, "x & <y>", label, shift=0.0, count=40) for label in labels]
    frame = load_cells_of(tmp_path, labels, keys)[0].scores()
    frame.assign(score=np.float32(1)).to_parquet(tmp_path / "cells" / keys[0] / "scores.parquet")
    paths = render(tmp_path)
    assert {path.parent.name for path in paths} == {tmp_path.name, "tables", "plots"}
    assert tmp_path / "plots" / "scores_x-y.png" in paths


def load_cells_of(folder: Path, labels: list[str], keys: list[str]):
    write_manifest(folder, ["x & <y>"], labels, keys)
    return load_cells(folder)


def test_a_report_is_current_until_a_cell_an_output_or_the_order_changes(make_results, monkeypatch):
    monkeypatch.setattr("bench.report.rendering.drawn", lambda *_: {"heatmap.pdf": b"a plot"})
    folder = make_results(count=60, shifts=TWO)
    assert not is_current(folder)
    render(folder)
    assert is_current(folder)
    (folder / "plots" / "heatmap.pdf").unlink()
    assert not is_current(folder)
    render(folder)
    cell = next((folder / "cells").glob("*/cell.json"))
    cell.write_text(cell.read_text() + "\n")
    assert not is_current(folder)
    render(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cells"].reverse()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert not is_current(folder)


def test_a_report_is_not_current_when_seeds_come_to_share_a_pretraining(make_results):
    folder = make_results(count=60, shifts=TWO, seeds=(0, 1))
    before = load_manifest(folder)
    (after, again) = (replace(before, pretraining_seed=shared) for shared in ({1: 0}, {7: 0}))
    digests = [_digest(folder, manifest) for manifest in (before, after, again)]
    assert digests[0] == digests[2] != digests[1]


def test_plots_of_cells_that_left_the_matrix_are_removed_and_other_files_kept(
    make_results, monkeypatch
):
    def one_per_attack(_, results):
        return {f"roc_{cell.row['attack']}.png": b"a plot" for cell in results.cells}

    monkeypatch.setattr("bench.report.rendering.drawn", one_per_attack)
    folder = make_results(count=60, shifts=TWO)
    render(folder)
    (folder / "plots" / "mine.png").write_bytes(b"mine")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cells"] = [cell.key for cell in load_cells(folder) if cell.row["attack"] != "drupe"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    render(folder)
    assert not (folder / "plots" / "roc_drupe.png").exists()
    assert (folder / "plots" / "roc_badencoder.png").exists()
    assert (folder / "plots" / "mine.png").exists()


def test_a_smoke_run_gets_tables_that_say_so_and_no_plots(make_results):
    folder = make_results(smoke=True)
    render(folder)
    assert "smoke run" in (folder / "leaderboard.md").read_text()
    assert not (folder / "plots").exists()
    assert is_current(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "damaged or unreadable"),
        (lambda text: "[]", "not a JSON object"),
        (lambda text: text.replace('"schema": 1', '"schema": 9'), "schema 9"),
        (lambda text: text.replace('"auroc":', '"aurok":'), "has no auroc"),
        (lambda text: text.replace('"seed": 0', '"seed": "zero"'), "'seed' should be integer"),
        (lambda text: text.replace('"status": "ok"', '"status": "fine"'), "unknown status"),
        (lambda text: text.replace('"thresholds": [', '"x": ['), "thresholds: field required"),
        (lambda text: text.replace('"thresholds": [', '"thresholds": [1, '), "thresholds.0: "),
        (lambda text: text.replace('"tpr": 0.61', '"tpr": "high"'), "'tpr' should be a number"),
        (lambda text: text.replace('"intervals": {', '"intervals": {"auroc": 3, '), "intervals."),
        (lambda text: text.replace('"provenance": {}', '"provenance": "x"'), "provenance: "),
        (lambda text: text.replace('"candidates": []', '"candidates": [1]'), "decoy.candidates.0"),
        (lambda text: text.replace('"fpr": 0.052', '"fpr": NaN'), "NaN is no number"),
        (lambda text: text.replace('"key": "', '"key": "0', 1), "its key is"),
    ],
)
def test_a_damaged_cell_is_one_line_that_names_the_file(make_results, damage, words):
    folder = make_results()
    path = load_cells(folder)[4].path / "cell.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ReportError) as error:
        load_cells(folder)
    message = str(error.value)
    assert message.startswith(str(path))
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["scores.parquet", "figures.npz"])
def test_damaged_arrays_are_one_line_that_names_the_file(make_results, name):
    folder = make_results(figures=True)
    cell = next(cell for cell in load_cells(folder) if (cell.path / "figures.npz").exists())
    (cell.path / name).write_bytes(b"not what it says")
    with pytest.raises(ReportError) as error:
        render(folder)
    assert str(cell.path / name) in str(error.value)
    assert "\n" not in str(error.value)
    assert not is_current(folder)


def test_pickled_figures_are_refused(make_results):
    folder = make_results(figures=True)
    cell = next(cell for cell in load_cells(folder) if (cell.path / "figures.npz").exists())
    np.savez(cell.path / "figures.npz", input=np.array([{}], dtype=object))
    with pytest.raises(ReportError, match=r"figures\.npz"):
        cell.figures()


@pytest.mark.parametrize("content", [b"", b"not an archive", "npy"])
def test_draws_that_are_none_are_one_line(make_results, content):
    cell = load_cells(make_results())[0]
    if content == "npy":
        with (cell.path / "draws.npz").open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        (cell.path / "draws.npz").write_bytes(content)
    with pytest.raises(ReportError, match=r"draws\.npz: damaged"):
        cell.draws()


def test_files_that_were_swapped_between_sealed_cells_are_noticed(make_results):
    folder = make_results()
    first, second = (cell.path for cell in load_cells(folder)[:2])
    for path in (first, second):
        seal(path)
    load_cells(folder)
    content = (first / "scores.parquet").read_bytes()
    (first / "scores.parquet").write_bytes((second / "scores.parquet").read_bytes())
    (second / "scores.parquet").write_bytes(content)
    with pytest.raises(ReportError, match=r"scores\.parquet does not match its checksum"):
        load_cells(folder)


@pytest.mark.parametrize("content", [None, "{", '{"profile": "quick"}'])
def test_a_missing_or_damaged_manifest_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ReportError, match=r"manifest\.json") as error:
        render(tmp_path)
    assert "\n" not in str(error.value)


def test_damage_that_another_process_meets_is_one_line_all_the_same(make_results):
    folder = make_results(count=60)
    results = load_results(folder)
    for cell in results.cells:
        if cell.row["attack"] == "drupe":  # falls to the second process
            (cell.path / "scores.parquet").write_bytes(b"damaged")
    with pytest.raises(ReportError, match=r"^[^ ]*scores\.parquet: damaged"):
        drawn(folder, results, 2)


def test_another_failure_of_a_process_says_what_it_said_last(make_results, monkeypatch):
    folder = make_results(count=60)
    monkeypatch.setenv("MPLBACKEND", "no-such-backend")
    results = load_results(folder)
    with pytest.raises(RuntimeError, match=r"drawing plots failed: .*no-such-backend"):
        drawn(folder, results, 2)
