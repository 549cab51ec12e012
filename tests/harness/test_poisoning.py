"""Poisoned training sets from attack to row: whose images, which twin, what a victim leaves."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from experiment import TINY

import bench
from bench.api import DefenderView, Defense
from bench.configfile import ConfigFile
from bench.data.splits import check_disjoint, permuted_rows
from bench.encoders.contrastive import ClipRecipe
from bench.errors import InputError
from bench.graph import Stage, topological
from bench.lineage import Pair, role_slices
from bench.report.leaderboard import leaderboard
from bench.report.schema import load_results
from bench.session import Session
from bench.stages import COMPUTE
from bench.stages.poisoning import poisoned
from bench.workspace import Workspace

SSL, CLIP = ("sslbkd", "ctrl"), ("clip-backdoor", "badclip")
POISONERS = (*SSL, *CLIP)
ATTACKS = ("none", "badencoder", "drupe", *POISONERS)


class ReadsText(Defense):
    """Distance of an image to the caption of an empty room."""

    requires = frozenset({"text"})

    def fit(self, view: DefenderView) -> None:
        self._encoder = view.encoder
        self._text = view.encoder.text.encode_text(["an empty room"])

    def score(self, images: torch.Tensor) -> torch.Tensor:
        return -(self._encoder.embed(images) @ self._text.T).squeeze(1)


def experiment(*attacks: str, defenses: tuple[str, ...] = ("knn-distance",)) -> dict[str, Any]:
    content = copy.deepcopy(TINY)
    content["matrix"] = {"attacks": list(attacks), "defenses": list(defenses)}
    profile = content["profiles"]["tiny"]
    profile["pretraining"]["batch_size"] = 256
    profile["probe"]["max_train_images"] = 200
    return content


def overrides(content: dict[str, Any], attack: str) -> dict[str, Any]:
    return content["profiles"]["tiny"]["overrides"].setdefault(attack, {})


def rows_of(session: Session) -> pd.DataFrame:
    """The leaderboard of a run, by attack and defense; without plots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "render", lambda self: None)
        session.run()
    table = leaderboard(load_results(session.results))
    return table.set_index(["attack", "defense"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, pd.DataFrame]:
    """Every attack once, with its leaderboard. Read only."""
    path = tmp_path_factory.mktemp("poisoning") / "bench.yaml"
    path.write_text(yaml.safe_dump(experiment(*ATTACKS), sort_keys=False))
    session = Session(ConfigFile(path))
    return session, rows_of(session)


@pytest.fixture
def sharing(run, session_of) -> Callable[..., Session]:
    """A session of another experiment that finds what ``run`` has computed."""

    def make(content: dict[str, Any], **selection: Any) -> Session:
        return session_of(content, **{"cache": run[0].store.root, **selection})

    return make


def pair(session: Session, attack: str, seed: int = 0) -> Pair:
    entry = next(e for e in session.file.config.matrix.attacks if e.label == attack)
    row = session.planner.row(entry)
    return session.planner.pair(row, row.downstreams[0], seed)


def poison_stage(session: Session, attack: str, seed: int = 0) -> Stage:
    return pair(session, attack, seed).victim.inputs["poison"]


def compute(session: Session, *stages: Stage) -> Workspace:
    """Compute ``stages`` and what they need, scores and tables aside."""
    session.set_up_torch()
    workspace, store = session.workspace(), session.store
    for stage in topological(stages):
        if not store.has(stage.kind, stage.key):
            with store.writing(stage.kind, stage.key) as folder:
                COMPUTE[stage.kind](stage, workspace, folder)
    return workspace


def artifact(session: Session, stage: Stage) -> Path:
    return session.store.folder(stage.kind, stage.key)


def encoder_bytes(session: Session, stage: Stage) -> bytes:
    return (artifact(session, stage) / "encoder.safetensors").read_bytes()


def manifest(session: Session, stage: Stage) -> dict[str, Any]:
    return json.loads((artifact(session, stage) / "poisoned.json").read_text())


def test_every_attack_runs_and_is_a_row(run):
    _, table = run
    assert set(table.index.get_level_values("attack")) == set(ATTACKS)
    assert not table["status"].isin(["failed", "skipped"]).any(), table["reason"].tolist()


def test_rows_of_clip_attacks_are_read_out_zero_shot_from_a_template_clip(run):
    table = run[1].droplevel("defense")
    assert set(table.loc[list(CLIP), "probe"]) == {"zero-shot"}
    assert set(table.loc[list(CLIP), "encoder"]) == {"template-clip"}
    others = [attack for attack in ATTACKS if attack not in CLIP]
    assert set(table.loc[others, "probe"]) == {"mlp"}
    assert set(table.loc[others, "encoder"]) == {"resnet-narrow"}


@pytest.mark.parametrize("attack", POISONERS)
def test_poisoned_rows_are_the_attackers_and_of_no_other_role(run, attack):
    session, _ = run
    stage = poison_stage(session, attack)
    about = manifest(session, stage)
    roles = {
        role: permuted_rows(1397, {"seed": 0, "start": start, "stop": stop}, "digits")
        for role, (start, stop) in role_slices(session.profile.splits).items()
    }
    shadow = roles.pop("shadow")
    touched = torch.tensor(about["poisoned"])
    assert set(touched.tolist()) <= set(shadow.tolist())
    check_disjoint({"poisoned": touched, **roles})
    # Images are tested on another split than the one that is poisoned.
    audit = next(c.stage.inputs["audit"] for c in session.cells if c.identity["attack"] == attack)
    splits = [stage.inputs["train"].spec["split"], audit.inputs["test"].spec["split"]]
    assert splits == ["train", "test"]


@pytest.mark.parametrize(
    ("attack", "count"), [("sslbkd", 6), ("ctrl", 6), *((a, 25) for a in CLIP)]
)
def test_manifest_says_how_many_images_of_which_class_and_their_captions(run, attack, count):
    session, _ = run
    about = manifest(session, poison_stage(session, attack))
    assert about["training_images"] == 1397 - 120
    assert (about["target"], about["class_name"]) == (0, "0")
    assert len(about["poisoned"]) == len(about["labels"]) == count
    if attack in SSL:
        assert set(about["labels"]) == {0}
        assert about["captions"] is None
    else:
        assert 0 not in about["labels"]
        assert len(about["captions"]) == count
        assert all("0" in caption for caption in about["captions"])


@pytest.mark.parametrize("attack", POISONERS)
def test_victim_is_trained_on_the_clean_set_but_for_the_poisoned_images(run, attack):
    session, _ = run
    workspace, stage = session.workspace(), poison_stage(session, attack)
    whole = workspace.images(stage.inputs["train"])
    train = whole.select(permuted_rows(1397, {"all_but": stage.spec["held_out"]}, "digits"))
    changed = poisoned(train, None, None, None, stage, workspace)[0]
    hit = torch.isin(train.rows, torch.tensor(manifest(session, stage)["poisoned"]))
    clean, stamped = train.uint8(), changed.uint8()
    assert torch.equal(stamped[~hit], clean[~hit])
    trigger = workspace.trigger(stage)
    expected = trigger(clean[hit].float() / 255).mul(255).round().to(torch.uint8)
    assert torch.equal(stamped[hit], expected)
    assert (stamped[hit] != clean[hit]).flatten(1).any(1).all()


def test_same_seed_gives_the_same_poisoned_bytes_from_a_cold_cache(run, session_of, tmp_path):
    warm, _ = run
    cold = session_of(experiment(*POISONERS), cache=tmp_path / "cold")
    stages = [poison_stage(cold, attack) for attack in POISONERS]
    compute(cold, *stages)
    for stage in stages:
        ours, theirs = (artifact(session, stage) for session in (cold, warm))
        names = {path.name for path in ours.iterdir()} - {"cost.json"}
        assert {"poison.safetensors", "poisoned.json", "triggers.json"} <= names
        for name in names:
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), (stage.label, name)


def test_another_seed_changes_what_is_drawn_and_nothing_else(run, sharing):
    session, _ = run
    other = sharing(experiment(*POISONERS), seeds=(1,))
    compute(other, *(poison_stage(other, attack, seed=1) for attack in POISONERS))
    for attack in POISONERS:
        zero, one = poison_stage(session, attack), poison_stage(session, attack, seed=1)
        assert zero.key != one.key
        first, second = manifest(session, zero), manifest(other, one)
        drawn = {"poisoned", "labels", "captions"}
        assert all(first[name] == second[name] for name in first.keys() - drawn)
        # The first images of the class are no draw; pairs and captions are.
        assert (first["poisoned"] == second["poisoned"]) == (attack in SSL)
        assert (first["captions"] == second["captions"]) == (attack in SSL)


@pytest.mark.parametrize("attack", ["sslbkd", "ctrl", "clip-backdoor"])
def test_rate_zero_gives_the_clean_set_and_the_bytes_of_the_twin(sharing, attack):
    content = experiment(attack)
    overrides(content, attack)["poison_rate"] = 0
    session = sharing(content)
    both = pair(session, attack)
    workspace = compute(session, both.victim, both.twin)
    stage = both.victim.inputs["poison"]
    train = workspace.images(stage.inputs["train"]).select(torch.arange(1277))
    captions = [str(row) for row in range(1277)]
    changed = poisoned(train, captions, train.labels, None, stage, workspace)
    assert torch.equal(changed[0].uint8(), train.uint8())
    assert changed[1] == captions
    assert torch.equal(changed[2], train.labels)
    assert both.victim.key != both.twin.key
    assert encoder_bytes(session, both.victim) == encoder_bytes(session, both.twin)


def test_poisoning_changes_the_victim(run):
    session, _ = run
    for attack in POISONERS:
        both = pair(session, attack)
        assert encoder_bytes(session, both.victim) != encoder_bytes(session, both.twin), attack


def test_twin_of_an_attack_without_a_recipe_is_the_clean_encoder_of_the_profile(run):
    session, _ = run
    clean = session.planner.lineage.clean(session.profile.families()["ssl"], 0)
    assert pair(session, "sslbkd").twin.key == clean.key
    assert pair(session, "badencoder").twin.key == clean.key
    assert pair(session, "ctrl").twin.key != clean.key


def test_clip_attacks_with_equal_recipes_share_their_twin(run, session_of):
    session, _ = run
    assert pair(session, "clip-backdoor").twin.key != pair(session, "badclip").twin.key
    content = experiment(*CLIP)
    recipe = ClipRecipe(epochs=2, warmup_epochs=0).parameters()
    recipe["betas"] = list(recipe["betas"])
    for attack in CLIP:
        overrides(content, attack)["recipe"] = recipe
    equal = session_of(content)
    first, second = (pair(equal, attack) for attack in CLIP)
    assert first.twin.key == second.twin.key
    assert first.victim.key != second.victim.key


@pytest.mark.parametrize("attack", ["badencoder", *POISONERS])
def test_folder_of_a_victim_says_what_was_done_and_can_be_loaded(run, attack):
    session, _ = run
    both = pair(session, attack)
    folder = artifact(session, both.victim)
    names = {path.name for path in folder.iterdir()}
    assert {"encoder.safetensors", "triggers.json", "victim.json", "metrics.json"} <= names
    about = json.loads((folder / "victim.json").read_text())
    assert about["clean_twin"] == both.twin.key
    assert (about["attack"]["name"], about["target"], about["seed"]) == (attack, 0, 0)
    if attack in POISONERS:
        assert about["poisoned"] == manifest(session, both.victim.inputs["poison"])["poisoned"]
    else:
        assert (about["poisoned"], len(about["shadow"])) == ([], 100)
    victim = bench.load_victim(folder)
    images = torch.rand(2, 3, 32, 32)
    assert victim.encoder.embed(victim.trigger(images)).shape == (2, 16 if attack in CLIP else 32)
    assert (victim.encoder.text is not None) == (attack in CLIP)
    assert (victim.encoder.std == (1.0, 1.0, 1.0)) == (attack == "ctrl")
    assert ("patch_triplet" in victim.metrics) == (attack == "badclip")
    assert ("loss_last" in victim.metrics) == (attack in POISONERS)


def test_folder_of_a_twin_is_no_victims(run):
    session, _ = run
    with pytest.raises(InputError, match="it has no trigger"):
        bench.load_victim(artifact(session, pair(session, "ctrl").twin))


@pytest.mark.parametrize("attack", ["ctrl", *CLIP])
def test_recipe_has_no_say_in_the_poison_and_the_rate_none_in_the_twin(run, session_of, attack):
    session, _ = run
    before = pair(session, attack)
    content = experiment(*ATTACKS)
    overrides(content, attack)["recipe"]["learning_rate"] = 0.0123
    after = pair(session_of(content), attack)
    assert after.victim.inputs["poison"].key == before.victim.inputs["poison"].key
    assert after.victim.key != before.victim.key
    assert after.twin.key != before.twin.key
    content = experiment(*ATTACKS)
    overrides(content, attack)["poison_rate"] = 0.001
    after = pair(session_of(content), attack)
    assert after.victim.inputs["poison"].key != before.victim.inputs["poison"].key
    assert after.twin.key == before.twin.key


WAYWARD = {
    "touches_others": ("TouchesOthers", "changed rows that are not the attacker's"),
    "touches_twice": ("TouchesTwice", "or one twice"),
    "returns_floats": ("ReturnsFloats", "must return uint8 images (3, 3, 32, 32), got torch.float"),
    "returns_one_image": ("ReturnsOneImage", "must return uint8 images (3, 3, 32, 32), got"),
    "returns_one_caption": ("ReturnsOneCaption", "returned 1 captions for 3 rows"),
}


def test_attack_that_breaks_its_contract_fails_its_own_cell_with_a_sentence(sharing, plug_in):
    plug_in("attacks", **{k: f"wayward_attacks:{name}" for k, (name, _) in WAYWARD.items()})
    session = sharing(experiment(*(name.replace("_", "-") for name in WAYWARD), "none"))
    table = rows_of(session).droplevel("defense")
    assert table.loc["none", "status"] == "ok"
    for name, (kind, message) in WAYWARD.items():
        row = table.loc[name.replace("_", "-")]
        assert row["status"] == "failed"
        assert f"ValueError: {kind}.poison" in row["reason"]
        assert message in row["reason"]
        assert pd.isna(row["auroc"])


def test_clip_attack_in_a_profile_without_clip_is_skipped_with_the_reason(sharing):
    content = experiment("clip-backdoor", "none")
    del content["profiles"]["tiny"]["clip"]
    # More than there are images: what is skipped is not checked either.
    overrides(content, "clip-backdoor")["recipe"]["batch_size"] = 5000
    table = rows_of(sharing(content)).droplevel("defense")
    assert table["status"].to_dict() == {"clip-backdoor": "skipped", "none": "ok"}
    reason = table.loc["clip-backdoor", "reason"]
    assert reason == "clip-backdoor needs a CLIP model, and the profile has no `clip`"


def test_clip_attack_on_an_encoder_without_text_is_skipped_with_the_reason(sharing):
    content = experiment(*CLIP, "none")
    content["profiles"]["tiny"]["clip"]["encoder"] = {
        "architecture": "resnet-narrow",
        "settings": {"width": 4},
    }
    table = rows_of(sharing(content)).droplevel("defense")
    for attack in CLIP:
        assert table.loc[attack, "status"] == "skipped"
        assert table.loc[attack, "reason"] == (
            f"{attack} trains images with captions, and resnet-narrow has no text tower"
        )
    assert table.loc["none", "status"] == "ok"


def test_defense_that_requires_text_runs_on_clip_rows_alone(sharing, plug_in):
    plug_in("defenses", reads_text="test_poisoning:ReadsText")
    table = rows_of(sharing(experiment("sslbkd", "clip-backdoor", defenses=("reads-text",))))
    table = table.droplevel("defense")
    assert table.loc["sslbkd", "status"] == "skipped"
    assert table.loc["sslbkd", "reason"] == (
        "reads-text requires a text tower, which resnet-narrow has not"
    )
    assert table.loc["clip-backdoor", "status"] not in ("skipped", "failed")
    assert 0 <= float(table.loc["clip-backdoor", "auroc"]) <= 1


def test_poisoned_pretraining_is_not_judged_on_another_set(session_of):
    content = experiment("badencoder", "sslbkd", "ctrl")
    content["datasets"]["other-digits"] = {"source": "digits"}
    downstreams = content["profiles"]["tiny"]["downstreams"]
    downstreams.append({"dataset": "other-digits", "target": 1})
    skips = {
        (cell.identity["attack"], cell.identity["downstream"]): cell.skip
        for cell in session_of(content).cells
    }
    assert skips["badencoder", "other-digits"] is None
    for attack in SSL:
        assert skips[attack, "digits"] is None
        assert skips[attack, "other-digits"] == (
            f"{attack} takes its target class from the pretraining set digits, not from "
            "other-digits"
        )


@pytest.mark.parametrize(
    ("attack", "kind"), [("ctrl", "target class"), ("clip-backdoor", "other classes")]
)
def test_rate_above_what_the_attacker_has_is_an_error_of_the_file(session_of, attack, kind):
    content = experiment(attack)
    overrides(content, attack)["poison_rate"] = 0.5
    with pytest.raises(
        InputError,
        match=rf"bench\.yaml:\d+: profiles\.tiny\.overrides\.{attack}\.poison_rate: "
        rf"poison_rate 0\.5 of 1277 training images is 638; among the attacker's images \d+ are "
        rf"of the {kind}",
    ):
        session_of(content).run()
