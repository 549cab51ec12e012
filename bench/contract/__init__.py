"""The contract suite: tries a component on tiny real victims and says what it breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from bench import registry
from bench.contract.attack_checks import AttackSuite
from bench.contract.defense_checks import DefenseSuite
from bench.contract.findings import Finding, failed
from bench.contract.world import World
from bench.errors import InputError

__all__ = ["Finding", "World", "check", "failed"]

Kind = Literal["attack", "defense"]


def check(
    kind: Kind,
    name: str,
    world: World,
    parameters: Mapping[str, Any] | None = None,
) -> Iterator[Finding]:
    """Every check of the component called ``name``, as it ends.

    Parameters
    ----------
    world
        The victims it is tried on.
    parameters
        Values that differ from the defaults; paths among them are used as they are.

    Raises
    ------
    InputError
        For an unknown name (at once, with the nearest valid one).
    ValidationError
        For impossible parameters.
    """
    registry.find(f"{kind}s", name)
    return _findings(kind, name, world, dict(parameters or {}))


def _findings(
    kind: Kind, name: str, world: World, parameters: Mapping[str, Any]
) -> Iterator[Finding]:
    try:
        component = registry.load(f"{kind}s", name)
    except InputError as error:
        yield Finding("FAIL", "can be loaded", str(error))
        return
    missing = registry.missing_packages(component)
    if missing:
        install = f"pip install {' '.join(missing)}"
        yield Finding("skip", "all checks", f"it needs {', '.join(missing)}: {install}")
        return

    def make() -> Any:
        return component.model_validate(parameters)

    suites: dict[str, Callable[..., Any]] = {"attack": AttackSuite, "defense": DefenseSuite}
    yield from suites[kind](make, world).findings()
