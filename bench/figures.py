"""Pictures that a defense draws (``Defense.figures``): what they have to be, wherever they go."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["BESIDE_FIGURES", "figure_fault"]

BESIDE_FIGURES = ("input", "condition", "image")
"""What the harness stores beside them, under these names: the pictures that were shown, what was
stamped on each, and the numbers of their source images."""


def figure_fault(name: str, array: Any, count: int) -> str:
    """What keeps a figure for ``count`` images from being stored and drawn; empty when nothing."""
    if name in BESIDE_FIGURES:
        return f"a figure may not be called {name!r}: the harness stores that itself"
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        found = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
        return f"figure {name!r} must be a uint8 array, not {found}"
    if array.ndim != 4 or len(array) != count or array.shape[3] != 3:
        return (
            f"figure {name!r} has shape {array.shape} for {count} images and must be "
            f"({count}, H, W, 3)"
        )
    return ""
