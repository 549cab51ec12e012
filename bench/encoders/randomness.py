"""Random streams that leave torch's global generator as they found it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

__all__ = ["drawn_seed", "seeded", "seeded_with", "stream"]


def drawn_seed(generator: torch.Generator) -> int:
    """The next integer seed, in [0, 2**62), of ``generator``."""
    return int(torch.randint(2**62, (), generator=generator))


def stream(generator: torch.Generator) -> torch.Generator:
    """An independent CPU generator seeded from ``generator``: its use shifts no other stream."""
    return torch.Generator().manual_seed(drawn_seed(generator))


def seeded(generator: torch.Generator) -> AbstractContextManager[None]:
    """:func:`seeded_with` the next seed of ``generator``."""
    return seeded_with(drawn_seed(generator))


@contextmanager
def seeded_with(seed: int) -> Iterator[None]:
    """Run a block whose global CPU draws follow from ``seed``; the global state is restored.

    Layers draw their first weights from the global generator. Only that of the CPU is seeded, so
    that an initialisation is the same on every device: build on the CPU, then move.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed the accelerators, which are not forked.
        torch.default_generator.manual_seed(seed)
        yield
