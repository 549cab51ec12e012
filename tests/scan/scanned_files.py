"""Images and state dicts as files for scans, and what a scan wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image


def smooth(count: int, seed: int) -> torch.Tensor:
    """uint8 (N, 3, 32, 32): every one a soft gradient."""
    small = torch.rand(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(small, size=32, mode="bilinear")
    return large.mul(255).round().to(torch.uint8)


def noise(count: int, seed: int) -> torch.Tensor:
    """uint8 (N, 3, 32, 32): nothing like :func:`smooth`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 32, 32), generator=generator).to(torch.uint8)


def write_files(folder: Path, images: torch.Tensor, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images.permute(0, 2, 3, 1).numpy(), first):
        Image.fromarray(image).save(folder / f"{number:04d}.png")


def ctrl_keys(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of ours under the names of CTRL's code."""
    parts = {"0": "conv1", "1": "bn1", "3": "layer1", "4": "layer2", "5": "layer3", "6": "layer4"}
    renamed = {}
    for name, value in tensors.items():
        _, part, rest = name.split(".", 2)
        renamed[f"backbone.{parts[part]}.{rest.replace('downsample', 'shortcut')}"] = value
    return renamed


def read_scores(folder: Path) -> dict[str, np.ndarray]:
    """The columns of a scan's scores."""
    frame = pd.read_csv(folder / "scores.csv")
    return {name: frame[name].to_numpy() for name in frame}
