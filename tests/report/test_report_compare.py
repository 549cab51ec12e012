"""Two runs side by side: what moved, and why it may have."""

from __future__ import annotations

import json
import sys

import pytest
from stored_cells import write_cell, write_manifest

from bench.cli import main
from bench.report.compare import compare, comparison_text
from bench.report.schema import ReportError


def run(folder, cells, seeds=(0,), **manifest):
    """``cells``: (attack, defense, row, sections)."""
    keys = [
        write_cell(folder, attack, defense, row=row, **sections)
        for attack, defense, row, sections in cells
    ]
    attacks = list(dict.fromkeys(c[0] for c in cells))
    defenses = list(dict.fromkeys(c[1] for c in cells))
    write_manifest(folder, attacks, defenses, keys, seeds=seeds)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | manifest))
    return folder


def cell(value, low, high, stages=(("data", "cifar10/train", "d0"),), **sections):
    row = {"auroc": value, "auroc_vs_decoy": 0.7}
    stages = [{"kind": k, "label": lb, "key": key} for k, lb, key in stages]
    provenance = {"stages": stages, **sections.pop("provenance", {})}
    intervals = {"auroc": [low, high], "auroc_vs_decoy": [0.6, 0.8]}
    return "x", "d", row, {"intervals": intervals, "provenance": provenance, **sections}


def moved(first, second):
    return {move.metric: move for move in compare(first, second).moves}


def test_a_value_inside_either_interval_has_not_moved(tmp_path):
    one = run(tmp_path / "a", [cell(0.80, 0.78, 0.82)])
    two = run(tmp_path / "b", [cell(0.83, 0.79, 0.87)])
    assert "auroc" not in moved(one, two)


def test_a_value_that_stays_has_not_moved_even_outside_its_own_interval(tmp_path):
    one = run(tmp_path / "a", [cell(0.80, 0.81, 0.82)])
    assert moved(one, run(tmp_path / "b", [cell(0.80, 0.81, 0.82)])) == {}


def test_a_value_outside_both_intervals_has(tmp_path):
    one = run(tmp_path / "a", [cell(0.80, 0.78, 0.82)])
    two = run(tmp_path / "b", [cell(0.90, 0.88, 0.92)])
    move = moved(one, two)["auroc"]
    assert (move.before, move.after) == (0.80, 0.90)
    assert move.intervals == ([0.78, 0.82], [0.88, 0.92])
    text = comparison_text(compare(one, two))
    assert "x x d, seed 0: auroc 0.800 [0.780, 0.820] -> 0.900 [0.880, 0.920] (+0.100)" in text


def test_accuracy_is_judged_by_the_interval_of_its_probe(tmp_path):
    def with_accuracy(value, low, high):
        entry = {"encoder": "victim", "probe": "mlp", "metric": "clean_accuracy", "value": value}
        attack, defense, row, sections = cell(0.8, 0.7, 0.9)
        sections["downstream"] = [entry | {"low": low, "high": high}]
        return attack, defense, row | {"clean_accuracy": value}, sections

    one = run(tmp_path / "a", [with_accuracy(0.50, 0.48, 0.52)])
    near = run(tmp_path / "b", [with_accuracy(0.51, 0.49, 0.53)])
    far = run(tmp_path / "c", [with_accuracy(0.60, 0.58, 0.62)])
    assert "clean_accuracy" not in moved(one, near)
    assert "clean_accuracy" in moved(one, far)


def test_a_changed_status_and_verdict_are_moves(tmp_path):
    one = run(tmp_path / "a", [cell(0.8, 0.7, 0.9)])
    attack, defense, row, sections = cell(0.8, 0.7, 0.9)
    row = row | {"status": "attack-weak", "encoder_verdict": "backdoored"}
    found = moved(one, run(tmp_path / "b", [(attack, defense, row, sections)]))
    assert (found["status"].before, found["status"].after) == ("ok", "attack-weak")
    assert found["encoder_verdict"].after == "backdoored"


def test_causes_name_parameters_data_stage_and_versions(tmp_path):
    config = {"defense": {"parameters": {"epochs": 10}}}
    one = run(tmp_path / "a", [cell(0.8, 0.79, 0.81, config=config)])
    stages = (("data", "cifar10/train", "d1"), ("fit", "fit d", "f1"))
    provenance = {"versions": {"torch": "2.0"}, "code_version": "0.2"}
    config = {"defense": {"parameters": {"epochs": 20}}}
    changed = cell(0.9, 0.89, 0.91, stages, config=config, provenance=provenance)
    causes = moved(one, run(tmp_path / "b", [changed]))["auroc"].causes
    assert causes == (
        "defense.parameters.epochs: 10 -> 20",
        "data: cifar10/train has other content or another preparation",
        "first stage that is not the same: data (cifar10/train)",
        "code_version: – -> 0.2",
        "versions.torch: – -> 2.0",
    )


def test_equal_keys_with_other_numbers_are_called_what_they_are(tmp_path):
    first = cell(0.8, 0.79, 0.81)
    one = run(tmp_path / "a", [first])
    two = run(tmp_path / "b", [first])
    [path] = (two / "cells").glob("*/cell.json")
    document = json.loads(path.read_text())
    document["row"]["auroc"], document["intervals"]["auroc"] = 0.9, [0.89, 0.91]
    path.write_text(json.dumps(document))
    assert "the same key" in moved(one, two)["auroc"].causes[0]
    document["encoder_weights"] = {"victim": "other"}
    path.write_text(json.dumps(document))
    assert "trained twice under one key" in moved(one, two)["auroc"].causes[0]


def test_runs_that_are_equal_say_so(tmp_path):
    one = run(tmp_path / "a", [cell(0.8, 0.79, 0.81)])
    text = comparison_text(compare(one, one))
    assert "nothing differs" in text
    assert "Moved: 0 figures in 0 cells" in text


def test_cells_of_one_run_only_are_listed(tmp_path):
    _, _, row, sections = cell(0.8, 0.79, 0.81)
    one = run(tmp_path / "a", [("x", "d", row, sections), ("y", "d", row, sections)])
    two = run(tmp_path / "b", [("x", "d", row, sections), ("x", "e", row, sections)])
    text = comparison_text(compare(one, two))
    assert "1 cell in both" in text
    assert "only in A: 1 (y x d, seed 0)" in text
    assert "only in B: 1 (x x e, seed 0)" in text


def test_what_differs_between_the_runs_comes_first(tmp_path):
    one = run(tmp_path / "a", [cell(0.8, 0.79, 0.81)], versions={"torch": "1"})
    two = run(tmp_path / "b", [cell(0.8, 0.79, 0.81)], versions={"torch": "2"})
    assert compare(one, two).differences == ["versions.torch: 1 -> 2"]


def test_a_value_that_is_gone_has_moved(tmp_path):
    one = run(tmp_path / "a", [cell(0.8, 0.7, 0.9)])
    attack, defense, row, sections = cell(None, None, None)
    two = run(tmp_path / "b", [(attack, defense, row, sections)])
    assert moved(one, two)["auroc"].after is None


def test_the_command_prints_text_or_json(tmp_path, monkeypatch, capsys):
    (tmp_path / "bench.yaml").write_text(
        "default_profile: p\ndatasets: {}\nprofiles: {}\n"
        "matrix: {attacks: [none], defenses: [lof]}\n"
    )
    one = run(tmp_path / "a", [cell(0.80, 0.78, 0.82)])
    two = run(tmp_path / "b", [cell(0.90, 0.88, 0.92)])
    for arguments in ((), ("--json",)):
        monkeypatch.setattr(sys, "argv", ["bench", "compare", str(one), str(two), *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 0
    text, _, document = capsys.readouterr().out.partition("{")
    assert text.startswith("A: ")
    assert json.loads("{" + document)["moves"][0]["metric"] == "auroc"


def test_a_folder_without_a_manifest_is_an_error(tmp_path):
    with pytest.raises(ReportError, match=r"manifest\.json: not found"):
        compare(tmp_path, tmp_path)
