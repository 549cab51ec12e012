"""Classes by a vote of nearest neighbours: of embeddings, and of raw pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bench.data.imageset import ImageSet

__all__ = ["check_training_set", "knn_predict", "raw_pixel_knn"]

_VALUES_AT_ONCE = 16_000_000  # float32: 64 MB of similarities, or of votes
_PIXELS_AT_ONCE = 2**28  # float32: 1 GB of pixels, of which a few copies exist at a time


@torch.inference_mode()
def knn_predict(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    classes: int,
    k: int = 200,
    temperature: float = 0.5,
) -> Tensor:
    """Weighted k-nearest-neighbour vote of the SimCLR code (Wu et al. 2018, section 3.4).

    The k bank rows of largest cosine similarity s vote for their class with weight
    exp(s / temperature). Rows are L2-normalised here.

    Parameters
    ----------
    queries
        float32 (N, D).
    bank
        float32 (M, D); with fewer than ``k`` rows all of them vote.
    labels
        int64 (M,), classes of the bank in [0, ``classes``).

    Returns
    -------
    Tensor
        int64 (N,) on the CPU.
    """
    check_training_set(bank, labels, classes)
    return _vote(queries, bank, len(bank), labels, classes, k, temperature)


@torch.inference_mode()
def raw_pixel_knn(
    queries: ImageSet,
    bank: ImageSet,
    classes: int,
    k: int = 200,
    temperature: float = 0.5,
    device: torch.device | str = "cpu",
) -> Tensor:
    """:func:`knn_predict` on pixels: what the data gives away without any encoder.

    They are standardised per channel with the mean and standard deviation of the labelled ``bank``,
    and flattened. Images stay 8-bit where they are; as floats only some of them are on ``device``
    at a time (45,000 images of 224 pixels are 27 GB).
    """
    check_training_set(torch.empty(len(bank), 0), bank.labels, classes)
    block = max(1, _PIXELS_AT_ONCE // (3 * bank.image_size**2))
    mean, deviation = _channels(bank, block, device)
    asked, known = (_Pixels(images, mean, deviation) for images in (queries, bank))
    return _vote(asked, known, block, bank.labels, classes, k, temperature)


@dataclass(frozen=True)
class _Pixels(Sequence[Tensor]):
    """Rows of standardised pixels, computed when they are asked for."""

    images: ImageSet
    mean: Tensor
    deviation: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: slice) -> Tensor:
        pixels = self.images.float(chosen).to(self.mean.device)
        return ((pixels - self.mean) / self.deviation).flatten(1)


def _channels(bank: ImageSet, block: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, float32 (1, 3, 1, 1): those of the blocks, put
    together in float64, so that a single block's are the ones that torch gives for it."""
    counts, means, spreads = [], [], []
    for pixels in bank.batches(block):
        moved = pixels.to(device)
        counts.append(moved.numel() // 3)
        means.append(moved.mean(dim=(0, 2, 3), keepdim=True).double())
        spreads.append(moved.std(dim=(0, 2, 3), keepdim=True).double())
    mean = sum(n * part for n, part in zip(counts, means, strict=True)) / sum(counts)
    squares = sum(
        (n - 1) * spread**2 + n * (part - mean) ** 2
        for n, part, spread in zip(counts, means, spreads, strict=True)
    )
    deviation = (squares / (sum(counts) - 1)).sqrt().float().clamp_min(1e-6)
    return mean.float(), deviation


def _vote(
    queries: Tensor | _Pixels,
    bank: Tensor | _Pixels,
    block: int,
    labels: Tensor,
    classes: int,
    k: int,
    temperature: float,
) -> Tensor:
    """The bank goes by in blocks of ``block`` rows; what is nearest so far is kept."""
    neighbours = min(k, len(bank))
    at_once = max(1, _VALUES_AT_ONCE // max(min(block, len(bank)), neighbours * classes))
    if isinstance(queries, _Pixels):
        at_once = min(at_once, block)  # no more pixels of them than of the bank
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(bank), block):
        known = functional.normalize(bank[start : start + block], dim=1)
        for number in range(math.ceil(len(queries) / at_once)):
            asked = queries[number * at_once : (number + 1) * at_once].to(known.device)
            similarity = functional.normalize(asked, dim=1) @ known.T
            nearest, rows = similarity.topk(min(neighbours, len(known)), dim=1)
            if start == 0:
                found.append((nearest, rows))
            else:
                found[number] = _nearest_of(found[number], (nearest, rows + start), neighbours)
    # One-hot votes and a product rather than scatter_add_, whose order of sums varies on a GPU.
    votes = functional.one_hot(labels.to(known.device), classes).to(known.dtype)
    predictions = []
    for nearest, rows in found:
        weights = (nearest / temperature).exp()
        predictions.append(torch.bmm(weights[:, None], votes[rows])[:, 0].argmax(1))
    return torch.cat(predictions).cpu()


def _nearest_of(
    before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], neighbours: int
) -> tuple[Tensor, Tensor]:
    """The nearest among two choices of (similarities, rows)."""
    similarity, rows = (torch.cat(pair, dim=1) for pair in zip(before, after, strict=True))
    nearest, places = similarity.topk(min(neighbours, similarity.shape[1]), dim=1)
    return nearest, rows.gather(1, places)


def check_training_set(features: Tensor, labels: Tensor, classes: int) -> None:
    """Refuse features and labels that do not go together.

    Raises
    ------
    ValueError
        Naming the shapes, or the range of the labels.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(
            f"features must be (N, D) with labels (N,), got {tuple(features.shape)} and "
            f"{tuple(labels.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels must be in [0, {classes}), got {low} to {high}")
