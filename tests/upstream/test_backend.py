"""``backend: upstream`` in a run: who is skipped, who fails, and that nobody else suffers."""

from __future__ import annotations

import re

import pytest

from attacks.upstream._reference_tuning import DrupeTraining
from bench.errors import InputError
from bench.report.export import export
from bench.report.leaderboard import leaderboard, summary
from bench.report.schema import load_results

CRASH = "print('epoch 3 of 120')\nraise ArithmeticError('the loss is not a number')"
HANG = "import time\nprint('epoch 4 of 120', flush=True)\ntime.sleep(600)"
SILENCE = "import os\nos._exit(0)"
PICKLE = """
import os, pickle
class Bomb:
    def __reduce__(self):
        return os.mkdir, ("{mark}",)
with open("../out/model.safetensors", "wb") as file:
    pickle.dump(Bomb(), file)
os._exit(0)
"""


@pytest.fixture
def content(tiny, monkeypatch):
    """BadEncoder natively, DRUPE by its authors' code, against one defense."""
    monkeypatch.setattr(DrupeTraining, "imports", ())
    tiny["matrix"] = {
        "attacks": [
            "badencoder",
            {
                "attack": "drupe",
                "backend": "upstream",
                "parameters": {"allow_changed": True, "time_limit": 20, "batch_size": 50},
            },
        ],
        "defenses": ["mahalanobis"],
    }
    return tiny


def rows(session):
    frame = leaderboard(load_results(session.results))
    return frame.set_index("attack")


def test_an_absent_submodule_skips_its_cells_and_says_what_to_do(
    content, warm_session_of, tmp_path, monkeypatch
):
    monkeypatch.setenv("BENCH_THIRD_PARTY", str(tmp_path / "nothing"))
    session = warm_session_of(content)
    assert session.run().failed == {}
    found = rows(session)
    assert found.loc["badencoder", "attack_backend"] == "native"
    skipped = found.loc["drupe-upstream"]
    assert skipped["attack_backend"] == "upstream"
    assert (skipped["status"], skipped["reason"]) == ("skipped", "bench third-party sync DRUPE")


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (CRASH, "exit status 1 .*epoch 3 of 120 .*ArithmeticError: the loss is not a number"),
        (HANG, "stopped at its limit of 20 s .*epoch 4 of 120"),
        (SILENCE, "ended without leaving model.safetensors"),
        (PICKLE, "model.safetensors: not a readable safetensors file"),
    ],
    ids=["crash", "hang", "silence", "pickle"],
)
def test_a_bad_upstream_is_a_failed_cell_and_harms_no_other(
    content, warm_session_of, repository, tmp_path, main, words
):
    mark = tmp_path / "mark"
    (repository / "main.py").write_text(main.format(mark=mark))
    session = warm_session_of(content)
    outcome = session.run()
    assert len(outcome.failed) == 1
    found = rows(session)
    assert found.loc["badencoder", "status"] in ("ok", "attack-weak", "attack-invalid")
    failed = found.loc["drupe-upstream"]
    assert failed["status"] == "failed"
    assert len(failed["reason"].splitlines()) == 1
    assert re.search(words, failed["reason"]), failed["reason"]
    assert not mark.exists()


def test_another_commit_is_refused_unless_allowed_by_name(content, warm_session_of, repository):
    del content["matrix"]["attacks"][1]["parameters"]["allow_changed"]
    session = warm_session_of(content)
    assert len(session.run().failed) == 1
    assert "DRUPE" in rows(session).loc["drupe-upstream", "reason"]


def test_the_revision_that_runs_is_part_of_the_key(content, warm_session_of, repository):
    def keys():
        return {cell.identity["attack"]: cell.key for cell in warm_session_of(content).cells}

    first = keys()
    (repository / "greeting.py").write_text("WORD = 'changed'\n")
    second = keys()
    assert first["badencoder"] == second["badencoder"]
    assert first["drupe-upstream"] != second["drupe-upstream"]
    (repository / "greeting.py").write_text("WORD = 'changed again'\n")
    assert keys()["drupe-upstream"] not in (first["drupe-upstream"], second["drupe-upstream"])


def test_reduced_rows_are_marked_and_stay_outside_averages(content, warm_session_of, repository):
    (repository / "main.py").write_text(SILENCE)
    content["profiles"]["tiny"]["overrides"]["drupe@upstream"] = {"epochs": 2, "max_images": 64}
    session = warm_session_of(content)
    session.run()
    found = rows(session)
    smaller = (
        "64 of 10,000 shadow images, 2 of 120 epochs, batches of 50 instead of 256; "
        "a narrow encoder"
    )
    assert found.loc["drupe-upstream", "reduced"] == smaller
    assert found.loc["badencoder", "reduced"] == ""
    results = load_results(session.results)
    assert summary(results)["n_attacks"].max() <= 1
    assert "¶ reduced" in export(session.results, "markdown")


def test_a_component_without_that_backend_is_one_line(content, warm_session_of):
    content["matrix"]["defenses"] = [{"defense": "mahalanobis", "backend": "upstream"}]
    with pytest.raises(InputError, match=r"defenses\[0\].*'mahalanobis' has no backend upstream"):
        warm_session_of(content).check()
