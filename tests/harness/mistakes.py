"""What tests of mistakes share: changes to an experiment, lines of a file, small pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PROFILE = ("profiles", "tiny")


def line_of(path: Path, text: str) -> int:
    lines = path.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def set_in(content: dict[str, Any], keys: tuple[Any, ...], value: Any) -> dict[str, Any]:
    inner: Any = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return content


def png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()
