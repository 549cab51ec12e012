"""What a source of images is: cheap to make and to fingerprint, decoding only when loaded."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.config import DatasetConfig
from bench.data.imageset import ImageSet
from bench.data.pictures import UNREADABLE, open_image, why_unreadable
from bench.errors import InputError
from bench.store import file_digest


class NoSplitError(InputError):
    """A data set without the split that is asked for, which some need not have."""


class Source(ABC):
    """A named set of images with the splits ``train`` and, mostly, ``test``."""

    def __init__(self, name: str, config: DatasetConfig) -> None:
        self.name = name
        self.config = config

    @abstractmethod
    def fingerprint(self, split: str) -> str:
        """SHA-256 over the content of the files behind a split, without decoding an image."""

    @abstractmethod
    def load(self, split: str) -> ImageSet:
        """Decode a split.

        Raises
        ------
        InputError
            For a missing split, a broken image or one of the wrong size.
        """

    def check(self, split: str) -> None:  # noqa: B027 - digits have nothing to check
        """Raise the :class:`InputError` that :meth:`load` would, from file headers alone."""

    def count(self, split: str) -> int | None:
        """Images in a split where that can be told without decoding, before ``max_images``."""
        return None

    def chosen(self, total: int) -> list[int]:
        """The rows that ``max_images`` keeps: a fixed random draw, as files may lie by class."""
        limit = self.config.max_images
        if limit is None or limit >= total:
            return list(range(total))
        return sorted(np.random.default_rng(0).choice(total, limit, replace=False).tolist())

    def classes(self, split: str) -> int | None:
        """Number of classes where it can be told without decoding; 0: unlabelled."""
        return None

    def labels(self, split: str) -> torch.Tensor | None:
        """int64 labels in the order of :meth:`load` where they can be told without decoding."""
        return None

    def captioned(self, split: str) -> bool:
        """Whether the images of a split come with captions."""
        return False

    def describe(self) -> dict[str, Any]:
        """What, beside the content, decides the loaded tensor: part of the stage key."""
        return {
            "source": type(self).__name__,
            "image_size": self.config.image_size,
            "resize": self.config.resize,
            "max_images": self.config.max_images,
        }

    def _no_split(self, split: str, where: object) -> NoSplitError:
        return NoSplitError(f"dataset {self.name!r} has no {split!r} split in {where}")

    def _fit(self, image: Image.Image, what: str) -> Image.Image:
        """Check or change the size of an opened image; decoding waits until it is needed."""
        side = self.config.image_size
        if image.size != (side, side):
            if not self.config.resize:
                width, height = image.size
                raise InputError(
                    f"{what} is {width}x{height} pixels, dataset {self.name!r} wants "
                    f"{side}x{side} (set `resize: true` to resize)"
                )
            return image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        return image

    def _decode(self, images: Sequence[tuple[str, bytes]]) -> torch.Tensor:
        side = self.config.image_size
        storage = np.empty((len(images), side, side, 3), dtype=np.uint8)

        def decode(position: int) -> None:
            what, data = images[position]
            with _opened(what, data) as image:
                try:
                    storage[position] = np.asarray(self._fit(image, what).convert("RGB"))
                except InputError:
                    raise
                except UNREADABLE as error:
                    why = why_unreadable(error)
                    raise InputError(f"{what} cannot be decoded: {why}") from None

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(decode, range(len(images)), chunksize=256))
        return torch.from_numpy(storage.transpose(0, 3, 1, 2).copy())

    def _check_headers(self, images: Iterable[tuple[str, bytes]]) -> None:
        side = self.config.image_size
        for what, data in images:
            with _opened(what, data) as image:
                if image.size != (side, side) and not self.config.resize:
                    self._fit(image, what)


def _opened(what: str, data: bytes) -> Image.Image:
    try:
        return open_image(data)
    except UNREADABLE as error:
        why = why_unreadable(error)
        unknown = why == "not an image"
        raise InputError(f"{what} is {why}{', or of an unknown format' * unknown}") from None


def digest_files(files: Sequence[Path], root: Path) -> str:
    """SHA-256 over relative names and bytes of files."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(os.fsencode(path.relative_to(root).as_posix()) + b"\0")
        digest.update(bytes.fromhex(file_digest(path)))
    return digest.hexdigest()


MOST_CLASSES = 1_000_000


def numbered_classes(highest: int) -> tuple[str, ...]:
    """Names for labels 0 to ``highest`` that nobody has named.

    Raises
    ------
    InputError
        For a label that no class can have: it would ask for as many names.
    """
    if highest >= MOST_CLASSES:
        raise InputError(f"a label is {highest}; labels go from 0 to {MOST_CLASSES - 1} at most")
    return tuple(str(label) for label in range(highest + 1))


def digest_arrays(split: str, *arrays: np.ndarray) -> str:
    """SHA-256 over shape, type and values of arrays."""
    digest = hashlib.sha256(split.encode())
    for array in arrays:
        digest.update(str((array.shape, array.dtype)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
