"""What keys and skips need to know about a component, from its name and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import registry
from bench.configfile import file_parameters
from bench.graph import Component
from bench.recipes import describe_recipe
from bench.store import file_digest

__all__ = ["resolve_component"]


def resolve_component(
    root: Path, group: str, name: str, parameters: Mapping[str, Any], images: Mapping[str, int]
) -> Component:
    """What keys and skips need to know about a component with the given parameters.

    ``root`` is the folder that paths among the parameters refer to, ``images`` how many images each
    role of the protocol has.
    """
    from bench.api import Control, DataPoisoning
    from bench.upstream.component import TrainsUpstream, UpstreamComponent

    component = registry.load(group, name)
    instance = component.model_validate(dict(parameters))
    scoring = frozenset(getattr(component, "scoring_parameters", frozenset()))
    fitting = component.model_validate({k: v for k, v in parameters.items() if k not in scoring})
    missing = registry.missing_packages(component)
    skip = (
        f"{name} needs {', '.join(missing)}: pip install {' '.join(missing)}" if missing else None
    )
    kind = "defense" if group == "defenses" else "model-poisoning"
    if issubclass(component, Control):
        kind = "control"
    elif issubclass(component, DataPoisoning):
        kind = "data-poisoning"
    recipe = getattr(instance, "recipe", None)
    described = None if recipe is None else describe_recipe(recipe)
    revision, reduced = "", ""
    if isinstance(instance, UpstreamComponent):
        revision, reduced = instance.revision(), instance.reduced(images)
        skip = skip or instance.absent()
    if isinstance(instance, TrainsUpstream):
        # Victim and twin are trained by the authors' code, as every parameter tells it to.
        parameters = {"attack": name, "revision": revision, **instance.parameters()}
        described = {"name": "upstream", "version": component.version, "parameters": parameters}
    return Component(
        name=name,
        version=component.version,
        parameters=instance.parameters(),
        files={
            field: file_digest(root / path) for field, path in file_parameters(instance).items()
        },
        kind=kind,
        family=getattr(component, "family", "ssl"),
        recipe=described,
        requires=frozenset(getattr(instance, "requires", frozenset())),
        fit_requires=frozenset(getattr(fitting, "requires", frozenset())),
        scoring=scoring,
        reference=bool(getattr(component, "reference", False)),
        analysis=bool(getattr(instance, "analysis", False)),
        references=getattr(instance, "references", 0),
        skip=skip,
        revision=revision,
        reduced=reduced,
    )
