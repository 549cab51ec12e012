"""The test images in the order and the conditions in which a defense sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.data.imageset import ImageSet


@dataclass(frozen=True)
class Bundle:
    """The images of one score stage in the order in which a defense sees them.

    Every pass over the test set shows each source image once, in a random condition, so that no
    batch holds two versions of one image; which pass shows which condition is a seeded draw.

    ``images`` are uint8, or float32 in [0, 1] when a trigger among the conditions is not quantised:
    one type for all of them, clean ones included.
    """

    images: Tensor
    image: np.ndarray
    condition: np.ndarray
    split: np.ndarray
    breaks: tuple[int, ...]

    def chunks(self, size: int) -> Iterator[slice]:
        for start, stop in zip(self.breaks, self.breaks[1:], strict=False):
            for first in range(start, stop, size):
                yield slice(first, min(first + size, stop))


def build_bundle(
    test: ImageSet,
    calibration: ImageSet,
    stamps: dict[str, Any],
    seed: int,
) -> Bundle:
    """Stamp, mix and permute the images of a score stage.

    Parameters
    ----------
    stamps
        Condition -> trigger, or None for ``clean``. All conditions take one path: uint8 source ->
        float -> stamp -> the bundle's type; the clean images go through it with no stamp.
    """
    random = np.random.default_rng([seed, 7])
    names = list(stamps)
    dtype = stored_type(stamps.values())
    versions = {name: stamp_images(test, trigger, dtype) for name, trigger in stamps.items()}
    # Row p of `turn` is the condition that pass p shows of every image.
    turn = random.permuted(np.tile(np.arange(len(names))[:, None], (1, len(test))), axis=0)
    calibration_pass = random.integers(len(names), size=len(calibration))
    image, condition, split, breaks = [], [], [], [0]
    total, shape = len(names) * len(test) + len(calibration), (3, test.image_size, test.image_size)
    images = torch.empty(total, *shape, dtype=dtype)  # at 224 pixels 5 GB, as are the versions
    for index in range(len(names)):
        extra = np.flatnonzero(calibration_pass == index)
        numbers = np.concatenate([np.arange(len(test)), extra])
        kinds = np.concatenate([turn[index], np.full(len(extra), -1)])
        order = random.permutation(len(numbers))
        numbers, kinds = numbers[order], kinds[order]
        part = images[breaks[-1] :][: len(numbers)]
        for kind, name in enumerate(names):
            part[kinds == kind] = versions[name][numbers[kinds == kind]]
        part[kinds == -1] = stamp_images(
            calibration.select(torch.from_numpy(numbers[kinds == -1])), None, dtype
        )
        image.append(numbers)
        condition.append(np.array([*names, "clean"])[kinds])
        split.append(np.where(kinds == -1, "calibration", "test"))
        breaks.append(breaks[-1] + len(numbers))
    return Bundle(
        images,
        np.concatenate(image),
        np.concatenate(condition),
        np.concatenate(split),
        tuple(breaks),
    )


def stored_type(triggers: Iterable[Any]) -> torch.dtype:
    """float32 when one of the triggers (None: no stamp) has the transport ``float``, else uint8."""
    floating = any(trigger is not None and trigger.transport == "float" for trigger in triggers)
    return torch.float32 if floating else torch.uint8


def stamp_images(images: ImageSet, trigger: Any, dtype: torch.dtype = torch.uint8) -> Tensor:
    """(N, 3, H, W) as ``dtype`` on the CPU, uint8 or float32 in [0, 1]: the one path of clean and
    stamped images (invariant 1)."""
    parts = []
    for batch in images.batches(1000):
        stamped = batch if trigger is None else trigger(batch)
        parts.append((to_uint8(stamped) if dtype == torch.uint8 else stamped).cpu())
    return torch.cat(parts) if parts else images.uint8().cpu().to(dtype)


def as_float(images: Tensor) -> Tensor:
    """A new float32 tensor in [0, 1] of images as a bundle stores them, uint8 or float32."""
    if images.dtype == torch.uint8:
        return images.float().div(255)
    return images.clone()


def to_uint8(images: Tensor) -> Tensor:
    """[0, 1] -> the nearest of 256 levels."""
    return images.mul(255).round().clamp(0, 255).to(torch.uint8)
