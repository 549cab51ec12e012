"""bench.yaml -> frozen models. Every error says file, line, key and the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bench import registry
from bench.errors import InputError, nearest
from bench.report.columns import COLUMNS
from bench.yamlfile import Location, YamlFile

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")]
AuxiliaryKind = Literal["in-distribution", "out-of-distribution"]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Model(BaseModel):
    """Frozen, and closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


class AttackEntry(Model):
    """One row of the matrix: an attack under a label, with parameters of its own."""

    attack: str
    label: Label
    parameters: dict[str, Any] = {}
    settings_tried: int = Field(1, ge=1)
    """How many settings were tried on validation images before this one: stored with the row."""


class DefenseEntry(Model):
    """One column of the matrix. ``auxiliary`` says which images the defender owns."""

    defense: str
    label: Label
    auxiliary: AuxiliaryKind = "in-distribution"
    parameters: dict[str, Any] = {}


class Matrix(Model):
    """Attacks x defenses. A bare name is an entry labelled with that name."""

    attacks: tuple[AttackEntry, ...] = Field(min_length=1)
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
        return {**item, "label": item[kind]}
    return item


class DatasetConfig(Model):
    """Where a named data set comes from.

    ``source: auto`` looks for ``<data root>/<name>/`` with parquet files or image folders, then
    for a torchvision copy under the data roots.
    """

    source: Literal["auto", "digits", "photographs", "parquet", "folder", "torchvision"] = "auto"
    path: str | None = None
    image_size: int = Field(32, ge=8, le=1024)
    resize: bool = False
    max_images: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _path_where_needed(self) -> DatasetConfig:
        if self.source in ("parquet", "folder") and self.path is None:
            raise ValueError(f"source {self.source!r} needs a path")
        return self


class Protocol(Model):
    """What is the same for every defense (docs/protocol.md)."""

    split_seed: int = Field(0, ge=0)
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


class Profile(Model):
    """A scale: the same matrix on a laptop, on a real data set, on a GPU."""

    description: str = ""
    dataset: str
    out_of_distribution: str
    encoder: EncoderConfig
    pretraining: dict[str, Any] = {}
    downstreams: tuple[Downstream, ...] = Field(min_length=1)
    splits: SplitCounts = SplitCounts()
    probe: ProbeConfig = ProbeConfig()
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    test_images: int | None = Field(None, ge=20)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(2, ge=1, le=1024)
    score_batch: int = Field(512, ge=1)
    overrides: dict[str, dict[str, Any]] = {}

    @field_validator("seeds", "downstreams")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if any(value in values[:position] for position, value in enumerate(values)):
            raise ValueError("the same value stands twice")
        return values

    @model_validator(mode="after")
    def _out_of_distribution_is_another_set(self) -> Profile:
        taken = {self.dataset, *(downstream.dataset for downstream in self.downstreams)}
        if self.out_of_distribution in taken:
            raise ValueError(
                f"out_of_distribution is {self.out_of_distribution!r}, which is also the dataset "
                "or a downstream set: its images have other roles"
            )
        return self


class LeaderboardTable(Model):
    """What leaderboard.md and leaderboard.tex show beside the fixed columns.

    ``columns`` are further columns of ``leaderboard.csv``; ``caption`` is a note above the others.
    """

    caption: str = ""
    columns: tuple[str, ...] = ()

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        for name in columns:
            if name not in COLUMNS:
                raise ValueError(f"unknown column {name!r}{nearest(name, COLUMNS)}")
        return columns


class Tables(Model):
    leaderboard: LeaderboardTable = LeaderboardTable()


class Config(Model):
    """The whole of bench.yaml."""

    default_profile: str
    matrix: Matrix
    protocol: Protocol = Protocol()
    profiles: dict[str, Profile] = Field(min_length=1)
    data_roots: tuple[str, ...] = ("data",)
    datasets: dict[str, DatasetConfig]
    tables: Tables = Tables()

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

    def component_parameters(
        self, profile: Profile, name: str, parameters: Mapping[str, Any]
    ) -> dict[str, Any]:
        """An entry's own parameters over the profile's overrides of the component."""
        return {**profile.overrides.get(name, {}), **parameters}


class ConfigFile:
    """A configuration with the file it came from, for errors with a line."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.yaml = YamlFile(self.path)
        try:
            self.config = Config.model_validate(self.yaml.data)
        except ValidationError as error:
            raise self._first(error, ()) from None
        self._check_names()

    @property
    def root(self) -> Path:
        """The folder that relative paths in the file refer to."""
        return self.path.resolve().parent

    def _check_names(self) -> None:
        config, fail = self.config, self.yaml.error
        if config.default_profile not in config.profiles:
            raise fail(
                ("default_profile",),
                f"unknown profile {config.default_profile!r}"
                f"{nearest(config.default_profile, config.profiles)}",
            )
        for group in ("attacks", "defenses"):
            labels: set[str] = set()
            for position, entry in enumerate(getattr(config.matrix, group)):
                here: Location = ("matrix", group, position)
                if entry.label in labels:
                    raise fail((*here, "label"), f"the label {entry.label!r} stands twice")
                labels.add(entry.label)
        for name, profile in config.profiles.items():
            here = ("profiles", name)
            for key in ("dataset", "out_of_distribution"):
                self._check_dataset((*here, key), getattr(profile, key))
            for position, downstream in enumerate(profile.downstreams):
                self._check_dataset((*here, "downstreams", position, "dataset"), downstream.dataset)

    def _check_dataset(self, location: Location, name: str) -> None:
        if name not in self.config.datasets:
            raise self.yaml.error(
                location, f"unknown dataset {name!r}{nearest(name, self.config.datasets)}"
            )

    def check_components(self) -> None:
        """Validate every component name and parameter of the matrix in every profile.

        Raises
        ------
        InputError
            With file, line and key of the first mistake.
        """
        from bench.encoders.architectures import find
        from bench.encoders.simclr import SimCLRRecipe

        for group in registry.GROUPS:
            for position, entry in enumerate(getattr(self.config.matrix, group)):
                here: Location = ("matrix", group, position)
                with self._located((*here, group[:-1])):
                    registry.load(group, getattr(entry, group[:-1]))
        known = {name: group for group in registry.GROUPS for name in registry.entries(group)}
        for profile_name, profile in self.config.profiles.items():
            here = ("profiles", profile_name)
            image_size = self.config.datasets[profile.dataset].image_size
            self._validate(SimCLRRecipe, [(profile.pretraining, (*here, "pretraining"))])
            with self._located((*here, "encoder", "architecture")):
                architecture = find(profile.encoder.architecture)
            with self._located((*here, "encoder", "settings")):
                architecture.check(profile.encoder.settings)
            for name in profile.overrides:
                location = (*here, "overrides", name)
                if name not in known:
                    raise self.yaml.error(
                        location, f"unknown attack or defense {name!r}{nearest(name, known)}"
                    )
            for group in registry.GROUPS:
                for position, entry in enumerate(getattr(self.config.matrix, group)):
                    name = getattr(entry, group[:-1])
                    self._validate(
                        registry.load(group, name),
                        [
                            (entry.parameters, ("matrix", group, position, "parameters")),
                            (profile.overrides.get(name, {}), (*here, "overrides", name)),
                        ],
                        image_size,
                    )
            used = {entry.attack for entry in self.config.matrix.attacks}
            used |= {entry.defense for entry in self.config.matrix.defenses}
            for name in set(profile.overrides) - used:
                component = registry.load(known[name], name)
                self._validate(
                    component, [(profile.overrides[name], (*here, "overrides", name))], image_size
                )

    def _validate(
        self,
        component: type[BaseModel],
        layers: list[tuple[Mapping[str, Any], Location]],
        image_size: int | None = None,
    ) -> None:
        """Validate parameters laid over each other, the first layer on top.

        An error in a field is told at the layer that set it, one of the whole at the first layer
        that says anything.
        """
        merged = {name: value for layer, _ in reversed(layers) for name, value in layer.items()}
        whole = next((location for layer, location in layers if layer), layers[-1][1])
        try:
            instance = component.model_validate(merged)
        except ValidationError as error:
            field = next(iter(error.errors()[0]["loc"]), None)
            place = next((location for layer, location in layers if field in layer), whole)
            raise self._first(error, place, component) from None
        for field, path in file_parameters(instance).items():
            place = next(location for layer, location in layers if field in layer)
            with self._located((*place, field)):
                if not (self.root / path).is_file():
                    raise InputError(f"no such file: {path}")
                instance = instance.model_copy(update={field: self.root / path})
                instance.check(image_size)
        if image_size is not None:
            with self._located(whole):
                instance.check(image_size)

    def _first(
        self, error: ValidationError, prefix: Location, component: type[BaseModel] = Config
    ) -> InputError:
        details = error.errors(include_url=False)[0]
        location = (*prefix, *(part for part in details["loc"] if part != "[key]"))
        return self.yaml.error(location, _sentence(details, component))

    def _located(self, *locations: Location) -> _Located:
        return _Located(self.yaml, next(loc for loc in locations if loc))


def file_parameters(component: BaseModel) -> dict[str, Path]:
    """The parameters of a component that name a file: field -> path as configured."""
    return {
        field: value
        for field in type(component).model_fields
        if isinstance(value := getattr(component, field), Path)
    }


class _Located:
    """Adds file, line and key to an InputError or ValueError raised inside the block."""

    def __init__(self, yaml_file: YamlFile, location: Location) -> None:
        self._yaml, self._location = yaml_file, location

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError):
            raise self._yaml.error(self._location, str(error)) from None


def _sentence(details: Mapping[str, Any], component: type[BaseModel]) -> str:
    kind = details["type"]
    if kind == "extra_forbidden":
        name = str(details["loc"][-1])
        return f"unknown key{nearest(name, _fields_at(component, details['loc'][:-1]))}"
    if kind == "missing":
        return "this key is required"
    if kind == "too_short":
        return "must not be empty"
    message = re.sub(r"^(Value error, |Input should be )", "", details["msg"])
    if details["msg"].startswith("Input should"):
        message = f"should be {message}"
    got = details.get("input")
    if isinstance(got, str | int | float | bool) or got is None:
        message += f", got {got!r}"
    return message


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Field names valid at ``location`` inside ``model``; empty where they cannot be told."""
    current: Any = model
    inside_container = False
    for part in location:
        if inside_container:
            # A list position or a dictionary key: what it holds is already known.
            inside_container = False
            continue
        if part not in getattr(current, "model_fields", {}):
            return []
        annotation = current.model_fields[part].annotation
        current = _model_in(annotation)
        inside_container = current is not None and current is not annotation
    return list(getattr(current, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
