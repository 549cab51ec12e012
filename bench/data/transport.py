"""How stamped pixels reach the encoder: as floats, as an 8-bit file, or as a JPEG file."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import AfterValidator
from torch import Tensor

_CACHED_VALUES = 3 * 2**16
_JPEG = re.compile(r"jpeg-([1-9][0-9]?|100)")


def checked_transport(name: str) -> str:
    """``name`` if it is a transport.

    Raises
    ------
    ValueError
        For anything but ``8bit``, ``float`` and ``jpeg-<quality>``.
    """
    if name not in ("8bit", "float") and not _JPEG.fullmatch(name):
        raise ValueError(
            f"a transport is '8bit', 'float' or 'jpeg-<quality>' with a quality from 1 to 100, "
            f"not {name!r}"
        )
    return name


Transport = Annotated[str, AfterValidator(checked_transport)]


def carry_(images: Tensor, transport: str) -> Tensor:
    """Send ``images`` through a transport, in place.

    Parameters
    ----------
    images
        float32 (N, 3, H, W) in [0, 1].
    transport
        ``float`` leaves the images as they are; ``8bit`` rounds to the nearest of 256 levels;
        ``jpeg-<quality>`` also encodes and decodes each image alone, as Pillow does by default.
    """
    if transport == "float":
        return images
    if transport == "8bit":
        return images.mul_(255).round_().div_(255)
    quality = int(checked_transport(transport).removeprefix("jpeg-"))
    levels = images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    for position, pixels in enumerate(levels):
        decoded = torch.from_numpy(_through_jpeg(pixels, quality)).permute(2, 0, 1)
        images[position] = decoded.to(images).div_(255)
    return images


def cached_parts(images: Tensor) -> Iterator[slice]:
    """Slices of a batch that fit a CPU's cache, or the whole batch on another device.

    Several passes over one part read memory once and write it once.
    """
    size = len(images)
    if images.device.type == "cpu" and size:
        size = max(1, _CACHED_VALUES // images[0].numel())
    for start in range(0, len(images), size or 1):
        yield slice(start, start + size)


def _through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """uint8 (H, W, 3) -> the same picture after JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    file.seek(0)
    with Image.open(file) as picture:
        return np.array(picture)
