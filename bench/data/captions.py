"""Captions for labelled images: the published prompt templates of CLIP, drawn by seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Template", "prompt_templates", "template_captions"]

Template = Callable[[str], str]
"""class name -> caption"""


def prompt_templates() -> tuple[Template, ...]:
    """The 80 prompts of CLIP's ImageNet evaluation, as open_clip distributes them.

    Radford et al. 2021, section 3.1.4; BadCLIP and DECREE caption with the same.
    """
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(OPENAI_IMAGENET_TEMPLATES)


def template_captions(
    labels: Tensor, class_names: Sequence[str], generator: torch.Generator
) -> list[str]:
    """One caption per image: a drawn template about the name of the image's class.

    Templates are drawn in row order whatever the labels, so that changing the class of one image
    changes its caption and no other.

    Parameters
    ----------
    labels
        int64 (N,) in [0, ``len(class_names)``).
    generator
        On the CPU.

    Raises
    ------
    ValueError
        When a label has no class name.
    """
    templates = prompt_templates()
    classes = labels.tolist()
    if classes and not 0 <= min(classes) <= max(classes) < len(class_names):
        raise ValueError(
            f"labels {min(classes)} to {max(classes)} do not fit {len(class_names)} class names"
        )
    drawn = torch.randint(len(templates), (len(classes),), generator=generator).tolist()
    return [
        templates[template](class_names[label])
        for template, label in zip(drawn, classes, strict=True)
    ]
