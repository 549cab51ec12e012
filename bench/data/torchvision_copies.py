"""Image sets that torchvision downloads, as it leaves them on disk."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from bench.config import DatasetConfig
from bench.data.imageset import ImageSet
from bench.data.source import Source, digest_files, numbered_classes
from bench.errors import InputError

STL10_BYTES = 3 * 96 * 96
"""Of one image in STL-10's files."""


class Torchvision(Source):
    """CIFAR-10, STL-10, GTSRB and SVHN from a torchvision copy; downloads only when asked."""

    NAMES = ("cifar10", "stl10", "gtsrb", "svhn")
    _FILES: ClassVar[dict[str, str]] = {
        "cifar10": "cifar-10-batches-py",
        "stl10": "stl10_binary",
        "gtsrb": "gtsrb/GTSRB",
    }

    def __init__(self, name: str, config: DatasetConfig, root: Path) -> None:
        super().__init__(name, config)
        self.root = root
        self._known: dict[str, tuple[list[int], tuple[str, ...]]] = {}

    @classmethod
    def present(cls, name: str, root: Path) -> bool:
        """Whether ``root`` seems to hold torchvision's copy of ``name``."""
        if name == "svhn":
            return (root / "train_32x32.mat").is_file()
        return name in cls._FILES and (root / cls._FILES[name]).is_dir()

    def fingerprint(self, split: str) -> str:
        folder = self.root / self._FILES.get(self.name, "")
        if self.name == "svhn":
            files = sorted(self.root.glob("*_32x32.mat"))
        else:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
        if self.name == "gtsrb":  # the labels of its test images lie beside its folder
            files += sorted(self.root.glob("gtsrb/GT-final_test.csv"))
        return hashlib.sha256((split + digest_files(files, self.root)).encode()).hexdigest()

    def check(self, split: str) -> None:
        self._labelled(split)
        what = f"{self.name}/{split}: image 0"
        if self.name == "stl10":
            self._fit(Image.new("RGB", (96, 96)), what)  # opening it reads 2.7 GB
        else:
            self._fit(self._dataset(split, download=False)[0][0], what)

    def count(self, split: str) -> int:
        return len(self._labelled(split)[0])

    def classes(self, split: str) -> int:
        return len(self._labelled(split)[1])

    def labels(self, split: str) -> torch.Tensor | None:
        labels, names = self._labelled(split)
        return torch.tensor([labels[row] for row in self.chosen(len(labels))]) if names else None

    def load(self, split: str) -> ImageSet:
        dataset = self._dataset(split, download=False)
        side, rows = self.config.image_size, self.chosen(len(dataset))
        storage = np.empty((len(rows), side, side, 3), dtype=np.uint8)
        for position, row in enumerate(rows):
            what = f"{self.name}/{split}: image {row}"
            storage[position] = np.asarray(self._fit(dataset[row][0], what).convert("RGB"))
        return ImageSet(
            torch.from_numpy(storage.transpose(0, 3, 1, 2).copy()),
            labels=self.labels(split),
            class_names=self._labelled(split)[1],
            name=f"{self.name}/{split}",
        )

    def _labelled(self, split: str) -> tuple[list[int], tuple[str, ...]]:
        """A label per image, and the names of classes: none where there are no labels. Read once.

        Raises
        ------
        InputError
            When torchvision does not find its files, or finds them changed.
        """
        unlabelled = self.root / "stl10_binary" / "unlabeled_X.bin"
        if self.name == "stl10" and split == "train" and unlabelled.is_file():
            # Opening it reads 2.7 GB; that it is whole is seen when it is loaded.
            return [-1] * (unlabelled.stat().st_size // STL10_BYTES), ()
        if split not in self._known:
            dataset = self._dataset(split, download=False)
            labels = [int(label) for label in _labels_of(dataset)]
            names: tuple[str, ...] = ()
            if min(labels) >= 0:
                names = tuple(getattr(dataset, "classes", ())) or numbered_classes(max(labels))
            self._known[split] = labels, names
        return self._known[split]

    def download(self) -> None:
        """Fetch every split that the benchmark uses into the data root."""
        # For versions of torchvision that name no filter: no member leaves the folder.
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
        for split in ("train", "test"):
            self._dataset(split, download=True)

    def _dataset(self, split: str, *, download: bool) -> Any:
        from torchvision import datasets

        builders = {
            "cifar10": lambda: datasets.CIFAR10(self.root, split == "train", download=download),
            # The unlabelled hundred thousand are what an out-of-distribution auxiliary uses.
            "stl10": lambda: datasets.STL10(
                self.root, "unlabeled" if split == "train" else split, download=download
            ),
            "gtsrb": lambda: datasets.GTSRB(self.root, split, download=download),
            "svhn": lambda: datasets.SVHN(self.root, split, download=download),
        }
        try:
            return builders[self.name]()
        except (RuntimeError, OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise InputError(f"dataset {self.name!r} in {self.root}: {error}") from None


def _labels_of(dataset: Any) -> Iterable[int]:
    """The labels of a data set of torchvision's, which keeps them under several names."""
    for name in ("targets", "labels"):
        if hasattr(dataset, name):
            return getattr(dataset, name)
    return [label for _, label in dataset._samples]
