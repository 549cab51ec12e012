"""Defenses that harm the process they run in; put this folder on the path to install them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from bench.api import DefenderView, Defense


class _Norm(Defense):
    """Norm of the embedding."""

    def fit(self, view: DefenderView) -> None:
        self._encoder = view.encoder
        self.misbehave()

    def misbehave(self) -> None:
        """What is wrong with it."""
        raise NotImplementedError

    def score(self, images: Tensor) -> Tensor:
        return self._encoder.embed(images).norm(dim=1)

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        self._encoder = view.encoder


class EndsTheProcess(_Norm):
    """Ends the process without a word."""

    def misbehave(self) -> None:
        os._exit(5)


class AsksToExit(_Norm):
    """Calls sys.exit."""

    def misbehave(self) -> None:
        sys.exit("enough")


class Hangs(_Norm):
    """Never ends."""

    def misbehave(self) -> None:
        while True:
            time.sleep(1)


class Leaks(_Norm):
    """Takes ever more memory."""

    def misbehave(self) -> None:
        held = []
        while True:
            held.append(torch.ones(2**24))
            time.sleep(0.02)


class Forks(_Norm):
    """Forks, and parent and child both go on."""

    def misbehave(self) -> None:
        os.fork()


class Prints(_Norm):
    """Prints five megabytes."""

    def misbehave(self) -> None:
        for _ in range(5000):
            print("x" * 1000)


class FillsTheDevice(_Norm):
    """Finds no room on the accelerator, however empty it is."""

    def misbehave(self) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


class FindsTheDeviceFull(_Norm):
    """Finds no room on the accelerator while others are on it: the first time."""

    def misbehave(self) -> None:
        been_here = Path(os.environ["BENCH_CACHE"]) / "device-was-full"
        if not been_here.exists():
            been_here.touch()
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
