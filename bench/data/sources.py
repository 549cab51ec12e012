"""Image sets from files: parquet, image folders, torchvision copies; and how a name finds one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from bench.config import DatasetConfig
from bench.data.embedded import Digits, Photographs
from bench.data.imageset import ImageSet
from bench.data.source import Source, digest_files
from bench.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


class Parquet(Source):
    """``<path>/<split>.parquet`` in the layout of Hugging Face ``datasets``.

    Columns ``image`` (struct with ``bytes``, or plain bytes) and, optionally, ``label``; class
    names from the schema's metadata.
    """

    def __init__(self, name: str, config: DatasetConfig, folder: Path) -> None:
        super().__init__(name, config)
        self.folder = folder

    def fingerprint(self, split: str) -> str:
        return digest_files(self._files(split), self.folder)

    def check(self, split: str) -> None:
        self._check_headers(self._encoded(split)[0])

    def count(self, split: str) -> int:
        import pyarrow.parquet as pq

        return sum(pq.read_metadata(path).num_rows for path in self._files(split))

    def classes(self, split: str) -> int:
        return len(self._encoded(split)[2])

    def load(self, split: str) -> ImageSet:
        encoded, labels, class_names = self._encoded(split)
        return ImageSet(
            self._decode(encoded),
            labels=labels,
            class_names=class_names,
            name=f"{self.name}/{split}",
        )

    def _files(self, split: str) -> list[Path]:
        files = sorted(
            {*self.folder.glob(f"{split}.parquet"), *self.folder.glob(f"{split}-*.parquet")}
        )
        if not files:
            raise self._no_split(split, self.folder)
        return files

    def _encoded(
        self, split: str
    ) -> tuple[list[tuple[str, bytes]], torch.Tensor | None, tuple[str, ...]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        images: list[tuple[str, bytes]] = []
        labels: list[int] = []
        class_names: tuple[str, ...] = ()
        for path in self._files(split):
            try:
                schema = pq.read_schema(path)
                if "image" not in schema.names:
                    raise InputError(
                        f"{path}: no column 'image'; the columns are {', '.join(schema.names)}"
                    )
                columns = [name for name in ("image", "label") if name in schema.names]
                table = pq.read_table(path, columns=columns)
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{path}: not a readable parquet file: {error}") from None
            column = table["image"].combine_chunks()
            if pa.types.is_struct(column.type):
                if column.type.get_field_index("bytes") < 0:
                    raise InputError(f"{path}: the column 'image' has no field 'bytes'")
                column = column.field("bytes")
            if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
                raise InputError(f"{path}: the column 'image' holds {column.type}, not bytes")
            data = column.to_pylist()
            if None in data:
                raise InputError(f"{path}: image {data.index(None)} is empty")
            images += [(f"{path}: image {row}", value) for row, value in enumerate(data)]
            if "label" in columns:
                if not pa.types.is_integer(schema.field("label").type):
                    raise InputError(
                        f"{path}: the column 'label' holds {schema.field('label').type}, "
                        "not integers"
                    )
                labels += table["label"].to_pylist()
                class_names = _class_names(schema.metadata) or class_names
        if labels and (len(labels) != len(images) or None in labels):
            raise InputError(f"dataset {self.name!r}: some images of {split!r} have no label")
        if labels and min(labels) < 0:
            raise InputError(f"dataset {self.name!r}: a label of {split!r} is {min(labels)}")
        if class_names and max(labels) >= len(class_names):
            raise InputError(
                f"dataset {self.name!r}: a label of {split!r} is {max(labels)}, there are "
                f"{len(class_names)} class names"
            )
        if labels and not class_names:
            class_names = tuple(str(label) for label in range(max(labels) + 1))
        kept = self.chosen(len(images))
        targets = torch.tensor([labels[row] for row in kept]) if labels else None
        return [images[row] for row in kept], targets, class_names


class Folder(Source):
    """``<path>/<split>/<class>/*.png`` (labelled) or ``<path>/<split>/*.png``; for ``train`` the
    images may also lie in ``<path>`` itself."""

    def __init__(self, name: str, config: DatasetConfig, folder: Path) -> None:
        super().__init__(name, config)
        self.folder = folder

    def fingerprint(self, split: str) -> str:
        return digest_files([path for path, _ in self._files(split)[0]], self.folder)

    def check(self, split: str) -> None:
        self._check_headers((str(path), path.read_bytes()) for path, _ in self._files(split)[0])

    def classes(self, split: str) -> int:
        return len(self._files(split)[1])

    def load(self, split: str) -> ImageSet:
        files, class_names = self._files(split)
        storage = self._decode([(str(path), path.read_bytes()) for path, _ in files])
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


class Torchvision(Source):
    """CIFAR-10, STL-10, GTSRB and SVHN from a torchvision copy; downloads only when asked."""

    NAMES = ("cifar10", "stl10", "gtsrb", "svhn")
    _FILES: ClassVar[dict[str, str]] = {
        "cifar10": "cifar-10-batches-py",
        "stl10": "stl10_binary",
        "gtsrb": "gtsrb",
    }

    def __init__(self, name: str, config: DatasetConfig, root: Path) -> None:
        super().__init__(name, config)
        self.root = root

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
        return hashlib.sha256((split + digest_files(files, self.root)).encode()).hexdigest()

    def load(self, split: str) -> ImageSet:
        dataset = self._dataset(split, download=False)
        side, rows = self.config.image_size, self.chosen(len(dataset))
        count = len(rows)
        storage = np.empty((count, side, side, 3), dtype=np.uint8)
        labels = np.empty(count, dtype=np.int64)
        for position, row in enumerate(rows):
            image, labels[position] = dataset[row]
            what = f"{self.name}/{split}: image {row}"
            storage[position] = np.asarray(self._fit(image, what).convert("RGB"))
        names = getattr(dataset, "classes", None) or [str(c) for c in range(int(labels.max()) + 1)]
        labelled = bool((labels >= 0).all())
        return ImageSet(
            torch.from_numpy(storage.transpose(0, 3, 1, 2).copy()),
            labels=torch.from_numpy(labels) if labelled else None,
            class_names=tuple(names) if labelled else (),
            name=f"{self.name}/{split}",
        )

    def download(self) -> None:
        """Fetch every split that the benchmark uses into the data root."""
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
        except (RuntimeError, OSError) as error:
            raise InputError(f"dataset {self.name!r} in {self.root}: {error}") from None


def open_source(name: str, config: DatasetConfig, data_roots: Sequence[Path], base: Path) -> Source:
    """The source of a named data set.

    Raises
    ------
    InputError
        When its files are nowhere to be found; the message says what would fix it.
    """
    if config.source == "digits":
        return Digits(name, config)
    if config.source == "photographs":
        return Photographs(name, config)
    if config.source in ("parquet", "folder"):
        folder = (base / str(config.path)).resolve() if config.path else base
        if not folder.is_dir():
            raise InputError(f"dataset {name!r}: no folder {config.path}")
        return (
            Parquet(name, config, folder)
            if config.source == "parquet"
            else Folder(name, config, folder)
        )
    for root in data_roots:
        folder = root / name
        if config.source == "auto" and any(folder.glob("*.parquet")):
            return Parquet(name, config, folder)
        if Torchvision.present(name, root):
            return Torchvision(name, config, root)
        if config.source == "auto" and folder.is_dir():
            return Folder(name, config, folder)
    places = ", ".join(str(root / name) for root in data_roots) or "no data root"
    remedy = (
        f"run `bench download {name}` or put it there"
        if name in Torchvision.NAMES
        else "put parquet files or image folders there, or name a path in the config"
    )
    raise InputError(f"dataset {name!r} is not at {places}; {remedy}")


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _class_names(metadata: dict[bytes, bytes] | None) -> tuple[str, ...]:
    try:
        info = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        return tuple(info["info"]["features"]["label"]["names"])
    except (ValueError, KeyError, TypeError):
        return ()
