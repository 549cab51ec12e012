"""What CTRL's code needs beside today's libraries, for whoever runs it: attack and probes."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.upstream.shims import stub


def stub_unused() -> None:
    """Replace what CTRL imports and does not use, or uses to log."""
    stub(
        "pytorch_wavelets",
        "serves a variant of the trigger that nothing calls; does not import beside today's "
        "setuptools",
        DWTForward=lambda **_: None,
        DWTInverse=lambda **_: None,
    )
    stub("torch.utils.tensorboard", "only logs", SummaryWriter=Board)


def yuv_to_rgb(image: Tensor) -> Tensor:
    """kornia's conversion of (..., 3, H, W) as version 0.6.5 has it, which CTRL pins: constants of
    three decimals.

    From 0.9 on it inverts the other direction exactly, which makes another trigger (norm 1.4005
    instead of 1.3998, docs/upstream-audit.md, U35).
    """
    y, u, v = image.unbind(-3)
    return torch.stack([y + 1.14 * v, y - 0.396 * u - 0.581 * v, y + 2.029 * u], -3)


class Board:
    """TensorBoard's writer, of which the last values are kept."""

    def __init__(self, log_dir: str) -> None:
        self.log_dir = log_dir
        self.last: dict[str, float] = {}

    def add_scalar(self, name: str, value: float, _step: int) -> None:
        self.last[name] = float(value)
