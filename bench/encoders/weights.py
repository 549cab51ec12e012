"""Tensors on disk and strict loading, with errors that say which keys are wrong."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.limits import file_size

__all__ = [
    "CheckpointError",
    "check_header",
    "check_keys",
    "load_strictly",
    "read_metadata",
    "read_safetensors",
    "read_state_dict",
    "write_safetensors",
]

# One metadata key only: safetensors writes several in no fixed order, and the same encoder must
# give the same bytes.
_METADATA_KEY = "bench"
_SHOWN = 5
_MOST_REPEATED, _MOST_SHARED = 2**29, 4
"""Bytes that tensors may take beyond so many times their file."""
_PICKLED = (".pth", ".pt", ".tar", ".ckpt")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; one line that names the file."""


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write ``tensors`` with JSON-able ``metadata``; the same content gives the same bytes."""
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(dense, path, metadata={_METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata that :func:`write_safetensors` stored, without reading a tensor; empty for
    foreign files.

    Raises
    ------
    CheckpointError
        When the file is missing or is not safetensors.
    """
    try:
        file_size(Path(path))
        with safe_open(path, framework="pt") as file:
            return _metadata(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and the metadata that :func:`write_safetensors` stored (empty for foreign files).

    Raises
    ------
    CheckpointError
        When the file is missing or is not safetensors.
    """
    try:
        file_size(Path(path))
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, _metadata(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def _metadata(file: Any) -> dict[str, Any]:
    try:
        return json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
    except RecursionError:
        raise ValueError("its metadata is nested too deeply") from None


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` file (bare or under ``state_dict``) or of safetensors, by key.

    Raises
    ------
    CheckpointError
        When the file is missing or holds anything but tensors: a pickle of more is never loaded.
        Neither is an archive that unpacks to more than its size, or one whose tensors take far
        more memory than it has.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    if path.suffix not in _PICKLED:
        raise CheckpointError(f"{path}: not a .safetensors or .pth file")
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the sparse tensors that are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError):
        raise CheckpointError(
            f"{path}: damaged, or a pickle of more than tensors, which is never loaded"
        ) from None
    if isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: holds no state dict")
    strays = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if strays:
        raise CheckpointError(f"{path}: {strays[0]!r} is not a tensor, so this is no state dict")
    for name, value in content.items():
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(f"{path}: {name!r} is no plain tensor")
    # Views of one storage are honest (a network that is there twice), and can be of any size.
    size, stored = sum(value.nbytes for value in content.values()), path.stat().st_size
    if size > _MOST_REPEATED + _MOST_SHARED * stored:
        raise CheckpointError(f"{path}: tensors of {size:,} bytes in a file of {stored:,}")
    return content


def check_header(path: Path) -> None:
    """Refuse at once what is no checkpoint, before all of it is read.

    Raises
    ------
    CheckpointError
        When the file is missing or of another kind.
    """
    if path.suffix == ".safetensors":
        read_metadata(path)
        return
    try:
        file_size(path)
        with path.open("rb") as stream:
            start = stream.read(2)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if start != b"PK" and start[:1] != b"\x80":
        raise CheckpointError(f"{path}: neither an archive nor a pickle of torch")


def _check_archive(path: Path) -> None:
    """Refuse a zip file with packed records: torch writes none, and a few bytes can stand for
    gigabytes."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(record.file_size for record in archive.infolist())
    except zipfile.BadZipFile:
        return  # torch says what is wrong with it
    if size > path.stat().st_size:
        raise CheckpointError(f"{path}: unpacks to {size:,} bytes, more than it has")


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy ``tensors`` into ``network``, where :func:`check_keys` finds nothing wrong with them."""
    check_keys(network, tensors, source)
    network.load_state_dict(dict(tensors))


def check_keys(network: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Refuse tensors that are not those of ``network``: every key once, every shape equal, weights
    no integers. The network may be one without memory.

    Raises
    ------
    CheckpointError
        Naming ``source`` and the first five missing, unexpected, misshapen and mistyped keys.
    """
    wanted = network.state_dict()
    problems = {
        "missing": [name for name in wanted if name not in tensors],
        "unexpected": [name for name in tensors if name not in wanted],
        "misshapen": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
            for name, value in wanted.items()
            if name in tensors and tensors[name].shape != value.shape
        ],
        "of the wrong type": [
            f"{name} {str(tensors[name].dtype).removeprefix('torch.')}"
            for name, value in wanted.items()
            if name in tensors and value.is_floating_point() > tensors[name].is_floating_point()
        ],
    }
    listed = [f"{_first(names)} {kind}" for kind, names in problems.items() if names]
    if listed:
        raise CheckpointError(
            f"{source}: the keys do not fit the architecture: " + "; ".join(listed)
        )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
