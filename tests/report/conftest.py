"""A small results folder for every test that asks for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from stored_cells import ATTACKS, SHIFTS, write_cell, write_manifest

Status = Mapping[tuple[str, str], tuple[str, str]]


@pytest.fixture
def make_results(tmp_path: Path) -> Callable[..., Path]:
    """Factory: a folder with attacks none (control), badencoder, drupe x three defenses.

    ``special`` maps (attack, defense) to (status, reason); ``absent`` pairs are not stored though
    the manifest lists them.
    """

    def make(
        name: str = "quick",
        *,
        seeds: tuple[int, ...] = (0,),
        special: Status | None = None,
        absent: frozenset[tuple[str, str]] = frozenset(),
        smoke: bool = False,
        figures: bool = False,
        pictures: bool = False,
        shifts: Mapping[str, float] = SHIFTS,
        count: int = 200,
    ) -> Path:
        folder = tmp_path / name
        keys = []
        for attack in ATTACKS:
            for defense, shift in shifts.items():
                status, reason = (special or {}).get((attack, defense), ("ok", ""))
                for seed in seeds:
                    if (attack, defense) in absent:
                        keys.append("f" * 64)
                        continue
                    keys.append(
                        write_cell(
                            folder,
                            attack,
                            defense,
                            seed,
                            shift=shift,
                            control=attack == "none",
                            status=status,
                            reason=reason,
                            figures=figures and defense == "dede" and attack != "none",
                            pictures=pictures,
                            transductive=defense == "kmeans",
                            count=count,
                        )
                    )
        write_manifest(folder, ATTACKS, shifts, keys, seeds, smoke)
        return folder

    return make
