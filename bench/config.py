"""What bench.yaml may say, as frozen models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from bench.errors import InputError, nearest
from bench.graph import STAGE_VERSIONS
from bench.limits import MOST_SEED, MOST_SIDE
from bench.models import Model
from bench.report.declared import Tables

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
    """

    defense: str
    label: Label
    backend: Backend = "native"
    auxiliary: AuxiliaryKind = "in-distribution"
    auxiliary_poison_rate: float = Field(0.0, ge=0, lt=1)
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
        return {**item, "label": item[kind] if backend == "native" else f"{item[kind]}-{backend}"}
    if isinstance(item, Mapping) and "label" not in item and isinstance(item.get("from"), str):
        return {**item, "label": PurePath(item["from"]).stem[:64]}
    return item


class DatasetConfig(Model):
    """Where a named data set comes from.

    ``source: auto`` looks for ``<data root>/<name>/`` with parquet files or image folders, then
    for a torchvision copy under the data roots.
    """

    source: Literal[
        "auto", "digits", "photographs", "parquet", "folder", "captions", "torchvision"
    ] = "auto"
    path: str | None = None
    image_size: int = Field(32, ge=8, le=MOST_SIDE)
    resize: bool = False
    stored_as: str | None = None
    """The name it is looked for under, so that one set of files serves at two sizes."""
    max_images: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _path_where_needed(self) -> DatasetConfig:
        if self.source in ("parquet", "folder", "captions") and self.path is None:
            raise ValueError(f"source {self.source!r} needs a path")
        return self


class Protocol(Model):
    """What is the same for every defense (docs/protocol.md)."""

    split_seed: int = Field(0, ge=0, le=MOST_SEED)
    poison_rate: float = Field(0.01, gt=0, lt=1)
    threshold_source: Literal["clean-id", "own-auxiliary"] = "clean-id"
    calibration_fpr: float = Field(0.05, gt=0, lt=1)
    bootstrap_draws: int = Field(2000, ge=10)
    decoy_max_success: Fraction = 0.2
    held_out_auxiliary: float = Field(0.1, gt=0, lt=1)
    figure_images: int = Field(8, ge=0, le=16)


class SplitCounts(Model):
    """Images per role (docs/protocol.md, "Splits")."""

    calibration: int = Field(2500, ge=20)
    validation: int = Field(2500, ge=20)
    references: int = Field(200, ge=1)
    shadow: int = Field(10000, ge=1)
    auxiliary: int = Field(12000, ge=20)
    base: int = Field(1000, ge=0)
    suspicious: int = Field(10000, ge=0)


class EncoderConfig(Model):
    """The clean encoder: pretrained by the harness, or imported when ``checkpoint`` is given.

    ``mean`` and ``std`` are the normalisation of an imported encoder (its architecture's by
    default); images reach every encoder in [0, 1].
    """

    architecture: str
    settings: dict[str, Any] = {}
    checkpoint: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[Positive, Positive, Positive] | None = None

    @model_validator(mode="after")
    def _statistics_of_an_import(self) -> EncoderConfig:
        if self.checkpoint is None and (self.mean, self.std) != (None, None):
            raise ValueError("mean and std describe an imported encoder; name its checkpoint")
        return self


class Downstream(Model):
    """A labelled set that the victim's user cares for, and the attacker's target class in it."""

    dataset: str
    target: int = Field(ge=0)


class ProbeConfig(Model):
    """The MLP probe (512-256, dropout 0.5) and the kNN on frozen L2-normalised features."""

    epochs: int = Field(30, ge=1)
    batch_size: int = Field(256, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    neighbours: int = Field(200, ge=1)
    temperature: float = Field(0.5, gt=0)
    max_train_images: int | None = Field(None, ge=10)


class CLIPConfig(Model):
    """The CLIP model that attacks on image-text training start from, and the data around it.

    Data sets are the profile's unless given. ``pretraining`` is a
    :class:`bench.encoders.contrastive.ClipRecipe`.
    """

    encoder: EncoderConfig
    pretraining: dict[str, Any] = {}
    dataset: str | None = None
    out_of_distribution: str | None = None
    downstreams: tuple[Downstream, ...] | None = Field(None, min_length=1)


class StageResources(Model):
    """What a stage of one kind takes of a machine, for ``--executor ray``; never part of a key.

    Attributes
    ----------
    cpus
        Processors; None: as many as the profile has ``threads``.
    gpus
        Accelerators, fractions allowed; None: one where the run's device is one.
    memory_gb
        Memory that the scheduler sets aside; the process of a stage that holds more is ended.
    minutes
        Time limit.
    """

    cpus: int | None = Field(None, ge=1)
    gpus: float | None = Field(None, ge=0)
    memory_gb: Positive | None = None
    minutes: Positive | None = None


StageKind = Literal[tuple(STAGE_VERSIONS)]


class Profile(Model):
    """A scale: the same matrix on a laptop, on a real data set, on a GPU.

    ``matrix`` takes the place of the common one, for a question of its own.
    """

    description: str = ""
    matrix: Matrix | None = None
    dataset: str
    out_of_distribution: str
    encoder: EncoderConfig
    pretraining: dict[str, Any] = {}
    clip: CLIPConfig | None = None
    downstreams: tuple[Downstream, ...] = Field(min_length=1)
    splits: SplitCounts = SplitCounts()
    probe: ProbeConfig = ProbeConfig()
    seeds: tuple[Annotated[int, Field(ge=0, le=MOST_SEED)], ...] = Field((0,), min_length=1)
    pretraining_seed: int | None = Field(None, ge=0, le=MOST_SEED)
    """Seed of every training from scratch, clean or poisoned, whatever the seed of the cell; None:
    the cell's. Seeds then share their clean encoders and differ in the attack (which images are
    poisoned, how a backdoor is implanted) and in the defense. The leaderboard says so."""
    test_images: int | None = Field(None, ge=20)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(2, ge=1, le=1024)
    score_batch: int = Field(512, ge=1)
    overrides: dict[str, dict[str, Any]] = {}
    resources: dict[StageKind, StageResources] = {}
    """Stage kind -> what such a stage takes of a machine."""
    settings_tried: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Attack -> how many settings of it were tried at this scale before the overrides that stand
    there; 1 where nothing is said. Stored with every row."""

    @field_validator("seeds", "downstreams")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if any(value in values[:position] for position, value in enumerate(values)):
            raise ValueError("the same value stands twice")
        return values

    @model_validator(mode="after")
    def _out_of_distribution_is_another_set(self) -> Profile:
        for family in self.families().values():
            taken = {family.dataset, *(downstream.dataset for downstream in family.downstreams)}
            if family.out_of_distribution in taken:
                raise ValueError(
                    f"out_of_distribution is {family.out_of_distribution!r}, which is also the "
                    "dataset or a downstream set: its images have other roles"
                )
        return self

    def families(self) -> dict[str, Family]:
        """The encoders of this profile by family: ``ssl``, and ``clip`` where configured."""
        own = Family(
            "ssl",
            self.encoder,
            self.pretraining,
            self.dataset,
            self.out_of_distribution,
            self.downstreams,
        )
        if self.clip is None:
            return {"ssl": own}
        clip = Family(
            "clip",
            self.clip.encoder,
            self.clip.pretraining,
            self.clip.dataset or self.dataset,
            self.clip.out_of_distribution or self.out_of_distribution,
            self.clip.downstreams or self.downstreams,
        )
        return {"ssl": own, "clip": clip}


@dataclass(frozen=True)
class Family:
    """One kind of encoder in a profile, with the data it lives on."""

    name: str
    encoder: EncoderConfig
    pretraining: Mapping[str, Any]
    dataset: str
    out_of_distribution: str
    downstreams: tuple[Downstream, ...]


def _laid_over(profiles: Mapping[str, Any], name: str, above: tuple[str, ...]) -> Any:
    own = profiles[name]
    if not isinstance(own, Mapping) or "extends" not in own:
        return own
    base = own["extends"]
    if base not in profiles:
        raise ValueError(f"{name} extends an unknown profile {base!r}{nearest(base, profiles)}")
    if base in (name, *above):
        raise ValueError(f"{name} extends itself: {' -> '.join((*above, name, base))}")
    below = _laid_over(profiles, base, (*above, name))
    return {**below, **{key: value for key, value in own.items() if key != "extends"}}


class Config(Model):
    """The whole of bench.yaml."""

    default_profile: str
    matrix: Matrix
    protocol: Protocol = Protocol()
    profiles: dict[Label, Profile] = Field(min_length=1)
    data_roots: tuple[str, ...] = ("data",)
    datasets: dict[str, DatasetConfig]
    tables: Tables = Tables()

    @field_validator("profiles", mode="before")
    @classmethod
    def _extended(cls, profiles: Any) -> Any:
        """``extends: NAME`` lays a profile's own keys over those of another, key by key."""
        if not isinstance(profiles, Mapping):
            return profiles
        return {name: _laid_over(profiles, name, ()) for name in profiles}

    def profile(self, name: str | None) -> tuple[str, Profile]:
        """The named profile, or the default one.

        Raises
        ------
        InputError
            For an unknown name, with the nearest valid one.
        """
        chosen = name or self.default_profile
        if chosen not in self.profiles:
            raise InputError(f"unknown profile {chosen!r}{nearest(chosen, self.profiles)}")
        return chosen, self.profiles[chosen]

    def matrix_of(self, profile_name: str) -> tuple[Matrix, tuple[str, ...]]:
        """The matrix that a profile runs, and the key that it stands under."""
        own = self.profiles[profile_name].matrix
        if own is not None:
            return own, ("profiles", profile_name, "matrix")
        return self.matrix, ("matrix",)

    def component_parameters(
        self, profile: Profile, name: str, parameters: Mapping[str, Any]
    ) -> dict[str, Any]:
        """An entry's own parameters over the profile's overrides of the component.

        A parameter that is a mapping itself (a recipe) is laid over key by key.
        """
        merged = dict(profile.overrides.get(name, {}))
        for key, value in parameters.items():
            below = merged.get(key)
            nested = isinstance(below, Mapping) and isinstance(value, Mapping)
            merged[key] = {**below, **value} if nested else value
        return merged
