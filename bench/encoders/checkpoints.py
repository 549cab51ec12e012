"""Foreign checkpoints: published ``.pth`` files and safetensors, read without unpickling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.encoders.encoder import Encoder
from bench.encoders.weights import CheckpointError, load_strictly, read_state_dict

__all__ = ["CheckpointError", "import_checkpoint"]


def import_checkpoint(
    path: str | Path,
    architecture: str,
    settings: Mapping[str, Any] | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
) -> Encoder:
    """An encoder on the CPU from somebody else's weights.

    ``.pth`` files are read with ``weights_only=True``, as a bare state dict or under
    ``state_dict``. Keys may be those of a whole SimCLR model (``f.f.*``; its projector ``g.*`` is
    dropped), of the encoder (``f.*``), each also behind ``module.`` of a data-parallel wrapper.

    Parameters
    ----------
    path
        ``.pth``, ``.pt``, ``.pth.tar``, ``.ckpt`` or ``.safetensors``.
    architecture, settings, mean, std, image_size
        As in :class:`~bench.encoders.encoder.Encoder`.

    Raises
    ------
    CheckpointError
        When the file is missing, holds anything but tensors, or its keys do not fit.
    ValueError
        When the architecture or a setting is unknown.
    """
    path = Path(path)
    encoder = Encoder.initialise(
        architecture,
        settings,
        generator=torch.Generator(),
        mean=mean,
        std=std,
        image_size=image_size,
    )
    load_strictly(encoder.network, _encoder_keys(read_state_dict(path)), path)
    encoder.network.eval()
    return encoder


def _encoder_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    bare = {str(name).removeprefix("module."): value for name, value in tensors.items()}
    if not any(name.startswith("f.f.") for name in bare):
        return bare
    return {
        name.removeprefix("f."): value for name, value in bare.items() if not name.startswith("g.")
    }
