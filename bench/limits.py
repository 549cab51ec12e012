"""How much a stranger's file may ask for, and reading no more of it than that.

Every bound lies far above what an honest file needs. A file that is over one, is no regular file
(a named pipe would be waited for, a device read for ever) or is nested too deeply is refused with
a ValueError, which whoever reads the file turns into a line that names it. See SECURITY.md.
"""

from __future__ import annotations

import json
import math
import os
import stat
import zipfile
from pathlib import Path
from typing import Any, NoReturn

from bench.errors import InputError

MOST_YAML_BYTES = 2**18
MOST_YAML_VALUES = 50_000
"""Keys, items and values of an experiment file once its aliases are written out."""
MOST_JSON_BYTES = 2**24
MOST_ARRAY_BYTES = 2**28
"""Of all arrays of an npz file together, unpacked."""
MOST_PIXELS = 2**25
"""Of an image before it is resized: 5,792 x 5,792."""
MOST_SIDE = 1024
"""Of an image once it is resized: what an encoder may ask for."""
MOST_EDGE = 2**16
"""Pixels on one side of an image before it is resized: resizing weighs all of a row at once."""
MOST_IMAGE_BYTES = 2**27
"""Of an encoded image: what :data:`MOST_PIXELS` take without compression."""
MOST_ROWS = 2**24
"""Of a parquet file."""
MOST_UNPACKED = 64
"""Times the size of a parquet file: images are packed already, and hardly shrink again."""
MOST_SEED = 2**63 - 1
_MOST_DIGITS = 40


def file_size(path: Path) -> int:
    """Bytes of a regular file.

    Raises
    ------
    OSError
        When there is none.
    ValueError
        When it is a folder, a named pipe or a device.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("a folder" if stat.S_ISDIR(found.st_mode) else "no regular file")
    return found.st_size


def check_regular(path: Path) -> None:
    """Refuse what is no regular file.

    Raises
    ------
    OSError
        When there is nothing.
    InputError
        Names the path.
    """
    try:
        file_size(path)
    except ValueError as error:
        raise InputError(f"{path} is {error}") from None


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes.

    Raises
    ------
    OSError, ValueError
        When it cannot be read or is none.
    """
    size = file_size(path)
    if size > most:
        raise ValueError(f"{size:,} bytes; at most {most:,} are read")
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """The values of a JSON file, all of whose numbers are finite.

    Raises
    ------
    OSError, ValueError
        When it cannot be read, is too large or nested too deeply, or is no JSON.
    """
    text = read_bytes(path, MOST_JSON_BYTES).decode("utf-8")
    try:
        return json.loads(
            text, parse_constant=_no_number, parse_float=_finite, parse_int=_whole_number
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_arrays(path: Path) -> None:
    """Refuse an npz file whose arrays would not fit, before one of them is read.

    Raises
    ------
    OSError, ValueError, zipfile.BadZipFile
        When it is too large, no regular file, or damaged.
    """
    size = file_size(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    if size > MOST_ARRAY_BYTES:
        raise ValueError(f"arrays of {size:,} bytes; at most {MOST_ARRAY_BYTES:,} are read")


def check_text(path: Path) -> Path:
    """The path, whose name libraries written in other languages can read.

    Raises
    ------
    InputError
        When it is no text.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{str(path)!r}: a folder's name has to be UTF-8") from None
    return path


def check_inside(path: Path, root: Path) -> None:
    """Refuse a path under ``root`` that links lead to a place outside; ``root`` may be a link.

    Raises
    ------
    InputError
        Names the path and where it leads.
    """
    place, inside = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    if not place.is_relative_to(inside):
        raise InputError(f"{path} leads out of {root}, to {place}: remove the link")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number that JSON has")


def _whole_number(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"{text[:20]}... is too large a number")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value
