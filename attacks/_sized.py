"""What triggers that are made for one image size share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from bench.api import Field, Trigger


class SizedTrigger(Trigger):
    """A trigger made for square images of one side; by default it may change every pixel."""

    image_size: int = Field(32, ge=1)

    def support(self, image_size: int) -> Tensor:
        self._check_side(image_size)
        return torch.ones(image_size, image_size, dtype=torch.bool)

    def _check_side(self, image_size: int) -> None:
        if image_size != self.image_size:
            raise ValueError(
                f"this {self.name} trigger is made for {self.image_size}-pixel images, "
                f"not {image_size}"
            )

    def _described(self, text: str) -> str:
        """``text``, and the transport where it is not the usual one."""
        return text if self.transport == "8bit" else f"{text} ({self.transport})"


def look_alikes(trigger: SizedTrigger, changes: Iterable[dict[str, object]]) -> list[Trigger]:
    """``trigger`` with each of ``changes`` to its parameters, in order.

    Those that stamp what it or an earlier one stamps (the mirror image of a symmetric picture) are
    left out.
    """
    kept, seen = [], [_effect(trigger)]
    for change in changes:
        candidate = type(trigger).model_validate({**trigger.parameters(), **change})
        effect = _effect(candidate)
        if not any(torch.equal(effect, other) for other in seen):
            kept.append(candidate)
            seen.append(effect)
    return kept


def _effect(trigger: SizedTrigger) -> Tensor:
    """float32 (2, 3, S, S): what a trigger makes of a dark and of a light image."""
    side = trigger.image_size
    return trigger.stamp(torch.tensor([0.25, 0.75]).view(2, 1, 1, 1).expand(2, 3, side, side))
