"""What attacks, defenses, triggers and training recipes are made of: typed, versioned parameters.

Plug-in authors import these names from ``bench.api``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Component", "Field", "Progress", "later_field"]

Item = TypeVar("Item")


class Progress(Protocol):
    """Reports steps to whoever watches and cuts training short under ``--limit-steps``."""

    def track(self, items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
        """Yield ``items`` (training steps), at most as many as the run's limit allows."""


def later_field(default: Any, **constraints: Any) -> Any:
    """A pydantic ``Field`` for a parameter that came after results were stored.

    At its default it is no part of :meth:`Component.parameters`, and so of no key: what was
    computed before keeps its key, and its results must be those of the default.
    """
    return Field(default, exclude_if=lambda value: value == default, **constraints)


class Component(BaseModel):
    """What attacks, defenses and triggers share: typed parameters and a version.

    ``version`` enters every cache key. Raise it when the results of the component change.
    """

    model_config = ConfigDict(
        extra="forbid", protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )
    version: ClassVar[int] = 1

    def check(self, image_size: int) -> None:
        """Raise ValueError for what can be told before anything runs.

        Called with the side of the profile's images, and with parameters of type ``Path``
        resolved: a patch that does not fit, a damaged file.
        """

    def parameters(self) -> dict[str, Any]:
        """Every hyper-parameter with its value, JSON-ready, but for defaults of `later_field`."""
        return self.model_dump(mode="json")
