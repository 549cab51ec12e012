"""Verdicts on encoders: who counts, how often, and what the notes say."""

from __future__ import annotations

import numpy as np
import pytest
from stored_cells import write_cell, write_manifest

from bench.report.declared import DeclaredTable
from bench.report.schema import load_results
from bench.report.verdicts import encoders_frame, encoders_text


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
