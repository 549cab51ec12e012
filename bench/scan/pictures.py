"""The images to scan and the clean ones to compare with: a folder of files, or a parquet file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.config import DatasetConfig
from bench.data.folder import IMAGE_SUFFIXES
from bench.data.imageset import ImageSet
from bench.data.parquet import Parquet
from bench.data.pictures import UNREADABLE, open_image, why_unreadable
from bench.errors import InputError

_THREADS = 2


@dataclass(frozen=True)
class Pictures:
    """Decoded images with the names of their files, in the order of the names.

    Attributes
    ----------
    images
        uint8 inside, of the encoder's size; labelled where ``labelled_by`` says so.
    skipped
        Name and reason of every file that could not be decoded.
    resized
        How many had another size.
    others
        Files of a folder that are no images by their suffix.
    labelled_by
        Where labels come from, in words; empty without labels.
    """

    names: tuple[str, ...]
    images: ImageSet
    skipped: tuple[tuple[str, str], ...]
    resized: int
    others: int = 0
    labelled_by: str = ""

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digests(self) -> tuple[bytes, ...]:
        """SHA-256 of the pixels of every image, as the encoder's size leaves them."""
        return tuple(
            hashlib.sha256(self.images.uint8(slice(i, i + 1)).numpy().tobytes()).digest()
            for i in range(len(self))
        )


def read_pictures(path: Path, image_size: int) -> Pictures:
    """Decode every image under a folder, or in a parquet file, to RGB of ``image_size`` pixels.

    Images of another size are resized as the harness resizes data sets: to a square, bicubic.
    What cannot be decoded is left out and named in ``skipped``.

    Raises
    ------
    InputError
        When the path is missing, is neither a folder nor a parquet file, or holds no image that
        can be decoded.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    others, labels, classes, labelled_by = 0, None, (), ""
    if path.is_dir():
        files, others = image_files(path)
        names = [_text(file.relative_to(path).as_posix()) for file in files]
        encoded: Sequence[bytes | Path] = files
        labels, classes = _folder_labels(names)
        labelled_by = f"{len(classes)} subfolders" if classes else ""
    elif path.suffix == ".parquet":
        names, encoded, labels, classes = _Rows(path).rows()
        labelled_by = "the column 'label'" if classes else ""
    else:
        raise InputError(f"{path} is neither a folder of images nor a parquet file")
    if not names:
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"{path} holds no images ({known})")
    storage, kept, skipped, resized = _decoded(names, encoded, image_size)
    if not kept:
        name, why = skipped[0]
        raise InputError(f"{path}: none of {len(names)} images can be decoded; {name}: {why}")
    return Pictures(
        names=tuple(names[row] for row in kept),
        images=ImageSet(
            storage,
            labels=None if labels is None else torch.tensor([labels[row] for row in kept]),
            class_names=classes,
            name=path.name,
        ),
        skipped=tuple(skipped),
        resized=resized,
        others=others,
        labelled_by=labelled_by,
    )


def image_files(folder: Path) -> tuple[list[Path], int]:
    """Image files under a folder by their relative names, and how many other files there are."""
    found = list(_walk(folder))
    images = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    return (
        sorted(images, key=lambda path: path.relative_to(folder).as_posix()),
        len(found) - len(images),
    )


def _walk(folder: Path) -> Iterator[Path]:
    """Files at any depth; names that start with a dot are no concern of ours, folders included."""
    for root, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root) / name for name in names if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error


def _text(name: str) -> str:
    """A file name as text that can be written: bytes that are no UTF-8 become question marks."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _folder_labels(names: Sequence[str]) -> tuple[list[int] | None, tuple[str, ...]]:
    """Labels by first folder, where every image lies in one and there are at least two."""
    folders = [name.split("/", 1)[0] if "/" in name else "" for name in names]
    classes = sorted(set(folders))
    if len(classes) < 2 or "" in classes:
        return None, ()
    number = {name: label for label, name in enumerate(classes)}
    return [number[name] for name in folders], tuple(classes)


class _Rows(Parquet):
    """A parquet file whose images this module decodes itself, because it leaves out bad ones."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.name, DatasetConfig(resize=True), path)

    def rows(self) -> tuple[list[str], list[bytes], list[int] | None, tuple[str, ...]]:
        """Names, encoded images, labels and class names."""
        table = self._table("train")
        names = [f"{self.path.name}#{row}" for row in range(len(table.images))]
        labels = None if table.labels is None else table.labels.tolist()
        return names, [data for _, data in table.images], labels, table.class_names


def _decoded(
    names: Sequence[str], encoded: Sequence[bytes | Path], side: int
) -> tuple[torch.Tensor, list[int], list[tuple[str, str]], int]:
    """uint8 (N, 3, side, side) of the images that can be decoded, their rows, the others with the
    reason, and how many were resized."""
    storage = np.empty((len(names), side, side, 3), dtype=np.uint8)
    problems: dict[int, str] = {}
    resized = np.zeros(len(names), dtype=bool)

    def decode(row: int) -> None:
        try:
            with open_image(encoded[row]) as image:
                resized[row] = image.size != (side, side)
                picture = image.convert("RGB")
                if resized[row]:
                    picture = picture.resize((side, side), Image.Resampling.BICUBIC)
                storage[row] = np.asarray(picture)
        except UNREADABLE as error:
            problems[row] = why_unreadable(error)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(decode, range(len(names))))
    kept = [row for row in range(len(names)) if row not in problems]
    pixels = torch.from_numpy(storage[kept].transpose(0, 3, 1, 2).copy())
    skipped = [(names[row], problems[row]) for row in sorted(problems)]
    return pixels, kept, skipped, int(resized[kept].sum())
