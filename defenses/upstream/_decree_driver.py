"""Runs in DECREE's process: the inversion of its ``main.py``."""

from __future__ import annotations

import types
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from bench.encoders.encoder import Encoder
from bench.upstream.child import Job
from bench.upstream.shims import stub
from defenses._decree_inversion import to_unit

STARTS = {"random": "rand", "square": "orc"}


def run(job: Job) -> None:
    """Leaves the trigger, on the scales of ``main``, and figures of the search."""
    stub("tkinter", "imported for a name that is never used", image_names=None)
    main = job.module("main.py", "decree_main")
    given = job.parameters
    encoder = Encoder.load(job.inputs / "encoder.safetensors")
    # Upstream gathers gradients on the weights, which nothing reads: without them it is faster.
    encoder.network.requires_grad_(False)
    _normalise_as(main, encoder)
    main.get_encoder_architecture_usage = lambda _: _Framed(encoder.network)
    watch = _Watch(main, given["max_epochs"])
    try:
        main.main(_arguments(job, encoder))
    except _LastEpochError:
        print(f"stopped after {given['max_epochs']} epochs")
    np.savez(job.outputs / "trigger.npz", **watch.result())


def _arguments(job: Job, encoder: Encoder) -> SimpleNamespace:
    """What the script would have parsed, with the files where it looks for them."""
    given = job.parameters
    job.link("trigger")  # Read for the shape of the mask alone.
    data = job.work / "data" / "cifar10"
    data.mkdir(parents=True)
    (data / "test.npz").symlink_to(job.inputs / "shadow.npz")
    # In the place of a checkpoint of theirs: the harness writes no pickle.
    torch.load = lambda *_, **__: {"state_dict": encoder.network.state_dict()}
    return SimpleNamespace(
        batch_size=given["batch_size"],
        gpu="0",
        lr=given["learning_rate"],
        seed=given["seed"],
        model_flag="",
        encoder_path="",
        encoder_usage_info="cifar10",  # Its settings for 32 pixels.
        mask_init=STARTS[given["initial_mask"]],
        id="",
        result_file="",
        arch="bench",
        thres=given["cosine_threshold"],
    )


def _normalise_as(main: types.ModuleType, encoder: Encoder) -> None:
    """At 32 pixels upstream knows the statistics of CIFAR-10 and STL-10 only."""
    known = main.test_transform_cifar10.transforms[0]
    if (tuple(known.mean), tuple(known.std)) != (encoder.mean, encoder.std):
        print(f"normalises with the encoder's {encoder.mean} and {encoder.std}")
        main.test_transform_cifar10 = type(known)(encoder.mean, encoder.std)


class _Framed(nn.Module):
    """A network under the name ``f``, where the script loads its weights and looks for it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.f = network


class _LastEpochError(Exception):
    """Enough: the script would go on for a thousand epochs."""


class _Watch:
    """Keeps what the script only saves as 8-bit pictures, or not at all, and ends it.

    In place of three functions in the script's namespace, each of which still does its work:
    ``adjust_learning_rate`` tells the epoch and the parameters, ``compute_self_cos_sim`` each
    step's similarity, and ``assert_range`` sees the best trigger of an epoch at its end.
    """

    def __init__(self, main: types.ModuleType, epochs: int) -> None:
        self._epochs = epochs
        self._epoch = self._images = 0
        self._parameters: list[Tensor] = []
        self._best: dict[str, Tensor] = {}
        self._closest: list[Tensor] = []
        self._similarity = 0.0
        self._functions = main.adjust_learning_rate, main.compute_self_cos_sim, main.assert_range
        main.adjust_learning_rate = self._adjust
        main.compute_self_cos_sim = self._compare
        main.assert_range = self._see

    def result(self) -> dict[str, np.ndarray | float]:
        """``mask`` float64 (H, W) in [0, 1] and ``pattern`` (H, W, 3) in [0, 255]: the smallest
        trigger that reached the threshold, else, ``reached`` being 0, the one of the largest
        similarity; ``similarity`` is the largest; ``images`` were seen per epoch."""
        if self._best:
            mask, pattern = self._best["mask"][..., 0], self._best["pattern"]
        elif self._closest:
            mask, pattern = to_unit(self._closest[0]), to_unit(self._closest[1]) * 255
        else:
            raise FloatingPointError("no similarity is a number")
        return {
            "mask": mask.detach().cpu().numpy(),
            "pattern": pattern.detach().cpu().numpy(),
            "reached": float(bool(self._best)),
            "similarity": self._similarity,
            "epochs": float(self._epoch + 1),
            "images": float(self._images),
        }

    def _adjust(self, optimizer: torch.optim.Optimizer, epoch: int, args: SimpleNamespace) -> None:
        if epoch >= self._epochs:
            raise _LastEpochError
        self._epoch, self._parameters = epoch, optimizer.param_groups[0]["params"]
        self._functions[0](optimizer, epoch, args)

    def _compare(self, embeddings: Tensor) -> Tensor:
        similarity = self._functions[1](embeddings)
        if self._epoch == 0:
            self._images += len(embeddings)
        if (size := float(similarity.detach().abs())) > self._similarity:
            self._similarity = size
            self._closest = [value.detach().clone() for value in self._parameters]
        return similarity

    def _see(self, value: Tensor, low: float, high: float) -> None:
        # Images come in batches and have one dimension more.
        if value.ndim == 3:
            self._best["mask" if high == 1 else "pattern"] = value
        self._functions[2](value, low, high)
