"""Small images side by side."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

__all__ = ["SCALE", "beside", "show_strip"]

SCALE = 0.62
"""Inches on the page per image."""

_GAP = 0.07


def show_strip(axis: Axes, pictures: np.ndarray) -> None:
    """Draw uint8 ``pictures`` (n, H, W, 3) in a row, pixels as squares, without axes."""
    axis.imshow(beside(pictures), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)


def beside(pictures: np.ndarray) -> np.ndarray:
    """uint8 (n, H, W, 3) as one (H, W', 3) with white gaps."""
    number, height, width, _ = pictures.shape
    gap = max(1, round(width * _GAP))
    strip = np.full((height, number * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for place in range(number):
        start = place * (width + gap)
        strip[:, start : start + width] = pictures[place]
    return strip
