"""How alike an image's embeddings stay under superimposed images."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PrivateAttr
from torch import Tensor
from torch.nn import functional as F

from bench.api import DefenderView, Defense, Encoder, Field, later_field


class Strip(Defense):
    """Strong intentional perturbation (Gao et al., "STRIP: A Defence Against Trojan Attacks on
    Deep Neural Networks", ACSAC 2019, algorithm 1).

    An image is blended with other clean ones. A trigger that survives the blend holds the output
    fixed, where that of a clean image follows what is laid over it.

    Adapted: the paper takes the entropy of predicted classes; an encoder predicts none, so the
    score is the mean cosine similarity between the embeddings of two blends of one image. The paper
    draws new overlays for every image; here they are one seeded draw, the same for all, and 8 of
    them instead of 100 bound the cost. Its code adds images at full strength, which ``blend`` may
    ask for: the default averages them, and a trigger is then half as strong in a blend.

    Attributes
    ----------
    overlays
        Auxiliary images laid over each image: embeddings computed per scored image.
    overlay_weight
        Share of the overlay in an averaged blend, in (0, 1).
    blend
        ``average``, or ``sum`` as in the published code, cut off at 1 as images are (it lets them
        exceed it).
    """

    overlays: int = Field(8, ge=2, le=8)
    overlay_weight: float = Field(0.5, gt=0, lt=1)
    blend: Literal["average", "sum"] = later_field("average")

    _overlays: Tensor = PrivateAttr()
    _encoder: Encoder = PrivateAttr()

    def fit(self, view: DefenderView) -> None:
        """Draw the overlays from the auxiliary images.

        Raises
        ------
        ValueError
            When there are fewer auxiliary images than overlays.
        """
        if len(view.auxiliary) < self.overlays:
            raise ValueError(
                f"overlays is {self.overlays} but there are {len(view.auxiliary)} auxiliary images"
            )
        drawn = torch.randperm(len(view.auxiliary), generator=view.generator)[: self.overlays]
        self.load_state({"overlays": view.auxiliary.uint8(drawn)}, view)

    def score(self, images: Tensor) -> Tensor:
        """float32 (N,) in [-1, 1]: mean cosine similarity over pairs of blends."""
        images = images.to(self._encoder.device)
        # The closed form of the mean over pairs: no matrix of similarities is needed.
        total = torch.zeros(len(images), self._encoder.embedding_dim, dtype=torch.float64)
        lengths = torch.zeros(len(images), dtype=torch.float64)
        for overlay in self._overlays.to(images.device).float().div(255):
            if self.blend == "sum":
                blends = (images + overlay).clamp(max=1)
            else:
                blends = torch.lerp(images, overlay.expand_as(images), self.overlay_weight)
            unit = F.normalize(self._encoder.embed(blends).double().cpu(), dim=1)
            total += unit
            lengths += unit.square().sum(dim=1)  # 1, or 0 for an embedding of zeros
        pairs = self.overlays * (self.overlays - 1)
        return ((total.square().sum(dim=1) - lengths) / pairs).float()

    def state(self) -> dict[str, Tensor]:
        """``overlays``, uint8 (K, 3, H, W)."""
        return {"overlays": self._overlays}

    def load_state(self, state: dict[str, Tensor], view: DefenderView) -> None:
        """Restore what :meth:`state` gave."""
        self._overlays, self._encoder = state["overlays"].cpu().contiguous(), view.encoder
