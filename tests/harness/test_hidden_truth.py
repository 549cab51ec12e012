"""Invariant 2: a defense is given nothing that tells poison from clean. Invariant 3: roles."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from attacks.triggers import PatchTrigger
from bench.api import ImageSet
from bench.cells import CellStore
from bench.data.splits import check_disjoint, permuted_rows
from bench.interface import load_scores
from bench.lineage import role_slices
from bench.stages.bundle import build_bundle

CHEATS = {
    "position_guesser": "wayward_defenses:PositionGuesser",
    "duplicate_matcher": "wayward_defenses:DuplicateMatcher",
    "batch_matcher": "wayward_defenses:BatchMatcher",
}


def test_position_and_duplicates_give_nothing_away(tiny, warm_session_of, plug_in):
    plug_in("defenses", **CHEATS)
    tiny["matrix"] = {"attacks": ["none"], "defenses": [n.replace("_", "-") for n in CHEATS]}
    tiny["profiles"]["tiny"]["test_images"] = 400
    session = warm_session_of(tiny)
    assert session.run().failed == {}
    for cell in session.cells:
        folder = CellStore(session.results).folder / cell.key
        row = json.loads((folder / "cell.json").read_text())["row"]
        for column in ("auroc", "auroc_placebo", "auroc_all"):
            # Three standard errors of an AUROC of 400 against 360.
            assert row[column] == pytest.approx(0.5, abs=0.065), (cell.identity, column)


def images(count: int) -> ImageSet:
    generator = torch.Generator().manual_seed(count)
    storage = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageSet(storage, labels=torch.zeros(count, dtype=torch.int64), class_names=("a",))


def test_no_batch_holds_two_versions_of_one_image():
    trigger = PatchTrigger()
    stamps = {"clean": None, "triggered": trigger, "decoy": trigger.decoys()[0]}
    bundle = build_bundle(images(100), images(30), stamps, seed=0)
    shown = set()
    for chunk in bundle.chunks(32):
        test = bundle.split[chunk] == "test"
        numbers = bundle.image[chunk][test]
        assert len(set(numbers)) == len(numbers)
        shown |= set(zip(numbers, bundle.condition[chunk][test], strict=True))
    assert len(shown) == 300
    assert (bundle.split == "calibration").sum() == 30


def test_order_of_the_test_images_is_seeded_and_mixes_conditions():
    stamps = {"clean": None, "triggered": PatchTrigger()}
    first, again, other = (build_bundle(images(500), images(20), stamps, s) for s in (0, 0, 1))
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)
    place = np.arange(len(first.image))
    clean, triggered = (place[first.condition == c].mean() for c in stamps)
    assert abs(clean - triggered) < 60


def test_wrapped_view_has_no_labels_unless_asked(tiny, warm_session_of, plug_in):
    plug_in("defenses", sees_labels="wayward_defenses:SeesLabels")
    tiny["matrix"] = {"attacks": ["none"], "defenses": ["sees-labels"]}
    failed = warm_session_of(tiny).run().failed
    assert len(failed) == 1
    assert "has no labels" in next(iter(failed.values()))


def test_suspicious_pool_of_the_placebo_holds_the_same_pixels(tiny, warm_session_of, plug_in):
    plug_in("defenses", uses_suspicious="wayward_defenses:UsesSuspicious")
    tiny["matrix"] = {"attacks": ["badencoder"], "defenses": ["uses-suspicious"]}
    tiny["protocol"]["poison_rate"] = 0.1
    session = warm_session_of(tiny)
    assert session.run().failed == {}
    workspace = session.workspace()
    stage = session.cells[0].stage
    victim, twin = (
        workspace.tensors(stage.inputs[role].inputs["fit"], "state.safetensors")["pool"]
        for role in ("victim", "twin")
    )
    assert torch.equal(victim, twin)
    patch = victim[:, :, 21:31, 21:31].flatten(1)
    assert int((patch == 255).all(dim=1).sum()) == 10


def test_roles_are_disjoint_slices_of_one_permutation(tiny_run):
    slices = role_slices(tiny_run.profile.splits)
    rows = {
        role: permuted_rows(1397, {"seed": 0, "start": start, "stop": stop}, "digits")
        for role, (start, stop) in slices.items()
    }
    check_disjoint(rows)
    held_out = {"seed": 0, "start": 0, "stop": slices["validation"][1]}
    pretraining = permuted_rows(1397, {"all_but": held_out}, "digits")
    check_disjoint({"pretraining": pretraining, **{r: rows[r] for r in list(rows)[:2]}})
    for role in ("references", "shadow", "auxiliary", "base", "suspicious"):
        assert set(rows[role].tolist()) <= set(pretraining.tolist())


def test_overlap_of_roles_is_an_error():
    with pytest.raises(ValueError, match="test and shadow share 1 rows"):
        check_disjoint({"shadow": torch.tensor([1, 2]), "test": torch.tensor([2, 3])})
    with pytest.raises(ValueError, match="shadow holds a row twice"):
        check_disjoint({"shadow": torch.tensor([1, 1])})


def test_attacker_and_defender_share_no_image_in_a_real_run(tiny_run):
    """From the artifacts: what the attack trained on against what every defense was given."""
    implant = next(
        cell.stage.inputs["audit"].inputs["attack"]
        for cell in tiny_run.cells
        if cell.identity["attack"] == "badencoder"
    )
    folder = tiny_run.store.folder("implant", implant.key)
    roles = json.loads((folder / "victim.json").read_text())
    fit = tiny_run.cells[0].stage.inputs["victim"].inputs["fit"]
    auxiliary = permuted_rows(1397, fit.spec["auxiliary"]["rows"], "digits")
    assert len(roles["shadow"]) == 100
    assert len(roles["references"]) == 3
    check_disjoint(
        {
            "shadow": torch.tensor(roles["shadow"]),
            "references": torch.tensor(roles["references"]),
            "auxiliary": auxiliary,
        }
    )


def test_placebo_column_is_the_score_of_the_clean_twin(tiny_run):
    """The same triggered images score differently on victim and twin, and both are stored."""
    cell = next(c for c in tiny_run.cells if c.identity["attack"] == "badencoder")
    frame = load_scores(CellStore(tiny_run.results).folder / cell.key)
    counts = frame.groupby(["encoder", "split", "condition"], observed=True).size()
    for role in ("victim", "twin"):
        assert counts[role, "test", "clean"] == counts[role, "test", "triggered"] == 80
        assert counts[role, "calibration", "clean"] == 60
        assert counts[role, "auxiliary", "clean"] == 10
