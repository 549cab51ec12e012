"""The encoder: a network with its own normalisation, behind the contract of ``bench.api``."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench.encoders.architectures import build, find
from bench.encoders.clip import TextTower
from bench.encoders.randomness import seeded
from bench.encoders.weights import (
    CheckpointError,
    check_keys,
    load_strictly,
    read_safetensors,
    write_safetensors,
)
from bench.limits import MOST_SIDE

__all__ = ["Encoder", "check_description"]

_PIXELS_PER_BATCH = 512 * 32 * 32
_PIXELS_PER_BATCH_ON_CPU = 128 * 32 * 32
"""What passes from layer to layer then stays in a processor's cache: a fifth faster than four times
the images, and the same bits."""


def check_description(metadata: Mapping[str, Any], source: str | Path) -> None:
    """Refuse what a file says of its encoder where it is of the wrong type.

    Raises
    ------
    CheckpointError
        Names ``source`` and the key.
    """
    fitting = {
        "architecture": isinstance(metadata["architecture"], str),
        "settings": isinstance(metadata["settings"], Mapping),
        "mean": _is_colour(metadata["mean"]),
        "std": _is_colour(metadata["std"]),
        "image_size": type(metadata["image_size"]) is int,
    }
    for key, fits in fitting.items():
        if not fits:
            raise CheckpointError(f"{source}: what it says of its {key} is none")


def _is_colour(value: Any) -> bool:
    """Three numbers, or None for the architecture's own."""
    numbers = isinstance(value, list) and {type(part) for part in value} <= {int, float}
    return value is None or (numbers and len(value) == 3)


class Encoder:
    """image -> embedding.

    Parameters
    ----------
    network
        Normalised images -> (N, D). Trained elsewhere; this class never changes its parameters,
        their ``requires_grad`` or its training mode.
    architecture
        Name in :data:`bench.encoders.architectures.ARCHITECTURES`.
    settings
        Settings of the architecture; defaults are filled in.
    mean, std
        Per-channel normalisation of images in [0, 1]; the architecture's by default.
    image_size
        Side of the images in pixels; the architecture's by default.

    Raises
    ------
    ValueError
        When the architecture or a setting is unknown, or the architecture takes images of another
        size only.
    """

    def __init__(
        self,
        network: nn.Module,
        architecture: str,
        settings: Mapping[str, Any] | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        image_size: int | None = None,
    ) -> None:
        entry = find(architecture)
        self.network = network
        self.architecture = architecture
        self.settings = entry.complete(settings or {})
        self.mean = tuple(entry.mean if mean is None else map(float, mean))
        self.std = tuple(entry.std if std is None else map(float, std))
        self.image_size = entry.image_size if image_size is None else int(image_size)
        self.embedding_dim: int = network.embedding_dim
        self.layers: tuple[str, ...] = entry.layers
        if entry.fixed_size and self.image_size != entry.image_size:
            raise ValueError(
                f"{architecture} takes images of {entry.image_size} pixels only, "
                f"got image_size {self.image_size}"
            )
        self._text = TextTower(network) if entry.text else None
        if not 1 <= self.image_size <= MOST_SIDE:
            raise ValueError(f"image_size is 1 to {MOST_SIDE} pixels, not {self.image_size}")
        positive = all(0 < value < math.inf for value in self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not positive:
            raise ValueError(
                f"normalisation needs 3 means and 3 positive deviations, "
                f"got {self.mean} and {self.std}"
            )

    @classmethod
    def initialise(
        cls,
        architecture: str,
        settings: Mapping[str, Any] | None = None,
        *,
        generator: torch.Generator,
        **options: Any,
    ) -> Encoder:
        """An untrained encoder on the CPU whose weights come from ``generator`` alone.

        ``options`` are the keyword arguments of the class.
        """
        with seeded(generator):
            network = build(architecture, **(settings or {}))
        return cls(network, architecture, settings, **options)

    def __repr__(self) -> str:
        settings = "".join(f", {name}={value}" for name, value in self.settings.items())
        return f"Encoder({self.architecture}{settings}, {self.image_size} px, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.network.parameters()).device

    @property
    def text(self) -> TextTower | None:
        """The text tower of a CLIP encoder, None for others."""
        return self._text

    def to(self, device: torch.device | str) -> Encoder:
        """This encoder, with its parameters moved to ``device`` (in place)."""
        self.network.to(device)
        return self

    def clone(self) -> Encoder:
        """An independent copy on the same device."""
        return Encoder(
            copy.deepcopy(self.network),
            self.architecture,
            self.settings,
            mean=self.mean,
            std=self.std,
            image_size=self.image_size,
        )

    def normalise(self, images: Tensor) -> Tensor:
        """[0, 1] -> what the network takes, on the encoder's device; differentiable."""
        images = images.to(self.device)
        mean, std = (images.new_tensor(value).view(3, 1, 1) for value in (self.mean, self.std))
        return (images - mean) / std

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings in inference mode, batched inside, always in float32.

        Parameters
        ----------
        images
            float32 (N, 3, S, S) in [0, 1], on any device.

        Returns
        -------
        Tensor
            float32 (N, D) on the encoder's device.

        Raises
        ------
        ValueError
            When the images have another type or shape.
        """
        check_images(images, self.image_size)
        # Made outside inference mode, so that a caller may train on it.
        result = torch.empty(len(images), self.embedding_dim, device=self.device)
        size = self._batch_size()
        with torch.inference_mode(), self._evaluating():
            for start in range(0, len(images), size):
                batch = self.normalise(images[start : start + size])
                result[start : start + size] = self.network(_arranged(batch))
        return result

    def forward(self, images: Tensor) -> Tensor:
        """The map of :meth:`embed`, differentiable in ``images``, in one batch.

        Parameters stay out of the graph, so a backward pass leaves no gradient on them.

        Raises
        ------
        ValueError
            When the images have another type or shape.
        """
        check_images(images, self.image_size)
        return self.forward_normalised(self.normalise(images))

    def forward_normalised(self, inputs: Tensor) -> Tensor:
        """:meth:`forward` of images that :meth:`normalise`, or another rule, has normalised.

        Raises
        ------
        ValueError
            When they have another type or shape.
        """
        check_images(inputs, self.image_size)
        frozen = {name: value.detach() for name, value in self.network.named_parameters()}
        with self._evaluating():
            return functional_call(self.network, frozen, (_arranged(inputs),))

    def features(self, images: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Intermediate features by layer name, float32 (N, C, h, w).

        Differentiable in ``images`` when they require gradients, else computed without a graph.

        Raises
        ------
        ValueError
            When a layer is unknown (names the valid ones) or the images are of another type or
            shape.
        """
        check_images(images, self.image_size)
        names = list(dict.fromkeys(layers))
        for name in names:
            if name not in self.layers:
                raise ValueError(f"no layer {name!r}; this encoder has: {', '.join(self.layers)}")
        modules = self.network.feature_modules()
        taken: dict[str, list[Tensor]] = {name: [] for name in names}
        hooks = [
            modules[name].register_forward_hook(
                lambda _module, _inputs, output, kept=taken[name]: kept.append(output)
            )
            for name in names
        ]
        size = self._batch_size()
        try:
            with nullcontext() if images.requires_grad else torch.no_grad():
                for start in range(0, max(len(images), 1), size):
                    self.forward(images[start : start + size])
        finally:
            for hook in hooks:
                hook.remove()
        return {name: torch.cat(parts).contiguous() for name, parts in taken.items()}

    def state_hash(self) -> str:
        """SHA-256 over the names, types, shapes and bytes of all tensors, on any device."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            dense = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {dense.dtype} {tuple(dense.shape)}\n".encode())
            digest.update(dense.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write safetensors with architecture, settings and normalisation as metadata."""
        metadata = {
            "architecture": self.architecture,
            "settings": self.settings,
            "mean": self.mean,
            "std": self.std,
            "image_size": self.image_size,
        }
        write_safetensors(path, self.network.state_dict(), metadata)

    @classmethod
    def load(cls, path: str | Path) -> Encoder:
        """The encoder that :meth:`save` wrote, bit for bit, on the CPU.

        Raises
        ------
        CheckpointError
            When the file is not one of ours or its keys do not fit its architecture.
        """
        tensors, metadata = read_safetensors(path)
        wanted = ("architecture", "settings", "mean", "std", "image_size")
        missing = set(wanted) - (metadata.keys() if isinstance(metadata, Mapping) else set())
        if missing:
            raise CheckpointError(
                f"{path}: no encoder metadata ({', '.join(sorted(missing))}); "
                "use import_checkpoint for a foreign file"
            )
        check_description(metadata, path)
        try:
            options = {name: metadata[name] for name in wanted}
            # Before the memory of a network is asked for, whatever its settings say.
            skeleton = find(options["architecture"]).skeleton(options["settings"])
            check_keys(skeleton, tensors, path)
            encoder = cls.initialise(**options, generator=torch.Generator())
        except CheckpointError:
            raise
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: {error}") from None
        load_strictly(encoder.network, tensors, path)
        encoder.network.eval()
        return encoder

    def _batch_size(self) -> int:
        on_cpu = self.device.type == "cpu"
        pixels = _PIXELS_PER_BATCH_ON_CPU if on_cpu else _PIXELS_PER_BATCH
        return max(1, pixels // self.image_size**2)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Batch norm in eval, float32 without TF32; everything restored afterwards.

        The mode of every module is kept, because fine-tuning may hold batch norm alone in eval.
        """
        training = [module for module in self.network.modules() if module.training]
        precise = nullcontext()
        if self.device.type == "cuda":
            precise = torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            )
        try:
            for module in training:
                module.training = False
            with precise, torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            for module in training:
                module.training = True


def check_images(images: Tensor, image_size: int) -> None:
    """Reject what is not float32 (N, 3, image_size, image_size).

    Raises
    ------
    ValueError
        A sentence with the expected and the given type and shape.
    """
    shape = (3, image_size, image_size)
    if images.dtype != torch.float32 or images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise ValueError(
            f"images must be float32 (N, 3, {image_size}, {image_size}) in [0, 1], "
            f"got {str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
        )


def _arranged(batch: Tensor) -> Tensor:
    """Channels-last on the CPU: a few per cent faster convolutions for the wider networks."""
    if batch.device.type == "cpu":
        return batch.contiguous(memory_format=torch.channels_last)
    return batch
