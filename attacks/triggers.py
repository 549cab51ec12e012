"""Triggers: what an attacker stamps on an image. One protocol, ``bench.api.Trigger``."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from bench.api import Attack, Field, Trigger

Channel = float
Pattern = Literal["solid", "checkerboard", "stripes"]


class PatchTrigger(Trigger):
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
    image_size: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> PatchTrigger:
        if max(self.row, self.column) + self.size > self.image_size:
            raise ValueError(
                f"a {self.size}-pixel patch at row {self.row}, column {self.column} does not fit "
                f"a {self.image_size}-pixel image"
            )
        if not all(0 <= channel <= 1 for channel in self.colour):
            raise ValueError(f"colour channels lie in [0, 1], got {self.colour}")
        return self

    def stamp(self, images: Tensor) -> Tensor:
        stamped = images.clone()
        rows = slice(self.row, self.row + self.size)
        columns = slice(self.column, self.column + self.size)
        stamped[:, :, rows, columns] = self._patch().to(images)
        return stamped

    def support(self, image_size: int) -> Tensor:
        if image_size != self.image_size:
            raise ValueError(
                f"this patch is made for {self.image_size}-pixel images, not {image_size}"
            )
        inside = torch.zeros(image_size, image_size, dtype=torch.bool)
        inside[self.row : self.row + self.size, self.column : self.column + self.size] = True
        return inside

    def decoys(self) -> list[Trigger]:
        """The same patch in other places, then other colours and patterns in the same place.

        Another place comes first: those pixels are as odd to a detector that only sees pixels as
        the trigger's, while a finer pattern is odder (it is far from every natural patch).
        """
        far_row, far_column = (self.image_size - self.size - at for at in (self.row, self.column))
        candidates = [
            {"row": far_row, "column": far_column},
            {"row": far_row},
            {"column": far_column},
            {"colour": (*self.colour[:2], 1.0 - self.colour[2])},
            {"colour": tuple(1.0 - channel for channel in self.colour)},
            {"pattern": "stripes"},
            {"pattern": "checkerboard"},
        ]
        ours = self.parameters()
        decoys = [PatchTrigger.model_validate({**ours, **change}) for change in candidates]
        return [decoy for decoy in decoys if decoy != self]

    def describe(self) -> str:
        colour = ",".join(f"{round(255 * channel)}" for channel in self.colour)
        pattern = "" if self.pattern == "solid" else f" {self.pattern}"
        return (
            f"{self.size}x{self.size}{pattern} patch of rgb({colour}) at row {self.row}, "
            f"column {self.column}"
        )

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


class CarriesPatch(Attack):
    """The parameters of attacks whose trigger is one white square at a fixed place."""

    patch_size: int = Field(10, ge=1)
    patch_row: int = Field(21, ge=0)
    patch_column: int = Field(21, ge=0)

    def check(self, image_size: int) -> None:
        """Refuse a patch that does not fit."""
        last = max(self.patch_row, self.patch_column) + self.patch_size
        if last > image_size:
            raise ValueError(
                f"a {self.patch_size}-pixel patch at row {self.patch_row}, column "
                f"{self.patch_column} does not fit a {image_size}-pixel image"
            )

    def trigger(self, image_size: int) -> Trigger:
        return PatchTrigger(
            size=self.patch_size,
            row=self.patch_row,
            column=self.patch_column,
            image_size=image_size,
        )
