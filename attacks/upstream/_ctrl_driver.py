"""Runs in CTRL's process: its poisoning of a data set, or its training loop."""

from __future__ import annotations

from types import SimpleNamespace

import kornia
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from attacks.upstream._ctrl_shims import stub_unused, yuv_to_rgb
from bench.encoders.encoder import Encoder
from bench.upstream.child import Job
from bench.upstream.formats import read_arrays

MONITOR_NEIGHBOURS = 200
ARCHITECTURE = "bench"


def run(job: Job) -> None:
    kornia.color.yuv_to_rgb = yuv_to_rgb
    stub_unused()
    {"poison": _poison, "train": _train}[job.parameters["task"]](job)


def _poison(job: Job) -> None:
    """Leaves the chosen rows and what stands there, float32 (k, 3, H, W)."""
    from loaders.diffaugment import PoisonAgent
    from utils.frequency import PoisonFre

    given = job.parameters
    train = _Stored(**read_arrays(job.inputs / "train.npz"))
    # Loaders for evaluation are built and stamped too; nobody reads them.
    one = _Stored(train.data[:1], np.zeros(1, dtype=np.int64))
    args = SimpleNamespace(
        poison_ratio=given["poison_ratio"],
        target_class=given["target"],
        poisonkey=7777,
        threat_model="our",
        batch_size=1,
        eval_batch_size=1,
    )
    frequency = PoisonFre(
        args,
        train.data.shape[1],
        given["channels"],
        given["window"],
        given["positions"],
        False,
        True,
    )
    agent = PoisonAgent(
        args, frequency, train, one, SimpleNamespace(dataset=one), given["magnitude"]
    )
    stamped = agent.train_pos_loader.dataset.tensors[0]
    changed = (stamped != train.images()).flatten(1).any(1)
    rows = changed.nonzero().squeeze(1)
    np.savez(
        job.outputs / "poisoned.npz", rows=rows.numpy(), images=stamped[rows].contiguous().numpy()
    )


def _train(job: Job) -> None:
    """Leaves CTRL's ``last.pth.tar``, and the last epoch's loss and learning rate."""
    from methods import set_model
    from methods.base import CLTrainer
    from networks.resnet_cifar import model_dict
    from utils.util import set_seed

    encoder = Encoder.load(job.inputs / "encoder.safetensors")
    # A quarter less work on a CPU than in the usual layout.
    network = encoder.network.to(memory_format=torch.channels_last)
    model_dict[ARCHITECTURE] = [lambda: network, encoder.embedding_dim]
    train = _Stored(**read_arrays(job.inputs / "train.npz"))
    args = _arguments(job)
    transform = _transform(args, train)
    set_seed(job.parameters["seed"])
    model = set_model(args).cuda()
    trainer = CLTrainer(args)
    # Its constructor says 10 whatever the arguments say.
    trainer.args.warmup_epoch = job.parameters["warmup_epochs"]
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=job.parameters["learning_rate"],
        momentum=0.9,
        weight_decay=job.parameters["weight_decay"],
    )
    trainer.train_freq(model, optimizer, transform, _loaders(train, args))
    scalars = trainer.tb_logger.last
    np.savez(
        job.outputs / "figures.npz",
        loss=scalars["train/total_loss"],
        learning_rate=scalars["lr/cnn"],
    )


def _arguments(job: Job) -> SimpleNamespace:
    """What the script would have parsed."""
    given = job.parameters
    return SimpleNamespace(
        dataset="cifar10",
        data_path="",
        method="simclr",
        arch=ARCHITECTURE,
        temp=given["temperature"],
        # The flag's default; the script cannot turn it off.
        disable_normalize=True,
        batch_size=given["batch_size"],
        eval_batch_size=MONITOR_NEIGHBOURS,
        num_workers=0,
        start_epoch=0,
        epochs=given["epochs"],
        # In the first epoch only: never would leave a figure unbound that is printed.
        poison_knn_eval_freq=given["epochs"],
        saved_path=str(job.outputs),
        distributed=False,
        gpu=None,
    )


def _transform(args: SimpleNamespace, train: _Stored) -> torch.nn.Module:
    """CTRL's augmentation; the function that builds it also opens CIFAR-10 four times."""
    from loaders import diffaugment

    diffaugment.CIFAR10 = lambda **_: train
    # train, its sampler and set, fine-tuning and its sampler, test and its set, memory: eight.
    return diffaugment.set_aug_diff(args)[8]


def _loaders(train: _Stored, args: SimpleNamespace) -> SimpleNamespace:
    """Loaders as PoisonAgent builds them, which fails where it has nothing to stamp.

    Its monitor gets black images, as many as it takes neighbours: labels and test images are not
    the trainer's, and the harness evaluates.
    """
    index = torch.arange(len(train))
    black = torch.zeros(MONITOR_NEIGHBOURS, *train.images().shape[1:])
    number = torch.arange(MONITOR_NEIGHBOURS)
    monitor = DataLoader(
        TensorDataset(black, torch.zeros_like(number), number), batch_size=args.eval_batch_size
    )
    return SimpleNamespace(
        train_pos_loader=DataLoader(
            TensorDataset(train.images(), torch.zeros_like(index), index),
            batch_size=args.batch_size,
            shuffle=True,
            drop_last=True,
        ),
        test_loader=monitor,
        test_pos_loader=monitor,
        memory_loader=monitor,
    )


class _Stored:
    """A data set as torchvision's CIFAR-10 shows it: (N, H, W, 3) and labels."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.data = x
        self.targets = y.reshape(-1).tolist()

    def __len__(self) -> int:
        return len(self.data)

    def images(self) -> Tensor:
        """float32 (N, 3, H, W) in [0, 1], divided as PoisonAgent does."""
        return torch.from_numpy(self.data.astype(np.float32) / 255.0).permute(0, 3, 1, 2)
