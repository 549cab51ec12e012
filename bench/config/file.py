"""The whole of bench.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from bench.config.matrix import Fraction, Label, Matrix
from bench.config.profile import Profile
from bench.errors import InputError, nearest
from bench.limits import MOST_SEED, MOST_SIDE
from bench.models import Model
from bench.report.declared import Tables


class DatasetConfig(Model):
    """Where a named data set comes from.

    ``source: auto`` looks under each data root for ``<name>/`` with parquet files, for a
    torchvision copy, then for image folders in ``<name>/``.
    """

    source: Literal[
        "auto", "digits", "photographs", "parquet", "folder", "captions", "torchvision"
    ] = "auto"
    path: str | None = None
    image_size: int = Field(32, ge=8, le=MOST_SIDE)
    resize: bool = False
    stored_as: str | None = None
    """The name it is looked for under, so that one set of files serves at two sizes."""
    max_images: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _path_where_needed(self) -> DatasetConfig:
        needed = self.source in ("parquet", "folder", "captions")
        if needed and self.path is None:
            raise ValueError(f"source {self.source!r} needs a path")
        if self.path is not None and not needed:
            raise ValueError(
                f"source {self.source!r} looks at no path; with one it is 'parquet', 'folder' or "
                "'captions'"
            )
        return self


class Protocol(Model):
    """What is the same for every defense (docs/protocol.md)."""

    split_seed: int = Field(0, ge=0, le=MOST_SEED)
    poison_rate: float = Field(0.01, gt=0, lt=1)
    threshold_source: Literal["clean-id", "own-auxiliary"] = "clean-id"
    calibration_fpr: float = Field(0.05, gt=0, lt=1)
    bootstrap_draws: int = Field(2000, ge=10)
    decoy_max_success: Fraction = 0.2
    held_out_auxiliary: float = Field(0.1, gt=0, lt=1)
    figure_images: int = Field(8, ge=0, le=16)


SMOKE_SUFFIX = "-smoke"
"""Of the folder of results that `--limit-steps` leaves."""
MOST_EXTENDED = 20
"""Profiles that may extend one another in a row."""


def _laid_over(profiles: Mapping[str, Any], name: str, above: tuple[str, ...]) -> Any:
    own = profiles[name]
    if not isinstance(own, Mapping) or "extends" not in own:
        return own
    base = own["extends"]
    if not isinstance(base, str):
        raise ValueError(f"{name}: extends wants the name of a profile, got {base!r}")
    if base not in profiles:
        raise ValueError(f"{name} extends an unknown profile {base!r}{nearest(base, profiles)}")
    if base in (name, *above):
        raise ValueError(f"{name} extends itself: {' -> '.join((*above, name, base))}")
    if len(above) > MOST_EXTENDED:
        raise ValueError(f"more than {MOST_EXTENDED} profiles extend one another")
    below = _laid_over(profiles, base, (*above, name))
    if not isinstance(below, Mapping):
        raise ValueError(f"{name} extends {base}, which is no profile but {below!r}")
    laid = {**below, **{key: value for key, value in own.items() if key != "extends"}}
    sides = [side.get("overrides") for side in (below, own)]
    if all(isinstance(side, Mapping) for side in sides):
        # Component by component: who sets one of them does not mean to unset the others.
        laid["overrides"] = {**sides[0], **sides[1]}
    return laid


class Config(Model):
    """The whole of bench.yaml."""

    default_profile: str
    matrix: Matrix
    protocol: Protocol = Protocol()
    profiles: dict[Label, Profile] = Field(min_length=1)
    data_roots: tuple[str, ...] = Field(("data",), min_length=1)
    datasets: dict[str, DatasetConfig]
    tables: Tables = Tables()

    @field_validator("profiles", mode="before")
    @classmethod
    def _extended(cls, profiles: Any) -> Any:
        """``extends: NAME`` lays a profile's own keys over those of another, key by key."""
        if not isinstance(profiles, Mapping):
            return profiles
        for name in profiles:
            if str(name).endswith(SMOKE_SUFFIX):
                raise ValueError(f"{name}: results of smoke runs have names in {SMOKE_SUFFIX}")
        return {name: _laid_over(profiles, name, ()) for name in profiles}

    def profile(self, name: str | None) -> tuple[str, Profile]:
        """The named profile, or the default one.

        Raises
        ------
        InputError
            For an unknown name, with the nearest valid one.
        """
        chosen = name or self.default_profile
        if chosen not in self.profiles:
            raise InputError(f"unknown profile {chosen!r}{nearest(chosen, self.profiles)}")
        return chosen, self.profiles[chosen]

    def matrix_of(self, profile_name: str) -> tuple[Matrix, tuple[str, ...]]:
        """The matrix that a profile runs, and the key that it stands under."""
        own = self.profile(profile_name)[1].matrix
        if own is not None:
            return own, ("profiles", profile_name, "matrix")
        return self.matrix, ("matrix",)

    def component_parameters(
        self, profile: Profile, name: str, parameters: Mapping[str, Any], family: str = "ssl"
    ) -> dict[str, Any]:
        """An entry's own parameters over the overrides of the component: those of the profile and,
        above them, those of the encoder's family.

        A parameter that is a mapping itself (a recipe) is laid over key by key.
        """
        merged = dict(profile.overrides.get(name, {}))
        for layer in (profile.families()[family].overrides.get(name, {}), parameters):
            for key, value in layer.items():
                below = merged.get(key)
                nested = isinstance(below, Mapping) and isinstance(value, Mapping)
                merged[key] = {**below, **value} if nested else value
        return merged
