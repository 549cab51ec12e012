"""Runs in CTRL's process: its functions on the formula data of the probes."""

from __future__ import annotations

import importlib.util
import logging
import sys
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from attacks.upstream._ctrl_shims import stub_unused, yuv_to_rgb
from bench.upstream import probing
from bench.upstream.child import Job
from bench.upstream.probing import Arrays
from bench.upstream.shims import stub

IMAGES = 50_000
POISON_RATE = 0.01
EPOCHS = 100
LAYOUT = {
    # What the model classes read of the script's arguments.
    "dataset": "cifar10",
    "arch": "resnet18",
    "temp": 0.5,
    "byol_m": 0.996,
}


def run(job: Job) -> None:
    stub_unused()
    if importlib.util.find_spec("kornia") is None:
        stub("kornia.augmentation", "P7 needs none of it, and the others are not asked for")
    # The one regular `utils` on the path is theirs; `logging` goes to a file they name.
    logging.disable(logging.CRITICAL)
    probing.record(
        job,
        {
            "P5": vote,
            "P6": triggered,
            "P7": transforms,
            "P8": losses,
            "P9": poisoned,
            "P10": rates,
            "P20": layout,
            "U26": end_of_script,
            "U30": flags,
            "U29": scored,
            "U32": target_network,
            "U33": nothing_to_poison,
            "U34": shadowed_loader,
        },
    )


def trainer(job: Job, **args):
    from methods.base import CLTrainer

    known = {"saved_path": str(job.work), "start_epoch": 0, "distributed": False, "gpu": None}
    return CLTrainer(SimpleNamespace(**known, **args))


def agent(**args):
    from utils.frequency import PoisonFre

    return PoisonFre(SimpleNamespace(**args), 32, [1, 2], 32, [15, 31], False, True)


def vote(job: Job) -> Arrays:
    queries, bank, labels = probing.vote()
    predict = trainer(job).knn_predict
    return {
        str(temperature): predict(queries, bank.T, labels, 10, 200, temperature)[:, 0]
        for temperature in (0.5, 0.1)
    }


def triggered(_: Job) -> Arrays:
    from utils import frequency

    images = {
        "grey": torch.full((1, 3, 32, 32), 0.5),
        "ramp": (torch.arange(3072) % 256).float().view(1, 3, 32, 32) / 255,
    }

    def stamp(image: Tensor) -> Tensor:
        return agent().Poison_Frequency_Diff(image, torch.zeros(1), 100.0)[0]

    newer = {f"{name}_with_this_kornia": stamp(image) for name, image in images.items()}
    color = frequency.kornia.color
    installed, color.yuv_to_rgb = color.yuv_to_rgb, yuv_to_rgb
    try:
        return {**{name: stamp(image) for name, image in images.items()}, **newer}
    finally:
        color.yuv_to_rgb = installed


def transforms(_: Job) -> Arrays:
    from utils.frequency import dct_2d, idct_2d

    pixels = torch.from_numpy(probing.ramp()[..., 0].copy()).float()
    spectrum = dct_2d(pixels, norm="ortho")
    return {"dct": spectrum, "idct": idct_2d(spectrum, norm="ortho")}


def losses(_: Job) -> Arrays:
    from methods.BYOL.losses import negcos
    from methods.SimCLR.losses import SupConLoss

    torch.manual_seed(0)
    features = normalize(torch.randn(6, 2, 16), dim=-1)
    loss, positive, negative = SupConLoss(0.5)(features)
    torch.manual_seed(1)
    views = [torch.randn(4, 8) for _ in range(4)]
    return {"loss": loss, "positive": positive, "negative": negative, "byol": negcos(*views)}


def labels() -> np.ndarray:
    return torch.randint(10, (IMAGES,), generator=torch.Generator().manual_seed(0)).numpy()


class Inverting:
    """A trigger that can be recognised in an image of one pixel."""

    def Poison_Frequency_Diff(self, images: Tensor, labels: Tensor, _: float):  # noqa: N802
        return 1 - images, labels


class Pixels(SimpleNamespace):
    """A data set as far as ``PoisonAgent`` looks at it."""

    def __len__(self) -> int:
        return len(self.data)


def sets(train: int, test: int) -> tuple[Pixels, Pixels, SimpleNamespace]:
    """A training set of one-pixel images, a test set and a loader of the first."""
    pixels = (np.arange(train * 3) % 256).astype(np.uint8).reshape(train, 1, 1, 3)
    found = [Pixels(data=pixels[:count], targets=labels()[:count]) for count in (train, test)]
    return *found, SimpleNamespace(dataset=found[0])


def poison_agent(train: int, test: int):
    from loaders.diffaugment import PoisonAgent

    args = SimpleNamespace(
        poison_ratio=POISON_RATE,
        poisonkey=7777,
        target_class=0,
        threat_model="our",
        batch_size=512,
        eval_batch_size=512,
    )
    return PoisonAgent(args, Inverting(), *sets(train, test), 100.0)


def poisoned(_: Job) -> Arrays:
    found = poison_agent(IMAGES, 10)
    images, targets, _ = found.train_pos_loader.dataset.tensors
    clean = torch.from_numpy(sets(IMAGES, 10)[0].data.astype(np.float32) / 255).permute(0, 3, 1, 2)
    rows = (images != clean).flatten(1).any(1).nonzero().flatten()
    return {"rows": rows, "labels_changed": (targets.numpy() != labels()).sum()}


class Rates:
    """A loader without batches that notes the learning rate whenever an epoch begins."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.rates = optimizer, []

    def __iter__(self):
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        return iter(())


def rates(job: Job) -> Arrays:
    from methods import base

    base.save_model = lambda *_, **__: None  # nothing was trained
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.06)
    loader = Rates(optimizer)
    running = trainer(
        job, epochs=EPOCHS, poison_knn_eval_freq=EPOCHS, save_freq=100, num_classes=100
    )
    running.knn_monitor_fre = lambda *_, **__: (0.0, 0.0)
    network.backbone = network.weight
    poison = SimpleNamespace(
        train_pos_loader=loader, test_loader=None, test_pos_loader=None, memory_loader=None
    )
    running.train_freq(network, optimizer, nn.Identity(), poison)
    # Epoch 11 depends on the version of torch's scheduler.
    return {"rates": np.delete(loader.rates, 11)}


def layout(_: Job) -> Arrays:
    from methods import set_model

    simclr = set_model(SimpleNamespace(method="simclr", **LAYOUT))
    state = simclr.state_dict()
    backbone = {name: value for name, value in state.items() if name.startswith("backbone.")}
    byol = set_model(SimpleNamespace(method="byol", **LAYOUT))
    return {
        "backbone": probing.described(backbone),
        "tensors": len(state),
        "parameters": probing.parameters(simclr),
        "byol_tensors": len(byol.state_dict()),
    }


def script(job: Job, *options: str):
    """``main_train.py`` as it would be started; it parses its arguments when imported."""
    before, sys.argv = sys.argv, ["main_train.py", "--trial", "clean", *options]
    try:
        return job.module("main_train.py", "ctrl_main")
    finally:
        sys.argv = before


def end_of_script(job: Job) -> Arrays:
    """What ``main_worker`` ends with when everything in it has gone well."""
    main = script(job)
    network = nn.Linear(1, 1)
    main.set_model = lambda _: network
    main.set_aug_diff = lambda _: [None] * 11
    main.CLTrainer = lambda _: SimpleNamespace(train=lambda *_: None)
    return {"ends_with": probing.outcome(main.main_worker, 0, main.args)}


def flags(job: Job) -> Arrays:
    """``disable_normalize`` without and with its option."""
    return {
        "disabled": [
            script(job, *options).args.disable_normalize
            for options in ((), ("--disable_normalize",))
        ]
    }


def scored(_: Job) -> Arrays:
    """Test images that the loaders of the clean and of the stamped ones hand out, of 10,000."""
    found = poison_agent(10_000, 10_000)
    return {
        "clean": sum(len(batch[0]) for batch in found.test_loader),
        "triggered": sum(len(batch[0]) for batch in found.test_pos_loader),
    }


def target_network(_: Job) -> Arrays:
    """Whether BYOL's target starts as a copy of its online network."""
    from methods import set_model

    model = set_model(SimpleNamespace(method="byol", **LAYOUT))
    pairs = zip(model.encoder_q.parameters(), model.encoder_k.parameters(), strict=True)
    convolutions = [torch.equal(one, other) for one, other in pairs if one.ndim == 4]
    return {"equal_convolutions": sum(convolutions), "convolutions": len(convolutions)}


def nothing_to_poison(_: Job) -> Arrays:
    """What the function that returns (images, labels) returns for no images."""
    found = agent().Poison_Frequency_Diff(torch.zeros(0, 3, 32, 32), torch.zeros(0), 100.0)
    return {"returns": type(found).__name__}


def shadowed_loader(_: Job) -> Arrays:
    """Files that ``load_model`` asks for, whatever was trained."""
    from utils import util

    asked = []
    torch_load, util.torch.load = util.torch.load, lambda path, **_: asked.append(path)
    try:
        probing.outcome(util.load_model, None, "folder")
    finally:
        util.torch.load = torch_load
    return {"asks_for": asked}
