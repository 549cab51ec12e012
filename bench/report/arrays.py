"""Reads the array files of a stored cell, and the error for what cannot be read."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from bench.figures import BESIDE_FIGURES
from bench.limits import check_arrays

__all__ = ["ReportError", "check_figures", "check_pictures", "damaged", "paired", "read_arrays"]


_UNREADABLE = (
    OSError,
    EOFError,
    MemoryError,  # of an array whose header says any number of elements
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


class ReportError(ValueError):
    """A results folder that cannot be read; the message is one line and names the file."""


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an npz file without objects; None when there is no file."""
    if not path.exists():
        return None
    try:
        check_arrays(path)
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ReportError(f"{path}: damaged, it is no archive of arrays")
        with archive:
            return {name: archive[name] for name in archive.files}
    except ReportError:
        raise
    except _UNREADABLE as error:
        raise damaged(path, error) from None


def check_pictures(arrays: dict[str, np.ndarray], path: Path) -> None:
    needed = ("clean", "triggered", "difference", "gain", "victim_points", "victim_groups")
    for name in needed:
        if name not in arrays:
            raise ReportError(f"{path}: damaged, it has no {name!r}")
    for name in ("clean", "triggered", "difference", "decoy"):
        picture = arrays.get(name, arrays["clean"])
        alike = picture.dtype == np.uint8 and picture.shape == arrays["clean"].shape
        if not (alike and picture.ndim == 4 and picture.shape[-1] == 3):
            raise ReportError(
                f"{path}: damaged, {name!r} is {picture.dtype} {picture.shape}, "
                "should be uint8 (M, H, W, 3) like the others"
            )
    if arrays["gain"].shape != () or arrays["gain"].dtype.kind != "f":
        raise ReportError(f"{path}: damaged, 'gain' is no number")
    for encoder in ("victim", "twin"):
        points = arrays.get(f"{encoder}_points")
        if points is None:
            continue
        groups, variance = (arrays.get(f"{encoder}_{name}") for name in ("groups", "variance"))
        if groups is None or variance is None or variance.shape != (2,):
            raise ReportError(f"{path}: damaged, {encoder}_points has no groups or variance")
        if points.shape != (len(groups), 2) or not np.isfinite(points).all():
            raise ReportError(f"{path}: damaged, '{encoder}_points' is {points.shape}")


def check_figures(arrays: dict[str, np.ndarray], path: Path) -> None:
    for name in BESIDE_FIGURES:
        if name not in arrays:
            raise ReportError(f"{path}: damaged, it has no {name!r}")
    count = arrays["input"].shape[0] if arrays["input"].ndim else 0
    for name, array in arrays.items():
        if array.shape[:1] != (count,):
            raise ReportError(f"{path}: damaged, {name!r} is {array.shape}, not of {count} images")
        pictures = name not in ("condition", "image")
        if pictures and (array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3):
            raise ReportError(
                f"{path}: damaged, {name!r} is {array.dtype} {array.shape}, "
                "should be uint8 (M, H, W, 3)"
            )


def paired(figures: dict[str, np.ndarray], most: int) -> list[tuple[str, list[int]]]:
    """(condition, rows) per condition, the same source images in the same order in each.

    ``most`` images at most; nothing when no image is there in every condition.
    """
    conditions, numbers = figures["condition"], figures["image"]
    shown = [name for name in ("clean", "triggered", "decoy") if (conditions == name).any()]
    shared = set(numbers.tolist()).intersection(*(numbers[conditions == name] for name in shown))
    images = [image for image in dict.fromkeys(numbers.tolist()) if image in shared][:most]
    if not images:
        return []
    return [
        (name, [int(np.flatnonzero((conditions == name) & (numbers == i))[0]) for i in images])
        for name in shown
    ]


def damaged(path: Path, error: Exception) -> ReportError:
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return ReportError(f"{path}: damaged or unreadable ({first_line})")
