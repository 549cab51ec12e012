"""The contract a plug-in author reads: everything an attack or a defense is given and must give.

A defense is one file in ``defenses/`` (or an entry point of the group ``bench.defenses``) with one
public subclass of :class:`Defense`; an attack likewise with one of :class:`Attack`. Its name is the
file's, with dashes. Hyper-parameters are typed pydantic fields; unknown keys in ``bench.yaml`` are
errors. Images cross every boundary as float32 (N, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from bench.component import Component, Field, Progress, later_field
from bench.data.augmentation import jitter_views
from bench.data.captions import prompt_templates
from bench.data.imageset import ImageSet
from bench.data.transport import Transport, cached_parts, carry_
from bench.encoders.clip import TextTower
from bench.encoders.contrastive import ClipRecipe, contrastive_loss
from bench.encoders.randomness import seeded_with
from bench.encoders.ssl import SSLRecipe
from bench.encoders.weights import read_state_dict

__all__ = [
    "Attack",
    "AttackerWorld",
    "ClipRecipe",
    "Component",
    "Control",
    "DataPoisoning",
    "DefenderView",
    "Defense",
    "Encoder",
    "Field",
    "ImageSet",
    "ModelPoisoning",
    "PoisonedSet",
    "PoisonerWorld",
    "Progress",
    "Requirement",
    "SSLRecipe",
    "Transport",
    "Trigger",
    "Victim",
    "contrastive_loss",
    "drawn_captions",
    "jitter_views",
    "later_field",
    "read_state_dict",
    "seeded_with",
    "stamped_files",
]

Requirement = Literal[
    "gradients",
    "features",
    "text",
    "network",
    "suspicious",
    "auxiliary_labels",
    "trigger_support",
]
"""What a defense may ask for beyond embeddings. ``network``: ``encoder.network()`` then gives a
copy of the frozen module, its architecture and its settings. ``trigger_support`` is for analysis
alone: it tells where the trigger lies, and such cells are marked and stay out of averages."""


class Encoder(Protocol):
    """image -> embedding. Owns its own normalisation: callers always pass [0, 1]."""

    image_size: int
    embedding_dim: int
    device: torch.device

    def embed(self, images: Tensor) -> Tensor:
        """float32 (N, 3, H, W) in [0, 1] -> float32 (N, D), inference mode, batched inside."""

    def forward(self, images: Tensor) -> Tensor:
        """The same map, differentiable in ``images``; parameters frozen, batch norm in eval."""

    def normalise(self, images: Tensor) -> Tensor:
        """[0, 1] -> what :meth:`forward_normalised` takes."""

    def forward_normalised(self, inputs: Tensor) -> Tensor:
        """:meth:`forward` after :meth:`normalise`, differentiable in ``inputs``."""

    def features(self, images: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Intermediate features (N, C, h, w) of the named ``layers``."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names that :meth:`features` accepts, input to output."""

    @property
    def text(self) -> TextTower | None:
        """None, or the text tower of a CLIP encoder: ``encode_text(captions)`` -> float32 (M, D),
        ``tokenize(captions)`` and ``logit_scale``, the factor on cosine similarities."""


class Trigger(Component, ABC):
    """image -> image in pixel space, deterministic given its parameters.

    ``name`` tells a trigger's kind in artifacts and must differ between kinds.

    Calling a trigger sends its result through ``transport``: ``8bit`` (as a deployed trigger is a
    file), ``float`` (no rounding) or ``jpeg-<quality>``. Pixels outside :meth:`support` are
    returned untouched, whatever the transport. No gradient flows through a call.
    """

    name: ClassVar[str] = ""
    transport: Transport = "8bit"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """float32 (N, 3, H, W) in [0, 1] -> the stamped images, same shape, dtype and range."""
        inside = self.support(images.shape[-1])
        everywhere = bool(inside.all())
        inside = inside.to(images.device)
        result = torch.empty_like(images)
        for part in cached_parts(images):
            original, stamped = images[part], result[part]
            torch.clamp(self.stamp(original), 0, 1, out=stamped)
            carry_(stamped, self.transport)
            if not everywhere:
                torch.where(inside, stamped, original, out=stamped)
        return result

    @abstractmethod
    def stamp(self, images: Tensor) -> Tensor:
        """The stamped images before they are clamped and transported; ``images`` stay as given."""

    @abstractmethod
    def support(self, image_size: int) -> Tensor:
        """bool (H, W): the pixels this trigger may change."""

    @abstractmethod
    def decoys(self) -> list[Trigger]:
        """At least three look-alikes of the same size, energy and transport, most alike first."""

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


@dataclass(frozen=True)
class PoisonerWorld:
    """What a data-poisoning attacker knows and may touch.

    Attributes
    ----------
    candidates
        int64: positions in the training set of the images that the attacker supplies, ascending;
        disjoint from everything the defender owns. Others may not be changed.
    target, class_name
        Target class: its index in the training set, -1 where that has no class of the name, and its
        name.
    encoder
        The public encoder that the victim will fine-tune, frozen; None when training starts from
        scratch.
    generator
        The only source of randomness, on the CPU.
    """

    candidates: Tensor
    target: int
    class_name: str
    generator: torch.Generator
    progress: Progress
    encoder: Encoder | None = None
    precision: str = "float32"


@dataclass(frozen=True)
class PoisonedSet:
    """The images (and captions) that replace some of a training set, and the trigger behind them.

    Attributes
    ----------
    rows
        int64 (k,): positions in the training set, each once.
    images
        uint8 (k, 3, H, W): what stands there now. A data set is made of files, so poisoned
        training images are 8-bit whatever the trigger's transport.
    captions
        Their new captions, for image-text training; None leaves captions alone.
    """

    rows: Tensor
    images: Tensor
    trigger: Trigger
    captions: tuple[str, ...] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class Attack(Component, ABC):
    """Makes a victim out of a clean encoder. Subclass :class:`ModelPoisoning`,
    :class:`DataPoisoning` or :class:`Control`.

    ``family`` says which of the profile's encoders the attack is about: ``ssl``, trained on images
    alone, or ``clip``, trained on images with captions.
    """

    family: ClassVar[Literal["ssl", "clip"]] = "ssl"

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


class DataPoisoning(Attack):
    """Changes a training set; the harness trains the victim on it and the clean twin without.

    Both are trained by :attr:`recipe` with the same initialisation, batch order and seed. A
    ``family`` of ``clip`` fine-tunes the profile's CLIP model; ``ssl`` trains from scratch.
    """

    poison_rate: float = Field(0.01, ge=0, le=1)
    """Share of the training set that is poisoned; 0 poisons nothing and gives the clean twin."""
    recipe: Any = None
    """How victim and twin are trained (a recipe of ``bench.encoders``); None: as the profile
    pretrains. Declare it with the recipe's type and the paper's values as defaults."""
    poisons: ClassVar[Literal["target-class", "other-classes"]] = "target-class"
    """Of which of the attacker's images the poisoned ones are taken."""

    @abstractmethod
    def poison(self, train: ImageSet, world: PoisonerWorld) -> PoisonedSet:
        """Choose rows among ``world.candidates`` and say what replaces them.

        ``train`` is the whole training set with the labels and captions that it has. Deterministic
        given the world.
        """

    def eligible(self, labels: Tensor, target: int) -> Tensor:
        """bool: which of images with these ``labels`` this attack may poison."""
        return (labels == target) == (self.poisons == "target-class")

    def checked_count(self, total: int, available: int) -> int:
        """Images to poison: the integer part of ``poison_rate`` times ``total``.

        Raises
        ------
        ValueError
            When fewer are ``available``.
        """
        count = int(self.poison_rate * total + 1e-9)  # 0.29 * 100 is 28.999999999999996
        if count > available:
            raise ValueError(
                f"poison_rate {self.poison_rate:g} of {total} training images is {count}; among "
                f"the attacker's images {available} are of the {self.poisons.replace('-', ' ')}: "
                "lower poison_rate or raise splits.shadow"
            )
        return count

    def rows(self, train: ImageSet, world: PoisonerWorld, order: Tensor | None = None) -> Tensor:
        """int64 (k,): the first eligible candidates, as many as :attr:`poison_rate` asks for.

        ``order`` is a permutation of the candidates in which to go through them.
        """
        candidates = world.candidates if order is None else world.candidates[order]
        if train.labelled:
            labels = train.labels[candidates]
            candidates = candidates[self.eligible(labels, world.target)]
        return candidates[: self.checked_count(len(train), len(candidates))]


def drawn_captions(class_name: str, count: int, generator: torch.Generator) -> tuple[str, ...]:
    """``count`` captions about a class: prompt templates drawn from ``generator``."""
    templates = prompt_templates()
    drawn = torch.randint(len(templates), (count,), generator=generator).tolist()
    return tuple(templates[number](class_name) for number in drawn)


def stamped_files(images: ImageSet, rows: Tensor, trigger: Trigger) -> Tensor:
    """uint8 (k, 3, H, W): the images at ``rows`` with the trigger, as a poisoner stores them.

    8-bit files whatever the trigger's transport, which says what a test image goes through.
    """
    trigger = trigger.model_copy(update={"transport": "8bit"})
    return trigger(images.float(rows)).mul(255).round().to(torch.uint8).cpu()


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
    base
        Only for who requires ``suspicious``: a small clean set beside it, in-distribution whatever
        the auxiliary set is; its labels only for who requires ``auxiliary_labels``.
    trigger_support
        Only for who requires it, which is an analysis and no defense: bool (H, W), the pixels that
        the attack's trigger may change.
    generator
        The only source of randomness, on the CPU; ``seed`` is an integer for who needs one.
    """

    encoder: Encoder
    auxiliary: ImageSet
    embed_auxiliary: Callable[[], Tensor]
    generator: torch.Generator
    seed: int
    progress: Progress
    suspicious: ImageSet | None = None
    base: ImageSet | None = None
    trigger_support: Tensor | None = None
    precision: str = "float32"


class Defense(Component, ABC):
    """A sample detector: one score per image, higher = more suspicious.

    Required: :meth:`fit`, :meth:`score`, a docstring that names the source.
    Optional: :meth:`score_encoder` with :meth:`encoder_threshold`, :meth:`figures`, :meth:`state`
    with :meth:`load_state`.
    Scores must not depend on the order or the batching of the images (rtol 1e-4): a method with
    random masks draws one fixed set in :meth:`fit` and uses it for every image.
    """

    requires: ClassVar[frozenset[Requirement]] = frozenset()
    """What :attr:`DefenderView.encoder` and the view must offer; a property of the same name where
    it depends on a parameter."""
    needs_packages: ClassVar[tuple[str, ...]] = ()
    scoring_parameters: ClassVar[frozenset[str]] = frozenset()
    """Parameters that :meth:`fit` never reads: entries that differ in nothing else share one fit,
    and its :meth:`state` is loaded under each entry's own values."""
    first_aid: ClassVar[bool] = False
    """Whether ``bench scan`` runs it unless told otherwise: fast, and content with clean images."""
    reference: ClassVar[bool] = False
    """True for a detector that never calls the encoder: what it detects was never about the
    backdoor. Tables show it last."""

    @property
    def analysis(self) -> bool:
        """Whether its rows answer a question about a method and are no defense: tables mark them
        and keep them outside averages. So are those of who is told where the trigger lies."""
        return "trigger_support" in self.requires

    @abstractmethod
    def fit(self, view: DefenderView) -> None:
        """Learn what is normal. Keep ``view.encoder`` if :meth:`score` needs it."""

    @abstractmethod
    def score(self, images: Tensor) -> Tensor | np.ndarray:
        """float32 (N, 3, H, W) in [0, 1] -> finite scores (N,), higher = more suspicious."""

    def score_encoder(self) -> float | None:
        """One float for the encoder itself, higher = more likely backdoored; None: no opinion."""
        return None

    def encoder_threshold(self) -> float | None:
        """Above which :meth:`score_encoder` means ``backdoored``; None: no rule, no verdict."""
        return None

    def encoder_in_words(self) -> str:
        """What :meth:`score_encoder` found and its rule, as ``bench scan`` prints it before the
        verdict; empty: the two numbers are printed."""
        return ""

    def figures(self, images: Tensor) -> dict[str, np.ndarray]:
        """Pictures for the report: name -> uint8 (N, H, W, 3), one per image of ``images``.

        A name that starts with ``inverted_`` is about the encoder, the same for every image: it is
        shown once per attack, beside the true trigger.
        """
        return {}

    def state(self) -> dict[str, Tensor] | None:
        """What :meth:`fit` learnt, as tensors. None: the fit is repeated when it is needed."""
        return None

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        """Restore :meth:`state`, in place of :meth:`fit`."""
        raise NotImplementedError(f"{type(self).__name__} returns a state but cannot load one")
