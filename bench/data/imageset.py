"""Images in memory, with or without labels and captions: uint8 inside, float [0, 1] outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class ImageSet:
    """An index-based view of uint8 images.

    Parameters
    ----------
    storage
        uint8 tensor (M, 3, H, W). Never copied by a view.
    rows
        int64 tensor (N,) of the storage rows this view shows, in order; all of them by default.
    labels
        int64 tensor (M,) aligned with ``storage``, or None.
    class_names
        Names of the classes, in label order; empty when unlabelled.
    captions
        M captions aligned with ``storage``, or None. Never copied by a view.
    name
        Where the images come from, for messages.

    Raises
    ------
    ValueError
        When the storage is not uint8 (M, 3, H, W) or the labels or captions do not match it.
    """

    def __init__(
        self,
        storage: Tensor,
        *,
        rows: Tensor | None = None,
        labels: Tensor | None = None,
        class_names: tuple[str, ...] = (),
        captions: Sequence[str] | None = None,
        name: str = "images",
    ) -> None:
        if storage.dtype != torch.uint8 or storage.ndim != 4 or storage.shape[1] != 3:
            raise ValueError(
                f"{name}: images must be uint8 (N, 3, H, W), got {storage.dtype} "
                f"{tuple(storage.shape)}"
            )
        if labels is not None and len(labels) != len(storage):
            raise ValueError(f"{name}: {len(labels)} labels for {len(storage)} images")
        if captions is not None and len(captions) != len(storage):
            raise ValueError(f"{name}: {len(captions)} captions for {len(storage)} images")
        self._storage = storage
        self._rows = torch.arange(len(storage)) if rows is None else rows.long().cpu()
        self._labels = labels
        self._captions = None if captions is None else tuple(captions)
        self.class_names = tuple(class_names)
        self.name = name

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        labelled = f", {len(self.class_names)} classes" if self.class_names else ", unlabelled"
        captioned = ", captioned" if self.captioned else ""
        return (
            f"ImageSet({self.name!r}, {len(self)} images, {self.image_size} px"
            f"{labelled}{captioned})"
        )

    @property
    def image_size(self) -> int:
        """Side length in pixels."""
        return self._storage.shape[-1]

    @property
    def device(self) -> torch.device:
        return self._storage.device

    @property
    def rows(self) -> Tensor:
        """int64 (N,): rows of the source that this view shows (what disjointness is checked on)."""
        return self._rows

    @property
    def labels(self) -> Tensor:
        """int64 (N,) on the CPU.

        Raises
        ------
        ValueError
            When the set carries no labels.
        """
        if self._labels is None:
            raise ValueError(f"{self.name} has no labels")
        return self._labels.cpu()[self._rows]

    @property
    def labelled(self) -> bool:
        return self._labels is not None

    @property
    def captions(self) -> list[str]:
        """N captions, in order.

        Raises
        ------
        ValueError
            When the set carries no captions.
        """
        if self._captions is None:
            raise ValueError(f"{self.name} has no captions")
        return [self._captions[row] for row in self._rows.tolist()]

    @property
    def captioned(self) -> bool:
        return self._captions is not None

    def uint8(self, positions: Tensor | slice | None = None) -> Tensor:
        """uint8 (N, 3, H, W) of the chosen positions of this view (all by default)."""
        rows = self._rows if positions is None else self._rows[positions]
        return self._storage[rows.to(self._storage.device)]

    def float(self, positions: Tensor | slice | None = None) -> Tensor:
        """float32 (N, 3, H, W) in [0, 1] of the chosen positions of this view (all by default)."""
        return self.uint8(positions).to(torch.float32).div_(255)

    def batches(self, size: int) -> Iterator[Tensor]:
        """float32 batches of at most ``size`` images, in order."""
        for start in range(0, len(self), size):
            yield self.float(slice(start, start + size))

    def select(self, positions: Tensor) -> ImageSet:
        """The view that shows ``positions`` (int64 or bool) of this one."""
        return self._view(self._rows[positions.cpu()], self._labels)

    def without_labels(self) -> ImageSet:
        """The same images and captions; asking for labels raises."""
        return self._view(self._rows, None)

    def to(self, device: torch.device | str) -> ImageSet:
        """The same view with its storage on ``device``."""
        moved = self._view(self._rows, self._labels)
        moved._storage = self._storage.to(device)
        return moved

    def _view(self, rows: Tensor, labels: Tensor | None) -> ImageSet:
        return ImageSet(
            self._storage,
            rows=rows,
            labels=labels,
            class_names=self.class_names if labels is not None else (),
            captions=self._captions,
            name=self.name,
        )
