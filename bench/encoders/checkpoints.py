"""Foreign checkpoints: published ``.pth`` files and safetensors, read without unpickling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.encoders.architectures import find
from bench.encoders.encoder import Encoder
from bench.encoders.weights import (
    CheckpointError,
    check_keys,
    load_strictly,
    read_state_dict,
)

__all__ = ["CheckpointError", "import_checkpoint"]

# CTRL's names for the parts of a ResNet -> positions in SimCLRBase, which are those of DRUPE's.
_CTRL_PARTS = {"conv1": "0", "bn1": "1", "layer1": "3", "layer2": "4", "layer3": "5", "layer4": "6"}
# What CTRL trains beside the backbone. ``encoder_q.0`` is the backbone once more.
_CTRL_HEADS = (
    "proj_head.",
    "backbone_k.",
    "projector_q.",
    "projector_k.",
    "predictor.",
    "encoder_q.",
    "encoder_k.",
)
_CLIP_TEXT = (
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
)
# Numbers that OpenAI's files carry among the weights.
_CLIP_SIZES = ("input_resolution", "context_length", "vocab_size")


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
    ``state_dict``. Keys are told apart by name, each also behind ``module.`` of a data-parallel
    wrapper:

    - a whole SimCLR model (``f.f.*``; its projector ``g.*`` is dropped) or its encoder (``f.*``);
    - CTRL's (``backbone.*``, SimCLR or BYOL; heads and momentum networks are dropped). Its recipe
      does not normalise: pass ``mean=(0, 0, 0), std=(1, 1, 1)``;
    - for ``clip-rn50``, OpenAI's, BadCLIP's or open_clip's CLIP (``visual.*``, ``transformer.*``,
      ``logit_scale``);
    - for ``clip-rn50-visual``, the same, of which the image tower is kept, or the tower alone, as
      DECREE's code saves it (``visual.*`` or bare).

    Half-precision weights become float32.

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
    known = find(architecture)
    skeleton = known.skeleton(settings or {})
    tensors = {
        str(name).removeprefix("module."): value for name, value in read_state_dict(path).items()
    }
    if architecture in ("clip-rn50", "clip-rn50-visual"):
        tensors = _clip_keys(tensors, text=known.text)
    else:
        tensors = _resnet_keys(tensors)
    check_keys(skeleton, tensors, path)  # before the memory of a network is asked for
    encoder = Encoder.initialise(
        architecture,
        settings,
        generator=torch.Generator(),
        mean=mean,
        std=std,
        image_size=image_size,
    )
    load_strictly(encoder.network, tensors, path)
    encoder.network.eval()
    return encoder


def _resnet_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder of a SimCLR model or of CTRL's, named as :class:`SimCLRBase` names its parts."""
    if any(name.startswith("f.f.") for name in tensors):
        return {
            name.removeprefix("f."): value
            for name, value in tensors.items()
            if not name.startswith("g.")
        }
    if any(name.startswith("backbone.") for name in tensors):
        return {
            _from_ctrl(name): value
            for name, value in tensors.items()
            if not name.startswith(_CTRL_HEADS)
        }
    return dict(tensors)


def _from_ctrl(name: str) -> str:
    part, _, rest = name.removeprefix("backbone.").partition(".")
    if not name.startswith("backbone.") or part not in _CTRL_PARTS:
        return name
    return f"f.{_CTRL_PARTS[part]}.{rest.replace('shortcut.', 'downsample.')}"


def _clip_keys(tensors: Mapping[str, Tensor], *, text: bool) -> dict[str, Tensor]:
    """Both towers of a CLIP, or its image tower, named as our networks name them."""
    kept = {name: value for name, value in tensors.items() if name not in _CLIP_SIZES}
    if text:
        return {
            f"text.{name}" if name.startswith(_CLIP_TEXT) else name: value
            for name, value in kept.items()
        }
    if not any(name.startswith("visual.") for name in kept):
        return {f"visual.{name}": value for name, value in kept.items()}
    others = (*_CLIP_TEXT, "text.", "logit_scale")
    return {name: value for name, value in kept.items() if not name.startswith(others)}
