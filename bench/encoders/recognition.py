"""What a state dict is, told from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bench.encoders.architectures import ARCHITECTURES, find

__all__ = ["Recognised", "recognise"]

Shapes = Mapping[str, tuple[int, ...]]

_RN50_BLOCKS, _RN50_EMBEDDING = (3, 4, 6, 3), 1024
_UNTOLD = {"resnet-narrow": ("stem_stride",), "template-clip": ("stem_stride", "text_heads")}
"""Settings that change what a network computes and no shape of it."""


@dataclass(frozen=True)
class Recognised:
    """A network that holds the tensors of a file.

    Attributes
    ----------
    architecture
        Name in :data:`bench.encoders.architectures.ARCHITECTURES`.
    layout
        Whose key names these are, in a few words.
    settings
        What the shapes tell of the architecture's settings.
    untold
        Settings that no shape tells; the architecture's defaults are a guess.
    mean, std
        The normalisation that the layout's published recipe uses, where it is not the
        architecture's default.
    """

    architecture: str
    layout: str
    settings: dict[str, Any] = field(default_factory=dict)
    untold: tuple[str, ...] = ()
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def in_words(self) -> str:
        """``resnet-narrow (width 32)``."""
        told = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"{self.architecture} ({told})" if told else self.architecture


def recognise(tensors: Mapping[str, Tensor]) -> Recognised:
    """Architecture and settings of a state dict, as far as names and shapes tell them.

    Known are a whole SimCLR model (``f.f.*``) or its encoder (``f.*``), CTRL's (``backbone.*``),
    our small CLIP (``visual.trunk.f.*``), CLIP RN50 with its text tower and its image tower alone
    (``visual.*`` or bare), each also behind ``module.``. That every tensor is there and fits is
    for :func:`bench.encoders.checkpoints.import_checkpoint` to say.

    Raises
    ------
    ValueError
        When it is none of these; says what it looks like.
    """
    shapes = {name.removeprefix("module."): tuple(value.shape) for name, value in tensors.items()}
    if any(name.startswith("visual.trunk.") for name in shapes):
        return _template_clip(shapes)
    for prefix in ("visual.", ""):
        if f"{prefix}attnpool.positional_embedding" in shapes:
            return _clip_rn50(shapes, prefix)
    if "f.f.0.weight" in shapes:
        return _resnet(shapes, "f.f.0.weight", "f.f.{stage}", "a whole SimCLR model")
    if "f.0.weight" in shapes:
        return _resnet(shapes, "f.0.weight", "f.{stage}", "a SimCLR encoder")
    if "backbone.conv1.weight" in shapes:
        found = _resnet(
            shapes, "backbone.conv1.weight", "backbone.layer{layer}", "a model of CTRL's code"
        )
        return Recognised(
            found.architecture,
            found.layout,
            found.settings,
            found.untold,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        )
    raise ValueError(
        f"{_looks_like(shapes)}; known architectures: {', '.join(ARCHITECTURES)}. "
        "A known one under other key names needs its keys renamed"
    )


def _resnet(shapes: Shapes, stem: str, stage_name: str, layout: str) -> Recognised:
    """A ResNet for small images; ``stage_name`` is where its stages stand, by our number 3 to 6
    (``stage``) or torchvision's 1 to 4 (``layer``)."""
    names = [stage_name.format(stage=layer + 2, layer=layer) for layer in range(1, 5)]
    blocks = tuple(_numbered(shapes, f"{name}.{{}}.conv1.weight") for name in names)
    width, _, *kernel = shapes[stem] if len(shapes[stem]) == 4 else (0, 0, 0, 0)
    bottleneck = any(f"{name}.0.conv3.weight" in shapes for name in names)
    seen = (
        f"{layout}: a ResNet with {'bottleneck' if bottleneck else 'basic'} blocks {blocks}, width "
        f"{width} and a {'x'.join(map(str, kernel))} stem"
    )
    if kernel == [3, 3] and not bottleneck:
        if blocks == (2, 2, 2, 2) and width == 64:
            return Recognised("resnet18-cifar", layout)
        if blocks == (1, 1, 1, 1):
            return Recognised(
                "resnet-narrow", layout, {"width": width}, untold=_UNTOLD["resnet-narrow"]
            )
    raise ValueError(
        f"{seen}; known are blocks (2, 2, 2, 2) of width 64 (resnet18-cifar) and (1, 1, 1, 1) of "
        "any width (resnet-narrow), basic ones with a 3x3 stem"
    )


def _template_clip(shapes: Shapes) -> Recognised:
    """Our small CLIP; a tensor that is missing leaves its setting to the default."""
    told = {
        "width": ("visual.trunk.f.0.weight", 0),
        "embedding_dim": ("visual.projection.weight", 0),
        "text_width": ("text.token_embedding.weight", 1),
        "context_length": ("text.positional_embedding", 0),
    }
    settings = {
        name: shapes[key][axis]
        for name, (key, axis) in told.items()
        if len(shapes.get(key, ())) > axis
    }
    layers = _numbered(shapes, "text.transformer.resblocks.{}.ln_1.weight")
    if layers:
        settings["text_layers"] = layers
    defaults = find("template-clip").settings
    return Recognised(
        "template-clip",
        "a small CLIP of this benchmark",
        {name: settings[name] for name in defaults if name in settings},
        untold=_UNTOLD["template-clip"],
    )


def _clip_rn50(shapes: Shapes, prefix: str) -> Recognised:
    blocks = tuple(
        _numbered(shapes, f"{prefix}layer{layer}.{{}}.conv1.weight") for layer in range(1, 5)
    )
    embedding = (*shapes.get(f"{prefix}attnpool.c_proj.weight", ()), 0)[0]
    if blocks != _RN50_BLOCKS or embedding != _RN50_EMBEDDING:
        raise ValueError(
            f"a CLIP ResNet with blocks {blocks} and {embedding} dimensions; known is RN50 alone, "
            f"with {_RN50_BLOCKS} and {_RN50_EMBEDDING}"
        )
    if any(name.endswith("token_embedding.weight") for name in shapes):
        return Recognised("clip-rn50", "a CLIP RN50 with both towers")
    return Recognised("clip-rn50-visual", "the image tower of a CLIP RN50")


def _numbered(shapes: Shapes, pattern: str) -> int:
    """How many keys there are of a pattern with one number in it."""
    wanted = re.compile(re.escape(pattern).replace(r"\{\}", r"\d+"))
    return sum(wanted.fullmatch(name) is not None for name in shapes)


def _looks_like(shapes: Shapes) -> str:
    names = list(shapes)
    if any("class_embedding" in name or "cls_token" in name for name in names):
        return "the keys look like a vision transformer's"
    if any(re.search(r"(^|\.)layer1\.0\.conv1\.weight$", name) for name in names):
        return "the keys look like a torchvision ResNet's"
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"the keys ({shown}) are those of no known architecture"
