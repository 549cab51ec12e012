"""Which detectors a scan runs, with which parameters, and which it must leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from bench import registry
from bench.api import Defense
from bench.errors import InputError, nearest

NO_AUXILIARY = "no clean images were given: name some with --auxiliary"


@dataclass(frozen=True)
class Chosen:
    """A detector with its parameters.

    Attributes
    ----------
    skip
        Why it cannot run here; None when it can.
    """

    name: str
    defense: Defense
    skip: str | None = None


@dataclass(frozen=True)
class Offered:
    """What this scan has for the requirements of detectors.

    Attributes
    ----------
    text
        Whether the encoder has a text tower.
    auxiliary
        Whether there are clean images.
    labels
        Whether they have labels.
    """

    architecture: str
    image_size: int
    text: bool
    auxiliary: bool
    labels: bool


def choose(
    names: Sequence[str] | None, parameters: Mapping[str, Mapping[str, Any]], offered: Offered
) -> list[Chosen]:
    """The detectors by name (None: see :func:`first_aid`), each once, in the order given.

    Raises
    ------
    InputError
        For an unknown name or parameter, a wrong value, or when none of them can run.
    """
    if names is None:
        names = first_aid()
    names = list(dict.fromkeys(names))
    for name in parameters:
        if name not in names:
            registry.find("defenses", name)
            raise InputError(f"--set speaks of {name}, which is not among the defenses to run")
    chosen = [_chosen(name, parameters.get(name, {}), offered) for name in names]
    if not chosen:
        raise InputError("no defense to run; name some with --defenses")
    if all(one.skip is not None for one in chosen):
        reasons = "; ".join(f"{one.name}: {one.skip}" for one in chosen)
        raise InputError(f"none of the defenses can run here: {reasons}")
    return chosen


def first_aid() -> list[str]:
    """Names of the detectors that run unless told otherwise."""
    names = registry.entries("defenses")
    return [name for name in names if registry.load("defenses", name).first_aid]


def _chosen(name: str, parameters: Mapping[str, Any], offered: Offered) -> Chosen:
    component = registry.load("defenses", name)
    try:
        defense = component.model_validate(dict(parameters))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        near = nearest(key, component.model_fields) if first["type"] == "extra_forbidden" else ""
        raise InputError(f"{name}.{key}: {first['msg']}{near}") from None
    missing = registry.missing_packages(component)
    if missing:
        needs = f"needs {', '.join(missing)}: pip install {' '.join(missing)}"
        return Chosen(name, defense, needs)
    return Chosen(name, defense, _lacking(defense, offered) or _refusal(defense, offered))


def _lacking(defense: Defense, offered: Offered) -> str | None:
    """What a defense requires and cannot have here, as a reason."""
    requires = frozenset(defense.requires)
    if "trigger_support" in requires:
        return "it must be told where the trigger lies: an analysis of known attacks, no defense"
    if "text" in requires and not offered.text:
        return f"it requires a text tower, which {offered.architecture} has not"
    if "suspicious" in requires and not offered.auxiliary:
        return f"it requires a clean base set, and {NO_AUXILIARY}"
    if "auxiliary_labels" in requires and not offered.auxiliary:
        return f"it requires labelled clean images, and {NO_AUXILIARY}"
    if "auxiliary_labels" in requires and not offered.labels:
        return (
            "it requires labels of the clean images: put those in one subfolder per class, or give "
            "a parquet file with a column 'label'"
        )
    return None


def _refusal(defense: Defense, offered: Offered) -> str | None:
    try:
        defense.check(offered.image_size)
    except ValueError as error:
        return " ".join(str(error).split())
    return None


def parse_parameters(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``defense.parameter=value`` pairs by defense; values as YAML reads them.

    Raises
    ------
    InputError
        For anything else.
    """
    found: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        place, equals, text = pair.partition("=")
        name, dot, parameter = place.strip().partition(".")
        if not (equals and dot and name and parameter):
            raise InputError(f"--set wants defense.parameter=value, got {pair!r}")
        try:
            found.setdefault(name, {})[parameter] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, AttributeError, RecursionError):
            raise InputError(f"--set {place}: {text[:40]!r} is no value") from None
    return found
