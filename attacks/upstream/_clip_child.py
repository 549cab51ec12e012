"""What the drivers of attacks on CLIP models share, in the authors' process."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.encoders.clip import CLIP, trimmed
from bench.upstream.child import Job


def read_pairs(folder: Path, name: str) -> tuple[np.ndarray, list[str]]:
    """uint8 (N, H, W, 3) images and their N captions."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        images = file["x"]
    return images, json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def encode_tokens(network: CLIP, tokens: Tensor) -> Tensor:
    """(N, 77) tokens of the repository's tokeniser -> (N, D) text embeddings.

    Both repositories use CLIP's byte pairs, as ours does, with room for 77; our small text tower
    has less. A caption that is longer keeps its end mark, the largest token, at the last place.
    """
    room = network.context_length
    if tokens.shape[1] > room:
        long = tokens.argmax(1) >= room
        end = tokens.amax(1)
        tokens = tokens[:, :room].clone()
        tokens[long, -1] = end[long]
    return network.encode_text(trimmed(tokens))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every generator from one seed, and sums in a fixed order: victim and twin must be equal."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    with sdpa_kernel(SDPBackend.MATH):
        yield


def save_trained(job: Job, network: CLIP, losses: Sequence[float], steps: int) -> None:
    """``model.safetensors`` and ``figures.npz``; ``losses`` are the means over each epoch."""
    job.leave("model", network)
    np.savez(
        job.outputs / "figures.npz",
        loss_first=losses[0],
        loss_last=losses[-1],
        steps=steps,
        logit_scale=float(network.logit_scale.detach().exp()),
    )
