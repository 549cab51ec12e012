"""Files in the formats that the published repositories read and write."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.api import Trigger


def write_images(path: Path, images: Tensor, labels: Tensor | None = None) -> None:
    """An ``.npz`` of images, as DRUPE and DECREE keep data sets and references.

    Parameters
    ----------
    images
        uint8 (N, 3, H, W), written as ``x`` (N, H, W, 3).
    labels
        int64 (N,), written as ``y`` (N, 1); zeros where there are none.
    """
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    pixels = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    np.savez(path, x=pixels, y=labels.cpu().numpy()[:, None])


def write_trigger(path: Path, trigger: Trigger, image_size: int) -> None:
    """An ``.npz`` of a patch: ``tm`` is 1 where a pixel stays, ``t`` its new value where it is 0.

    Both are (1, H, W, 3), the layout that DRUPE's code indexes; int64 and float64 on the 0-255
    scale. Whatever the trigger's transport, the patch is what it was before an encoder saw it.
    """
    trigger = trigger.model_copy(update={"transport": "float"})
    support = trigger.support(image_size)
    stays = (~support).long()[..., None].expand(-1, -1, 3)
    stamped = trigger(torch.zeros(1, 3, image_size, image_size))[0].permute(1, 2, 0)
    value = (stamped.double() * 255).round() * support[..., None]
    np.savez(path, t=value[None].numpy(), tm=stays[None].numpy())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz``.

    Raises
    ------
    ValueError
        When it is damaged or holds pickled objects, which are never loaded.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path.name}: not an .npz of plain arrays ({error})") from None
