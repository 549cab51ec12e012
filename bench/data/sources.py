"""Image sets from files: parquet, image folders, torchvision copies; and how a name finds one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from bench.config import DatasetConfig
from bench.data.captioned import Captions
from bench.data.embedded import Digits, Photographs
from bench.data.imageset import ImageSet
from bench.data.pictures import check_image, read_image
from bench.data.source import Source, digest_files, numbered_classes
from bench.errors import InputError
from bench.limits import MOST_ROWS, MOST_UNPACKED, check_regular

_ROWS_AT_ONCE = 64
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


@dataclass(frozen=True)
class _Table:
    """A split before decoding: (name for messages, encoded image) and what belongs to each."""

    images: list[tuple[str, bytes]]
    labels: torch.Tensor | None
    class_names: tuple[str, ...]
    captions: list[str] | None


class Parquet(Source):
    """``<path>/<split>.parquet`` in the layout of Hugging Face ``datasets``.

    Columns ``image`` (struct with ``bytes``, or plain bytes) and, optionally, ``label`` and
    ``caption``; class names from the schema's metadata. ``<path>`` may also be one parquet file,
    which is the training split.

    Parameters
    ----------
    captioned
        Whether a missing ``caption`` column is an error.
    """

    def __init__(
        self, name: str, config: DatasetConfig, path: Path, *, captioned: bool = False
    ) -> None:
        super().__init__(name, config)
        self.path = path
        self._captions_wanted = captioned

    def fingerprint(self, split: str) -> str:
        files = self._files(split)
        return digest_files(files, files[0].parent)

    def check(self, split: str) -> None:
        self._check_headers(self._table(split).images)

    def count(self, split: str) -> int:
        import pyarrow.parquet as pq

        rows = 0
        for path in self._files(split):
            with _readable(path):
                rows += pq.read_metadata(path).num_rows
        return rows

    def classes(self, split: str) -> int:
        return len(self._table(split).class_names)

    def labels(self, split: str) -> torch.Tensor | None:
        return self._table(split).labels

    def captioned(self, split: str) -> bool:
        return self._table(split).captions is not None

    def load(self, split: str) -> ImageSet:
        table = self._table(split)
        return ImageSet(
            self._decode(table.images),
            labels=table.labels,
            class_names=table.class_names,
            captions=table.captions,
            name=f"{self.name}/{split}",
        )

    def _files(self, split: str) -> list[Path]:
        if self.path.is_file() and split == "train":
            return [self.path]
        files = sorted({*self.path.glob(f"{split}.parquet"), *self.path.glob(f"{split}-*.parquet")})
        if not files:
            raise self._no_split(split, self.path)
        for path in files:
            check_regular(path)
        return files

    def _table(self, split: str) -> _Table:
        images: list[tuple[str, bytes]] = []
        labels: list[int] = []
        captions: list[str] = []
        class_names: tuple[str, ...] = ()
        for path in self._files(split):
            columns, metadata = _columns(path)
            images += _encoded_images(path, columns["image"])
            if "label" in columns:
                labels += _whole_numbers(path, columns["label"])
                class_names = _class_names(metadata) or class_names
            if "caption" in columns:
                captions += _texts(path, columns["caption"])
            elif self._captions_wanted:
                raise InputError(f"{path}: no column 'caption'")
        class_names = self._checked_labels(split, labels, class_names, len(images))
        if captions and len(captions) != len(images):
            raise InputError(f"dataset {self.name!r}: some images of {split!r} have no caption")
        kept = self.chosen(len(images))
        return _Table(
            [images[row] for row in kept],
            torch.tensor([labels[row] for row in kept]) if labels else None,
            class_names,
            [captions[row] for row in kept] if captions else None,
        )

    def _checked_labels(
        self, split: str, labels: list[int], class_names: tuple[str, ...], count: int
    ) -> tuple[str, ...]:
        """The class names, numbers where the files name none."""
        if not labels:
            return ()
        if len(labels) != count or None in labels:
            raise InputError(f"dataset {self.name!r}: some images of {split!r} have no label")
        if min(labels) < 0:
            raise InputError(f"dataset {self.name!r}: a label of {split!r} is {min(labels)}")
        if class_names and max(labels) >= len(class_names):
            raise InputError(
                f"dataset {self.name!r}: a label of {split!r} is {max(labels)}, there are "
                f"{len(class_names)} class names"
            )
        return class_names or numbered_classes(max(labels))


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
        return hashlib.sha256((split + digest_files(files, self.root)).encode()).hexdigest()

    def check(self, split: str) -> None:
        self._labelled(split)

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


def remedy(name: str) -> str:
    """Words for how to get a data set or weights; none where no command can."""
    from bench.encoders.pretrained import PRETRAINED

    return f" (bench download {name})" if name in (*Torchvision.NAMES, *PRETRAINED) else ""


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
    if config.source == "captions":
        return _open_captions(name, config, (base / str(config.path)).resolve())
    if config.source in ("parquet", "folder"):
        folder = (base / str(config.path)).resolve() if config.path else base
        single = config.source == "parquet" and folder.is_file()
        if not (folder.is_dir() or single):
            raise InputError(f"dataset {name!r}: no folder {config.path}")
        return (
            Parquet(name, config, folder)
            if config.source == "parquet"
            else Folder(name, config, folder)
        )
    stored = config.stored_as or name
    for root in data_roots:
        folder = root / stored
        if config.source == "auto" and any(folder.glob("*.parquet")):
            return Parquet(name, config, folder)
        if Torchvision.present(stored, root):
            return Torchvision(stored, config, root)
        if config.source == "auto" and folder.is_dir():
            return Folder(name, config, folder)
    places = ", ".join(str(root / stored) for root in data_roots) or "no data root"
    remedy = (
        f"run `bench download {stored}` or put it there"
        if stored in Torchvision.NAMES
        else "put parquet files or image folders there, or name a path in the config"
    )
    raise InputError(f"dataset {name!r} is not at {places}; {remedy}")


def _open_captions(name: str, config: DatasetConfig, path: Path) -> Source:
    if Captions.present(path):
        return Captions(name, config, path)
    if (path.is_file() and path.suffix == ".parquet") or any(path.glob("*.parquet")):
        return Parquet(name, config, path, captioned=True)
    raise InputError(
        f"dataset {name!r}: {config.path} is no CSV or parquet file, and no folder with "
        "train.csv or parquet files"
    )


def _images(folder: Path) -> list[Path]:
    named = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in named if not path.is_dir())


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say of which file it is that pyarrow cannot read it."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"{path}: not a readable parquet file: {what}") from None


def _columns(path: Path) -> tuple[dict[str, Any], dict[bytes, bytes] | None]:
    """The columns of a parquet file that are of use, and the metadata of its schema."""
    import pyarrow.parquet as pq

    with _readable(path):
        schema = pq.read_schema(path)
        if "image" not in schema.names:
            raise InputError(
                f"{path}: no column 'image'; the columns are {', '.join(schema.names)}"
            )
        wanted = [name for name in ("image", "label", "caption") if name in schema.names]
        for name in wanted:
            if schema.names.count(name) > 1:
                raise InputError(f"{path}: two columns {name!r}")
        table = _read_in_parts(path, wanted)
    return {name: table[name].combine_chunks() for name in wanted}, schema.metadata


def _read_in_parts(path: Path, columns: list[str]) -> Any:
    """Columns of a parquet file, read in parts: a few bytes of it can stand for any number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    most = MOST_UNPACKED * (path.stat().st_size + 2**20)
    batches, size = [], 0
    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows > MOST_ROWS:
            rows = file.metadata.num_rows
            raise InputError(f"{path}: {rows:,} rows; at most {MOST_ROWS:,} are read")
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
            batches.append(batch)
            size += batch.nbytes
            if size > most:
                raise InputError(f"{path}: unpacks to more than {MOST_UNPACKED} times its size")
        # A batch of a file without rows does not exist, and its schema is wanted all the same.
        schema = batches[0].schema if batches else file.schema_arrow
    return pa.Table.from_batches(batches, schema).select(columns)


def _encoded_images(path: Path, column: Any) -> list[tuple[str, bytes]]:
    import pyarrow as pa

    if pa.types.is_struct(column.type):
        if column.type.get_field_index("bytes") < 0:
            raise InputError(f"{path}: the column 'image' has no field 'bytes'")
        column = column.field("bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise InputError(f"{path}: the column 'image' holds {column.type}, not bytes")
    data = column.to_pylist()
    if None in data:
        raise InputError(f"{path}: image {data.index(None)} is empty")
    return [(f"{path}: image {row}", value) for row, value in enumerate(data)]


def _whole_numbers(path: Path, column: Any) -> list[int]:
    import pyarrow as pa

    if not pa.types.is_integer(column.type):
        raise InputError(f"{path}: the column 'label' holds {column.type}, not integers")
    return column.to_pylist()


def _texts(path: Path, column: Any) -> list[str]:
    import pyarrow as pa

    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise InputError(f"{path}: the column 'caption' holds {column.type}, not text")
    captions = column.to_pylist()
    for row, caption in enumerate(captions):
        if not (caption or "").strip():
            raise InputError(f"{path}: caption {row} is empty")
    return captions


def _class_names(metadata: dict[bytes, bytes] | None) -> tuple[str, ...]:
    try:
        info = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        return tuple(info["info"]["features"]["label"]["names"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
