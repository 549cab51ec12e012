"""A frozen folder of cells -> the exact text of every table.

After a wanted change of the tables, accept them and read the diff before committing:
``python tests/report/test_report_golden.py --accept``. ``--freeze`` makes the folder of cells anew,
which only a change of the stored layout calls for.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from stored_cells import DECLARED, write_cell, write_manifest

from bench.report.declared import BUILT_IN
from bench.report.export import export

GOLDEN = Path(__file__).parents[1] / "golden" / "report"
CELLS, EXPECTED = GOLDEN / "run", GOLDEN / "expected"
TABLES = (*BUILT_IN, *DECLARED)
SUFFIXES = {"csv": "csv", "markdown": "md", "latex": "tex"}
HOSTILE = r"_ % & # $ { } \ < > \" ü 漢"


def wanted_files() -> list[tuple[str, str, str]]:
    """(table, format, file name) of every golden text."""
    return [(t, form, f"{t}.{suffix}") for t in TABLES for form, suffix in SUFFIXES.items()]


@pytest.mark.parametrize(("table", "form", "name"), wanted_files())
def test_every_table_is_what_it_was(table, form, name):
    assert export(CELLS, form, table) == (EXPECTED / name).read_text(encoding="utf-8")


def test_nothing_else_lies_among_the_expected_texts():
    assert {path.name for path in EXPECTED.iterdir()} == {name for *_, name in wanted_files()}


def freeze() -> None:
    """Two seeds, a control, every status, a hostile name, an encoder detector, draws."""
    shutil.rmtree(CELLS, ignore_errors=True)
    attacks = ("badencoder", HOSTILE, "weak", "none")
    defenses = {"dede": 2.0, "knn": 1.2, HOSTILE: 0.6}
    keys = []
    for attack in attacks:
        for defense, shift in defenses.items():
            for seed in (0, 1):
                status, reason, row = "ok", "", {}
                if attack == "weak":
                    status, reason = "attack-weak", "ASR 0.500 is below 0.8"
                if (attack, defense) == (HOSTILE, "knn"):
                    status, reason = "failed", f"ValueError: {HOSTILE}"
                if (attack, defense, seed) == ("badencoder", HOSTILE, 1):
                    status, reason = "skipped", "needs a text tower"
                if defense == "dede":
                    bad = attack != "none"
                    row = {"encoder_score": 0.9 if bad else 0.1, "encoder_score_twin": 0.1}
                    row |= {"encoder_verdict": "backdoored" if bad else "clean"}
                    row |= {"encoder_verdict_twin": "clean"}
                key = write_cell(
                    CELLS,
                    attack,
                    defense,
                    seed,
                    shift=shift,
                    control=attack == "none",
                    status=status,
                    reason=reason,
                    count=40,
                    row=row,
                    encoders={"victim": f"{attack}{seed}", "twin": f"none{seed}"},
                )
                if status not in ("failed", "skipped"):
                    random = np.random.default_rng(int(key[:6], 16))
                    draws = random.normal(0.7, 0.02, 50).astype(np.float32)
                    np.savez(CELLS / "cells" / key / "draws.npz", auroc=draws)
                keys.append(key)
    keys.append("f" * 64)  # a cell that is not stored yet
    write_manifest(CELLS, attacks, defenses, keys, seeds=(0, 1))


def accept() -> None:
    """Write the texts that the tables have now."""
    shutil.rmtree(EXPECTED, ignore_errors=True)
    EXPECTED.mkdir(parents=True)
    for table, form, name in wanted_files():
        (EXPECTED / name).write_text(export(CELLS, form, table), encoding="utf-8")


if __name__ == "__main__":
    if "--freeze" in sys.argv:
        freeze()
    if {"--freeze", "--accept"} & set(sys.argv):
        accept()
    else:
        print(__doc__)
