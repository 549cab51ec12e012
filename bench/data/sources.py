"""How the name of an image set finds its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.config import DatasetConfig
from bench.data.captioned import Captions
from bench.data.embedded import Digits, Photographs
from bench.data.folder import Folder
from bench.data.parquet import Parquet
from bench.data.source import Source
from bench.data.torchvision_copies import Torchvision
from bench.errors import InputError


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
        folder = (base / str(config.path)).resolve()
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
        else "put parquet files or image folders there, or name a source and a path in the config"
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
