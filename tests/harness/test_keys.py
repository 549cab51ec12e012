"""Key = content (invariant 9) and common random numbers (invariant 13)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from bench.data.embedded import Digits
from bench.errors import InputError
from bench.graph import Stage, topological
from bench.workspace import generator_for


def keys(session) -> dict[str, set[str]]:
    """Stage kind -> keys."""
    found: dict[str, set[str]] = {}
    for stage in topological([cell.stage for cell in session.cells]):
        found.setdefault(stage.kind, set()).add(stage.key)
    return found


def reversed_keys(value: Any) -> Any:
    """The same mapping with every dictionary written in the opposite order."""
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


def test_shuffled_configuration_gives_the_same_keys(tiny, session_of):
    original = keys(session_of(tiny))
    shuffled = reversed_keys(tiny)
    shuffled["matrix"]["attacks"] = shuffled["matrix"]["attacks"][::-1]
    shuffled["matrix"]["defenses"] = shuffled["matrix"]["defenses"][::-1]
    assert keys(session_of(shuffled)) == original


def test_default_written_out_gives_the_same_keys(tiny, session_of):
    original = keys(session_of(tiny))
    tiny["profiles"]["tiny"]["overrides"]["badencoder"]["lambda1"] = 1.0
    tiny["protocol"]["split_seed"] = 0
    assert keys(session_of(tiny)) == original


def test_seeds_may_share_what_is_trained_from_scratch(tiny, session_of):
    """As with seed 0, and apart from it everything else: attacks, defenses, audits."""
    tiny["matrix"]["attacks"].append("sslbkd")
    tiny["profiles"]["tiny"]["seeds"] = [0]
    alone = keys(session_of(tiny))
    tiny["profiles"]["tiny"]["seeds"] = [0, 1]
    apart = keys(session_of(tiny))
    tiny["profiles"]["tiny"]["pretraining_seed"] = 0
    shared = keys(session_of(tiny))
    assert shared["pretrain"] == alone["pretrain"] < apart["pretrain"]
    assert shared["poison"] == alone["poison"] < apart["poison"]
    for kind in ("implant", "fit", "score", "evaluate"):
        assert alone[kind] < shared[kind]
        assert len(shared[kind]) == len(apart[kind])


def test_some_seeds_may_share_a_pretraining_and_others_have_their_own(tiny, session_of):
    profile = tiny["profiles"]["tiny"]
    found = {}
    for seeds, shared in (([0, 1], 0), ([2], None), ([0, 1, 2], {1: 0})):
        profile.update(seeds=seeds, pretraining_seed=shared)
        found[len(seeds)] = keys(session_of(tiny))["pretrain"]
    assert found[3] == found[2] | found[1]


def overrides(content: dict[str, Any]) -> dict[str, Any]:
    return content["profiles"]["tiny"]["overrides"]


def changes() -> Iterator[tuple[str, Any, set[str]]]:
    """(what is changed, how, the kinds of stage whose keys may change)."""
    end = {"score", "evaluate"}
    yield (
        "the length of the embeddings it is shown",
        lambda c: c["matrix"]["defenses"][0].update(equal_length=True),
        {"fit", *end},
    )
    yield (
        "a defense's parameter",
        lambda c: overrides(c)["dede"].update(epochs=2),
        {"fit", *end},
    )
    yield (
        "an attack's parameter",
        lambda c: overrides(c)["badencoder"].update(epochs=3),
        {"implant", "probe", "audit", "fit", *end},
    )
    yield (
        "the probe",
        lambda c: c["profiles"]["tiny"]["probe"].update(epochs=3),
        {"probe", "audit", *end},
    )
    yield (
        "the last role's size",
        lambda c: c["profiles"]["tiny"]["splits"].update(suspicious=90),
        set(),
    )
    yield "bootstrap draws", lambda c: c["protocol"].update(bootstrap_draws=60), {"evaluate"}
    yield (
        "the auxiliary set's size",
        lambda c: c["profiles"]["tiny"]["splits"].update(auxiliary=90),
        {"fit", *end},
    )


@pytest.mark.parametrize(("what", "change", "kinds"), changes(), ids=[c[0] for c in changes()])
def test_changed_parameter_changes_only_what_depends_on_it(tiny, session_of, what, change, kinds):
    before = keys(session_of(tiny))
    changed = copy.deepcopy(tiny)
    change(changed)
    after = keys(session_of(changed))
    assert {kind for kind in before if before[kind] != after[kind]} == kinds


def test_changed_attack_leaves_the_twin_and_every_placebo_fit_alone(tiny, session_of):
    before = keys(session_of(tiny, attacks=("none",)))
    overrides(tiny)["badencoder"]["epochs"] = 3
    assert keys(session_of(tiny, attacks=("none",))) == before


def test_seed_threads_and_device_are_part_of_the_key(tiny, session_of):
    before = session_of(tiny).cells[0].key
    assert session_of(tiny, seeds=(1,)).cells[0].key != before
    assert session_of(tiny, limit_steps=3).cells[0].key != before
    tiny["profiles"]["tiny"]["threads"] = 2
    assert session_of(tiny).cells[0].key != before


def test_placebos_of_a_defense_share_one_fit_on_the_twin(tiny, session_of):
    cells = session_of(tiny, defenses=("dede-id",)).cells
    fits = {cell.stage.inputs["twin"].inputs["fit"].key for cell in cells}
    assert len(cells) == 2
    assert len(fits) == 1


def test_stage_order_puts_inputs_first(tiny, session_of):
    seen: set[str] = set()
    stages = topological([cell.stage for cell in session_of(tiny).cells])
    for stage in stages:
        assert {child.key for child in stage.inputs.values()} <= seen
        assert stage.key not in seen
        seen.add(stage.key)


def test_random_numbers_follow_from_seed_kind_component_and_role_alone():
    def draw(*names: Any) -> list[int]:
        return torch.randint(1000, (5,), generator=generator_for(*names)).tolist()

    assert draw(0, "fit", "dede") == draw(0, "fit", "dede", "")
    different = [
        draw(0, "fit", "dede"),
        draw(1, "fit", "dede"),
        draw(0, "score", "dede"),
        draw(0, "fit", "lof"),
        draw(0, "fit", "dede", "seed"),
    ]
    assert len({tuple(numbers) for numbers in different}) == len(different)


def test_new_component_shifts_no_other_key(tiny, session_of, plug_in):
    before = {cell.key for cell in session_of(tiny).cells}
    plug_in("defenses", harmless="wayward_defenses:Harmless")
    tiny["matrix"]["defenses"].insert(0, "harmless")
    after = {cell.key for cell in session_of(tiny).cells}
    assert before < after


def test_key_is_the_hash_of_the_description():
    child = Stage("data", {"fingerprint": "x"})
    stage = Stage("fit", {"seed": 0}, {"train": child}, label="a label is no content")
    assert stage.key == Stage("fit", {"seed": 0}, {"train": child}).key
    assert stage.key != Stage("fit", {"seed": 0}, {"auxiliary": child}).key


def test_a_data_set_that_changed_after_planning_is_not_stored_under_its_old_key(
    tiny, session_of, monkeypatch
):
    tiny["matrix"] = {"attacks": ["none"], "defenses": ["mahalanobis"]}
    session = session_of(tiny)
    assert session.cells
    monkeypatch.setattr(Digits, "fingerprint", lambda self, split: "0" * 64)
    (reason,) = session.run().failed.values()
    assert "data set 'digits' (train) changed since the run was planned, or this machine" in reason
    assert not list(session.store.root.glob("data/*/*/images.safetensors"))


def test_a_patch_file_that_changed_after_planning_is_refused(tiny, session_of, tmp_path):
    def save(value: float) -> None:
        np.savez(tmp_path / "patch.npz", tm=np.ones((32, 32, 3)), t=np.full((32, 32, 3), value))

    save(255.0)
    tiny["matrix"] = {"attacks": ["badencoder"], "defenses": ["mahalanobis"]}
    tiny["profiles"]["tiny"]["overrides"]["badencoder"]["patch_file"] = "patch.npz"
    session = session_of(tiny)
    stages = topological([cell.stage for cell in session.cells])
    (implant,) = (stage for stage in stages if stage.kind == "implant")
    assert session.workspace().component("attacks", implant).patch_file.name == "patch.npz"
    save(0.0)
    with pytest.raises(InputError, match=r"patch\.npz changed since the run was planned"):
        session.workspace().component("attacks", implant)
