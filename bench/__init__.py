"""A benchmark of backdoor defenses for self-supervised image encoders.

``bench.run(config)`` runs a matrix and returns its leaderboard; ``bench.load_victim`` and
``bench.load_scores`` read what a run left behind. Importing this package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.interface import load_scores, load_victim, run

__version__ = "0.1.0"
__all__ = ["__version__", "load_scores", "load_victim", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("bench.interface"), name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
