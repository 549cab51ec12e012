"""Hostile and malformed input is refused in one line, in seconds and in less than a gigabyte.

One process runs every case in a fork of its own (see ``campaign.py``); the tests look at what came
of each. ``benchmarks/hostile_campaign.py`` runs them in fresh interpreters, the long ones too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile_caches  # noqa: F401
import hostile_checkpoints  # noqa: F401
import hostile_code  # noqa: F401
import hostile_configs  # noqa: F401
import hostile_images  # noqa: F401
import hostile_markup  # noqa: F401
import hostile_results  # noqa: F401
import pytest
from campaign import CASES, Case

RUNNER = Path(__file__).with_name("hostile.py")
SHORT = [chosen for chosen in CASES if not chosen.long]

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="processes are weighed through /proc"
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    file = tmp_path_factory.mktemp("hostile") / "ran.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, RUNNER, file], check=True, env=environment)
    return {(one["category"], one["name"]): one for one in json.loads(file.read_text())}


@pytest.mark.parametrize("chosen", SHORT, ids=lambda chosen: f"{chosen.category}: {chosen.name}")
def test_hostile_input_is_refused_in_one_line(ran: dict, chosen: Case) -> None:
    found = ran[chosen.category, chosen.name]
    assert found["problem"] == "", found["line"]


def test_names_of_cases_are_their_own() -> None:
    assert len({(chosen.category, chosen.name) for chosen in CASES}) == len(CASES) > 150
