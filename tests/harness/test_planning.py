"""Planning a matrix takes as long as it has cells: counted in operations, not in seconds."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from bench import cells as cells_module
from bench import graph, store
from bench.data.embedded import Digits
from bench.executors.demand import Demand
from bench.graph import STAGE_VERSIONS, Cell, Stage, topological
from bench.planning import describe_plan
from bench.resolving import resolve_component
from bench.session import Selection, Session
from bench.store import Extended, Shared, canonical_json, content_key

DOWNSTREAMS, SEEDS = 4, 2


@pytest.fixture
def wide(tiny, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """4 attacks x 9 defenses x 4 data sets x 2 seeds: 288 cells.

    All data sets are the digits; as the check tells sets by their images, these are said to differ.
    """
    monkeypatch.setattr(Digits, "fingerprint", lambda self, split: f"{self.name}/{split}")
    profile = tiny["profiles"]["tiny"]
    for number in range(1, DOWNSTREAMS):
        tiny["datasets"][f"digits-{number}"] = {"source": "digits"}
        profile["downstreams"].append({"dataset": f"digits-{number}", "target": number})
    profile["seeds"] = list(range(SEEDS))
    tiny["matrix"]["attacks"] += [
        {"attack": "badencoder", "label": "stronger", "parameters": {"lambda1": 2.0}},
        "clip-backdoor",
    ]
    tiny["matrix"]["defenses"] += [
        "asset",
        *(
            {"defense": "lof", "label": f"lof-{k}", "parameters": {"neighbours": k}}
            for k in (5, 10, 15)
        ),
    ]
    return tiny


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a key was hashed for a stage, and how often for anything else."""
    counts: Counter[str] = Counter()
    hashed = store.text_key

    def counting(place: str) -> Any:
        def count(text: str) -> str:
            counts[place] += 1
            return hashed(text)

        return count

    monkeypatch.setattr(graph, "text_key", counting("stages"))
    monkeypatch.setattr(store, "text_key", counting("others"))
    return counts


def test_a_stage_is_hashed_about_once_however_many_cells_need_it(wide, session_of, counted):
    session = session_of(wide)
    cells = session.cells
    assert len(cells) == 4 * 9 * DOWNSTREAMS * SEEDS
    stages = topological([cell.stage for cell in cells])
    # Beside each stage once, a few of every (attack, data set, seed): clean encoder and probes.
    assert len(stages) <= counted["stages"] <= len(stages) + 6 * 4 * DOWNSTREAMS * SEEDS
    before = counted["stages"]
    session.check()
    describe_plan(session)
    assert counted["stages"] == before
    assert counted["others"] == 0


def test_stages_of_a_wide_matrix_are_as_many_as_docs_scaling_says(wide, session_of):
    found = Counter(stage.kind for stage in topological([c.stage for c in session_of(wide).cells]))
    models, pairs, fits, pooled = 2, 1, 9, 1
    victims = (models + pairs) * DOWNSTREAMS * SEEDS
    assert found["implant"] == models * DOWNSTREAMS * SEEDS
    assert found["poison"] == pairs * DOWNSTREAMS * SEEDS
    # Clean encoders of two families, the twin of the one recipe, and the victims.
    assert found["pretrain"] == (3 + pairs * DOWNSTREAMS) * SEEDS
    assert found["audit"] == victims + DOWNSTREAMS * SEEDS
    # A probe per encoder and data set: victims, the clean encoder, the twin of the recipe.
    assert found["probe"] == victims + 2 * DOWNSTREAMS * SEEDS
    # ``asset`` sees a pool that holds the attack's trigger: each of its placebos is a fit.
    alone = fits - pooled
    assert found["fit"] == (
        fits * victims + alone * 2 * SEEDS + pooled * (victims + DOWNSTREAMS * SEEDS)
    )
    assert found["score"] == fits * (2 * victims + DOWNSTREAMS * SEEDS)
    assert found["evaluate"] == fits * (victims + DOWNSTREAMS * SEEDS)


def test_components_and_data_sets_are_asked_once(wide, session_of, monkeypatch):
    asked: Counter[Any] = Counter()
    session = session_of(wide)

    def resolving(root: Any, group: str, name: str, parameters: Any, images: Any) -> Any:
        asked[group, name, repr(parameters)] += 1
        return resolve_component(root, group, name, parameters, images)

    monkeypatch.setattr("bench.session.resolve_component", resolving)
    for name, source in session.sources.items():
        for question in ("classes", "labels", "fingerprint"):

            def asking(split: str, name=name, question=question, answer=getattr(source, question)):
                asked[name, question, split] += 1
                return answer(split)

            monkeypatch.setattr(source, question, asking)
    session.check()
    describe_plan(session)
    assert set(asked.values()) == {1}
    # Two columns are DeDe with the same parameters and other auxiliary images.
    assert sum(key[0] in ("attacks", "defenses") for key in asked) == 4 + 8


def test_key_is_that_of_the_description_in_canonical_json(wide, session_of):
    stages = topological([cell.stage for cell in session_of(wide).cells])
    assert any(isinstance(stage.spec, Shared) for stage in stages)
    for stage in stages:
        described = {
            "kind": stage.kind,
            "stage_version": STAGE_VERSIONS[stage.kind],
            "spec": dict(stage.spec),
            "inputs": {role: child.key for role, child in stage.inputs.items()},
        }
        assert stage.key == content_key(described)


def test_text_of_shared_parts_is_that_of_the_dictionary():
    content = {"b": [1, 2.5, None, True], "a": {"é": "\n", "x": 'quote "'}}
    assert canonical_json(Shared(content)) == canonical_json(content)
    own = {"aa": {"y": 1}, "b": "another"}
    extended = Extended(Shared(content), **own)
    assert extended == {**content, **own}
    assert canonical_json(extended) == canonical_json({**content, **own})


def test_stage_is_the_same_in_another_process(tiny, session_of):
    stage = session_of(tiny).cells[-1].stage
    copied = pickle.loads(pickle.dumps(stage))
    assert copied.key == stage.key
    assert copied.spec == stage.spec
    assert Stage(copied.kind, copied.spec, copied.inputs).key == stage.key


def test_stored_cells_are_hashed_once_by_a_run_and_not_at_all_by_a_plan(tiny_run, monkeypatch):
    hashed: Counter[str] = Counter()

    def counting(folder: Any) -> str | None:
        hashed[folder.name] += 1
        return store.damage(folder)

    monkeypatch.setattr(cells_module, "damage", counting)
    planned = describe_plan(Session(tiny_run.file, Selection()))
    table = pd.read_csv(tiny_run.results / "leaderboard.csv")
    for status, count in table["status"].value_counts().items():
        assert f"{count} {status}" in planned.splitlines()[-1]
    assert not hashed
    Session(tiny_run.file, Selection()).run()
    assert hashed == Counter(cell.key for cell in tiny_run.cells)


def needed_by(stage: Stage) -> set[str]:
    return {behind.key for behind in topological([stage])}


def failures(stages: list[Stage]) -> Iterator[list[str]]:
    draw = random.Random(0)
    keys = [stage.key for stage in stages]
    for count in (1, 1, 2, 3, 5, 8, 20):
        yield draw.sample(keys, count)


def test_demand_is_what_some_cell_that_can_still_end_needs(wide, session_of):
    cells: list[Cell] = session_of(wide, seeds=(0,), attacks=("none", "badencoder")).cells
    stages = topological([cell.stage for cell in cells])
    behind = {cell.key: needed_by(cell.stage) for cell in cells}
    for failed in failures(stages):
        demand = Demand(stages, cells)
        for key in failed:
            demand.fail(key)
        alive = [keys for keys in behind.values() if not keys & set(failed)]
        wanted = set().union(*alive)
        assert {stage.key for stage in stages if stage.key in demand} == wanted


def test_demand_looks_at_each_input_of_a_lost_stage_once(wide, session_of, monkeypatch):
    cells = session_of(wide).cells
    stages = topological([cell.stage for cell in cells])
    demand, looked = Demand(stages, cells), Counter()
    monkeypatch.setattr(
        "bench.executors.demand._inputs",
        lambda stage: looked.update([stage.key]) or {c.key for c in stage.inputs.values()},
    )
    for stage in stages:
        demand.fail(stage.key)
    assert set(looked.values()) == {1}
    assert len(looked) == len(stages)
