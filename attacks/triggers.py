"""Triggers: what an attacker stamps on an image. One protocol, ``bench.api.Trigger``."""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from attacks._overlays import BlendedTrigger, SinusoidalTrigger, SpectralTrigger
from attacks._patches import ImagePatch, PatchTrigger, check_place
from attacks._pictures import encode_png
from attacks._trigger_files import parse_trigger, read_patch
from bench.api import Attack, Field, Trigger
from bench.data.transport import Transport

__all__ = [
    "BlendedTrigger",
    "CarriesPatch",
    "ImagePatch",
    "PatchTrigger",
    "SinusoidalTrigger",
    "SpectralTrigger",
    "encode_png",
    "parse_trigger",
    "read_patch",
]


class CarriesPatch(Attack):
    """The parameters of attacks whose trigger is one patch at a fixed place: a white square, or
    what ``patch_file`` holds."""

    patch_size: int = Field(10, ge=1)
    patch_row: int = Field(21, ge=0)
    patch_column: int = Field(21, ge=0)
    patch_file: Path | None = None
    """A published ``.npz``, or a picture that goes in the middle (:func:`read_patch`)."""
    transport: Transport = "8bit"

    @model_validator(mode="after")
    def _one_patch(self) -> CarriesPatch:
        if self.patch_file is not None:
            for name in ("patch_size", "patch_row", "patch_column"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} comes from patch_file; leave it out")
        return self

    def check(self, image_size: int) -> None:
        """Refuse a patch that does not fit and a file that holds none."""
        self.trigger(image_size)

    def trigger(self, image_size: int) -> Trigger:
        """The patch for images of that side.

        Raises
        ------
        ValueError
            One line: the patch does not fit, or what is wrong with the file.
        """
        if self.patch_file is not None:
            trigger = read_patch(self.patch_file, image_size)
            return trigger.model_copy(update={"transport": self.transport})
        check_place(self.patch_row, self.patch_column, self.patch_size, self.patch_size, image_size)
        return PatchTrigger(
            size=self.patch_size,
            row=self.patch_row,
            column=self.patch_column,
            image_size=image_size,
            transport=self.transport,
        )
