"""Triggers from files and from configuration."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from attacks._overlays import BlendedTrigger, SinusoidalTrigger, SpectralTrigger
from attacks._patches import ImagePatch, PatchTrigger, check_place
from attacks._pictures import encode_png, read_picture, split_alpha
from attacks._sized import SizedTrigger
from bench.api import Trigger
from bench.errors import InputError, nearest
from bench.limits import check_arrays

KINDS: dict[str, type[SizedTrigger]] = {
    kind.name: kind
    for kind in (PatchTrigger, ImagePatch, SpectralTrigger, BlendedTrigger, SinusoidalTrigger)
}


def read_patch(
    path: Path, image_size: int, row: int | None = None, column: int | None = None
) -> Trigger:
    """The trigger that a file holds.

    Parameters
    ----------
    path
        A published ``.npz`` with the keys ``tm`` (1: the pixel stays, 0: it is replaced) and ``t``
        (its new value, 0 where ``tm`` is 1), each (H, W, 3) or (1, H, W, 3); or a picture of the
        patch alone, whose pixels of alpha 0 are not stamped.
    image_size
        Side of the images that will be stamped.
    row, column
        Where the upper left pixel of a picture goes; None: in the middle, from
        ``image_size / 2 - height / 2`` on. An ``.npz`` says its own place.

    Returns
    -------
    Trigger
        A :class:`PatchTrigger` for a square of one colour, else an :class:`ImagePatch`.

    Raises
    ------
    InputError
        (a ValueError) of one line that names the file and what is wrong with it.
    """
    try:
        if path.suffix.lower() != ".npz":
            pixels, mask = split_alpha(read_picture(path))
            height, width = mask.shape
            row = int(image_size / 2 - height / 2) if row is None else row
            column = int(image_size / 2 - width / 2) if column is None else column
            if max(height, width) > image_size:
                raise ValueError(
                    f"a {height}x{width} picture does not fit a {image_size}-pixel image"
                )
            return _patch_of((pixels * 255).round().to(torch.uint8), mask, row, column, image_size)
        if row is not None or column is not None:
            raise ValueError("an .npz says its own place: leave out row and column")
        return _published(*_arrays(path), image_size)
    except InputError:
        raise
    except ValidationError as error:
        raise InputError(f"{path}: {_sentence(error)}") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """``tm`` and ``t`` of a published file, (H, W, 3)."""
    try:
        check_arrays(path)
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("a single array, not an .npz archive")
        with file:
            for key in ("tm", "t"):
                if key not in file:
                    raise ValueError(f"no array {key!r}, only {', '.join(sorted(file)) or 'none'}")
            found = [file[key] for key in ("tm", "t")]
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except (OSError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"not an .npz archive that can be read ({error})") from None
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise ValueError("not an .npz archive of numbers: it would need pickle") from None
        raise
    mask, patch = (a[0] if a.ndim == 4 and len(a) == 1 else a for a in found)
    for key, array in (("tm", mask), ("t", patch)):
        if array.dtype.kind not in "iufb":
            raise ValueError(f"{key} should hold numbers, not {array.dtype}")
        if array.ndim != 3 or array.shape[2] != 3 or array.shape != mask.shape:
            raise ValueError(
                f"tm and t should both be (H, W, 3) or (1, H, W, 3), "
                f"got {found[0].shape} and {found[1].shape}"
            )
    return mask, patch


def _published(mask: np.ndarray, patch: np.ndarray, image_size: int) -> Trigger:
    if mask.shape[:2] != (image_size, image_size):
        raise ValueError(
            f"made for images of {mask.shape[0]}x{mask.shape[1]} pixels, "
            f"not {image_size}x{image_size}"
        )
    if not np.isin(mask, (0, 1)).all():
        raise ValueError("tm should hold 0 (replaced) and 1 (kept) alone")
    if not (mask == mask[..., :1]).all():
        raise ValueError("tm should be the same in all three channels")
    if patch[mask == 1].any():
        raise ValueError("t should be 0 where tm is 1, or the stamp changes more than its mask")
    if not ((patch >= 0) & (patch <= 255) & (patch == np.round(patch))).all():
        raise ValueError("t should hold whole numbers from 0 to 255")
    replaced = torch.from_numpy(mask[..., 0] == 0)
    if not replaced.any():
        raise ValueError("the stamp changes no pixel: tm is 1 everywhere")
    levels = torch.from_numpy(patch.astype(np.uint8)).permute(2, 0, 1)
    rows, columns = (torch.nonzero(replaced.any(axis)).flatten() for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    box = slice(top, int(rows[-1]) + 1), slice(left, int(columns[-1]) + 1)
    trigger = _patch_of(levels[:, box[0], box[1]], replaced[box], top, left, image_size)
    _check_stamp(trigger, levels, replaced)
    return trigger


def _check_stamp(trigger: Trigger, levels: Tensor, replaced: Tensor) -> None:
    """Refuse a trigger that does not turn x into x * tm + t, pixel by pixel."""
    original = (levels.int() + 128).remainder(256)  # differs from the stamp in every pixel
    stamped = (trigger(original[None].float() / 255)[0] * 255).round().int()
    if not torch.equal(stamped, torch.where(replaced, levels.int(), original)):
        raise ValueError("the stamp does not change exactly the pixels of its mask")


def _patch_of(levels: Tensor, mask: Tensor, row: int, column: int, image_size: int) -> Trigger:
    """The trigger for uint8 (3, h, w) pixels at a place."""
    height, width = mask.shape
    check_place(row, column, height, width, image_size)
    if height == width and mask.all() and (levels == levels[:, :1, :1]).all():
        colour = tuple(level / 255 for level in levels[:, 0, 0].tolist())
        return PatchTrigger(
            size=height, row=row, column=column, colour=colour, image_size=image_size
        )
    if not mask.all():
        levels = torch.cat([levels, mask[None].to(torch.uint8) * 255])
    return ImagePatch(png=encode_png(levels), row=row, column=column, image_size=image_size)


def parse_trigger(value: Mapping[str, Any], image_size: int, root: Path) -> Trigger:
    """A trigger from a configuration file.

    Parameters
    ----------
    value
        ``kind`` and the fields of that kind, as in ``{kind: patch, size: 10}``; or ``file`` for the
        pixels: ``{kind: patch, file: PATH}`` and ``{kind: image-patch, file: PATH}`` (with ``row``
        and ``column`` for a picture, see :func:`read_patch`), ``{kind: blended, file: PATH}`` (a
        picture, resized to the image).
    image_size
        Side of the images that will be stamped.
    root
        The folder that a relative ``file`` refers to.

    Raises
    ------
    InputError
        (a ValueError) of one line; for an unknown kind or key with the nearest valid one.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"a trigger is a mapping with a kind, got {value!r}")
    given = dict(value)
    kind = given.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"unknown kind of trigger {kind!r}{nearest(str(kind), KINDS)}")
    _check_keys(kind, given)
    needed = _NEEDED.get(kind, ())
    if needed and not {*needed, "png"} & set(given):
        raise InputError(f"{kind} trigger: name a {' or a '.join(needed)}")
    try:
        if "file" not in given:
            return KINDS[kind].model_validate({**given, "image_size": image_size})
        path = root / str(given.pop("file"))
        if kind == "blended":
            pixels = torch.from_numpy(read_picture(path, side=image_size)).permute(2, 0, 1)
            return BlendedTrigger(png=encode_png(pixels), image_size=image_size, **given)
        place = {key: _whole(given, key) for key in ("row", "column")}
        trigger = read_patch(path, image_size, **place)
        changes = {key: given[key] for key in ("transport",) if key in given}
        return type(trigger).model_validate({**trigger.parameters(), **changes})
    except ValidationError as error:
        raise InputError(f"{kind} trigger: {_sentence(error)}") from None


_NEEDED = {"image-patch": ("file",), "blended": ("file", "seed")}
"""Kinds whose picture has to come from somewhere."""
_WITH_FILE = {
    "patch": ("file", "row", "column", "transport"),
    "image-patch": ("file", "row", "column", "transport"),
    "blended": ("file", "alpha", "variant", "transport"),
}


def _check_keys(kind: str, given: Mapping[str, Any]) -> None:
    fields = [name for name in KINDS[kind].model_fields if name != "image_size"]
    valid = [*fields, "file"] if kind in _WITH_FILE else fields
    for key in given:
        if key not in valid:
            raise InputError(f"{kind} trigger: unknown key {key!r}{nearest(str(key), valid)}")
        if "file" in given and key not in _WITH_FILE[kind]:
            raise InputError(f"{kind} trigger: {key!r} comes from the file; leave it out")


def _whole(given: Mapping[str, Any], key: str) -> int | None:
    value = given.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise InputError(f"{key}: should be a whole number of at least 0, got {value!r}")
    return value


def _sentence(error: ValidationError) -> str:
    """The first complaint of pydantic in one line."""
    details = error.errors(include_url=False)[0]
    message = details["msg"].removeprefix("Value error, ")
    where = ".".join(str(part) for part in details["loc"])
    return f"{where}: {message}" if where else message
