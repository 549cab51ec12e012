"""What a defense sees of an encoder, and the embeddings it need not compute again."""

from __future__ import annotations

import math
import weakref
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.encoders.clip import TextTower
from bench.encoders.encoder import Encoder, check_images

__all__ = ["DefenderEncoder"]


class DefenderEncoder:
    """An encoder without path, name, key or metric, limited to what a defense declared.

    Parameters
    ----------
    encoder
        The encoder under inspection.
    requires
        What the defense declares: ``gradients`` opens :meth:`forward`, ``features`` opens
        :meth:`features`, ``text`` opens :attr:`text`, ``network`` opens :meth:`network`.
    equal_length
        Embeddings are shown at one length, the square root of their dimension.
    """

    def __init__(
        self,
        encoder: Encoder,
        requires: Collection[str] = frozenset(),
        *,
        equal_length: bool = False,
    ) -> None:
        self.__encoder = encoder
        self.__requires = frozenset(requires)
        self.__equal_length = equal_length
        self.__remembered: dict[int, tuple[weakref.ref[Tensor], int, Tensor]] = {}
        self.__hits = 0

    def __repr__(self) -> str:
        return f"DefenderEncoder({self.image_size} px, {self.embedding_dim} dimensions)"

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.__encoder.image_size

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        return self.__encoder.embedding_dim

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.__encoder.device

    @property
    def layers(self) -> tuple[str, ...]:
        """Names that :meth:`features` accepts, input to output."""
        return self.__encoder.layers

    @property
    def hits(self) -> int:
        """Images served from memory so far: the harness adds what embedding them would cost."""
        return self.__hits

    @property
    def text(self) -> TextTower | None:
        """The text tower of a CLIP encoder, None for others.

        Raises
        ------
        PermissionError
            When the defense does not require ``text``.
        """
        self.__demand("text", "encoder.text")
        return self.__encoder.text

    def embed(self, images: Tensor) -> Tensor:
        """float32 (N, 3, S, S) in [0, 1] -> float32 (N, D), inference mode, batched inside."""
        check_images(images, self.image_size)
        known = self.__recall(images)
        if known is None:
            return self.shown(self.__encoder.embed(images))
        self.__hits += len(images)
        return self.shown(known.clone())

    def shown(self, embeddings: Tensor) -> Tensor:
        """Embeddings (N, D) of the encoder as the defense is to see them."""
        if not self.__equal_length:
            return embeddings
        return functional.normalize(embeddings, dim=1) * math.sqrt(self.embedding_dim)

    def forward(self, images: Tensor) -> Tensor:
        """The same map, differentiable in ``images``; parameters frozen.

        Raises
        ------
        PermissionError
            When the defense does not require ``gradients``.
        """
        self.__demand("gradients", "encoder.forward")
        return self.shown(self.__encoder.forward(images))

    def normalise(self, images: Tensor) -> Tensor:
        """[0, 1] -> what :meth:`forward_normalised` takes.

        Raises
        ------
        PermissionError
            When the defense does not require ``gradients``.
        """
        self.__demand("gradients", "encoder.normalise")
        return self.__encoder.normalise(images)

    def forward_normalised(self, inputs: Tensor) -> Tensor:
        """:meth:`forward` after :meth:`normalise`, differentiable in ``inputs``.

        Raises
        ------
        PermissionError
            When the defense does not require ``gradients``.
        """
        self.__demand("gradients", "encoder.forward_normalised")
        return self.shown(self.__encoder.forward_normalised(inputs))

    def features(self, images: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Intermediate features (N, C, h, w) of the named ``layers``.

        Raises
        ------
        PermissionError
            When the defense does not require ``features``.
        """
        self.__demand("features", "encoder.features")
        return self.__encoder.features(images, layers)

    def network(self) -> tuple[nn.Module, str, dict[str, Any]]:
        """A copy of the frozen network, its architecture and settings, for code that needs a module
        of its own; it takes what :meth:`normalise` gives, and gives embeddings as they are.

        Raises
        ------
        PermissionError
            When the defense does not require ``network``.
        """
        self.__demand("network", "encoder.network")
        copied = self.__encoder.clone()
        return copied.network, copied.architecture, dict(copied.settings)

    def remember(self, images: Tensor, embeddings: Tensor) -> None:
        """Answer :meth:`embed` with ``embeddings`` for this very tensor while it lives unchanged.

        Another tensor, even an equal one, or an in-place change of this one is computed as usual.
        The entry goes when ``images`` does.

        Parameters
        ----------
        images
            float32 (N, 3, S, S), not made in inference mode (such tensors do not count changes).
        embeddings
            float32 (N, D), as the encoder gives them.

        Raises
        ------
        ValueError
            When a shape or type is wrong or ``images`` was made in inference mode.
        """
        check_images(images, self.image_size)
        expected = (len(images), self.embedding_dim)
        if embeddings.dtype != torch.float32 or tuple(embeddings.shape) != expected:
            raise ValueError(
                f"embeddings must be float32 {expected}, "
                f"got {str(embeddings.dtype).removeprefix('torch.')} {tuple(embeddings.shape)}"
            )
        if images.is_inference():
            raise ValueError("images made in inference mode cannot be remembered")
        key, remembered = id(images), self.__remembered
        # The callback holds the dictionary, not this object, so neither keeps the other alive.
        reference = weakref.ref(images, lambda gone: _forget(remembered, key, gone))
        self.__remembered[key] = (reference, images._version, embeddings.detach().clone())

    def __recall(self, images: Tensor) -> Tensor | None:
        reference, version, embeddings = self.__remembered.get(id(images), (None, None, None))
        if reference is None or reference() is not images or images._version != version:
            return None
        return embeddings

    def __demand(self, requirement: str, what: str) -> None:
        if requirement not in self.__requires:
            raise PermissionError(
                f"{what} needs {requirement!r}: add it to the defense's `requires`."
            )


def _forget(remembered: dict, key: int, gone: weakref.ref) -> None:
    # The id may belong to a newer tensor by now, whose entry must stay.
    if key in remembered and remembered[key][0] is gone:
        del remembered[key]
