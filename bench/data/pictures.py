"""Opening an encoded image that nobody vouches for."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from bench.errors import InputError
from bench.limits import MOST_EDGE, MOST_IMAGE_BYTES, MOST_PIXELS, file_size, read_bytes

__all__ = ["FORMATS", "UNREADABLE", "check_image", "open_image", "read_image", "why_unreadable"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Pillow knows many more, of which some start a program (PostScript) or are seldom looked at."""
UNREADABLE = (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)
"""What is raised for a file that is no whole image; SyntaxError is Pillow's word for a bad PNG."""

# Pillow refuses twice as many pixels as it is told, and warns of what lies between.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_image(source: bytes | Path, formats: Sequence[str] = FORMATS) -> Image.Image:
    """An image whose header has been read; decoding waits until its pixels are needed.

    Raises
    ------
    UNREADABLE
        When it is of no such format, has too many pixels, or moves: what a viewer shows is
        then not the one picture that is scored.
    """
    data = source if isinstance(source, bytes) else read_bytes(source, MOST_IMAGE_BYTES)
    image = Image.open(BytesIO(data), formats=formats)
    if max(image.size) > MOST_EDGE:
        raise ValueError(f"too large an image: over {MOST_EDGE:,} pixels on one side")
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise ValueError("an animation")
    return image


def check_image(path: Path) -> None:
    """Refuse what cannot be an image file, before it is opened.

    Raises
    ------
    InputError
        When it is no regular file, or too large.
    """
    try:
        size = file_size(path)
    except ValueError as error:
        raise InputError(f"{path} is {error}") from None
    if size > MOST_IMAGE_BYTES:
        raise InputError(f"{path} is too large for an image: {size:,} bytes")


def read_image(path: Path) -> bytes:
    """The content of an image file, checked as :func:`check_image` does."""
    check_image(path)
    return path.read_bytes()


def why_unreadable(error: BaseException) -> str:
    """One of :data:`UNREADABLE` in a few words."""
    if isinstance(error, Image.DecompressionBombError):
        return "too large an image"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__
