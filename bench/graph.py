"""The stage graph: what a computation is named by, and in which order computations run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from bench.store import content_key

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

    def describe(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "precision": self.precision,
            "threads": self.threads,
            "limit_steps": self.limit_steps,
        }


@dataclass(frozen=True, eq=False)
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
    """

    kind: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    label: str = ""

    @cached_property
    def key(self) -> str:
        """SHA-256 over kind, version, specification and the keys of all inputs."""
        return content_key(
            {
                "kind": self.kind,
                "stage_version": STAGE_VERSIONS[self.kind],
                "spec": dict(self.spec),
                "inputs": {role: stage.key for role, stage in self.inputs.items()},
            }
        )

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
    scoring
        Of a defense: parameters that fitting never reads.
    reference
        Of a defense: whether it never calls the encoder.
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
    scoring: frozenset[str] = frozenset()
    reference: bool = False
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


@dataclass(frozen=True)
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
    visiting: list[tuple[Stage, bool]] = [(stage, False) for stage in reversed(stages)]
    while visiting:
        stage, expanded = visiting.pop()
        if stage.key in ordered:
            continue
        if expanded:
            ordered[stage.key] = stage
        else:
            visiting.append((stage, True))
            visiting += [(child, False) for child in reversed(list(stage.inputs.values()))]
    return list(ordered.values())
