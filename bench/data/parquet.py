"""Image sets in parquet files, in the layout of Hugging Face ``datasets``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.config import DatasetConfig
from bench.data.imageset import ImageSet
from bench.data.source import Source, digest_files, numbered_classes
from bench.errors import InputError
from bench.limits import MOST_ROWS, MOST_UNPACKED, check_regular

_ROWS_AT_ONCE = 64


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
