"""The contract a plug-in author reads: everything an attack or a defense is given and must give.

A defense is one file in ``defenses/`` (or an entry point of the group ``bench.defenses``) with one
public subclass of :class:`Defense`; an attack likewise with one of :class:`Attack`. Its name is the
file's, with dashes. Hyper-parameters are typed pydantic fields; unknown keys in ``bench.yaml`` are
errors. Images cross every boundary as float32 (N, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from bench.data.augmentation import jitter_views
from bench.data.imageset import ImageSet
from bench.encoders.weights import read_state_dict

__all__ = [
    "Attack",
    "AttackerWorld",
    "Component",
    "Control",
    "DefenderView",
    "Defense",
    "Encoder",
    "Field",
    "ImageSet",
    "ModelPoisoning",
    "Progress",
    "Requirement",
    "Trigger",
    "Victim",
    "jitter_views",
    "read_state_dict",
]

Requirement = Literal["gradients", "features", "text", "suspicious", "auxiliary_labels"]
Item = TypeVar("Item")


class Encoder(Protocol):
    """image -> embedding. Owns its own normalisation: callers always pass [0, 1]."""

    image_size: int
    embedding_dim: int
    device: torch.device

    def embed(self, images: Tensor) -> Tensor:
        """float32 (N, 3, H, W) in [0, 1] -> float32 (N, D), inference mode, batched inside."""

    def forward(self, images: Tensor) -> Tensor:
        """The same map, differentiable in ``images``; parameters frozen, batch norm in eval."""

    def features(self, images: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Intermediate features (N, C, h, w) of the named ``layers``."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names that :meth:`features` accepts, input to output."""


class Progress(Protocol):
    """Reports steps to whoever watches and cuts training short under ``--limit-steps``."""

    def track(self, items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
        """Yield ``items`` (training steps), at most as many as the run's limit allows."""


class Component(BaseModel):
    """What attacks, defenses and triggers share: typed parameters and a version.

    ``version`` enters every cache key. Raise it when the results of the component change.
    """

    model_config = ConfigDict(
        extra="forbid", protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )
    version: ClassVar[int] = 1

    def check(self, image_size: int) -> None:
        """Raise ValueError for what can be told before anything runs.

        Called with the side of the profile's images, and with parameters of type ``Path``
        resolved: a patch that does not fit, a damaged file.
        """

    def parameters(self) -> dict[str, Any]:
        """Every hyper-parameter with its value, JSON-ready."""
        return self.model_dump(mode="json")


class Trigger(Component, ABC):
    """image -> image in pixel space, deterministic given its parameters.

    ``name`` tells a trigger's kind in artifacts and must differ between kinds.

    Calling a trigger quantises its result to 8 bits, as a deployed trigger is a file; pixels
    outside :meth:`support` are returned untouched.
    """

    name: ClassVar[str] = ""

    def __call__(self, images: Tensor) -> Tensor:
        """float32 (N, 3, H, W) in [0, 1] -> the stamped images, same shape, dtype and range."""
        stamped = self.stamp(images).clamp(0, 1).mul(255).round().div(255)
        inside = self.support(images.shape[-1]).to(images.device)
        return torch.where(inside, stamped, images)

    @abstractmethod
    def stamp(self, images: Tensor) -> Tensor:
        """The stamped images before quantisation."""

    @abstractmethod
    def support(self, image_size: int) -> Tensor:
        """bool (H, W): the pixels this trigger may change."""

    @abstractmethod
    def decoys(self) -> list[Trigger]:
        """At least three look-alikes of the same size and energy, the most alike first."""

    @abstractmethod
    def describe(self) -> str:
        """A few words for tables and reports."""


@dataclass(frozen=True)
class Victim:
    """What an attack leaves behind: an encoder, the trigger that works on it, training figures."""

    encoder: Encoder
    trigger: Trigger
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AttackerWorld:
    """What a model-poisoning attacker holds.

    Attributes
    ----------
    encoder
        The clean encoder, as a copy that the attack may train (``encoder.network``).
    shadow
        The attacker's unlabelled images, disjoint from everything the defender and the test use.
    references
        Images of the target class.
    target
        Target class index in the downstream set.
    generator
        The only source of randomness, on the CPU.
    precision
        ``float32`` or ``bfloat16``: what autocast may use in training.
    """

    encoder: Any
    shadow: ImageSet
    references: ImageSet
    target: int
    generator: torch.Generator
    progress: Progress
    precision: str = "float32"


class Attack(Component, ABC):
    """Makes a victim out of a clean encoder. Subclass :class:`ModelPoisoning` or
    :class:`Control`."""

    @abstractmethod
    def trigger(self, image_size: int) -> Trigger:
        """The trigger at the given image side.

        Raises
        ------
        ValueError
            When the trigger does not fit the image.
        """


class Control(Attack):
    """Carries a trigger and leaves the encoder alone: its AUROC is a placebo by construction.

    The validity gate does not apply to it and it stays out of averages.
    """


class ModelPoisoning(Attack):
    """Fine-tunes a clean encoder; the clean twin is the encoder it started from."""

    references: int = Field(0, ge=0)
    """Reference images of the target class that the attack needs."""

    @abstractmethod
    def implant(self, world: AttackerWorld) -> Victim:
        """Train the backdoor in. May change ``world.encoder`` in place and return it."""


@dataclass(frozen=True)
class DefenderView:
    """All that a defense may see.

    Attributes
    ----------
    encoder
        The wrapped victim encoder: no path, name, key or metric.
    auxiliary
        The images the defender owns: clean, or by name out-of-distribution or poisoned. Labels
        only for who requires ``auxiliary_labels``.
    embed_auxiliary
        Embeddings of ``auxiliary``, float32 (N, D), in its order: what ``encoder.embed`` would
        give, computed once for all defenses.
    suspicious
        Only for who requires it: an unlabelled, shuffled pool at the protocol's poison rate.
    generator
        The only source of randomness, on the CPU; ``seed`` is an integer drawn from the same.
    """

    encoder: Encoder
    auxiliary: ImageSet
    embed_auxiliary: Callable[[], Tensor]
    generator: torch.Generator
    seed: int
    progress: Progress
    suspicious: ImageSet | None = None
    precision: str = "float32"


class Defense(Component, ABC):
    """A sample detector: one score per image, higher = more suspicious.

    Required: :meth:`fit`, :meth:`score`, a docstring that names the source.
    Optional: :meth:`score_encoder`, :meth:`figures`, :meth:`state` with :meth:`load_state`.
    Scores must not depend on the order or the batching of the images (rtol 1e-4): a method with
    random masks draws one fixed set in :meth:`fit` and uses it for every image.
    """

    requires: ClassVar[frozenset[Requirement]] = frozenset()
    needs_packages: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def fit(self, view: DefenderView) -> None:
        """Learn what is normal. Keep ``view.encoder`` if :meth:`score` needs it."""

    @abstractmethod
    def score(self, images: Tensor) -> Tensor | np.ndarray:
        """float32 (N, 3, H, W) in [0, 1] -> finite scores (N,), higher = more suspicious."""

    def score_encoder(self) -> float | None:
        """One float for the encoder itself, higher = more likely backdoored; None: no opinion."""
        return None

    def figures(self, images: Tensor) -> dict[str, np.ndarray]:
        """Pictures for the report: name -> uint8 (N, H, W, 3), one per image of ``images``."""
        return {}

    def state(self) -> dict[str, Tensor] | None:
        """What :meth:`fit` learnt, as tensors. None: the fit is repeated when it is needed."""
        return None

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        """Restore :meth:`state`, in place of :meth:`fit`."""
        raise NotImplementedError(f"{type(self).__name__} returns a state but cannot load one")
