"""Image sets in folders of png, jpeg, webp or bmp files."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.config import DatasetConfig
from bench.data.imageset import ImageSet
from bench.data.pictures import check_image, read_image
from bench.data.source import Source, digest_files
from bench.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


class Folder(Source):
    """``<path>/<split>/<class>/*.png`` (labelled) or ``<path>/<split>/*.png``; for ``train`` the
    images may also lie in ``<path>`` itself."""

    def __init__(self, name: str, config: DatasetConfig, folder: Path) -> None:
        super().__init__(name, config)
        self.folder = folder

    def fingerprint(self, split: str) -> str:
        files = [path for path, _ in self._files(split)[0]]
        for path in files:
            check_image(path)
        return digest_files(files, self.folder)

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
        root = self.folder / split
        if not root.is_dir():
            if split != "train":
                raise self._no_split(split, self.folder)
            root = self.folder
        classes = sorted(path for path in root.iterdir() if path.is_dir() and any(_images(path)))
        if classes:
            files = [(path, label) for label, c in enumerate(classes) for path in _images(c)]
        else:
            files = [(path, -1) for path in _images(root)]
        if not files:
            raise InputError(f"dataset {self.name!r}: no images in {root}")
        kept = [files[row] for row in self.chosen(len(files))]
        return kept, tuple(path.name for path in classes)


def _images(folder: Path) -> list[Path]:
    named = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in named if not path.is_dir())
