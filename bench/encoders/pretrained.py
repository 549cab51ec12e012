"""Public pretrained weights, fetched only when asked for."""

from __future__ import annotations

from pathlib import Path

from bench.encoders.checkpoints import import_checkpoint
from bench.encoders.weights import CheckpointError
from bench.errors import InputError

__all__ = ["PRETRAINED", "download_pretrained"]

PRETRAINED = {"clip-rn50": ("RN50-quickgelu", "openai")}
"""Name, also that of the architecture -> model and weights as open_clip calls them."""


def download_pretrained(name: str, root: Path) -> Path:
    """Fetch published weights through open_clip into ``<root>/<name>.safetensors``.

    Only safetensors are taken: nothing fetched is unpickled.

    Raises
    ------
    InputError
        When they cannot be fetched or do not fit.
    """
    import open_clip

    model, tag = PRETRAINED[name]
    source = open_clip.get_pretrained_cfg(model, tag)
    root.mkdir(parents=True, exist_ok=True)
    try:
        found = Path(open_clip.download_pretrained(source, cache_dir=str(root / ".download")))
        if found.suffix != ".safetensors":
            raise InputError(f"{name}: {found.name} is no safetensors file")
        encoder = import_checkpoint(found, name)
    except CheckpointError:
        raise
    except Exception as error:  # open_clip, the hub and the socket raise what they like
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name} could not be downloaded: {first}") from None
    target = root / f"{name}.safetensors"
    encoder.save(target)
    return target
