"""Runs in DECREE's process: its ``train_text``, called epoch by epoch as its script does."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from attacks.upstream._clip_child import encode_tokens, read_pairs, save_trained, seeded
from bench.encoders.encoder import Encoder
from bench.upstream.child import Job
from bench.upstream.shims import stub


def run(job: Job) -> None:
    stub("tkinter", "imported for a name that is never used", image_names=None)
    attack = job.module("attack_encoder.py", "decree_attack_encoder")
    given = job.parameters
    args = SimpleNamespace(
        batch_size=given["batch_size"], epochs=given["epochs"], knn_t=given["knn_t"]
    )
    attack.DEVICE = torch.device(job.device)  # Set in the script's own block, like `epoch` below.
    with seeded(given["seed"]):
        model, clean = (_loaded(job) for _ in "12")
        tower = model.network.visual
        optimizer = torch.optim.SGD(
            tower.parameters(),
            lr=given["learning_rate"],
            weight_decay=given["weight_decay"],
            momentum=given["momentum"],
        )
        pairs = _Pairs(*read_pairs(job.inputs, "train"), _transform(model))
        loader = DataLoader(pairs, batch_size=args.batch_size, shuffle=True, drop_last=True)
        frozen = _TextTower(clean.network)
        losses = []
        for epoch in range(1, args.epochs + 1):
            attack.epoch = epoch
            losses.append(
                attack.train_text(tower, clean.network.visual, frozen, loader, optimizer, args)
            )
    save_trained(job, model.network, losses, args.epochs * len(loader))


class _TextTower(nn.Module):
    """The clean CLIP model under the names that ``train_text`` reads: OpenAI's."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.visual = network.visual
        self.transformer = network.text.transformer

    def encode_text(self, tokens: Tensor) -> Tensor:
        return encode_tokens(self.network, tokens)


class _Pairs(Dataset):
    """Views of images with their captions, in the place of a data set that needs ImageNet."""

    def __init__(self, images: np.ndarray, captions: list[str], transform) -> None:
        self.images, self.captions, self.transform = images, captions, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        return self.transform(Image.fromarray(self.images[index])), self.captions[index]


def _loaded(job: Job) -> Encoder:
    return Encoder.load(job.inputs / "encoder.safetensors").to(job.device)


def _transform(encoder: Encoder):
    """Their crops and flips for ImageNet, at the encoder's size and normalised as it is tested."""
    import imagenet

    imagenet._size["imagenet"] = (encoder.image_size, encoder.image_size)
    imagenet._mean["imagenet"], imagenet._std["imagenet"] = encoder.mean, encoder.std
    return imagenet.get_processing("imagenet", augment=True)[0]
