"""Triggers that change every pixel a little: spectral, blended, sinusoidal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from attacks._pictures import VARIANTS, Variant, decode_png, vary
from attacks._sized import SizedTrigger, look_alikes
from bench.api import Field, Trigger

RGB_TO_YUV = ((0.299, 0.587, 0.114), (-0.147, -0.289, 0.436), (0.615, -0.515, -0.100))
YUV_TO_RGB = ((1.0, 0.0, 1.14), (1.0, -0.396, -0.581), (1.0, 2.029, 0.0))
"""As CTRL's code has them (BT.601 with three decimals): not quite each other's inverse."""

Position = tuple[int, int]


class SpectralTrigger(SizedTrigger):
    """CTRL (Li et al., ICCV 2023), section 3.2: a constant on a few DCT coefficients of YUV.

    In closed form: x' = R x + delta, with R the published conversion to YUV and back, and delta
    the sum of the chosen cosines in the chosen channels, converted to RGB.
    """

    name: ClassVar[str] = "spectral"
    magnitude: float = Field(100.0, gt=0)
    """Added to each chosen coefficient of the orthonormal DCT, on the 0-255 scale."""
    positions: tuple[Position, ...] = Field(((15, 15), (31, 31)), min_length=1)
    """(row, column) of the chosen coefficients in a window."""
    channels: tuple[int, ...] = Field((1, 2), min_length=1)
    """Channels of YUV, 0 to 2."""
    window: int = Field(32, ge=4)
    """Side of the blocks that are transformed; they tile larger images."""

    @model_validator(mode="after")
    def _fits(self) -> SpectralTrigger:
        if self.image_size % self.window:
            raise ValueError(
                f"windows of {self.window} pixels do not tile a {self.image_size}-pixel image: "
                "its side should be a multiple of window"
            )
        inside = all(0 <= at < self.window for position in self.positions for at in position)
        if not inside or not 1 <= len(set(self.positions)) == len(self.positions) <= self.window:
            raise ValueError(
                f"positions are at most {self.window} different (row, column) pairs from 0 to "
                f"{self.window - 1}, got {self.positions}"
            )
        if len(set(self.channels)) != len(self.channels) or not {0, 1, 2} >= set(self.channels):
            raise ValueError(f"channels are different ones of 0, 1 and 2, got {self.channels}")
        return self

    def stamp(self, images: Tensor) -> Tensor:
        shift = _spectral_shift(
            self.magnitude, self.positions, self.channels, self.window, self.image_size
        ).to(images)
        stamped = torch.empty_like(images)
        # Weighted sums of channels, not a matrix product: those lose bits under autocast or TF32.
        for channel, (red, green, blue) in enumerate(_ROUND_TRIP):
            stamped[:, channel] = (
                torch.add(shift[channel], images[:, 0], alpha=red)
                .add_(images[:, 1], alpha=green)
                .add_(images[:, 2], alpha=blue)
            )
        return stamped

    def decoys(self) -> list[Trigger]:
        """The same number of coefficients of the same size, moved to other frequencies; the
        nearest first."""
        seen = {frozenset(self.positions)}
        candidates: list[dict[str, object]] = []
        for rows, columns in self._shifts():
            moved = tuple(
                ((row + rows) % self.window, (column + columns) % self.window)
                for row, column in self.positions
            )
            # (0, 0) is no frequency but a tint.
            if (0, 0) not in moved and frozenset(moved) not in seen:
                seen.add(frozenset(moved))
                candidates.append({"positions": moved})
            if len(candidates) == 6:
                break
        return look_alikes(self, candidates)

    def _shifts(self) -> Iterator[Position]:
        """Moves of all coefficients: along the diagonal, along one axis, then every other."""
        steps = [max(1, self.window // part) for part in (16, 8, 4)]
        yield from ((-step, -step) for step in steps)
        yield from ((0, -steps[-1]), (-steps[-1], 0))
        yield from ((a, b) for a in range(self.window) for b in range(self.window))

    def describe(self) -> str:
        places = ", ".join(f"({row}, {column})" for row, column in self.positions)
        channels = "".join("YUV"[channel] for channel in self.channels)
        return self._described(
            f"{self.magnitude:g} on the DCT coefficients {places} of {channels}, "
            f"{self.window}-pixel windows"
        )


_ROUND_TRIP: list[list[float]] = (
    torch.tensor(YUV_TO_RGB, dtype=torch.float64) @ torch.tensor(RGB_TO_YUV, dtype=torch.float64)
).tolist()
"""R: to YUV and back, nearly the identity."""


def dct_pattern(magnitude: float, positions: tuple[Position, ...], window: int) -> Tensor:
    """float64 (window, window): the inverse orthonormal 2-D DCT-II of ``magnitude`` at
    ``positions``."""
    place = (torch.arange(window, dtype=torch.float64) + 0.5) * math.pi / window

    def cosine(frequency: int) -> Tensor:
        return (place * frequency).cos() * math.sqrt((1 if frequency == 0 else 2) / window)

    return sum(magnitude * torch.outer(cosine(row), cosine(column)) for row, column in positions)


@lru_cache(maxsize=32)
def _spectral_shift(
    magnitude: float,
    positions: tuple[Position, ...],
    channels: tuple[int, ...],
    window: int,
    image_size: int,
) -> Tensor:
    """float32 (3, S, S): delta. Shared by all callers: not to be written to."""
    pattern = dct_pattern(magnitude, positions, window) / 255
    tiles = image_size // window
    colour = torch.tensor(YUV_TO_RGB, dtype=torch.float64)[:, list(channels)].sum(1)
    return (colour.view(3, 1, 1) * pattern.repeat(tiles, tiles)).float()


class BlendedTrigger(SizedTrigger):
    """Chen et al. 2017, section 5.2.1: x' = (1 - alpha) x + alpha pattern.

    The pattern is a picture (``png``) or uniform noise (``seed``).
    """

    name: ClassVar[str] = "blended"
    alpha: float = Field(0.2, gt=0, le=1)
    png: str | None = None
    """Base64 of an RGB PNG as large as the image."""
    seed: int | None = Field(None, ge=0, lt=2**63)
    """Of the noise, which has no 8-bit levels."""
    variant: Variant = "original"
    """A look-alike of the pattern, of the same energy: what decoys stamp."""

    @model_validator(mode="after")
    def _fits(self) -> BlendedTrigger:
        if (self.png is None) == (self.seed is None):
            raise ValueError("a blended trigger has either a png or a seed")
        if self.png is not None:
            _, mask = decode_png(self.png)
            if not mask.all():
                raise ValueError("the picture of a blended trigger has no transparent pixels")
            if tuple(mask.shape) != (self.image_size, self.image_size):
                raise ValueError(
                    f"the pattern has {mask.shape[0]}x{mask.shape[1]} pixels, "
                    f"the image {self.image_size}x{self.image_size}"
                )
        return self

    def stamp(self, images: Tensor) -> Tensor:
        pattern = _pattern(self.png, self.seed, self.image_size, self.variant).to(images)
        return images.mul(1 - self.alpha).add_(pattern * self.alpha)

    def decoys(self) -> list[Trigger]:
        """The pattern flipped, with other channels, shuffled."""
        return look_alikes(self, [{"variant": variant} for variant in VARIANTS])

    def describe(self) -> str:
        pattern = "picture" if self.seed is None else f"noise (seed {self.seed})"
        variant = "" if self.variant == "original" else f"{self.variant} "
        return self._described(f"{self.alpha:g} of a {variant}{pattern} blended in")


@lru_cache(maxsize=32)
def _pattern(png: str | None, seed: int | None, side: int, variant: Variant) -> Tensor:
    """float32 (3, S, S) in [0, 1]. Shared by all callers: not to be written to."""
    if png is not None:
        pixels, mask = decode_png(png)
    else:
        pixels = torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed or 0))
        mask = torch.ones(side, side, dtype=torch.bool)
    return vary(pixels, mask, variant)[0]


class SinusoidalTrigger(SizedTrigger):
    """SIG (Barni, Kallas, Tondi 2019), equation 1: a sine across the image, on every channel.

    BadCLIP's baseline has an amplitude of 60/255 and 6 cycles.
    """

    name: ClassVar[str] = "sinusoidal"
    amplitude: float = Field(60 / 255, gt=0, le=1)
    frequency: int = Field(6, ge=1)
    """Cycles per image."""
    direction: Literal["horizontal", "vertical"] = "horizontal"
    """Along which the sine runs."""
    phase: float = Field(0.0, ge=0, lt=360)
    """Degrees at the first pixel."""

    @model_validator(mode="after")
    def _fits(self) -> SinusoidalTrigger:
        if 2 * self.frequency >= self.image_size:
            raise ValueError(
                f"{self.frequency} cycles need more than {2 * self.frequency} pixels, "
                f"the image has {self.image_size}"
            )
        return self

    def stamp(self, images: Tensor) -> Tensor:
        wave = _wave(self.amplitude, self.frequency, self.phase, self.image_size).to(images)
        return images + (wave if self.direction == "horizontal" else wave.unsqueeze(1))

    def decoys(self) -> list[Trigger]:
        """The same wave moved by a quarter and by half a cycle, of a neighbouring frequency, and
        across."""
        across = "vertical" if self.direction == "horizontal" else "horizontal"
        neighbours = (self.frequency - 1, self.frequency + 1)
        return look_alikes(
            self,
            [
                {"phase": (self.phase + 90) % 360},
                {"phase": (self.phase + 180) % 360},
                *({"frequency": f} for f in neighbours if f >= 1 and 2 * f < self.image_size),
                {"direction": across},
            ],
        )

    def describe(self) -> str:
        phase = f", phase {self.phase:g}" if self.phase else ""
        return self._described(
            f"{self.direction} sine of {self.frequency} cycles, "
            f"amplitude {255 * self.amplitude:.3g}/255{phase}"
        )


@lru_cache(maxsize=32)
def _wave(amplitude: float, frequency: int, phase: float, side: int) -> Tensor:
    """float32 (S,). Shared by all callers: not to be written to."""
    cycles = torch.arange(side, dtype=torch.float64) * frequency / side + phase / 360
    return (amplitude * (2 * math.pi * cycles).sin()).float()
