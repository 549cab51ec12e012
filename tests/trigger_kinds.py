"""One trigger of every kind, at any image size, for tests of what holds for all of them."""

from __future__ import annotations

import torch

from attacks.triggers import (
    BlendedTrigger,
    ImagePatch,
    PatchTrigger,
    SinusoidalTrigger,
    SpectralTrigger,
    encode_png,
)
from bench.api import Trigger

TRANSPORTS = ("8bit", "float", "jpeg-75")
KINDS = (
    "patch",
    "patch in the corners",
    "image-patch",
    "image-patch with holes",
    "spectral",
    "blended noise",
    "blended picture",
    "sinusoidal",
)


def random_levels(channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """uint8 (channels, height, width); a fourth channel is 0 or 255."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(256, (channels, height, width), generator=generator)
    if channels == 4:
        levels[3] = (levels[3] > 100) * 255
    return levels.to(torch.uint8)


def random_images(count: int, image_size: int) -> torch.Tensor:
    """float32 (count, 3, S, S) on 8-bit levels."""
    generator = torch.Generator().manual_seed(image_size)
    return torch.randint(256, (count, 3, image_size, image_size), generator=generator) / 255


def trigger_of(kind: str, image_size: int, transport: str = "8bit") -> Trigger:
    """The trigger called ``kind`` in :data:`KINDS`; colours lie between 8-bit levels where they
    can."""
    common = {"image_size": image_size, "transport": transport}
    if kind == "patch":
        return PatchTrigger(size=9, row=2, column=image_size - 12, colour=(1, 0.123, 0), **common)
    if kind == "patch in the corners":
        return PatchTrigger(size=5, row=0, column=0, corners=True, colour=(0.77, 1, 0.3), **common)
    if kind == "image-patch":
        return ImagePatch(png=encode_png(random_levels(3, 8, 6)), row=3, column=5, **common)
    if kind == "image-patch with holes":
        middle = image_size // 2 - 4
        png = encode_png(random_levels(4, 8, 8))
        return ImagePatch(png=png, row=middle, column=middle, **common)
    if kind == "spectral":
        return SpectralTrigger(**common)
    if kind == "blended noise":
        return BlendedTrigger(alpha=0.3, seed=4, **common)
    if kind == "blended picture":
        png = encode_png(random_levels(3, image_size, image_size))
        return BlendedTrigger(png=png, **common)
    return SinusoidalTrigger(**common)
