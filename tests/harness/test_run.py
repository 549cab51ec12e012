"""A run from configuration to tables: rows, controls, failures, resuming."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from experiment import COST_COLUMNS

import bench
from bench import registry
from bench.planning import describe_plan
from bench.report.declared import Tables
from bench.report.rendering import declare_tables, render
from bench.report.schema import LEADERBOARD_COLUMNS, ReportError, load_results
from bench.session import Selection, Session
from bench.stages.bundle import build_bundle
from bench.stages.detecting import Scorer, checked_scores, evaluation_images, restore

PICKLE_MARKS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


def leaderboard(session: Session) -> pd.DataFrame:
    return pd.read_csv(session.results / "leaderboard.csv", keep_default_na=False)


def test_every_cell_is_a_row_with_both_controls(tiny_run):
    table = leaderboard(tiny_run)
    assert list(table.columns) == list(LEADERBOARD_COLUMNS)
    assert len(table) == 10
    numbers = ["auroc", "auroc_low", "auroc_high", "auroc_placebo", "auroc_delta", "aupr"]
    numbers += ["tpr_at_1fpr", "tpr_calibrated", "fpr_calibrated", "clean_accuracy", "asr_filtered"]
    for column in numbers:
        assert pd.to_numeric(table[column]).notna().all(), column
    assert (table["n_clean"] == 80).all()
    assert table["key"].is_unique
    decoy = pd.to_numeric(table["auroc_vs_decoy"])
    assert (decoy.notna() == (table["decoy"] != "")).all()


def test_row_of_the_control_is_its_own_placebo_and_that_of_the_attack(tiny_run):
    table = leaderboard(tiny_run).set_index(["attack", "defense"])
    for defense in {entry.label for entry in tiny_run.defenses}:
        control, attacked = table.loc[("none", defense)], table.loc[("badencoder", defense)]
        assert control["auroc"] == control["auroc_placebo"]
        assert control["auroc_delta"] == 0
        # The same twin, the same trigger, the same fit: common random numbers.
        assert attacked["auroc_placebo"] == control["auroc"]
        assert attacked["clean_accuracy_twin"] == control["clean_accuracy"]


def test_cells_say_which_weights_they_speak_of(tiny_run):
    cells = load_results(tiny_run.results).cells
    contents = {
        (cell.row["attack"], *pair) for cell in cells for pair in cell.encoder_weights.items()
    }
    clean = {content for attack, role, content in contents if (attack, role) == ("none", "victim")}
    assert len(clean) == 1
    assert {content for _, role, content in contents if role == "twin"} == clean
    [victim] = {c for attack, role, c in contents if (attack, role) == ("badencoder", "victim")}
    assert len(victim) == 64
    assert victim not in clean


def test_results_folder_holds_tables_and_manifest(tiny_run):
    names = {path.relative_to(tiny_run.results).as_posix() for path in tiny_run.results.rglob("*")}
    wanted = {f"leaderboard.{suffix}" for suffix in ("csv", "md", "tex")}
    wanted |= {"manifest.json", "tables/thresholds.csv", "tables/downstream.csv"}
    assert wanted <= names
    manifest = json.loads((tiny_run.results / "manifest.json").read_text())
    assert manifest["hardware"]["cores"] >= 1
    assert "torch" in manifest["versions"]
    assert str(Path.home()) not in json.dumps(manifest)


def test_a_run_draws_plots(tiny_run, tmp_path):
    chosen = {"attacks": ("none",), "defenses": ("mahalanobis",), "cache": tiny_run.store.root}
    session = Session(tiny_run.file, Selection(results=tmp_path, **chosen))
    session.run()
    for suffix in (".png", ".pdf"):
        assert len(list((session.results / "plots").glob(f"*{suffix}"))) >= 4


def test_second_run_computes_nothing(tiny_run):
    again = Session(tiny_run.file, Selection())
    table = (tiny_run.results / "leaderboard.csv").read_bytes()
    outcome = again.run()
    assert outcome.computed == []
    assert (tiny_run.results / "leaderboard.csv").read_bytes() == table


@pytest.mark.usefixtures("no_plots")
def test_stored_cells_alone_are_enough_to_resume(tiny_run, tmp_path):
    shutil.copytree(tiny_run.results, tmp_path / "results" / "tiny")
    session = Session(
        tiny_run.file, Selection(results=tmp_path / "results", cache=tmp_path / "empty-cache")
    )
    (session.results / "leaderboard.csv").unlink()
    assert session.run().computed == []
    assert (session.results / "leaderboard.csv").is_file()
    assert not (tmp_path / "empty-cache").exists()


@pytest.mark.usefixtures("no_plots")
def test_scores_and_tables_are_the_same_from_a_cold_cache(tiny_run, tmp_path):
    session = Session(
        tiny_run.file,
        Selection(
            results=tmp_path / "r", cache=tmp_path / "c", defenses=("dede-id", "mahalanobis")
        ),
    )
    session.run()
    ours, theirs = (
        leaderboard(s).drop(columns=[*COST_COLUMNS, "code_version"]).set_index("key")
        for s in (session, tiny_run)
    )
    assert len(ours) == 4
    pd.testing.assert_frame_equal(ours, theirs.loc[ours.index], check_dtype=False)


@pytest.mark.usefixtures("no_plots")
def test_same_key_same_bytes(tiny_run, tmp_path):
    """Every artifact of a second cold run equals the first one's, cost aside."""
    session = Session(
        tiny_run.file,
        Selection(results=tmp_path / "r", cache=tmp_path / "c", defenses=("dede-ood",)),
    )
    session.run()
    manifests = list((tmp_path / "c").glob("*/??/*/manifest.json"))
    assert len(manifests) >= 12
    for path in manifests:
        same = tiny_run.store.root / path.relative_to(tmp_path / "c")
        assert path.read_bytes() == same.read_bytes(), path.parent.parent.parent.name


@pytest.mark.usefixtures("no_plots")
def test_damaged_artifact_is_computed_again_with_a_warning(tiny_run, tmp_path):
    cache = tmp_path / "cache"
    shutil.copytree(tiny_run.store.root, cache)
    session = Session(
        tiny_run.file,
        Selection(
            results=tmp_path / "r", cache=cache, attacks=("none",), defenses=("mahalanobis",)
        ),
    )
    score = session.cells[0].stage.inputs["victim"]
    victim = session.store.folder("score", score.key) / "scores.parquet"
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    with pytest.warns(UserWarning, match="is damaged"):
        outcome = session.run()
    assert "score mahalanobis for none on digits, seed 0" in outcome.computed
    assert len(outcome.computed) == 2
    assert len(leaderboard(session)) == 1


def test_a_run_of_another_seed_takes_no_stored_seed_off_the_leaderboard(tiny, warm_session_of):
    tiny["matrix"] = {"attacks": ["none"], "defenses": ["pixel-only"]}
    for seeds, shown in (((1,), [1]), ((2,), [1, 2]), (None, [0, 1, 2])):
        session = warm_session_of(tiny, seeds=seeds)
        session.run()
        manifest = json.loads((session.results / "manifest.json").read_text())
        assert manifest["seeds"] == shown
    assert sorted(leaderboard(session)["seed"]) == [0, 1, 2]


def test_a_seed_of_failures_stays_on_the_leaderboard(tiny, session_of, plug_in):
    plug_in("defenses", raises_in_fit="wayward_defenses:RaisesInFit")
    tiny["matrix"] = {"attacks": ["none"], "defenses": ["raises-in-fit"]}
    for seeds, shown in (((1,), [1]), ((2,), [1, 2])):
        session = session_of(tiny, seeds=seeds)
        session.run()
        manifest = json.loads((session.results / "manifest.json").read_text())
        assert manifest["seeds"] == shown
    assert leaderboard(session)["status"].tolist() == ["failed", "failed"]


def test_tables_without_their_cells_are_not_replaced_by_empty_ones(tiny, warm_session_of):
    tiny["matrix"] = {"attacks": ["none"], "defenses": ["pixel-only"]}
    session = warm_session_of(tiny)
    session.run()
    before = (session.results / "leaderboard.csv").read_bytes()
    shutil.rmtree(session.results / "cells")
    with pytest.raises(ReportError, match=r"none of the 1 cells of .* is stored there"):
        render(session.results)
    manifest = (session.results / "manifest.json").read_bytes()
    other = Tables.model_validate({"ranks": {"kind": "ranks"}})
    with pytest.raises(ReportError, match="none of the 1 cells"):
        declare_tables(session.results, other)
    assert (session.results / "manifest.json").read_bytes() == manifest
    assert (session.results / "leaderboard.csv").read_bytes() == before


WAYWARD = {
    "returns_nan": ("wayward_defenses:ReturnsNan", "returned 2 non-finite"),
    "wrong_length": ("wayward_defenses:WrongLength", "returned shape"),
    "wrong_type": ("wayward_defenses:WrongType", "must return a tensor or an array, not list"),
    "changes_images": ("wayward_defenses:ChangesImages", "changed the images"),
    "draws_grey": ("wayward_defenses:DrawsGrey", "'drawn' has shape (4, 8, 8) for 4 images and"),
    "draws_input": ("wayward_defenses:DrawsInput", "a figure may not be called 'input'"),
    "raises_in_fit": ("wayward_defenses:RaisesInFit", "RuntimeError: no luck today"),
}


def test_misbehaving_defense_fails_its_own_cell_only(tiny, warm_session_of, plug_in):
    plug_in(
        "defenses", harmless="wayward_defenses:Harmless", **{k: v[0] for k, v in WAYWARD.items()}
    )
    names = [name.replace("_", "-") for name in WAYWARD]
    tiny["matrix"] = {"attacks": ["none"], "defenses": [*names, "harmless"]}
    session = warm_session_of(tiny)
    failed = session.run().failed
    table = leaderboard(session).set_index("defense")
    assert table.loc["harmless", "status"] == "ok"
    assert len(failed) == len(WAYWARD)
    for name, (_, message) in WAYWARD.items():
        row = table.loc[name.replace("_", "-")]
        assert row["status"] == "failed"
        expected = message.replace("returned 2 non-finite", "non-finite")
        assert expected in row["reason"]
        assert row["auroc"] == ""


def test_a_score_that_float32_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="returned 1 non-finite of 2 scores"):
        checked_scores(np.array([1e300, 0.0]), 2, "X")


def test_failure_is_never_a_result(tiny, session_of, plug_in):
    plug_in("defenses", raises_in_fit="wayward_defenses:RaisesInFit")
    tiny["matrix"] = {"attacks": ["none"], "defenses": ["raises-in-fit"]}
    session = session_of(tiny)
    session.run()
    fit = session.cells[0].stage.inputs["victim"].inputs["fit"]
    assert not session.store.has("fit", fit.key)
    planned = describe_plan(session)
    assert "estimated 0 s\n1 failed\n" in planned
    assert "--retry-failed tries them again" in planned
    waiting = session_of(tiny).run()
    assert waiting.computed == []
    assert "--retry-failed" in next(iter(waiting.failed.values()))
    plug_in("defenses", raises_in_fit="wayward_defenses:Harmless")
    retried = session_of(tiny, retry_failed=True)
    assert retried.run().failed == {}
    assert leaderboard(retried)["status"].tolist() == ["ok"]


def test_smoke_rows_enter_no_table(tiny, session_of):
    session = session_of(tiny, limit_steps=1, defenses=("mahalanobis",), attacks=("none",))
    session.run()
    assert session.results.name == "tiny-smoke"
    assert leaderboard(session).empty
    cell = session.results / "cells" / session.cells[0].key / "cell.json"
    assert json.loads(cell.read_text())["smoke"] is True


def test_missing_library_makes_a_skipped_row(tiny, warm_session_of, plug_in, monkeypatch):
    plug_in("defenses", harmless="wayward_defenses:Harmless")
    component = registry.load("defenses", "harmless")
    monkeypatch.setattr(component, "needs_packages", ("no_such_library",))
    tiny["matrix"] = {"attacks": ["none"], "defenses": ["harmless", "mahalanobis"]}
    session = warm_session_of(tiny)
    assert session.run().failed == {}
    row = leaderboard(session).set_index("defense").loc["harmless"]
    assert (row["status"], row["auroc"]) == ("skipped", "")
    assert "pip install no_such_library" in row["reason"]


def test_no_artifact_or_result_is_a_pickle(tiny_run):
    """Invariant 10, on every file that a run writes (npz is a zip of plain arrays)."""
    suffixes = set()
    files = [*tiny_run.store.root.rglob("*"), *tiny_run.results.rglob("*")]
    for path in (path for path in files if path.is_file()):
        suffixes.add(path.suffix)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                assert all(arrays[name].dtype != object for name in arrays.files)
        elif path.suffix not in (".png", ".pdf"):
            assert not path.read_bytes().startswith(PICKLE_MARKS), path
    assert suffixes <= {
        ".safetensors", ".parquet", ".json", ".npz", ".csv", ".md", ".tex", ".html", ".png",
        ".pdf", ".lock",
    }  # fmt: skip


def test_source_code_writes_and_reads_no_pickle():
    root = Path(bench.__file__).parents[1]
    banned = (
        "pickle.dump",
        "pickle.load",
        "weights_only=False",
        "allow_pickle=True",
        "torch.save",
    )
    for folder in ("bench", "attacks", "defenses"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text()
            assert not [word for word in banned if word in text], path


def test_a_run_that_asked_for_another_machine_would_be_found(reached_for):
    """All tests are under this guard, the runs in their process among them (invariant 11)."""
    with pytest.raises(OSError, match=r"asked for example\.org"):
        socket.create_connection(("example.org", 80))
    with (
        socket.socket(socket.AF_INET) as there,
        pytest.raises(OSError, match=r"asked for 192\.0\.2\.1"),
    ):
        there.connect(("192.0.2.1", 80))
    assert reached_for == ["example.org", "192.0.2.1"]
    reached_for.clear()


def test_scores_do_not_depend_on_batching_or_order(tiny_run):
    """Invariant 14 through the harness; the contract suite holds every built-in defense to it."""
    workspace = tiny_run.workspace()
    checked = set()
    for cell in tiny_run.cells[len(tiny_run.defenses) :]:
        stage = cell.stage.inputs["victim"]
        fitted = restore(stage, workspace)
        images = evaluation_images(stage, workspace)
        stamps = {"clean": None, "triggered": workspace.trigger(stage.inputs["audit"])}
        bundle = build_bundle(images, images, stamps, seed=0)
        scorer = Scorer(fitted, cell.identity["defense"])
        order = torch.randperm(len(bundle.images), generator=torch.Generator().manual_seed(1))
        whole = scorer.score(bundle.images)
        singly = np.concatenate([scorer.score(bundle.images[i : i + 1]) for i in range(24)])
        shuffled = np.empty_like(whole)
        for part in order.split(13):
            shuffled[part.numpy()] = scorer.score(bundle.images[part])
        np.testing.assert_allclose(shuffled, whole, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(singly, whole[:24], rtol=1e-4, atol=1e-6)
        checked.add(stage.spec["component"]["name"])
    assert checked == {entry.defense for entry in tiny_run.defenses}


def test_fitted_state_scores_as_the_fit_did(tiny_run):
    """A defense restored from the cache, in a new process or not, gives the stored scores."""
    for cell in tiny_run.cells[len(tiny_run.defenses) :]:
        stage, workspace = cell.stage.inputs["victim"], tiny_run.workspace()
        fitted = restore(stage, workspace)
        stored = pd.read_parquet(workspace.folder(stage) / "scores.parquet")
        clean = stored[(stored["split"] == "test") & (stored["condition"] == "clean")]
        images = evaluation_images(stage, workspace).uint8()
        scores = Scorer(fitted, "again").score(images)
        np.testing.assert_allclose(scores, clean["score"].to_numpy(), rtol=1e-4, atol=1e-6)


def test_victim_can_be_loaded_by_path(tiny_run):
    implant = tiny_run.cells[-1].stage.inputs["audit"].inputs["attack"]
    victim = bench.load_victim(tiny_run.store.folder("implant", implant.key))
    image = torch.rand(2, 3, 32, 32)
    assert victim.encoder.embed(victim.trigger(image)).shape == (2, 32)
    assert "loss_effectiveness" in victim.metrics
    with pytest.raises(ValueError, match="holds no victim"):
        bench.load_victim(tiny_run.results)


def test_python_interface_returns_the_leaderboard(tiny_run):
    table = bench.run(tiny_run.file.path)
    assert len(table) == 10
    assert set(table["attack"]) == {"none", "badencoder"}


@pytest.mark.usefixtures("no_plots")
def test_python_interface_takes_what_the_command_line_does(tiny_run, tmp_path):
    table = bench.run(
        str(tiny_run.file.path),
        profile="tiny",
        attacks=["none"],
        defenses=["mahalanobis", "knn-distance"],
        seeds=[0],
        device="cpu",
        results=str(tmp_path / "results"),
        cache=str(tmp_path / "cache"),
    )
    assert sorted(table["defense"]) == ["knn-distance", "mahalanobis"]
    assert set(table["attack"]) == {"none"}
    assert (tmp_path / "results" / "tiny" / "leaderboard.csv").is_file()
    assert list((tmp_path / "cache").glob("pretrain/*/*/encoder.safetensors"))


def test_attack_that_diverges_fails_with_its_reason_and_leaves_no_victim(tiny, session_of):
    tiny["matrix"] = {"attacks": ["badencoder"], "defenses": ["mahalanobis"]}
    tiny["profiles"]["tiny"]["overrides"]["badencoder"]["learning_rate"] = 1e30
    session = session_of(tiny)
    reason = next(iter(session.run().failed.values()))
    assert "implant badencoder on digits, seed 0: FloatingPointError: the attack diverged" in reason
    assert not list(session.store.root.glob("implant/*/*/encoder.safetensors"))
