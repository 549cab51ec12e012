"""Image sets in folders of png, jpeg, webp or bmp files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.config import DatasetConfig
from bench.data.imageset import ImageSet
from bench.data.pictures import check_image, read_image
from bench.data.source import Source, digest_files
from bench.errors import InputError

SPLITS = ("train", "test")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


class Folder(Source):
    """``<path>/<split>/<class>/*.png`` (labelled) or ``<path>/<split>/*.png``; for ``train`` the
    images may also lie in ``<path>`` itself. Classes are numbered over all splits: one that a split
    lacks shifts no number there."""

    def __init__(self, name: str, config: DatasetConfig, folder: Path) -> None:
        super().__init__(name, config)
        self.folder = folder

    def fingerprint(self, split: str) -> str:
        files = [path for path, _ in self._files(split)[0]]
        for path in files:
            check_image(path)
        digest, names = digest_files(files, self.folder), self._class_names(split)
        if names == self._own_classes(split):
            return digest
        # The numbers of this split's classes are then those of another split's folders, too.
        return hashlib.sha256("\n".join((digest, *names)).encode()).hexdigest()

    def check(self, split: str) -> None:
        self._check_headers((str(path), read_image(path)) for path, _ in self._files(split)[0])

    def classes(self, split: str) -> int:
        return len(self._files(split)[1])

    def labels(self, split: str) -> torch.Tensor | None:
        files, class_names = self._files(split)
        return torch.tensor([label for _, label in files]) if class_names else None

    def load(self, split: str) -> ImageSet:
        files, class_names = self._files(split)
        storage = self._decode([(str(path), read_image(path)) for path, _ in files])
        labels = torch.tensor([label for _, label in files]) if class_names else None
        return ImageSet(
            storage, labels=labels, class_names=class_names, name=f"{self.name}/{split}"
        )

    def count(self, split: str) -> int:
        return len(self._files(split)[0])

    def _files(self, split: str) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
        root, classes = self._root(split), self._class_names(split)
        if classes:
            numbered = [(root / name, label) for label, name in enumerate(classes)]
            files = [(path, n) for at, n in numbered if at.is_dir() for path in _images(at)]
        else:
            files = [(path, -1) for path in _images(root)]
        if not files:
            raise InputError(f"dataset {self.name!r}: no images in {root}")
        return [files[row] for row in self.chosen(len(files))], classes

    def _root(self, split: str) -> Path:
        root = self.folder / split
        if root.is_dir():
            return root
        if split != "train":
            raise self._no_split(split, self.folder)
        return self.folder

    def _own_classes(self, split: str) -> tuple[str, ...]:
        """The class folders of one split, in order."""
        folders = (path for path in self._root(split).iterdir() if path.is_dir())
        named = (path for path in folders if not path.name.startswith("."))
        return tuple(sorted(path.name for path in named if any(_found(path))))

    def _class_names(self, split: str) -> tuple[str, ...]:
        """Those of all splits together; none for a split whose images are unlabelled."""
        own = self._own_classes(split)
        if not own or not (self.folder / split).is_dir():
            return own
        others = [other for other in SPLITS if (self.folder / other).is_dir()]
        return tuple(sorted({name for other in others for name in self._own_classes(other)}))


def _images(folder: Path) -> list[Path]:
    return sorted(_found(folder))


def _found(folder: Path) -> Iterator[Path]:
    """The images of a folder as the system lists them: the first tells whether there are any."""
    named = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return (path for path in named if not path.is_dir())
