"""What a defense makes of single images: its stored figures beside their inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure

from bench.figures import BESIDE_FIGURES
from bench.report.arrays import paired
from bench.report.plots.pictures import SCALE, show_strip
from bench.report.plots.selection import AttackColumn
from bench.report.schema import StoredCell
from bench.report.style import new_figure, shortened

__all__ = [
    "INVERTED",
    "cells_with_pictures",
    "digest",
    "picture_names",
    "reconstruction_blocks",
    "reconstruction_figure",
]

INVERTED = "inverted_"
"""Figures whose name starts so say something of the encoder, the same for every image."""

IMAGES_SHOWN = 5

Blocks = list[tuple[str, list[tuple[str, np.ndarray]]]]
"""(condition, [(label of the row, uint8 (n, H, W, 3))]), the same rows in every block."""


def cells_with_pictures(
    attack: AttackColumn,
) -> Iterator[tuple[list[StoredCell], dict[str, np.ndarray]]]:
    """Measured cells whose defense draws single images, with their figures.

    Defenses that drew exactly the same share one entry.
    """
    found: dict[str, tuple[list[StoredCell], dict[str, np.ndarray]]] = {}
    for cell in attack.in_display_order:
        figures = cell.figures()
        names = picture_names(figures or {})
        if figures is not None and names and reconstruction_blocks(figures):
            same = found.setdefault(digest(figures, (*BESIDE_FIGURES, *names)), ([], figures))
            same[0].append(cell)
    yield from found.values()


def picture_names(figures: dict[str, np.ndarray], *, inverted: bool = False) -> list[str]:
    """Names of figures, the victim's before the twin's: of single images, or ``inverted`` ones."""
    drawn = [name for name in figures if name not in BESIDE_FIGURES]
    names = [n for n in drawn if n.removeprefix("twin_").startswith(INVERTED) == inverted]
    return sorted(names, key=lambda name: name.startswith("twin_"))  # stable: stored order


def digest(figures: dict[str, np.ndarray], names: Sequence[str]) -> str:
    """Equal for equal arrays under equal names."""
    found = hashlib.sha256()
    for name in names:
        array = np.ascontiguousarray(figures[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()


def reconstruction_figure(attack: str, defense: str, figures: dict[str, np.ndarray]) -> Figure:
    """Rows: input, then every figure of the defense (victim, then twin); blocks: clean, triggered.

    Parameters
    ----------
    figures
        Arrays of a cell's ``figures.npz``: ``input`` and figures uint8 (M, H, W, 3), ``condition``
        and ``image`` (M,). A column is one source image, the same one in every block.
    """
    blocks = reconstruction_blocks(figures)
    rows = len(blocks[0][1])
    width = sum(len(block[0][1]) for _, block in blocks) * (SCALE + 0.05)
    figure = new_figure(width + 1.5, (SCALE + 0.08) * rows + 0.65)
    panels = figure.subplots(rows, len(blocks), squeeze=False)
    for place, (condition, block) in enumerate(blocks):
        panels[0, place].set_title(condition, size=9, pad=3)
        for line, (label, pictures) in enumerate(block):
            show_strip(panels[line, place], pictures)
            if not place:
                panels[line, 0].set_ylabel(label, rotation=0, ha="right", va="center", size=8)
    title = f"{shortened(defense, 60)} on {shortened(attack, 60)}"
    figure.suptitle(title, weight="bold", size=10)
    return figure


def reconstruction_blocks(figures: dict[str, np.ndarray]) -> Blocks:
    """What :func:`reconstruction_figure` draws, the same source images in every row.

    Nothing when no image is there in every condition.
    """
    blocks: Blocks = []
    for condition, places in paired(figures, IMAGES_SHOWN):
        rows = [("input", figures["input"][places])]
        for name in picture_names(figures):
            who = "clean twin" if name.startswith("twin_") else "victim"
            label = shortened(name.removeprefix("twin_").replace("_", " "), 30)
            rows.append((f"{label}\n({who})", figures[name][places]))
        blocks.append((condition, rows))
    return blocks
