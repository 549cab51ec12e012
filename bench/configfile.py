"""bench.yaml -> a checked configuration. Every error says file, line, key, nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bench import registry
from bench.config import (
    ATTACK_TAG,
    VICTIM_TAG,
    AttackEntry,
    Config,
    DefenseEntry,
    Family,
    Profile,
    VictimEntry,
)
from bench.errors import InputError, nearest
from bench.recipes import recipe_type
from bench.yamlfile import Location, YamlFile, dotted


class ConfigFile:
    """A configuration with the file it came from, for errors with a line.

    ``content``: of the file, where it was read before; None reads it.
    """

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        self.path = Path(path)
        self.yaml = YamlFile(self.path, content)
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
        for profile in config.profiles:
            matrix, where = config.matrix_of(profile)
            for group in ("attacks", "defenses"):
                labels: set[str] = set()
                for position, entry in enumerate(getattr(matrix, group)):
                    here: Location = (*where, group, position)
                    if entry.label in labels:
                        raise fail((*here, "label"), f"the label {entry.label!r} stands twice")
                    labels.add(entry.label)
            for name, location in self.datasets_of(profile).items():
                if name not in config.datasets:
                    raise fail(
                        location, f"unknown dataset {name!r}{nearest(name, config.datasets)}"
                    )

        rates = {0.01, 0.05, config.protocol.calibration_fpr}
        for name, table in config.tables.declared.items():
            if table.threshold_fpr is not None and table.threshold_fpr not in rates:
                raise fail(
                    ("tables", name, "threshold_fpr"),
                    f"no cell stores thresholds at {table.threshold_fpr:g}; "
                    f"there are: {', '.join(f'{rate:g}' for rate in sorted(rates))}",
                )
            for position, profile in enumerate(table.profiles):
                if profile not in config.profiles:
                    raise fail(
                        ("tables", name, "profiles", position),
                        f"unknown profile {profile!r}{nearest(profile, config.profiles)}",
                    )

    def datasets_of(self, profile_name: str) -> dict[str, Location]:
        """Every data set that a profile's rows need, with the key that names it first."""
        profile, here = self.config.profiles[profile_name], ("profiles", profile_name)
        named: dict[str, Location] = {}
        for section, where in ((profile, here), (profile.clip, (*here, "clip"))):
            if section is None:
                continue
            for key in ("dataset", "out_of_distribution"):
                if getattr(section, key) is not None:
                    named.setdefault(getattr(section, key), (*where, key))
            for position, downstream in enumerate(section.downstreams or ()):
                named.setdefault(downstream.dataset, (*where, "downstreams", position, "dataset"))
        matrix, where = self.config.matrix_of(profile_name)
        for position, entry in enumerate(matrix.attacks):
            if isinstance(entry, VictimEntry) and entry.downstream is not None:
                named.setdefault(entry.downstream, (*where, "attacks", position, "downstream"))
        return named

    def check_components(self) -> None:
        """Validate every component name and parameter of the matrix in every profile.

        Raises
        ------
        InputError
            With file, line and key of the first mistake.
        """
        known = {
            name: group
            for group in registry.GROUPS
            for name in (*registry.entries(group), *registry.upstream_entries(group))
        }
        for name, profile in self.config.profiles.items():
            for group in registry.GROUPS:
                for where, entry in self._components(name, group):
                    with self.located((*where, group[:-1])):
                        registry.load(group, entry.component)
            self._check_encoders(profile, ("profiles", name))
            self._check_parameters(name, profile, known)

    def _components(
        self, profile_name: str, group: str
    ) -> Iterator[tuple[Location, AttackEntry | DefenseEntry]]:
        """The entries of a profile's matrix that name a component, each with its place."""
        matrix, where = self.config.matrix_of(profile_name)
        for position, entry in enumerate(getattr(matrix, group)):
            if not isinstance(entry, VictimEntry):
                yield (*where, group, position), entry

    def _check_encoders(self, profile: Profile, here: Location) -> None:
        """Refuse impossible architectures, settings and pretraining recipes."""
        from bench.encoders.architectures import find

        places = {"ssl": here, "clip": (*here, "clip")}
        for family in profile.families().values():
            where = places[family.name]
            self._validate(
                recipe_type(family.name), [(family.pretraining, (*where, "pretraining"))]
            )
            with self.located((*where, "encoder", "architecture")):
                architecture = find(family.encoder.architecture)
            with self.located((*where, "encoder", "settings")):
                architecture.check(family.encoder.settings)

    def _check_parameters(
        self, profile_name: str, profile: Profile, known: Mapping[str, str]
    ) -> None:
        """Validate every component of the matrix with the overrides, used or not."""
        here: Location = ("profiles", profile_name)
        families = profile.families()
        layers = {(*here, "overrides"): profile.overrides}
        layers |= {(*here, f.name, "overrides"): f.overrides for f in families.values()}
        for where, layer in layers.items():
            for name in layer:
                if name not in known:
                    raise self.yaml.error(
                        (*where, name), f"unknown attack or defense {name!r}{nearest(name, known)}"
                    )
                if known[name] == "attacks" and layer is not profile.overrides:
                    raise self.yaml.error(
                        (*where, name), f"the attack {name} is for one family: overrides.{name}"
                    )
        for name in profile.settings_tried:
            if name not in registry.entries("attacks"):
                close = nearest(name, registry.entries("attacks"))
                raise self.yaml.error(
                    (*here, "settings_tried", name), f"unknown attack {name!r}{close}"
                )
        entries = [
            (group, entry.component, entry.parameters, (*where, "parameters"))
            for group in registry.GROUPS
            for where, entry in self._components(profile_name, group)
        ]
        unused = {name for layer in layers.values() for name in layer} - {e[1] for e in entries}
        entries += [(known[name], name, {}, (*here, "overrides", name)) for name in sorted(unused)]
        met = self._families_met(profile_name, families)
        for group, name, parameters, where in entries:
            component = registry.load(group, name)
            own = families.get(getattr(component, "family", "ssl"), families["ssl"])
            set_apart = [f for f in families.values() if name in f.overrides and f not in met]
            for family in [*met, *set_apart] if group == "defenses" else [own]:
                self._validate(
                    component,
                    [
                        (parameters, where),
                        (family.overrides.get(name, {}), (*here, family.name, "overrides", name)),
                        (profile.overrides.get(name, {}), (*here, "overrides", name)),
                    ],
                    self.config.datasets[family.dataset].image_size,
                    merged=self.config.component_parameters(profile, name, parameters, family.name),
                )

    def _families_met(self, profile_name: str, families: Mapping[str, Family]) -> list[Family]:
        """The families whose encoders the defenses of a matrix meet."""
        attacks = self.config.matrix_of(profile_name)[0].attacks
        if any(isinstance(entry, VictimEntry) for entry in attacks):
            return list(families.values())
        named = {registry.load("attacks", entry.component).family for entry in attacks}
        return [family for name, family in families.items() if name in named] or [families["ssl"]]

    def _validate(
        self,
        component: type[BaseModel],
        layers: list[tuple[Mapping[str, Any], Location]],
        image_size: int | None = None,
        *,
        merged: Mapping[str, Any] | None = None,
    ) -> None:
        """Validate parameters laid over each other, the first layer on top.

        An error in a field is told at the layer that set it, one of the whole at the file it
        names or else at the first layer that says anything.
        """
        if merged is None:
            merged = layers[0][0]
        whole = next((location for layer, location in layers if layer), layers[-1][1])
        try:
            instance = component.model_validate(merged)
        except ValidationError as error:
            field = next(iter(error.errors()[0]["loc"]), None)
            place = next((location for layer, location in layers if field in layer), whole)
            raise self._first(error, place, component) from None
        for field, path in file_parameters(instance).items():
            place = next(location for layer, location in layers if field in layer)
            whole = (*place, field)
            if not (self.root / path).is_file():
                raise self.yaml.error(whole, f"no such file: {path}")
            instance = instance.model_copy(update={field: self.root / path})
        if image_size is not None:
            with self.located(whole):
                instance.check(image_size)

    def _first(
        self, error: ValidationError, prefix: Location, component: type[BaseModel] = Config
    ) -> InputError:
        details = error.errors(include_url=False)[0]
        marks = ("[key]", ATTACK_TAG, VICTIM_TAG)
        location = (*prefix, *(part for part in details["loc"] if part not in marks))
        return self.yaml.error(location, _sentence(details, component))

    def located(self, location: Location) -> _Located:
        return _Located(self.yaml, location)


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
        if isinstance(error, ValidationError):
            details = error.errors(include_url=False)[0]
            place = dotted(details["loc"])
            message = _message(details)
            raise self._yaml.error(
                self._location, f"{place}: {message}" if place else message
            ) from None
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
    message, got = _message(details), details.get("input")
    told = isinstance(got, str) and message.endswith(repr(got))
    plain = isinstance(got, str | int | float | bool) or got is None
    return f"{message}, got {got!r}" if plain and not told else message


def _message(details: Mapping[str, Any]) -> str:
    """What pydantic complains about, in our words."""
    if details["type"] in ("model_type", "dict_type"):
        return "should be a mapping of keys to values"
    message = re.sub(r"^(Value error, |Input should be )", "", details["msg"])
    return f"should be {message}" if details["msg"].startswith("Input should") else message


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Field names valid at ``location`` inside ``model``; empty where they cannot be told."""
    current: Any = model
    inside_container = False
    for part in location:
        if part in (ATTACK_TAG, VICTIM_TAG):
            current = AttackEntry if part == ATTACK_TAG else VictimEntry
            inside_container = False
            continue
        if inside_container:
            # A list position or a dictionary key: what it holds is already known.
            inside_container = False
            continue
        if part not in getattr(current, "model_fields", {}):
            return []
        annotation = current.model_fields[part].annotation
        current = _model_in(annotation)
        inside_container = current is not None and current is not annotation
    fields = getattr(current, "model_fields", {})
    return [field.alias or name for name, field in fields.items()]


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
