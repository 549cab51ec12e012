"""Finds attacks and defenses by name: built-in modules by folder, others by entry point. Lazy."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from bench.errors import InputError, nearest

GROUPS = ("attacks", "defenses")
UPSTREAM = "@upstream"
"""Ends the name of a component that runs the authors' own code."""
_SINGULAR = {"attacks": "attack", "defenses": "defense"}
_BASES = {"attacks": "Attack", "defenses": "Defense"}


@dataclass(frozen=True)
class Entry:
    """Where a component comes from; nothing is imported until :func:`load`."""

    name: str
    group: str
    module: str
    attribute: str | None = None
    origin: str = "built-in"


@cache
def entries(group: str) -> dict[str, Entry]:
    """Every known component of ``group`` by name, sorted.

    Raises
    ------
    InputError
        When two components claim one name; both are named.
    """
    found: dict[str, Entry] = {}
    for path in sorted(folder(group).glob("*.py")):
        if _declares_component(path, group):
            name = path.stem.replace("_", "-")
            found[name] = Entry(name, group, f"{group}.{path.stem}")
    for point in sorted(_entry_points(group), key=lambda point: point.name):
        if point.name in found:
            raise InputError(
                f"two {group} are called {point.name!r}: {found[point.name].module} and "
                f"{point.value}; rename the entry point"
            )
        found[point.name] = Entry(
            point.name,
            group,
            point.module,
            point.attr or None,
            origin=point.dist.name if point.dist else "entry point",
        )
    return dict(sorted(found.items()))


@cache
def upstream_entries(group: str) -> dict[str, Entry]:
    """The components that run the authors' own code, ``NAME@upstream``, sorted.

    They are no components of their own in ``bench list`` or ``bench check``: ``backend: upstream``
    in an entry of the matrix asks for one.
    """
    found = {}
    for path in sorted((folder(group) / "upstream").glob("*.py")):
        if not path.stem.startswith("_"):
            name = path.stem.replace("_", "-") + UPSTREAM
            found[name] = Entry(name, group, f"{group}.upstream.{path.stem}")
    return found


def find(group: str, name: str) -> Entry:
    """The entry called ``name``.

    Raises
    ------
    InputError
        For an unknown name, with the nearest valid one.
    """
    known = entries(group)
    if name.endswith(UPSTREAM):
        known = upstream_entries(group)
        if name not in known:
            able = ", ".join(each.removesuffix(UPSTREAM) for each in known) or "none"
            raise InputError(
                f"{_SINGULAR[group]} {name.removesuffix(UPSTREAM)!r} has no backend upstream; "
                f"these have one: {able}"
            )
    if name not in known:
        raise InputError(f"unknown {_SINGULAR[group]} {name!r}{nearest(name, known)}")
    return known[name]


@cache
def load(group: str, name: str) -> type[Any]:
    """Import the component class called ``name``.

    Raises
    ------
    InputError
        For an unknown name, a module that does not import, or one without exactly one public
        subclass of the group's base.
    """
    entry = find(group, name)
    base = getattr(importlib.import_module("bench.api"), _BASES[group])
    try:
        module = importlib.import_module(entry.module)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{_SINGULAR[group]} {name!r}: {entry.module} does not import: "
            f"{type(error).__name__}: {error}"
        ) from error
    if entry.attribute is not None:
        candidates = [getattr(module, entry.attribute, None)]
    else:
        candidates = [
            value
            for key, value in vars(module).items()
            if not key.startswith("_")
            and inspect.isclass(value)
            and value.__module__ == module.__name__
        ]
    classes = [c for c in candidates if inspect.isclass(c) and issubclass(c, base)]
    if len(classes) != 1 or inspect.isabstract(classes[0]):
        raise InputError(
            f"{_SINGULAR[group]} {name!r}: {entry.module} must hold one public, complete subclass "
            f"of bench.api.{base.__name__}"
        )
    return classes[0]


def missing_packages(component: type[Any]) -> list[str]:
    """Names of the libraries that a component asks for and that are not installed."""
    needed = getattr(component, "needs_packages", ())
    return [package for package in needed if importlib.util.find_spec(package) is None]


def summary(entry: Entry) -> str:
    """The first line of a component's docstring, read without importing it."""
    try:
        spec = importlib.util.find_spec(entry.module)
    except (Exception, SystemExit) as error:  # the package around the module is imported for it
        return f"does not import: {type(error).__name__}: {error}"
    if spec is None or spec.origin is None:
        return ""
    try:
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        return f"does not import: {type(error).__name__}: {error}"
    docstring = ast.get_docstring(tree) or ""
    return docstring.split("\n", 1)[0]


def folder(group: str) -> Path:
    """Where the built-in modules of ``group`` lie."""
    spec = importlib.util.find_spec(group)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {group!r} is not importable; reinstall the project")
    return Path(next(iter(spec.submodule_search_locations)))


def _entry_points(group: str) -> list[EntryPoint]:
    return list(entry_points(group=f"bench.{group}"))


def _declares_component(path: Path, group: str) -> bool:
    """Private modules and shared ones such as ``triggers`` are no components."""
    return not path.stem.startswith("_") and path.stem not in _SHARED_MODULES[group]


_SHARED_MODULES: dict[str, frozenset[str]] = {
    "attacks": frozenset({"triggers"}),
    "defenses": frozenset(),
}


def parse_trigger(value: Mapping[str, Any], image_size: int, root: Path) -> Any:
    """The trigger that a mapping in a configuration file describes; paths are under ``root``.

    Raises
    ------
    ValueError
        For an unknown kind or key, with the nearest valid name, or a file that does not fit.
    """
    return importlib.import_module("attacks.triggers").parse_trigger(value, image_size, root)


def trigger_class(kind: str) -> type[Any]:
    """The trigger class of that ``name``: a shared one, or one that an attack's module defines."""
    known = _triggers()
    if kind not in known:
        for name in entries("attacks"):
            load("attacks", name)
        known = _triggers()
    if kind not in known:
        raise InputError(f"unknown trigger {kind!r}{nearest(kind, known)}")
    return known[kind]


def _triggers() -> dict[str, type[Any]]:
    """Every trigger class imported so far, by name."""
    importlib.import_module("attacks.triggers")
    found: dict[str, type[Any]] = {}
    waiting = [importlib.import_module("bench.api").Trigger]
    while waiting:
        for component in waiting.pop().__subclasses__():
            waiting.append(component)
            if "name" in vars(component):
                found.setdefault(component.name, component)
    return found
