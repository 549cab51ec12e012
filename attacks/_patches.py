"""Triggers that replace pixels: squares of saturated colour, and arbitrary pixels."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from attacks._pictures import VARIANTS, Variant, decode_png, vary
from attacks._sized import SizedTrigger, look_alikes
from bench.api import Field, Trigger

Channel = float
Pattern = Literal["solid", "checkerboard", "stripes"]


class PatchTrigger(SizedTrigger):
    """A square of saturated pixels at a fixed place (BadEncoder, section 4).

    All patterns alternate ``colour`` with its complement (``1 - colour``), so that every patch of
    one size has the same energy around mid-grey.
    """

    name: ClassVar[str] = "patch"
    size: int = Field(10, ge=1)
    row: int = Field(21, ge=0)
    column: int = Field(21, ge=0)
    colour: tuple[Channel, Channel, Channel] = (1.0, 1.0, 1.0)
    pattern: Pattern = "solid"
    corners: bool = False
    """Also at the three places mirrored at the middle of the image: with row 0 and column 0 the
    four corners, as BadCLIP stamps its baseline."""

    @model_validator(mode="after")
    def _fits(self) -> PatchTrigger:
        check_place(self.row, self.column, self.size, self.size, self.image_size)
        if not all(0 <= channel <= 1 for channel in self.colour):
            raise ValueError(f"colour channels lie in [0, 1], got {self.colour}")
        far = self.image_size - self.size
        if self.corners and min(abs(far - 2 * at) for at in (self.row, self.column)) < self.size:
            raise ValueError(
                f"four {self.size}-pixel patches at row {self.row}, column {self.column} and the "
                f"mirrored places overlap in a {self.image_size}-pixel image"
            )
        return self

    def stamp(self, images: Tensor) -> Tensor:
        stamped, patch = images.clone(), self._patch().to(images)
        for rows, columns in self._squares():
            stamped[:, :, rows, columns] = patch
        return stamped

    def support(self, image_size: int) -> Tensor:
        self._check_side(image_size)
        inside = torch.zeros(image_size, image_size, dtype=torch.bool)
        for rows, columns in self._squares():
            inside[rows, columns] = True
        return inside

    def decoys(self) -> list[Trigger]:
        """The same patch in other places, then other colours and patterns in the same place.

        Another place comes first: those pixels are as odd to a detector that only sees pixels as
        the trigger's, while a finer pattern is odder (it is far from every natural patch).
        """
        if self.corners:
            # All four move towards the middle, or out to the corners when they are there already.
            inner = self.image_size // 2 - self.size
            row, column = (0 if inner in (at, far) else inner for at, far in self._ends())
            places = [(row, column), (row, self.column), (self.row, column)]
        else:
            places = other_places(self.row, self.column, self.size, self.size, self.image_size)
        candidates: list[dict[str, object]] = [
            *({"row": row, "column": column} for row, column in places),
            {"colour": (*self.colour[:2], 1.0 - self.colour[2])},
            {"colour": tuple(1.0 - channel for channel in self.colour)},
            {"pattern": "stripes"},
            {"pattern": "checkerboard"},
        ]
        ours = PatchTrigger.model_validate(self.parameters())
        return look_alikes(ours, candidates)

    def describe(self) -> str:
        colour = ",".join(f"{round(255 * channel)}" for channel in self.colour)
        pattern = "" if self.pattern == "solid" else f" {self.pattern}"
        mirrored = " and the three mirrored places" if self.corners else ""
        return self._described(
            f"{self.size}x{self.size}{pattern} patch of rgb({colour}) at row {self.row}, "
            f"column {self.column}{mirrored}"
        )

    def _ends(self) -> list[tuple[int, int]]:
        """Row and column, each with its mirrored place."""
        far = self.image_size - self.size
        return [(at, far - at) for at in (self.row, self.column)]

    def _squares(self) -> list[tuple[slice, slice]]:
        rows, columns = self._ends() if self.corners else ([self.row], [self.column])
        return [
            (slice(row, row + self.size), slice(column, column + self.size))
            for row in rows
            for column in columns
        ]

    def _patch(self) -> Tensor:
        """float32 (3, size, size)."""
        colour = torch.tensor(self.colour).view(3, 1, 1).expand(3, self.size, self.size)
        row = torch.arange(self.size).view(1, -1, 1) // 2
        column = torch.arange(self.size).view(1, 1, -1) // 2
        if self.pattern == "checkerboard":
            flipped = (row + column) % 2 == 1
        elif self.pattern == "stripes":
            flipped = (row % 2 == 1).expand(1, self.size, self.size)
        else:
            return colour
        return torch.where(flipped, 1 - colour, colour)


class ImagePatch(SizedTrigger):
    """Arbitrary pixels at a fixed place: BadCLIP's optimised patch, or any patch from a file.

    ``png`` is lossless text of the pixels (:func:`attacks.triggers.encode_png`), so that a
    recorded trigger needs no file.
    """

    name: ClassVar[str] = "image-patch"
    png: str
    """Base64 of an RGB or RGBA PNG; pixels of alpha 0 are not stamped."""
    row: int = Field(ge=0)
    column: int = Field(ge=0)
    variant: Variant = "original"
    """A look-alike of the picture, of the same energy: what decoys stamp."""

    @model_validator(mode="after")
    def _fits(self) -> ImagePatch:
        _, mask = decode_png(self.png)
        check_place(self.row, self.column, *mask.shape, self.image_size)
        return self

    def stamp(self, images: Tensor) -> Tensor:
        pixels, mask = _varied(self.png, self.variant)
        rows, columns = self._box(mask)
        stamped = images.clone()
        stamped[:, :, rows, columns] = torch.where(
            mask.to(images.device), pixels.to(images), images[:, :, rows, columns]
        )
        return stamped

    def support(self, image_size: int) -> Tensor:
        self._check_side(image_size)
        _, mask = _varied(self.png, self.variant)
        inside = torch.zeros(image_size, image_size, dtype=torch.bool)
        inside[self._box(mask)] = mask
        return inside

    def decoys(self) -> list[Trigger]:
        """The same picture in other places, then flipped, with other channels, shuffled."""
        height, width = decode_png(self.png)[1].shape
        places = other_places(self.row, self.column, height, width, self.image_size)
        candidates: list[dict[str, object]] = [
            *({"row": row, "column": column} for row, column in places),
            *({"variant": variant} for variant in VARIANTS),
        ]
        return look_alikes(self, candidates)

    def describe(self) -> str:
        height, width = decode_png(self.png)[1].shape
        variant = "" if self.variant == "original" else f" {self.variant}"
        return self._described(
            f"{height}x{width} picture{variant} at row {self.row}, column {self.column}"
        )

    def _box(self, mask: Tensor) -> tuple[slice, slice]:
        height, width = mask.shape
        return slice(self.row, self.row + height), slice(self.column, self.column + width)


@lru_cache(maxsize=64)
def _varied(png: str, variant: Variant) -> tuple[Tensor, Tensor]:
    return vary(*decode_png(png), variant)


def check_place(row: int, column: int, height: int, width: int, image_size: int) -> None:
    """Refuse a patch that does not lie inside the image."""
    if row + height > image_size or column + width > image_size:
        shape = f"{height}-pixel" if height == width else f"{height}x{width}"
        raise ValueError(
            f"a {shape} patch at row {row}, column {column} does not fit a {image_size}-pixel image"
        )


def other_places(
    row: int, column: int, height: int, width: int, image_size: int
) -> list[tuple[int, int]]:
    """Where else a patch fits: the places mirrored at the middle of the image, then its corners
    when the patch lies in the middle of a row or column."""
    last_row, last_column = image_size - height, image_size - width
    far_row, far_column = last_row - row, last_column - column
    places = [(far_row, far_column), (far_row, column), (row, far_column)]
    if far_row == row or far_column == column:
        places += [(0, 0), (last_row, last_column), (0, last_column), (last_row, 0)]
    return [place for place in dict.fromkeys(places) if place != (row, column)]
