"""The defender's encoder as a file for an author's process."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.encoders.defender import DefenderEncoder
from bench.encoders.encoder import Encoder

_DIGITS = 10


def write_encoder(path: Path, encoder: DefenderEncoder) -> None:
    """Write what :meth:`bench.encoders.encoder.Encoder.load` reads; needs ``network`` and
    ``gradients``.

    The normalisation, an affine map per channel, is read off what it makes of black and of white.
    """
    network, architecture, settings = encoder.network()
    side = encoder.image_size
    black, white = (
        encoder.normalise(torch.full((1, 3, side, side), value, dtype=torch.float64))[0, :, 0, 0]
        for value in (0.0, 1.0)
    )
    std = 1 / (white - black)
    mean = -black * std
    Encoder(
        network,
        architecture,
        settings,
        mean=[round(value, _DIGITS) for value in mean.tolist()],
        std=[round(value, _DIGITS) for value in std.tolist()],
        image_size=side,
    ).save(path)
