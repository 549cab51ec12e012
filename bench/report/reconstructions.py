"""What a defense sees: its stored figures beside their input images."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from bench.report.pictures import reconstruction_rows
from bench.report.style import new_figure

__all__ = ["reconstruction_figure"]

_CELL_INCHES = 0.85
_GAP = 0.06


def reconstruction_figure(attack: str, defense: str, figures: dict[str, np.ndarray]) -> Figure:
    """Rows: input, then every figure of the defense (victim, then twin), clean before triggered.

    Parameters
    ----------
    figures
        Arrays of a cell's ``figures.npz``: ``input`` and figures uint8 (M, H, W, 3), ``condition``
        and ``image`` (M,). A column of the plot is one source image.
    """
    rows = reconstruction_rows(figures)
    count = max(len(pictures) for _, pictures in rows)
    figure = new_figure(_CELL_INCHES * count + 1.3, (_CELL_INCHES + _GAP) * len(rows) + 0.4)
    panels = figure.subplots(len(rows), 1, squeeze=False).ravel()
    for axis, (label, pictures) in zip(panels, rows, strict=True):
        axis.imshow(_strip(pictures, count), interpolation="nearest")
        axis.set_ylabel(label, rotation=0, ha="right", va="center", size=8)
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(False)
    figure.suptitle(f"{defense} on {attack}", weight="bold", size=10)
    return figure


def _strip(pictures: np.ndarray, count: int) -> np.ndarray:
    """``pictures`` side by side on white, padded to ``count`` places."""
    number, height, width, _ = pictures.shape
    gap = max(1, round(width * _GAP))
    strip = np.full((height, count * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for place in range(number):
        start = place * (width + gap)
        strip[:, start : start + width] = pictures[place]
    return strip
