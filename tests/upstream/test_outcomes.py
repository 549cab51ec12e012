"""Native against upstream by outcome, from stored cells."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.report.schema import StoredCell
from bench.upstream import outcomes as module
from bench.upstream.outcomes import outcomes, rows

ASR = {"badencoder": (0.90, 0.92, 0.94), "badencoder@upstream": (0.91, 0.93, 0.92)}


def cell(attack: str, defense: str, seed: int, **figures: float | None) -> StoredCell:
    row = {"attack": attack, "defense": defense, "seed": seed, "status": "ok"}
    row |= dict.fromkeys(("attack_success_rate", "clean_accuracy", "auroc", "auroc_placebo"))
    row |= {"encoder_score": None, "reason": "", **figures}
    config = {"attack": {"name": attack}, "defense": {"name": defense}}
    return StoredCell(f"{attack}{defense}{seed}", row, False, False, config, [], [], {}, {}, Path())


@pytest.fixture
def compare(monkeypatch):
    def make(cells):
        monkeypatch.setattr(module, "load_cells", lambda _: cells)
        return outcomes(Path())

    return make


def attack_cells(rates):
    return [
        cell(attack, "knn-distance", seed, attack_success_rate=value)
        for attack, values in rates.items()
        for seed, value in enumerate(values)
    ]


def test_means_within_the_tolerance_agree(compare):
    (found,) = compare(attack_cells(ASR))
    assert (found.component, found.figure, found.seeds) == ("badencoder", "attack_success_rate", 3)
    assert found.native == pytest.approx(0.92)
    assert found.low < found.difference < found.high
    assert found.verdict == "agrees"


def test_an_attack_is_compared_over_all_seeds_whatever_it_was_measured_with(compare):
    cells = attack_cells(ASR)
    early = [cell(name, "decree", 0, attack_success_rate=values[0]) for name, values in ASR.items()]
    (found,) = compare([*early, *cells])
    assert found.seeds == 3


def test_far_apart_differs_and_names_its_reason_noise_is_undecided(compare):
    far = {"drupe": (0.90, 0.91, 0.92), "drupe@upstream": (0.50, 0.52, 0.51)}
    (found,) = compare(attack_cells(far))
    assert found.verdict == "differs"
    (row,) = rows([found])
    assert (row.repository, row.audit) == ("DRUPE", "")
    assert row.difference.startswith("-0.400 [")
    clip = {"badclip": (0.90, 0.91, 0.92), "badclip@upstream": (0.50, 0.52, 0.51)}
    (row,) = rows(compare(attack_cells(clip)))
    assert row.audit == "U40, U41, U71"
    noisy = {"drupe": (0.9, 0.1, 0.9), "drupe@upstream": (0.5, 0.9, 0.9)}
    (found,) = compare(attack_cells(noisy))
    assert found.verdict == "undecided"


def test_means_that_are_close_agree_only_where_the_interval_is(compare):
    wide = {"drupe": (0.90, 0.60, 0.90), "drupe@upstream": (0.70, 0.90, 0.80)}
    (found,) = compare(attack_cells(wide))
    assert abs(found.difference) < 0.01 < found.tolerance < found.high
    assert found.verdict == "undecided"


def test_of_attacks_that_take_in_neither_backend_nothing_is_learned(compare):
    cells = attack_cells({"ctrl": (0.06, 0.06, 0.07), "ctrl@upstream": (0.06, 0.07, 0.06)})
    for each in cells:
        each.row.update(status="attack-invalid", clean_accuracy=0.4)
    found = {outcome.figure: outcome.verdict for outcome in compare(cells)}
    assert found == {"attack_success_rate": "neither takes", "clean_accuracy": "agrees"}
    cells[-1].row["status"] = "ok"
    assert compare(cells)[0].verdict == "agrees"


def test_cells_that_failed_or_were_skipped_are_rows(monkeypatch):
    cells = [
        cell("ctrl@upstream", "knn-distance", 1, status="failed", reason="it\n crashed"),
        cell("none", "decree", 0, status="skipped", reason="bench third-party sync DECREE"),
        cell("sslbkd", "knn-distance", 0, status="failed", reason="nobody's"),
        cell("ctrl", "knn-distance", 1),
    ]
    monkeypatch.setattr(module, "load_cells", lambda _: cells)
    found = [(row.repository, row.what, row.verdict) for row in module.unmeasured(Path())]
    assert found == [
        ("CTRL", "ctrl@upstream and knn-distance, seed 1", "failed: it crashed"),
        ("DECREE", "none and decree, seed 0", "skipped: bench third-party sync DECREE"),
    ]


def test_fewer_than_three_seeds_are_no_verdict(compare):
    (found,) = compare(attack_cells({name: values[:2] for name, values in ASR.items()}))
    assert (found.verdict, found.seeds) == ("too few seeds", 2)
    assert "[" not in rows([found])[0].difference


def test_defenses_are_compared_per_attack_and_pl1_by_its_share(compare):
    def inversions(name: str, *scores: float):
        return [
            cell("none", name, seed, encoder_score=s, auroc=0.5) for seed, s in enumerate(scores)
        ]

    found = compare(
        [
            *inversions("decree", -0.10, -0.11, -0.12),
            *inversions("decree@upstream", -0.11, -0.12, -0.13),
        ]
    )
    by_figure = {outcome.figure: outcome for outcome in found}
    assert set(by_figure) == {"encoder_score", "auroc"}
    assert by_figure["encoder_score"].tolerance == pytest.approx(0.022)
    assert by_figure["encoder_score"].context == "none"
    assert {outcome.verdict for outcome in found} == {"agrees"}


def test_a_backend_without_its_pair_is_left_out(compare):
    assert compare(attack_cells({"ctrl@upstream": (0.1, 0.1, 0.1)})) == []
