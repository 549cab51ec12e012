"""What stands where DECREE's ``main`` would have its data, its model and its start."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from bench.upstream import probing
from bench.upstream.child import Job
from bench.upstream.probing import Enough

EPSILON = 1e-7
IMAGE_SIZE = 32


class Batches:
    """A loader whose first epoch is given; the second ends the loop."""

    def __init__(self, batches, before=lambda step: None) -> None:
        self._batches, self._before, self._begun = batches, before, False

    def __iter__(self):
        if self._begun:
            raise Enough
        self._begun = True
        for step, batch in enumerate(self._batches):
            self._before(step)
            yield batch, None
        self._before(len(self._batches))


class Pictures:
    """In place of the shadow set, of which ``main`` only prints the size."""

    def __init__(self, **_: object) -> None:
        pass

    def sample(self, rate: float) -> None:
        pass

    def __len__(self) -> int:
        return 1


def inversion(
    job: Job, network: nn.Module, mask: Tensor, patch: Tensor, loader, rate: float = 0.0
) -> dict:
    """The locals with which DECREE's ``main`` is left after one epoch of ``loader``.

    ``mask`` (H, W) and ``patch`` (H, W, 3) in [0, 1] are where the search starts. Their places in
    ``main`` are filled by stand-ins for its data, its model and its draw of a start.
    """
    main = job.module("main.py", "decree_main")
    main.get_encoder_architecture_usage = lambda _: Framed(network)
    main.CIFAR10Mem = Pictures
    main.DataLoader = lambda *_, **__: loader
    load, rand, rand_like = torch.load, torch.rand, torch.rand_like
    starts = [mask]
    torch.load = lambda *_, **__: {"state_dict": Framed(network).state_dict()}
    torch.rand = lambda *sizes, **options: starts.pop() if starts else rand(*sizes, **options)
    torch.rand_like = lambda *_, **__: patch
    args = SimpleNamespace(
        seed=80,
        gpu="0",
        encoder_path="",
        encoder_usage_info="cifar10",
        arch="resnet18",
        model_flag="",
        mask_init="rand",
        batch_size=2,
        lr=rate,
        thres=0.99,
        id="",
    )
    try:
        return probing.locals_at_return(main.main, args)
    finally:
        torch.load, torch.rand, torch.rand_like = load, rand, rand_like


class Framed(nn.Module):
    """A network under the name ``f``, where SimCLR keeps its encoder."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.f = network


def unit(parameters: Tensor) -> Tensor:
    return torch.tanh(parameters) / (2 - EPSILON) + 0.5


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def pictures(count: int = 2, side: int = IMAGE_SIZE) -> Tensor:
    return (torch.arange(count * side * side * 3) % 256).view(count, side, side, 3).byte()
