"""When two lists of scores are the same, and what a parameter may be changed to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import numpy as np

TOLERANCE = 1e-4
"""Relative, as the contract says (invariant 14)."""
NOISE = 1e-5
"""Differences below this share of the spread of the scores rank nothing differently: a score near
zero has no digits to compare."""


def spread_of(scores: np.ndarray) -> float:
    """Largest minus smallest score; 0 for none."""
    return float(np.ptp(scores)) if len(scores) else 0.0


def unlike(
    expected: np.ndarray,
    found: np.ndarray,
    tolerance: float = TOLERANCE,
    scale: float | None = None,
) -> str | None:
    """How two lists of finite scores differ, in words; None when they do not.

    Parameters
    ----------
    scale
        The spread of the scores; that of ``expected`` by default.
    """
    expected, found = (np.asarray(scores, np.float64) for scores in (expected, found))
    allowed = tolerance * np.abs(expected)
    allowed += NOISE * (spread_of(expected) if scale is None else scale)
    differences = np.abs(expected - found)
    wrong = np.flatnonzero(differences > allowed)
    if not len(wrong):
        return None
    worst = wrong[np.argmax(differences[wrong] - allowed[wrong])]
    return (
        f"{len(wrong)} of {len(expected)} differ, such as {expected[worst]:.6g} and "
        f"{found[worst]:.6g}"
    )


def other_values(annotation: Any, value: Any) -> Iterator[Any]:
    """Values near ``value`` that a parameter of that type might take; its range is not known."""
    if get_origin(annotation) is Literal:
        yield from (choice for choice in get_args(annotation) if choice != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1)
    elif isinstance(value, float):
        yield from (0.9 * value, 1.1 * value, 0.5 * value)
