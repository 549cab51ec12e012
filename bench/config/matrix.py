"""Rows and columns of the matrix: which attacks, which defenses, with which parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from bench.models import Model

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")]
Backend = Literal["native", "upstream"]
AuxiliaryKind = Literal["in-distribution", "out-of-distribution"]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def component_name(name: str, backend: Backend) -> str:
    """``NAME``, or ``NAME@upstream`` for the component that runs the authors' code."""
    return name if backend == "native" else f"{name}@{backend}"


class AttackEntry(Model):
    """One row of the matrix: an attack under a label, with parameters of its own.

    ``backend: upstream`` runs the authors' code (docs/upstream.md).
    """

    attack: str
    label: Label
    backend: Backend = "native"
    parameters: dict[str, Any] = {}

    @property
    def component(self) -> str:
        """The name that the registry and the profiles' overrides know it by."""
        return component_name(self.attack, self.backend)


class VictimEntry(Model):
    """One row of the matrix: somebody's victim, whatever attack made it (docs/victims.md).

    ``from`` names a victim artifact (a folder with encoder and trigger, as a run leaves it), one of
    our encoder files or a published checkpoint. What the file does not say must stand here. Without
    a ``clean_twin`` the row is ``uncontrolled``.
    """

    source: str = Field(alias="from")
    label: Label
    architecture: str | None = None
    settings: dict[str, Any] = {}
    mean: tuple[float, float, float] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    trigger: dict[str, Any] | None = None
    target: int | None = Field(None, ge=0)
    clean_twin: str | None = None
    downstream: str | None = None
    """The data set it is judged on; the profile's first by default."""

    backend: ClassVar[Backend] = "native"

    @property
    def attack(self) -> str:
        """Stands for a component's name in tables and filters."""
        return "imported"


class DefenseEntry(Model):
    """One column of the matrix. ``auxiliary`` says which images the defender owns.

    ``auxiliary_poison_rate`` of them carry the attack's trigger: the defender believes them clean.
    With ``equal_length`` every embedding reaches the defense at one length, the square root of its
    dimension: what a score tells apart then was in the direction.
    """

    defense: str
    label: Label
    backend: Backend = "native"
    auxiliary: AuxiliaryKind = "in-distribution"
    auxiliary_poison_rate: float = Field(0.0, ge=0, lt=1)
    equal_length: bool = False
    parameters: dict[str, Any] = {}

    @property
    def component(self) -> str:
        """The name that the registry and the profiles' overrides know it by."""
        return component_name(self.defense, self.backend)

    @property
    def described_auxiliary(self) -> str:
        """The ``auxiliary`` column of the leaderboard."""
        if self.auxiliary_poison_rate == 0:
            return self.auxiliary
        return f"{self.auxiliary}, {100 * self.auxiliary_poison_rate:g} % triggered"


ATTACK_TAG, VICTIM_TAG = "<attack>", "<victim>"
"""Marks of the two kinds of row in the locations of validation errors."""


def _entry_tag(value: Any) -> str:
    if isinstance(value, Mapping):
        return VICTIM_TAG if "from" in value else ATTACK_TAG
    return VICTIM_TAG if isinstance(value, VictimEntry) else ATTACK_TAG


class Matrix(Model):
    """Attacks x defenses. A bare name is an entry labelled with that name."""

    attacks: tuple[
        Annotated[
            Annotated[AttackEntry, Tag(ATTACK_TAG)] | Annotated[VictimEntry, Tag(VICTIM_TAG)],
            Discriminator(_entry_tag),
        ],
        ...,
    ] = Field(min_length=1)
    defenses: tuple[DefenseEntry, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _bare_names(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        expanded = dict(value)
        for group, kind in (("attacks", "attack"), ("defenses", "defense")):
            if isinstance(expanded.get(group), list):
                expanded[group] = [_expand(item, kind) for item in expanded[group]]
        return expanded


def _expand(item: Any, kind: str) -> Any:
    if isinstance(item, str):
        return {kind: item, "label": item}
    if isinstance(item, Mapping) and "label" not in item and kind in item:
        backend = item.get("backend", "native")
        label = item[kind] if backend == "native" else f"{item[kind]}-{backend}"
        # Not the name alone: no column of a row tells the two apart.
        return {**item, "label": f"{label}-equal-length" if item.get("equal_length") else label}
    if isinstance(item, Mapping) and "label" not in item and isinstance(item.get("from"), str):
        return {**item, "label": PurePath(item["from"]).stem[:64]}
    return item
