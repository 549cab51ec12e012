"""What both sides of a probe share: formula data, and how the authors' process records.

A probe calls a function of a published repository on data that a formula gives, and ours on the
same data. Its driver runs in the authors' process and ends with :func:`record`.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bench.upstream.child import Job

Arrays = Mapping[str, Any]
RECORD, ERRORS = "probes.npz", "errors.json"
GOLDEN_RATIO, PLASTIC_RATIO = (math.sqrt(5) - 1) / 2, 0.7548776662466927


def record(job: Job, probes: Mapping[str, Callable[[Job], Arrays]]) -> None:
    """Run the probes that ``job.parameters["probes"]`` names; keep what each gives, or its error.

    A probe returns arrays by name; ``NAME`` of probe ``P1`` is stored as ``P1.NAME``.
    """
    arrays, errors = {}, {}
    for identity in job.parameters["probes"]:
        try:
            found = probes[identity](job)
        except Exception as error:  # of whatever kind: the other probes are still to run
            traceback.print_exc()
            errors[identity] = f"{type(error).__name__}: {error}".split("\n")[0]
        else:
            arrays |= {f"{identity}.{name}": plain(value) for name, value in found.items()}
    np.savez(job.outputs / RECORD, **arrays)
    (job.outputs / ERRORS).write_text(json.dumps(errors), encoding="utf-8")


def plain(value: Any) -> np.ndarray:
    """A NumPy array of numbers or text."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def locals_at_return(function: Callable, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The local variables with which ``function`` returns, or with which :class:`Enough` leaves it.

    Loops and losses inside a long function can be read like this without a change to it.
    """
    kept: dict[str, Any] = {}

    def watch(frame, event, _):
        if event == "return" and frame.f_code is function.__code__:
            kept.update(frame.f_locals)

    sys.setprofile(watch)
    try:
        function(*args, **kwargs)
    except Enough:
        pass
    finally:
        sys.setprofile(None)
    return kept


class Enough(Exception):  # noqa: N818
    """Raised by a stand-in to leave a loop of the authors'."""


def outcome(function: Callable, *args: Any, **kwargs: Any) -> str:
    """``ran``, or the name of the exception that the call ends with."""
    try:
        function(*args, **kwargs)
    except Exception as error:  # what it raises is the finding
        return type(error).__name__
    return "ran"


def digest(array: np.ndarray) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def ramp() -> np.ndarray:
    """uint8 (32, 32, 3): (37 i + 11) mod 256."""
    return ((37 * np.arange(3072) + 11) % 256).astype(np.uint8).reshape(32, 32, 3)


def gradient(height: int, width: int, down: int = 7, across: int = 3) -> np.ndarray:
    """uint8 (H, W, 3): (down i + across j + 0, 40 or 90) mod 256."""
    row, column = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    channels = [(down * row + across * column + offset) % 256 for offset in (0, 40, 90)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def waves() -> tuple[Tensor, Tensor, Tensor]:
    """sin(0.3 k), cos(0.17 k), sin(0.11 k + 1), k = 0..511: float32 (64, 8), rows of length 1."""
    k = torch.arange(512, dtype=torch.float64)
    rows = torch.sin(0.3 * k), torch.cos(0.17 * k), torch.sin(0.11 * k + 1)
    return tuple(normalize(row.float().view(64, 8), dim=1) for row in rows)


def raw_waves() -> tuple[Tensor, Tensor]:
    """The first two, computed in float32 and of whatever length: (64, 8)."""
    k = torch.arange(512, dtype=torch.float32)
    return torch.sin(0.3 * k).view(64, 8), torch.cos(0.17 * k).view(64, 8)


def uneven() -> tuple[Tensor, Tensor]:
    """sin(0.37 k + 0.1) as float64 (8, 16) and cos(0.21 k) as (5, 16)."""
    first = torch.sin(0.37 * torch.arange(128, dtype=torch.float64) + 0.1).view(8, 16)
    return first, torch.cos(0.21 * torch.arange(80, dtype=torch.float64)).view(5, 16)


def vote() -> tuple[Tensor, Tensor, Tensor]:
    """Queries (5, 64), a bank (300, 64), both of length 1, and the bank's labels."""
    generator = torch.Generator().manual_seed(0)
    bank = normalize(torch.randn(64, 300, generator=generator), dim=0).T
    queries = normalize(torch.randn(5, 64, generator=generator))
    return queries, bank, torch.arange(300) % 10


def tuning() -> dict[str, Tensor]:
    """Features of P3: images and triggered (8, 512), references (3, 512), augmented (3, 8, 512)."""
    generator = torch.Generator().manual_seed(0)
    images, triggered, references, noise = (
        torch.rand(*shape, generator=generator)
        for shape in ((8, 512), (8, 512), (3, 512), (3, 8, 512))
    )
    augmented = references[:, None] + 0.1 * noise
    return {
        "images": images,
        "triggered": triggered,
        "references": references,
        "augmented": augmented,
    }


def unit_columns(dimension: int = 512, count: int = 50, seed: int = 7) -> Tensor:
    """Projections of the sliced distance: (dimension, count), columns of length 1."""
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(dimension, count, generator=generator), dim=0)


def formula_forward(network: nn.Module) -> Tensor:
    """P12: formula weights in every convolution, formula images through it: (4, D)."""
    network.eval()
    for index, parameter in enumerate(network.parameters()):
        if parameter.ndim == 4:
            phase = GOLDEN_RATIO * torch.arange(parameter.numel(), dtype=torch.float64)
            value = 2 * math.sqrt(3 / parameter[0].numel()) * ((phase + 0.1 * index) % 1 - 0.5)
            parameter.data = value.float().view(parameter.shape)
    phase = PLASTIC_RATIO * torch.arange(4 * 3 * 32 * 32, dtype=torch.float64)
    with torch.no_grad():
        return network((phase % 1 * 4 - 2).float().view(4, 3, 32, 32))


def described(state: Mapping[str, Tensor]) -> np.ndarray:
    """Names and shapes of a state dict, sorted: what has to agree for a file to load."""
    return np.array(sorted(f"{name} {tuple(value.shape)}" for name, value in state.items()))


def parameters(module: nn.Module) -> int:
    """How many there are."""
    return sum(parameter.numel() for parameter in module.parameters())
