"""How many objects are built quickly: each answer once, and no search for waste meanwhile."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

Owner = TypeVar("Owner")
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def once(
    method: Callable[Concatenate[Owner, Arguments], Answer],
) -> Callable[Concatenate[Owner, Arguments], Answer]:
    """Remember, in the object itself, what a method answered to the same positional arguments.

    They must be hashable, and nobody may change the answer: it is shared.
    """
    place = f"_{method.__name__}_answers"

    @functools.wraps(method)
    def remembered(self: Owner, *arguments: Any) -> Answer:
        answers = vars(self).setdefault(place, {})
        if arguments not in answers:
            answers[arguments] = method(self, *arguments)
        return answers[arguments]

    return remembered  # type: ignore[return-value]


@contextmanager
def without_collector() -> Iterator[None]:
    """For building many objects that all stay: Python looks through them for waste, in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
