"""Sees what a component touches while it runs: what it asks for, and what it changes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bench.api import DefenderView
from bench.contract.findings import ContractError
from bench.data.imageset import ImageSet
from bench.encoders.clip import TextTower
from bench.encoders.defender import DefenderEncoder
from bench.encoders.encoder import Encoder

NEEDS_CUDA = (
    "it asks for a CUDA device and must work on the CPU: put tensors on the encoder's device "
    "(`.to(encoder.device)`), never on `cuda`"
)


class WatchedEncoder(DefenderEncoder):
    """A defender's encoder that writes down in ``used`` what it was asked for.

    ``embed`` stands for embeddings, the rest are names of requirements.
    """

    def __init__(self, encoder: Encoder, requires: Iterable[str], used: set[str]) -> None:
        super().__init__(encoder, frozenset(requires))
        self._used = used

    @property
    def text(self) -> TextTower | None:
        self._used |= {"text", "embed"}
        return super().text

    def embed(self, images: Tensor) -> Tensor:
        self._used.add("embed")
        return super().embed(images)

    def forward(self, images: Tensor) -> Tensor:
        self._used |= {"gradients", "embed"}
        return super().forward(images)

    def normalise(self, images: Tensor) -> Tensor:
        self._used.add("gradients")
        return super().normalise(images)

    def forward_normalised(self, inputs: Tensor) -> Tensor:
        self._used |= {"gradients", "embed"}
        return super().forward_normalised(inputs)

    def features(self, images: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        self._used |= {"features", "embed"}
        return super().features(images, layers)

    def network(self) -> tuple[nn.Module, str, dict[str, Any]]:
        self._used |= {"network", "embed"}
        return super().network()


class WatchedImages(ImageSet):
    """An image set that writes down when its labels are read."""

    _used: set[str]

    @classmethod
    def of(cls, images: ImageSet, used: set[str]) -> WatchedImages:
        """A watched view of ``images``."""
        watched = cls(
            images._storage,
            rows=images.rows,
            labels=images._labels,
            class_names=images.class_names,
            captions=images._captions,
            name=images.name,
        )
        watched._used = used
        return watched

    @property
    def labels(self) -> Tensor:
        self._used.add("auxiliary_labels")
        return super().labels

    def _view(self, rows: Tensor, labels: Tensor | None) -> ImageSet:
        return WatchedImages.of(super()._view(rows, labels), self._used)


class WatchedView(DefenderView):
    """A view that writes down which of its optional parts are read."""

    PARTS = {  # noqa: RUF012 - not a field of the dataclass
        "suspicious": "suspicious",
        "base": "suspicious",
        "trigger_support": "trigger_support",
    }

    @classmethod
    def of(cls, view: DefenderView, used: set[str], **changes: Any) -> WatchedView:
        """A watched copy of ``view`` with other values of some fields."""
        watched = cls(**{f.name: getattr(view, f.name) for f in fields(DefenderView)} | changes)
        object.__setattr__(watched, "_used", used)
        return watched

    def __getattribute__(self, name: str) -> Any:
        if name in WatchedView.PARTS:
            vars(self).get("_used", set()).add(WatchedView.PARTS[name])
        return super().__getattribute__(name)


class CPUOnly(TorchFunctionMode):
    """Refuses every tensor operation that names a CUDA device, also where there is one."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        named = function is Tensor.cuda or any(map(_is_cuda, (*args, *kwargs.values())))
        # To name a device is nothing yet: libraries do so in default arguments.
        if named and function is not torch.device:
            raise ContractError(NEEDS_CUDA)
        return function(*args, **kwargs)


def _is_cuda(value: object) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.partition(":")[0] == "cuda"


def wants_cuda(error: Exception) -> bool:
    """Whether an exception is about a missing CUDA device."""
    return re.search(r"\bCUDA\b|NVIDIA", str(error)) is not None


@contextmanager
def other_global_randomness(seed: int) -> Iterator[None]:
    """The global generators of torch and numpy under another seed; put back afterwards.

    What draws from them instead of from the generator it was given then differs from run to run.
    """
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)


@dataclass
class Belongings:
    """What a component is lent and must give back as it was.

    Parameters
    ----------
    encoder
        None where there is none to protect.
    images
        Name -> images, as sentences name them.
    """

    encoder: Encoder | None
    images: Mapping[str, ImageSet | None]
    _last: dict[str, Any] | None = field(default=None, init=False, repr=False)

    @contextmanager
    def during(self, call: str, changed: list[str]) -> Iterator[None]:
        """Write ``<call> changed <what>`` into ``changed`` for all that differs afterwards."""
        # Nobody else touches them between two calls.
        before = self._described() if self._last is None else self._last
        yield
        after = self._last = self._described()
        for what, value in before.items():
            sentence = f"{call} changed {what}"
            if after[what] != value and sentence not in changed:
                changed.append(sentence)

    def _described(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            name: hashlib.sha256(images.uint8().cpu().numpy().tobytes()).hexdigest()
            for name, images in self.images.items()
            if images is not None
        }
        if self.encoder is None:
            return found
        network = self.encoder.network
        modules = list(network.modules())
        return {
            **found,
            "the encoder's parameters or buffers": self.encoder.state_hash(),
            "requires_grad of the encoder's parameters": [
                parameter.requires_grad for parameter in network.parameters()
            ],
            "the training mode of the encoder": [module.training for module in modules],
            "the encoder's hooks": [
                (len(module._forward_hooks), len(module._forward_pre_hooks)) for module in modules
            ],
        }
