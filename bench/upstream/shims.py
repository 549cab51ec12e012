"""What the authors' code needs for today's libraries and for no GPU; in their process only.

Each shim says why it is there. They change where and whether the code runs; of what it computes,
only the random streams of loader workers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

# Removed from numpy 1.24 and 2.0; DECREE and BadCLIP import the first, CTRL and ASSET use others.
_REMOVED_FROM_NUMPY = {
    "Inf": np.inf,
    "infty": np.inf,
    "float": float,
    "int": int,
    "bool": np.bool_,
    "object": object,
}


class _OnDevice(TorchFunctionMode):
    """Reads every ``cuda`` device as the chosen one: DECREE, BadCLIP and ASSET name ``cuda:N``."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = torch.device(device)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        args = tuple(self.read(value) for value in args)
        kwargs = {name: self.read(value) for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)

    def read(self, value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == "cuda":
            return self._device
        if isinstance(value, str) and value.split(":")[0] == "cuda":
            return self._device
        return value


@contextmanager
def installed(device: str) -> Iterator[None]:
    """Everything that holds for all repositories."""
    for name, value in _REMOVED_FROM_NUMPY.items():
        if name not in vars(np):
            setattr(np, name, value)
    _old_quantile()
    _loading(device)
    _loaders()
    if device == "cuda":
        yield
        return
    _without_cuda(device)
    with _OnDevice(device):
        yield


def _without_cuda(device: str) -> None:
    """``.cuda()`` and ``torch.cuda.set_device`` in all five repositories: no CPU path upstream."""

    def to_device(self: Any, *_: Any, **__: Any) -> Any:
        return self.to(device)

    torch.Tensor.cuda = to_device
    torch.nn.Module.cuda = to_device
    torch.cuda.set_device = lambda *_: None
    torch.cuda.manual_seed = lambda *_: None
    torch.cuda.empty_cache = lambda: None


def _old_quantile() -> None:
    """``np.quantile(interpolation=)`` is ``method=`` since numpy 1.22, the old name gone in 2.4."""
    quantile = np.quantile

    def renamed(*args: Any, interpolation: str | None = None, **kwargs: Any) -> Any:
        if interpolation is not None:
            kwargs["method"] = interpolation
        return quantile(*args, **kwargs)

    np.quantile = renamed


def _loading(device: str) -> None:
    """``torch.load``: tensors only, and onto the chosen device whatever the file says."""
    load = torch.load

    def tensors_only(file: Any, *_: Any, **__: Any) -> Any:
        return load(file, map_location=device, weights_only=True)

    torch.load = tensors_only


def _loaders() -> None:
    """Loader workers run in this process: their random state would depend on their number."""
    loader = torch.utils.data.DataLoader
    initialise = loader.__init__

    def in_process(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor"):
            kwargs.pop(name, None)
        initialise(self, *args, **kwargs)

    loader.__init__ = in_process


def stub(name: str, reason: str, **attributes: Any) -> ModuleType:
    """Put a module of a few ``attributes`` in the place of a library that only logs or is unused.

    ``reason`` goes to the log. A dotted name makes its parents too.
    """
    print(f"stubbed {name}: {reason}")
    module = ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        if parent not in sys.modules:
            stub(parent, reason)
        setattr(sys.modules[parent], child, module)
    return module
