"""Pictures that triggers carry: lossless text for parameters, files, and look-alikes."""

from __future__ import annotations

import base64
import binascii
import io
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.data.pictures import UNREADABLE, open_image, why_unreadable
from bench.errors import InputError

Variant = Literal[
    "original", "mirrored", "upside-down", "half-turn", "channels-cycled", "pixels-shuffled"
]
VARIANTS: tuple[Variant, ...] = get_args(Variant)


def encode_png(pixels: Tensor) -> str:
    """A picture as text: base64 of a PNG file, lossless.

    Parameters
    ----------
    pixels
        uint8 (3, h, w), or (4, h, w) whose last channel is 0 where nothing is stamped and 255
        elsewhere.

    Raises
    ------
    ValueError
        For another shape or type.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (3, 4):
        raise ValueError(
            f"a picture is uint8 (3, h, w) or (4, h, w), not {pixels.dtype} {tuple(pixels.shape)}"
        )
    file = io.BytesIO()
    array = pixels.cpu().permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(array).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


@lru_cache(maxsize=64)
def decode_png(text: str) -> tuple[Tensor, Tensor]:
    """The picture of :func:`encode_png`: float32 (3, h, w) in [0, 1], and bool (h, w), the pixels
    to stamp. Shared by all callers: not to be written to.

    Raises
    ------
    ValueError
        For text that holds no RGB or RGBA picture in PNG.
    """
    try:
        with open_image(base64.b64decode(text, validate=True), ("PNG",)) as picture:
            mode, array = picture.mode, np.array(picture)
    except (binascii.Error, *UNREADABLE):
        raise ValueError("png is the base64 of a PNG picture, and this is none") from None
    if mode not in ("RGB", "RGBA"):
        raise ValueError(f"png should hold an RGB or RGBA picture, not one of mode {mode}")
    return split_alpha(array)


def split_alpha(array: np.ndarray) -> tuple[Tensor, Tensor]:
    """uint8 (h, w, 3 or 4) -> float32 (3, h, w) in [0, 1] and bool (h, w), the pixels to stamp.

    Raises
    ------
    ValueError
        When a pixel is half transparent, or all are transparent.
    """
    pixels = torch.from_numpy(array).permute(2, 0, 1)
    mask = torch.ones(pixels.shape[1:], dtype=torch.bool)
    if len(pixels) == 4:
        if not ((pixels[3] == 0) | (pixels[3] == 255)).all():
            raise ValueError("the alpha of a patch is 0 (not stamped) or 255 (stamped)")
        mask = pixels[3] == 255
    if not mask.any():
        raise ValueError("no pixel of the picture is stamped: its alpha is 0 everywhere")
    return pixels[:3].float() / 255, mask


def vary(pixels: Tensor, mask: Tensor, variant: Variant) -> tuple[Tensor, Tensor]:
    """A look-alike of a picture (3, h, w) and its mask (h, w), of the same size and energy.

    ``pixels-shuffled`` moves the stamped pixels by one fixed random permutation.
    """
    if variant == "channels-cycled":
        return pixels.roll(1, 0), mask
    if variant == "pixels-shuffled":
        inside = pixels[:, mask]
        order = torch.randperm(inside.shape[1], generator=torch.Generator().manual_seed(0))
        shuffled = pixels.clone()
        shuffled[:, mask] = inside[:, order]
        return shuffled, mask
    flipped = {"mirrored": [-1], "upside-down": [-2], "half-turn": [-2, -1]}.get(variant, [])
    return pixels.flip(flipped), mask.flip(flipped)


def read_picture(path: Path, side: int | None = None) -> np.ndarray:
    """uint8 (h, w, 3), or (h, w, 4) when the file has transparency.

    Parameters
    ----------
    side
        Drop transparency and resize to this side (bicubic, as BadCLIP does).

    Raises
    ------
    InputError
        For a missing file or one that is no picture; one line that names it.
    """
    try:
        with open_image(path) as picture:
            if side is not None:
                picture = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            elif picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                picture = picture.convert("RGBA")
            else:
                picture = picture.convert("RGB")
            return np.array(picture)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UNREADABLE as error:
        why = why_unreadable(error)
        raise InputError(f"{path}: not a picture that can be read ({why})") from None
