"""What an attack looks like: a few stamped images, and where their embeddings lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional

from bench.api import Trigger
from bench.data.imageset import ImageSet
from bench.stages.bundle import stamp_images, to_uint8

PICTURES = "attack.npz"
"""Written by an audit, carried by every cell that rests on it."""

SHOWN_IMAGES = 4
SHOWN_POINTS = 150
LARGEST_SIDE = 64
"""Pixels; larger pictures are averaged down, so that cells stay small."""


def save_pictures(
    folder: Path,
    test: ImageSet,
    target: int,
    stamps: Mapping[str, Trigger | None],
    embeddings: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Write ``attack.npz`` into ``folder``.

    Parameters
    ----------
    stamps
        Condition (``clean``, ``triggered``, ``decoy``) -> trigger, or None for no stamp.
    embeddings
        Encoder (``victim``, ``twin``) -> condition -> (N, D), one row per image of ``test``.

    Notes
    -----
    The arrays: every condition uint8 (M, H, W, 3); ``difference``, the same shape, 128 plus
    ``gain`` times triggered minus clean in levels; per encoder ``<encoder>_points`` float32 (K, 2)
    with ``<encoder>_groups`` (K,) and ``<encoder>_variance`` (2,), see :func:`plane`.
    """
    others = torch.from_numpy(np.flatnonzero(test.labels != target))
    shown = test.select(others[:SHOWN_IMAGES])
    stamped = {
        name: stamp_images(shown, trigger, torch.float32) for name, trigger in stamps.items()
    }
    arrays: dict[str, NDArray] = {
        name: _pictures(to_uint8(_reduced(images))) for name, images in stamped.items()
    }
    difference = _reduced(stamped["triggered"] - stamped["clean"])
    gain = 0.5 / max(float(difference.abs().max()), 1 / 255)
    arrays["difference"] = _pictures(to_uint8(0.5 + gain * difference))
    arrays["gain"] = np.array(gain, dtype=np.float32)
    for encoder, found in embeddings.items():
        points, groups, variance = plane(found, test.labels.numpy() == target)
        arrays |= {
            f"{encoder}_points": points,
            f"{encoder}_groups": groups,
            f"{encoder}_variance": variance,
        }
    np.savez_compressed(folder / PICTURES, **arrays)


def plane(
    embeddings: Mapping[str, Tensor], of_target: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.str_], NDArray[np.float32]]:
    """Two principal components of unit-length embeddings of one encoder.

    Parameters
    ----------
    embeddings
        Condition -> (N, D).
    of_target
        bool (N,): the images of the target class.

    Returns
    -------
    points
        float32 (K, 2).
    groups
        (K,): ``clean``, ``triggered`` and ``decoy`` images of other classes, and ``target``, clean
        images of the target class; at most 150 of each, and the first three show the same images.
    variance
        float32 (2,): the share of the variance of these K embeddings along each component.
    """
    others = np.flatnonzero(~of_target)[:SHOWN_POINTS]
    chosen = {name: values[others] for name, values in embeddings.items()}
    chosen["target"] = embeddings["clean"][np.flatnonzero(of_target)[:SHOWN_POINTS]]
    groups = np.repeat(list(chosen), [len(values) for values in chosen.values()])
    pooled = functional.normalize(torch.cat(list(chosen.values())).float().cpu(), dim=1).numpy()
    if pooled.shape[1] == 1:
        pooled = np.pad(pooled, ((0, 0), (0, 1)))
    with np.errstate(invalid="ignore"):
        model = PCA(n_components=2, svd_solver="full").fit(pooled.astype(np.float64))
    variance = np.nan_to_num(model.explained_variance_ratio_)  # 0 / 0: all embeddings are equal
    return model.transform(pooled).astype(np.float32), groups, variance.astype(np.float32)


def _reduced(images: Tensor) -> Tensor:
    """(N, 3, H, W), averaged down to at most :data:`LARGEST_SIDE` pixels."""
    factor = -(-images.shape[-1] // LARGEST_SIDE)
    return functional.avg_pool2d(images, factor, ceil_mode=True) if factor > 1 else images


def _pictures(images: Tensor) -> NDArray[np.uint8]:
    return images.permute(0, 2, 3, 1).contiguous().numpy()
