"""The stage graph: what a computation is named by, and in which order computations run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.building import once
from bench.store import canonical_json, content_key, text_key

# Raise a number when what a stage computes changes, for whatever component.
STAGE_VERSIONS = {
    "data": 1,
    "pixels": 1,
    "import": 1,
    "poison": 1,
    "pretrain": 2,
    "implant": 2,
    "probe": 2,
    "audit": 4,
    "fit": 1,
    "score": 2,
    "evaluate": 5,
}


@dataclass(frozen=True)
class Environment:
    """What decides the bytes of a computation beside its inputs (invariant 9)."""

    device: str
    precision: str
    threads: int
    limit_steps: int | None = None

    @once
    def describe(self) -> dict[str, Any]:
        """JSON-ready, and one dictionary for all stages."""
        return {
            "device": self.device,
            "precision": self.precision,
            "threads": self.threads,
            "limit_steps": self.limit_steps,
        }


@dataclass(frozen=True, eq=False, slots=True)
class Stage:
    """One cached computation.

    Attributes
    ----------
    kind
        One of :data:`STAGE_VERSIONS`.
    spec
        Everything beside the inputs that decides the result; JSON-ready.
    inputs
        Role -> the stage that feeds it.
    label
        A few words for people; never hashed.
    key
        SHA-256 over kind, version, specification and the keys of all inputs.
    """

    kind: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    label: str = ""
    key: str = field(init=False)

    def __post_init__(self) -> None:
        # The canonical JSON of the four, written here because a large plan has half a million keys.
        # Kinds, roles and keys hold nothing that JSON escapes.
        roles = ",".join(f'"{role}":"{self.inputs[role].key}"' for role in sorted(self.inputs))
        version = STAGE_VERSIONS[self.kind]
        described = (
            f'{{"inputs":{{{roles}}},"kind":"{self.kind}",'
            f'"spec":{canonical_json(self.spec)},"stage_version":{version}}}'
        )
        object.__setattr__(self, "key", text_key(described))

    @property
    def component(self) -> str:
        """Name of the attack or defense it runs; empty for the harness's own stages."""
        return str(self.spec.get("component", {}).get("name", ""))


@dataclass(frozen=True)
class Component:
    """A resolved attack or defense: what keys need to know about it.

    Attributes
    ----------
    kind
        ``control``, ``model-poisoning``, ``data-poisoning`` or ``defense``.
    family
        Of an attack: ``ssl`` or ``clip``.
    recipe
        Of a data-poisoning attack, as a stage describes it; None: the profile's.
    fit_requires
        Of a defense: what of ``requires`` stands with every scoring parameter at its default, the
        one that a fit is made with.
    scoring
        Of a defense: parameters that fitting never reads.
    reference
        Of a defense: whether it never calls the encoder.
    analysis
        Of a defense: whether it answers a question and is none itself.
    revision
        Of the authors' repository, for ``backend: upstream``.
    reduced
        What is smaller than published, for ``backend: upstream``.
    """

    name: str
    version: int
    parameters: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    kind: str = "defense"
    family: str = "ssl"
    recipe: Mapping[str, Any] | None = None
    requires: frozenset[str] = frozenset()
    fit_requires: frozenset[str] = frozenset()
    scoring: frozenset[str] = frozenset()
    reference: bool = False
    analysis: bool = False
    references: int = 0
    skip: str | None = None
    revision: str = ""
    reduced: str = ""

    @property
    def control(self) -> bool:
        return self.kind == "control"

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "parameters": dict(self.parameters),
            # Content of the files that parameters name: a path alone says nothing.
            **({"files": dict(self.files)} if self.files else {}),
            **({"revision": self.revision} if self.revision else {}),
        }

    def fitted(self) -> dict[str, Any]:
        """:meth:`describe` for what is fitted, which no scoring parameter can change."""
        described = self.describe()
        kept = {k: v for k, v in described["parameters"].items() if k not in self.scoring}
        return {**described, "parameters": kept}

    def without_recipe(self) -> dict[str, Any]:
        """:meth:`describe` for what happens before training, which no recipe can change."""
        described = self.describe()
        described["parameters"].pop("recipe", None)
        return described


@dataclass(frozen=True, eq=False, slots=True)
class Cell:
    """(attack, defense, dataset, encoder, downstream, target, seed): the stage that ends it, and
    the reason when it cannot run here."""

    stage: Stage
    skip: str | None = None

    @property
    def key(self) -> str:
        return self.stage.key

    @property
    def identity(self) -> Mapping[str, Any]:
        """The leaderboard columns that name the row."""
        return self.stage.spec["identity"]

    @property
    def flags(self) -> dict[str, Any]:
        """What tables mark about the row, whether or not it gets its numbers."""
        marked = ("control", "reference", "analysis", "reduced")
        return {name: self.stage.spec[name] for name in marked if name in self.stage.spec}


def topological(stages: Sequence[Stage]) -> list[Stage]:
    """Every stage that ``stages`` need, each key once, inputs before what uses them."""
    ordered: dict[str, Stage] = {}
    visiting = list(reversed(stages))
    while visiting:
        stage = visiting[-1]
        missing = [child for child in stage.inputs.values() if child.key not in ordered]
        if missing:
            visiting += reversed(missing)
        else:
            ordered.setdefault(stage.key, visiting.pop())
    return list(ordered.values())


def cost_name(stage: Stage) -> str:
    """What stages of about equal cost share: kind and specification, seeds aside.

    A score stage costs what its fit's component does, a victim's pretraining what its twin's does.
    """
    fitted = stage.inputs["fit"].spec if "fit" in stage.inputs else {}
    described = {**stage.spec, "fit": fitted, "seed": None}
    described.pop("twin", None)  # a key, with a seed in it
    return f"{stage.kind}-{content_key(described)[:16]}"
