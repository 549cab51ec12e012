"""What attacks and defenses of ``backend: upstream`` share."""

from __future__ import annotations

import importlib.util
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bench.component import Component, Field
from bench.data.imageset import ImageSet
from bench.encoders.encoder import Encoder
from bench.upstream.checkout import UpstreamAbsent, located, revision
from bench.upstream.job import UpstreamJob
from bench.upstream.repositories import find


class UpstreamComponent(Component):
    """An attack or a defense that runs the authors' code.

    A module ``attacks/upstream/NAME.py`` (or ``defenses/upstream/NAME.py``) holds one public
    subclass; beside it, ``_NAME_driver.py`` runs in the child process. Entries of ``bench.yaml``
    reach it as ``{attack: NAME, backend: upstream}``; its parameters and overrides are its own,
    under the name ``NAME@upstream``.
    """

    repository: ClassVar[str] = ""
    """The submodule under ``third_party/``."""
    imports: ClassVar[tuple[str, ...]] = ()
    """Modules that the authors' code imports and that the project's own dependencies lack: what
    the extra ``[upstream]`` installs."""

    departs: ClassVar[Mapping[str, str]] = {}
    """Figure -> entries of docs/upstream-audit.md that may make it differ from the native
    component's even where every parameter says the same."""

    time_limit: float = Field(600.0, gt=0)
    """Seconds after which the authors' code is stopped and the cell fails."""
    max_images: int | None = Field(None, ge=2)
    """Most images that the authors' code is given, the first of a seeded order; None: all."""
    allow_changed: bool = False
    """Run a submodule that is modified or at another commit than the pinned one."""

    def reduced(self, images: Mapping[str, int]) -> str:
        """What is smaller than published, in words for the table; empty when nothing is.

        ``images`` are the protocol's, per role (``splits`` of the profile).
        """
        return "" if self.max_images is None else f"{self.max_images:,} images"

    def given(self, available: int) -> int:
        """How many of ``available`` images the authors' code is given at most."""
        return available if self.max_images is None else min(available, self.max_images)

    def absent(self) -> str | None:
        """What to do first, where the submodule is not there; None when it is."""
        try:
            located(self.repository, (self.repository,))
        except UpstreamAbsent as absent:
            return str(absent)
        missing = [name for name in self.imports if importlib.util.find_spec(name) is None]
        if missing:
            return f"{self.repository} needs {', '.join(missing)}: pip install -e '.[upstream]'"
        return None

    def revision(self) -> str:
        """What the code is named by in cache keys: the pinned commit, or what is allowed for it."""
        if self.allow_changed and self.absent() is None:
            return revision(self.repository)
        return find(self.repository).commit

    def driver(self) -> Path:
        """The file that runs in the authors' process."""
        module = Path(inspect.getfile(type(self)))
        return module.with_name(f"_{module.stem}_driver.py")

    def job(self, device: torch.device | str) -> UpstreamJob:
        """A run of :meth:`driver`, to be used as a context manager."""
        return UpstreamJob(
            self.repository,
            self.driver(),
            device=torch.device(device).type,
            threads=torch.get_num_threads(),
            time_limit=self.time_limit,
            allowed=(self.repository,) if self.allow_changed else (),
        )


@dataclass(frozen=True)
class TrainerWorld:
    """What training by the authors' code is given.

    Attributes
    ----------
    encoder
        Fresh weights in the profile's architecture, or a copy of the clean CLIP model; to be
        trained in place or replaced.
    images
        The training images, some of them poisoned or none.
    captions
        One per image, for image-text training; None otherwise.
    generator
        The only source of randomness, on the CPU: equal for victim and twin.
    """

    encoder: Encoder
    images: ImageSet
    captions: list[str] | None
    generator: torch.Generator
    device: torch.device


class TrainsUpstream(UpstreamComponent, ABC):
    """A data-poisoning attack whose victim and clean twin are trained by the authors' code."""

    @abstractmethod
    def train(self, world: TrainerWorld) -> tuple[Encoder, dict[str, float]]:
        """The trained encoder and figures of the training."""

    def chosen(self, count: int, generator: torch.Generator) -> Tensor:
        """int64, ascending: the images that the authors' code is given, of ``count``."""
        order = torch.randperm(count, generator=generator)
        return order[: self.max_images].sort().values
