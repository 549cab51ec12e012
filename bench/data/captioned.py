"""Image files with captions in a CSV."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.config import DatasetConfig
from bench.data.imageset import ImageSet
from bench.data.pictures import read_image
from bench.data.source import Source, numbered_classes
from bench.errors import InputError

__all__ = ["Captions"]

_LONGEST_LABEL = 200


@dataclass(frozen=True)
class _Pair:
    """A row of a CSV; ``what`` names it in messages."""

    what: str
    image: Path
    caption: str
    label: str | None


class Captions(Source):
    """Images and captions listed in ``<path>/<split>.csv``, or in the CSV file ``<path>``, which
    then is the training split.

    Columns ``image`` (a path relative to the CSV's folder), ``caption`` and, optionally, ``label``:
    whole numbers, or names of classes, which are numbered in alphabetical order over all splits.
    Other columns are ignored.
    """

    SPLITS = ("train", "test")

    def __init__(self, name: str, config: DatasetConfig, path: Path) -> None:
        super().__init__(name, config)
        self.path = path

    @classmethod
    def present(cls, path: Path) -> bool:
        """Whether ``path`` is a CSV file or a folder with that of a split."""
        listed = any((path / f"{split}.csv").is_file() for split in cls.SPLITS)
        return listed or (path.is_file() and path.suffix == ".csv")

    def fingerprint(self, split: str) -> str:
        # The CSV names the images, and its own place is nobody's business. Class numbers may
        # depend on the other splits.
        digest = hashlib.sha256(self._file(split).read_bytes())
        digest.update("\0".join(self._class_names(split)).encode())
        for pair in self._pairs(split):
            digest.update(hashlib.sha256(read_image(pair.image)).digest())
        return digest.hexdigest()

    def check(self, split: str) -> None:
        pairs = self._pairs(split)
        self._class_names(split)
        self._check_headers((pair.what, read_image(pair.image)) for pair in pairs)

    def count(self, split: str) -> int:
        return sum(1 for _ in self._listed(split))

    def classes(self, split: str) -> int:
        return len(self._class_names(split))

    def labels(self, split: str) -> torch.Tensor | None:
        return self._labels(self._pairs(split), self._class_names(split))

    def captioned(self, split: str) -> bool:
        return True

    def load(self, split: str) -> ImageSet:
        pairs, class_names = self._pairs(split), self._class_names(split)
        return ImageSet(
            self._decode([(pair.what, read_image(pair.image)) for pair in pairs]),
            labels=self._labels(pairs, class_names),
            class_names=class_names,
            captions=[pair.caption for pair in pairs],
            name=f"{self.name}/{split}",
        )

    @staticmethod
    def _labels(pairs: list[_Pair], class_names: tuple[str, ...]) -> torch.Tensor | None:
        numbers = {name: number for number, name in enumerate(class_names)}
        return torch.tensor([numbers[pair.label] for pair in pairs]) if class_names else None

    def _file(self, split: str) -> Path:
        file = self.path if self.path.is_file() and split == "train" else self.path / f"{split}.csv"
        if not file.is_file():
            raise self._no_split(split, self.path)
        return file

    def _pairs(self, split: str) -> list[_Pair]:
        """The rows that ``max_images`` keeps, with images that exist."""
        pairs = list(self._listed(split))
        if not pairs:
            raise InputError(f"{self._file(split)}: no rows")
        kept = [pairs[row] for row in self.chosen(len(pairs))]
        for pair in kept:
            if not pair.image.is_file():
                raise InputError(f"{pair.what}: no image file {pair.image}")
        return kept

    def _listed(self, split: str) -> Iterator[_Pair]:
        file = self._file(split)
        try:
            with file.open(encoding="utf-8-sig", newline="") as lines:
                reader = csv.DictReader(lines, strict=True)
                names = reader.fieldnames or []
                for column in ("image", "caption"):
                    if column not in names:
                        there = ", ".join(names) or "none"
                        raise InputError(f"{file}: no column {column!r}; the columns are {there}")
                for row in reader:
                    yield _pair(file, reader.line_num, row)
        except (csv.Error, UnicodeDecodeError, OSError) as error:
            raise InputError(f"{file}: not a readable CSV file: {error}") from None

    def _class_names(self, split: str) -> tuple[str, ...]:
        """Over all splits, so that a class that one of them lacks shifts no number."""
        first = next(self._listed(split), None)
        if first is None or first.label is None:
            return ()
        files = [other for other in self.SPLITS if (self.path / f"{other}.csv").is_file()]
        labels = {pair.label for other in files or [split] for pair in self._listed(other)}
        named = sorted(label for label in labels if label is not None)
        if not all(re.fullmatch(r"[+-]?[0-9]+", label) for label in named):
            return tuple(named)
        if min(map(int, named)) < 0:
            raise InputError(f"{self._file(split)}: a label is {min(map(int, named))}")
        try:
            return numbered_classes(max(map(int, named)))
        except InputError as error:
            raise InputError(f"{self._file(split)}: {error}") from None


def _pair(file: Path, line: int, row: dict[str, Any]) -> _Pair:
    what = f"{file}: line {line}"
    if None in row:
        raise InputError(f"{what}: more fields than columns; a caption with commas needs quotes")
    for column in ("image", "caption", "label"):
        if column in row and not (row[column] or "").strip():
            raise InputError(f"{what}: the {column} is empty")
    label = row.get("label")
    if label and len(label) > _LONGEST_LABEL:
        raise InputError(f"{what}: the label has {len(label):,} characters")
    return _Pair(what, file.parent / row["image"], row["caption"], label and _plain(label))


def _plain(label: str) -> str:
    """A label without surrounding blanks, a whole number without sign and leading zeros."""
    label = label.strip()
    return str(int(label)) if re.fullmatch(r"[+-]?[0-9]+", label) else label
