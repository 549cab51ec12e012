"""Stored pictures as strips, and as small PNGs that a page can carry; needs no matplotlib."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from bench.figures import BESIDE_FIGURES
from bench.report.arrays import paired
from bench.report.schema import StoredCell

__all__ = ["Strip", "attack_strips", "fitting", "reconstruction_rows", "reconstruction_strips"]

COLUMNS_SHOWN = 8
LARGEST_SIDE = 64
"""Pixels; larger pictures are averaged down, or a page of them would be many megabytes."""

_GAP = 2

Strip = tuple[str, int, str]
"""Label, number of pictures, base64 of a PNG with the pictures side by side."""


def reconstruction_rows(figures: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """(label, uint8 (n, H, W, 3)) per row, the same source images in the same order in each."""
    names = [name for name in figures if name not in BESIDE_FIGURES]
    names.sort(key=lambda name: name.startswith("twin_"))  # stable: stored order otherwise
    rows = []
    for condition, places in paired(figures, COLUMNS_SHOWN):
        rows.append((f"{condition}\ninput", figures["input"][places]))
        for name in names:
            who = "twin" if name.startswith("twin_") else "victim"
            label = name.removeprefix("twin_").replace("_", " ")
            rows.append((f"{label}\n({who})", figures[name][places]))
    return rows


def reconstruction_strips(cell: StoredCell, count: int) -> list[Strip]:
    """What the defense of ``cell`` drew, ``count`` source images at most; empty without figures.

    A picture that is the same for all images, such as an inverted trigger, is shown once.
    """
    figures = cell.figures()
    if figures is None or not len(figures["condition"]):
        return []
    changing: list[Strip] = []
    constant: dict[Strip, None] = {}
    condition = ""
    for label, pictures in reconstruction_rows(figures):
        what, _, detail = label.partition("\n")
        if detail == "input":
            condition = what
        same = len(pictures) > 0 and bool((pictures == pictures[:1]).all())
        if same:
            constant[_strip(f"{what} {detail}", pictures[:1])] = None
        else:
            name = f"{what} {detail}" if detail == "input" else f"{condition}: {what} {detail}"
            changing.append(_strip(name, pictures[:count]))
    return [strip for strip in (*changing, *constant) if strip[1]]


def attack_strips(cell: StoredCell, count: int) -> list[Strip]:
    """What the attack of ``cell`` looks like, ``count`` source images at most; may be empty."""
    arrays = cell.attack_pictures()
    if arrays is None:
        return []
    labels = {
        "clean": "clean",
        "triggered": "triggered",
        "difference": f"difference × {float(arrays['gain']):.3g}, around grey",
        "decoy": "decoy",
    }
    return [
        _strip(label, arrays[name][:count])
        for name, label in labels.items()
        if name in arrays and len(arrays[name])
    ]


def fitting(
    cells: Sequence[StoredCell],
    draw: Callable[[StoredCell, int], list[Strip]],
    budget: int,
    counts: Iterable[int] = (COLUMNS_SHOWN, 4, 2, 1),
) -> dict[str, list[Strip]]:
    """Cell key -> its strips, with as many pictures in each as ``budget`` characters hold.

    Where not even one picture per strip fits, cells keep theirs in order until it is full. Equal
    strips count once.
    """
    fitted: dict[str, list[Strip]] = {}
    for count in counts:
        fitted, embedded = {}, set()
        for cell in cells:
            strips = draw(cell, count)
            embedded |= {png for _, _, png in strips}
            if sum(map(len, embedded)) > budget:
                break
            fitted[cell.key] = strips
        else:
            return fitted
    return fitted


def _strip(label: str, pictures: np.ndarray) -> Strip:
    """``pictures`` side by side with a gap that shows the page."""
    tiles = [_reduced(picture) for picture in pictures]
    if not tiles:
        return label, 0, ""
    height, width = tiles[0].shape[:2]
    strip = np.zeros((height, len(tiles) * (width + _GAP) - _GAP, 4), dtype=np.uint8)
    for place, tile in enumerate(tiles):
        start = place * (width + _GAP)
        strip[:, start : start + width, :3] = tile
        strip[:, start : start + width, 3] = 255
    stream = BytesIO()
    Image.fromarray(strip).save(stream, "PNG", optimize=True)
    return label, len(tiles), base64.b64encode(stream.getvalue()).decode()


def _reduced(picture: np.ndarray) -> np.ndarray:
    side = max(picture.shape[:2])
    if side <= LARGEST_SIDE:
        return picture
    height, width = (max(1, round(n * LARGEST_SIDE / side)) for n in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))
