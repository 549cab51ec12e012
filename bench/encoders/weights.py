"""Tensors on disk and strict loading, with errors that say which keys are wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

__all__ = ["CheckpointError", "load_strictly", "read_safetensors", "write_safetensors"]

# One metadata key only: safetensors writes several in no fixed order, and the same encoder must
# give the same bytes.
_METADATA_KEY = "bench"
_SHOWN = 5


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; one line that names the file."""


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write ``tensors`` with JSON-able ``metadata``; the same content gives the same bytes."""
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(dense, path, metadata={_METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and the metadata that :func:`write_safetensors` stored (empty for foreign files).

    Raises
    ------
    CheckpointError
        When the file is missing or is not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy ``tensors`` into ``network``: every key once, every shape equal.

    Raises
    ------
    CheckpointError
        Naming ``source`` and the first five missing, unexpected and misshapen keys.
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
    }
    listed = [f"{_first(names)} {kind}" for kind, names in problems.items() if names]
    if listed:
        raise CheckpointError(
            f"{source}: the keys do not fit the architecture: " + "; ".join(listed)
        )
    network.load_state_dict(dict(tensors))


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
