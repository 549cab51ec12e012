"""Image sets that come with scikit-learn: no download, no files."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from PIL import Image

from bench.data.imageset import ImageSet
from bench.data.source import Source, digest_arrays
from bench.errors import InputError


class Digits(Source):
    """scikit-learn's 1,797 handwritten digits as 32x32 RGB; the last 400 are the test split."""

    TEST_IMAGES = 400

    def fingerprint(self, split: str) -> str:
        return digest_arrays(split, self._arrays[0], self._arrays[1])

    def count(self, split: str) -> int:
        whole = len(self._arrays[0])
        return whole - self.TEST_IMAGES if split == "train" else self.TEST_IMAGES

    def classes(self, split: str) -> int:
        return 10

    def labels(self, split: str) -> torch.Tensor:
        count = self.count(split)
        whole = torch.from_numpy(self._arrays[1].astype(np.int64))
        return whole[:count] if split == "train" else whole[-count:]

    def load(self, split: str) -> ImageSet:
        images, labels = self._arrays
        cut = len(images) - self.TEST_IMAGES
        if split not in ("train", "test"):
            raise self._no_split(split, "scikit-learn")
        part = slice(0, cut) if split == "train" else slice(cut, None)
        side = self.config.image_size
        grey = torch.from_numpy(images[part]).float().div(16).unsqueeze(1)
        large = torch.nn.functional.interpolate(
            grey, size=(side, side), mode="bilinear", align_corners=False
        )
        storage = large.clamp(0, 1).mul(255).round().to(torch.uint8).expand(-1, 3, -1, -1)
        return ImageSet(
            storage.contiguous(),
            labels=torch.from_numpy(labels[part].astype(np.int64)),
            class_names=tuple(str(digit) for digit in range(10)),
            name=f"{self.name}/{split}",
        )

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.images, digits.target


class Photographs(Source):
    """Random crops of scikit-learn's two bundled photographs: a small out-of-distribution set."""

    COUNT = 1500

    def fingerprint(self, split: str) -> str:
        return digest_arrays(split, *self._photographs)

    def classes(self, split: str) -> int:
        return 0

    def check(self, split: str) -> None:
        self._shortest_side()

    def load(self, split: str) -> ImageSet:
        if split != "train":
            raise self._no_split(split, "scikit-learn")
        side, random = self.config.image_size, np.random.default_rng(0)
        shortest = self._shortest_side()
        storage = np.empty((self.COUNT, side, side, 3), dtype=np.uint8)
        for position in range(self.COUNT):
            photograph = self._photographs[position % len(self._photographs)]
            # Crops of several scales: at full resolution most would be plain sky or petal.
            span = int(random.integers(side, min(6 * side, shortest + 1)))
            top = int(random.integers(0, photograph.shape[0] - span + 1))
            left = int(random.integers(0, photograph.shape[1] - span + 1))
            crop = Image.fromarray(photograph[top : top + span, left : left + span])
            storage[position] = np.asarray(crop.resize((side, side), Image.Resampling.BOX))
        images = torch.from_numpy(storage.transpose(0, 3, 1, 2).copy())
        return ImageSet(images, name=f"{self.name}/{split}")

    def _shortest_side(self) -> int:
        """Of the photographs; no crop is larger."""
        shortest = min(min(photograph.shape[:2]) for photograph in self._photographs)
        if self.config.image_size > shortest:
            raise InputError(
                f"dataset {self.name!r}: image_size is {self.config.image_size}, and the "
                f"photographs have {shortest} pixels on their shorter side"
            )
        return shortest

    @cached_property
    def _photographs(self) -> list[np.ndarray]:
        from sklearn.datasets import load_sample_images

        return list(load_sample_images().images)
