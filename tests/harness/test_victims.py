"""Bring your own victim: an encoder file and a trigger become a row like any other."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from experiment import TINY
from PIL import Image

import bench
from attacks._trigger_files import KINDS
from attacks.triggers import parse_trigger
from bench.config import VictimEntry
from bench.configfile import ConfigFile
from bench.encoders.architectures import (
    ARCHITECTURES,
    CIFAR_MEAN,
    CIFAR_STD,
    SimCLR,
    build,
    projector,
)
from bench.encoders.encoder import Encoder
from bench.executors.inline import Outcome
from bench.session import Selection, Session

WIDTH = 8
NETWORK = {"architecture": "resnet-narrow", "settings": {"width": WIDTH, "stem_stride": 2}}
PATCH = {"kind": "patch", "size": 10, "row": 21, "column": 21}
COSTS = {"fit_seconds", "score_ms_per_image", "peak_memory_mb"}
TWIN_COLUMNS = [
    "auroc_placebo",
    "auroc_delta",
    "auroc_delta_low",
    "auroc_delta_high",
    "auroc_vs_decoy_placebo",
    "clean_accuracy_twin",
    "attack_success_rate_twin",
    "encoder_score_twin",
]


def experiment(*attacks: Any, defenses: tuple[str, ...] = ("knn-distance",)) -> dict[str, Any]:
    """The tiny experiment with a BadEncoder that works."""
    content = copy.deepcopy(TINY)
    content["matrix"] = {"attacks": copy.deepcopy(list(attacks)), "defenses": list(defenses)}
    content["datasets"]["noise"] = {"source": "folder", "path": "noise"}
    profile = content["profiles"]["tiny"]
    profile["encoder"] = copy.deepcopy(NETWORK)
    profile["pretraining"]["epochs"] = 3
    profile["probe"] |= {"epochs": 8, "learning_rate": 0.003, "batch_size": 64}
    profile["probe"]["max_train_images"] = 800
    profile["overrides"]["badencoder"] |= {"epochs": 7, "batch_size": 16, "learning_rate": 0.1}
    return content


class Workshop(NamedTuple):
    """A folder with a cache, results and encoder files that the tests of this module share."""

    folder: Path

    def session(self, content: dict[str, Any], name: str = "bench.yaml", **selection) -> Session:
        path = self.folder / name
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return Session(ConfigFile(path), Selection(**selection))

    def victim(self, label: str, source: str, **more: Any) -> dict[str, Any]:
        return {"from": source, "label": label, **more}


def unrendered(session: Session) -> Outcome:
    """Run without drawing plots, which take longer than everything else here."""
    session.render = lambda: None
    return session.run()


def rows(session: Session) -> dict[tuple[str, str], dict[str, Any]]:
    """(attack, defense) -> the stored row."""
    found = {}
    for cell in session.cells:
        row = json.loads((session.results / "cells" / cell.key / "cell.json").read_text())["row"]
        found[row["attack"], row["defense"]] = row
    return found


def published(encoder: Encoder) -> dict[str, Any]:
    """A checkpoint as the SimCLR code writes it: encoder ``f``, projector ``g``, epoch."""
    model = SimCLR(encoder.network, projector(encoder.embedding_dim))
    return {"epoch": 1000, "state_dict": model.state_dict()}


def write_noise(folder: Path) -> None:
    """Pictures that show nothing, in two classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 130), ("test", 60)):
        for label in ("heads", "tails"):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workshop, dict]:
    """The shared folder after a BadEncoder run: ``victim`` and ``twin`` are its stages' folders,
    the ``.pth`` files the same encoders as published ones. And the row of that run."""
    shop = Workshop(tmp_path_factory.mktemp("victims"))
    session = shop.session(experiment("badencoder"), results=shop.folder / "origin")
    assert unrendered(session).failed == {}
    attack = session.cells[0].stage.inputs["audit"].inputs["attack"]
    for name, stage in (("victim", attack), ("twin", attack.inputs["encoder"])):
        shutil.copytree(session.store.folder(stage.kind, stage.key), shop.folder / name)
        encoder = Encoder.load(shop.folder / name / "encoder.safetensors")
        torch.save(published(encoder), shop.folder / f"{name}.pth")
    write_noise(shop.folder / "noise")
    return shop, rows(session)["badencoder", "knn-distance"]


def template_clip(folder: Path) -> None:
    clip = TINY["profiles"]["tiny"]["clip"]["encoder"]
    generator = torch.Generator().manual_seed(0)
    encoder = Encoder.initialise(clip["architecture"], clip["settings"], generator=generator)
    encoder.save(folder / "clip.safetensors")


@pytest.fixture(scope="module")
def imported(origin: tuple[Workshop, dict]) -> tuple[Session, dict]:
    """One run over victims of every origin, and its rows."""
    shop, _ = origin
    template_clip(shop.folder)
    torch.manual_seed(1)
    blank = {"architecture": "resnet-narrow", "settings": {"width": 4, "stem_stride": 2}}
    torch.save(
        build("resnet-narrow", width=4, stem_stride=2).state_dict(), shop.folder / "blank.pt"
    )
    marks = {"trigger": PATCH, "target": 0}
    statistics = {"mean": list(CIFAR_MEAN), "std": list(CIFAR_STD)}
    content = experiment(
        shop.victim("folder", "victim", clean_twin="twin"),
        shop.victim("alone", "victim"),
        shop.victim("pth", "victim.pth", clean_twin="twin.pth", **NETWORK, **statistics, **marks),
        shop.victim("hazy", "victim.pth", clean_twin="twin.pth", **NETWORK, **marks, std=[1e3] * 3),
        shop.victim("blank", "blank.pt", **blank, **marks, downstream="noise"),
        shop.victim("clip", "clip.safetensors", **marks),
    )
    session = shop.session(content)
    outcome = unrendered(session)
    assert outcome.failed == {}
    return session, {attack: row for (attack, _), row in rows(session).items()}


@pytest.mark.parametrize("kind", ["folder", "pth"])
def test_imported_victim_and_twin_give_the_row_of_the_attack_that_made_them(origin, imported, kind):
    """By artifact folder, and as a published checkpoint with the rest told by the entry."""
    ours, original = imported[1][kind], origin[1]
    assert original["attack_success_rate"] > 0.8
    own = {"attack", "key", "encoder", *COSTS}
    assert ours["encoder"] == f"{original['encoder']}, imported"
    assert {name: ours[name] for name in ours if name not in own} == {
        name: original[name] for name in original if name not in own
    }


def test_victim_without_a_twin_is_uncontrolled_and_has_no_control_columns(origin, imported):
    row, original = imported[1]["alone"], origin[1]
    assert row["status"] == "uncontrolled"
    assert "there is no clean twin to compare with" in row["reason"]
    assert [row[name] for name in TWIN_COLUMNS] == [None] * len(TWIN_COLUMNS)
    for name in ("auroc", "auroc_low", "auroc_decoy", "auroc_vs_decoy", "attack_success_rate"):
        assert row[name] == original[name]


def test_tables_and_plots_show_an_uncontrolled_row_outside_the_averages(origin, imported):
    shop = origin[0]
    session = shop.session(experiment(shop.victim("alone", "victim")), "alone.yaml")
    assert session.run().computed == []
    table = pd.read_csv(session.results / "leaderboard.csv").set_index("attack")
    assert table.loc["alone", "status"] == "uncontrolled"
    assert table.loc["alone", TWIN_COLUMNS].isna().all()
    for name in ("leaderboard.md", "leaderboard.tex", "leaderboard.html"):
        text = (session.results / name).read_text()
        assert "Uncontrolled: an imported victim that came without a clean twin" in text
    assert (session.results / "plots" / "heatmap.png").is_file()
    assert (session.results / "plots" / "roc_alone.png").is_file()
    averages = pd.read_csv(session.results / "tables" / "summary.csv")
    assert averages.loc[0, "n_attacks"] == 0
    measured = pd.read_csv(session.results / "tables" / "downstream.csv")
    assert set(measured.loc[measured["attack"] == "alone", "measured_on"]) == {"victim", "none"}


def test_wrong_normalisation_is_told_in_the_row_of_victim_and_twin(imported):
    reason = imported[1]["hazy"]["reason"]
    assert "The import looks wrong: embeddings hardly differ" in reason
    assert "The clean twin's import looks wrong: embeddings hardly differ" in reason
    assert "is the normalisation right?" in reason
    assert "looks wrong" not in imported[1]["folder"]["reason"]


def test_encoder_that_sees_nothing_is_told_in_the_row(imported):
    row = imported[1]["blank"]
    assert row["downstream"] == "noise"
    assert "The import looks wrong: kNN accuracy 0." in row["reason"]
    assert "is near chance (0.500): check architecture, mean and std." in row["reason"]


def test_clip_victim_is_read_by_zero_shot(imported):
    session, found = imported
    row = found["clip"]
    assert (row["probe"], row["encoder"]) == ("zero-shot", "template-clip, imported")
    cell = json.loads((session.results / "cells" / row["key"] / "cell.json").read_text())
    assert {"zero-shot", "linear", "knn"} <= {entry["probe"] for entry in cell["downstream"]}


def test_second_run_computes_nothing(origin, imported):
    shop, session = origin[0], imported[0]
    content = yaml.safe_load(session.file.path.read_text())
    assert unrendered(shop.session(content)).computed == []


def spoilt(change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    """A published encoder whose last batch norm went wrong."""
    torch.manual_seed(0)
    state = build("resnet-narrow", **NETWORK["settings"]).state_dict()
    for name in ("f.6.0.bn2.weight", "f.6.0.downsample.1.weight"):
        state[name] = change(state[name])
    return state


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (torch.zeros_like, "every image has the same embedding"),
        (lambda value: value * float("nan"), "embeddings are not finite"),
    ],
    ids=["constant", "nan"],
)
def test_encoder_that_can_mean_nothing_fails_its_cells_before_anything_is_fitted(
    origin, tmp_path, change, sentence
):
    shop, _ = origin
    torch.save(spoilt(change), tmp_path / "spoilt.pth")
    entry = shop.victim(
        "spoilt",
        str(tmp_path / "spoilt.pth"),
        clean_twin="twin.pth",
        trigger=PATCH,
        target=0,
        **NETWORK,
    )
    session = shop.session(
        experiment(entry, defenses=("knn-distance", "mahalanobis")), "spoilt.yaml"
    )
    outcome = unrendered(session)
    for defense in ("knn-distance", "mahalanobis"):
        row = rows(session)["spoilt", defense]
        assert row["status"] == "failed"
        assert row["reason"].startswith("import resnet-narrow: ")
        assert sentence in row["reason"]
    # Not even on the clean twin, whose fits nobody is left to use.
    begun = {label.split()[0] for label in (*outcome.computed, *outcome.cached)}
    assert begun.isdisjoint({"fit", "probe", "audit", "score", "evaluate"})


def keys_of(shop: Workshop, entry: dict[str, Any]) -> list[str]:
    return [cell.key for cell in shop.session(experiment(entry), "keys.yaml").cells]


def test_key_follows_the_content_of_the_files_and_not_their_path(origin, tmp_path):
    shop, _ = origin
    copied, changed = tmp_path / "elsewhere", tmp_path / "changed.safetensors"
    shutil.copytree(shop.folder / "victim", copied / "moved")
    shutil.copytree(shop.folder / "twin", copied / "moved twin")
    first = keys_of(shop, shop.victim("x", "victim", clean_twin="twin"))
    moved = {"clean_twin": str(copied / "moved twin")}
    assert keys_of(shop, shop.victim("x", str(copied / "moved"), **moved)) == first
    file = copied / "moved" / "encoder.safetensors"
    marks = {"trigger": PATCH, "target": 0}
    assert keys_of(shop, shop.victim("x", str(file), **marks, **moved)) == first

    encoder = Encoder.load(file)
    with torch.no_grad():
        next(encoder.network.parameters()).add_(1e-3)
    encoder.save(changed)
    others = [
        shop.victim("x", str(changed), clean_twin="twin", **marks),
        shop.victim("x", "victim", clean_twin=str(changed)),
        shop.victim("x", "victim"),
        shop.victim("x", "victim", clean_twin="twin", target=1),
        shop.victim("x", "victim", clean_twin="twin", trigger={**PATCH, "row": 1}),
    ]
    assert len({tuple(first), *(tuple(keys_of(shop, entry)) for entry in others)}) == 6


def test_imported_victim_can_be_loaded_by_path_like_one_of_ours(origin, imported):
    session = imported[0]
    stage = session.cells[0].stage.inputs["audit"].inputs["attack"]
    assert stage.kind == "import"
    victim = bench.load_victim(session.store.folder("import", stage.key))
    original = bench.load_victim(origin[0].folder / "victim")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(
        victim.encoder.embed(victim.trigger(images)),
        original.encoder.embed(original.trigger(images)),
    )
    assert victim.metrics["smoke_chance"] < 0.2


def test_encoder_of_larger_images_is_judged_on_the_data_sets_of_that_size(tmp_path):
    """As DECREE's CLIP tower, which has no text side, meets the 224-pixel sets of `clip`."""
    content = experiment(
        {
            "from": "tower.safetensors",
            "label": "tower",
            "trigger": {"kind": "blended", "seed": 1},
            "target": 3,
        }
    )
    content["datasets"]["large"] = {"source": "digits", "image_size": 48}
    content["datasets"]["large photographs"] = {"source": "photographs", "image_size": 48}
    content["profiles"]["tiny"]["clip"] |= {
        "dataset": "large",
        "out_of_distribution": "large photographs",
        "downstreams": [{"dataset": "large", "target": 0}],
    }
    tower = Encoder.initialise(
        "resnet-narrow", {"width": 4}, generator=torch.Generator(), image_size=48
    )
    tower.save(tmp_path / "tower.safetensors")
    session = Workshop(tmp_path).session(content)
    row = session.planner.row(session.attacks[0])
    assert (row.family.name, row.downstreams[0].dataset) == ("clip", "large")
    assert session.cells[0].stage.spec["probes"] == ["mlp", "knn"]


def test_entries_triggers_and_architectures_of_the_documentation_are_valid():
    text = (Path(__file__).parents[2] / "docs" / "victims.md").read_text()
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1)
    written = [VictimEntry.model_validate(e) for e in yaml.safe_load(block)["matrix"]["attacks"]]
    assert [entry.label for entry in written] == ["my-victim", "published"]
    triggers = [yaml.safe_load(found) for found in re.findall(r"`(\{kind: .*?\})`", text)]
    assert {trigger["kind"] for trigger in triggers} == set(KINDS)
    for trigger in triggers:
        if "file" not in trigger:
            assert parse_trigger(trigger, 32, Path()).support(32).any()
    table = text.split("## Published checkpoints")[1].split("##")[0]
    for architecture in re.findall(r"^\|[^|]+\| `(.+?)` \|", table, re.MULTILINE)[1:]:
        assert architecture in ARCHITECTURES
