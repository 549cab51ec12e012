"""Runs in DRUPE's process: its ``train``, called epoch by epoch as its script does."""

from __future__ import annotations

import ast
import os
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from bench.encoders.encoder import Encoder
from bench.upstream.child import Job
from bench.upstream.shims import stub

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
"""Published; they are no arguments of the script."""


COLUMNS = 512
"""How wide ``train`` takes features to be where it prints a distance between clusters."""


class _Halves(torch.Tensor):
    """Cluster numbers for that distance, which serves nothing else. What they select has
    ``COLUMNS`` columns, repeated or cut where the encoder has another width."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.masked_select:
            features, halves = args
            with torch._C.DisableTorchFunctionSubclass():
                chosen = features[halves[:, 0]]
                return chosen.repeat(1, -(-COLUMNS // chosen.shape[1]))[:, :COLUMNS]
        if function is torch.Tensor.expand:
            rows, _ = args[1:]
            args = (args[0], rows, -1)
        return super().__torch_function__(function, types, args, kwargs or {})


def run(job: Job) -> None:
    stub(
        "kmeans_pytorch",
        "its published version lacks the argument used, and its result is only printed",
        kmeans=lambda X, **_: ((torch.arange(len(X)) % 2).as_subclass(_Halves), None),
    )
    main = job.module("main.py", "drupe_main")
    args = _arguments(job)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(args.seed)
    shadow = main.get_shadow_dataset(args)[0]
    # Its own draw is of 50,000 rows; the harness has drawn.
    shadow.indices = np.arange(len(shadow.data))
    _only_reproducible_distances(main, args.seed)
    loader = torch.utils.data.DataLoader(
        shadow, batch_size=args.batch_size, shuffle=True, drop_last=True
    )
    model, clean = (_Framed(Encoder.load(job.inputs / "encoder.safetensors")) for _ in "12")
    model.to(job.device), clean.to(job.device)
    rates = {"lr": args.lr, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    optimizer = torch.optim.SGD(model.f.parameters(), **rates)
    vars(main).update(starting_values(main.__file__))
    loss = float("nan")
    for epoch in range(1, args.epochs + 1):
        main.epoch = epoch
        loss = main.train(
            model.f, clean.f, loader, optimizer, args, warm_up=epoch < 2, get_clean_dev=False
        )
    job.leave("model", model.f)
    np.savez(job.outputs / "figures.npz", loss=loss, cost=main.cost, cost_1=main.cost_1)


def starting_values(script: str) -> dict[str, float]:
    """The constants that DRUPE's script sets before its loop; ``train`` reads them as globals."""
    tree = ast.parse(Path(script).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    found: dict[str, float] = {}
    for node in block.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            parts = {type(part) for part in ast.walk(node.value)}
            if not parts & {ast.Call, ast.Attribute}:
                names = {"__builtins__": {}, **found}
                value = eval(compile(ast.Expression(node.value), script, "eval"), names)
                found[node.targets[0].id] = value
    return found


class _Framed(nn.Module):
    """A network under the name ``f``, where DRUPE's SimCLR keeps its encoder."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.f = encoder.network


def _arguments(job: Job) -> SimpleNamespace:
    """What the script would have parsed."""
    given = job.parameters
    data = job.work / "data" / "cifar10"
    data.mkdir(parents=True)
    for name in ("train.npz", "test.npz"):
        # The test images only serve a monitor that the script has commented out.
        (data / name).symlink_to(job.inputs / "train.npz")
    return SimpleNamespace(
        mode=given["mode"],
        epochs=given["epochs"],
        batch_size=given["batch_size"],
        lr=given["learning_rate"],
        lambda1=given["lambda1"],
        lambda2=given["lambda2"],
        seed=given["seed"],
        shadow_dataset="cifar10",
        encoder_usage_info="cifar10",
        shadow_fraction=0.0001,
        data_dir=f"{data}/",
        trigger_file=str(job.inputs / "trigger.npz"),
        reference_file=str(job.inputs / "references.npz"),
        reference_label=0,
        measure=0,
        logger_file=open(os.devnull, "w", encoding="utf-8"),
    )


def _only_reproducible_distances(main, seed: int) -> None:
    """POT draws its projections from the operating system's entropy unless it is given a seed."""
    distance = main.ot.sliced_wasserstein_distance
    draws = iter(range(seed, seed + 2**31))
    main.ot.sliced_wasserstein_distance = lambda x, y: distance(x, y, seed=next(draws))
