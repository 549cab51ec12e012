"""bench.yaml -> a checked configuration. Every error says file, line, key, nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bench import registry
from bench.config import Config
from bench.errors import InputError, nearest
from bench.yamlfile import Location, YamlFile


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

        An error in a field is told at the layer that set it, one of the whole at the file it
        names or else at the first layer that says anything.
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
            whole = (*place, field)
            if not (self.root / path).is_file():
                raise self.yaml.error(whole, f"no such file: {path}")
            instance = instance.model_copy(update={field: self.root / path})
        if image_size is not None:
            with self._located(whole):
                instance.check(image_size)

    def _first(
        self, error: ValidationError, prefix: Location, component: type[BaseModel] = Config
    ) -> InputError:
        details = error.errors(include_url=False)[0]
        location = (*prefix, *(part for part in details["loc"] if part != "[key]"))
        return self.yaml.error(location, _sentence(details, component))

    def _located(self, location: Location) -> _Located:
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
