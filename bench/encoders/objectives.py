"""What self-supervised pretraining minimises: SimCLR's NT-Xent and BYOL's prediction loss."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.encoders.architectures import SimCLR as SimCLRModel
from bench.encoders.architectures import projector
from bench.encoders.randomness import seeded

if TYPE_CHECKING:
    from bench.encoders.ssl import SSLRecipe

__all__ = ["BYOL", "SimCLR", "byol_loss", "nt_xent"]

_BYOL_HIDDEN = 2048


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy, mean over the 2B anchors.

    Chen et al. 2020, equation 1: -log(exp(z.z+ / t) / sum over all others of exp(z.z' / t)).

    Parameters
    ----------
    first, second
        float32 (B, P) projections of the two views; scaled to unit length here.
    temperature
        t > 0.
    """
    views = F.normalize(torch.cat([first, second]), dim=1)
    similarity = (views @ views.T / temperature).fill_diagonal_(-math.inf)
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    return F.cross_entropy(similarity, partner)


def byol_loss(
    first_prediction: Tensor, second_prediction: Tensor, first_target: Tensor, second_target: Tensor
) -> Tensor:
    """Minus half the sum of the mean cosines of each view's prediction to the other's target.

    Grill et al. 2020, equation 2, up to a constant and a factor, as CTRL's code scales it. No
    gradient reaches the targets. All float32 (B, P).
    """
    one = F.cosine_similarity(first_prediction, second_target.detach(), dim=1).mean()
    other = F.cosine_similarity(second_prediction, first_target.detach(), dim=1).mean()
    return -(one + other) / 2


class SimCLR(SimCLRModel):
    """Encoder and projector with their loss."""

    recipe: SSLRecipe

    @classmethod
    def around(cls, network: nn.Module, recipe: SSLRecipe, initial: torch.Generator) -> SimCLR:
        """The model that trains ``network``; the projector is drawn from ``initial``."""
        with seeded(initial):
            head = projector(
                network.embedding_dim,
                recipe.projector_hidden,
                recipe.projector_out,
                batch_norm=recipe.projector_batch_norm,
            )
        model = cls(network, head)
        model.recipe = recipe
        return model

    def loss(self, pair: list[Tensor], autocast: AbstractContextManager) -> Tensor:
        """NT-Xent of two views (B, 3, H, W) of one batch, normalised."""
        batches = [torch.cat(pair)] if self.recipe.joint_batch_norm else pair
        with autocast:
            projections = torch.cat([self(_channels_last(batch)) for batch in batches]).float()
        return nt_xent(*projections.chunk(2), self.recipe.temperature)


class BYOL(nn.Module):
    """Online encoder ``f``, projector and predictor; a target that follows by moving average."""

    def __init__(self, f: nn.Module, g: nn.Module, predictor: nn.Module, recipe: SSLRecipe) -> None:
        super().__init__()
        self.f, self.g, self.predictor = f, g, predictor
        self.recipe = recipe
        self.target = copy.deepcopy(nn.Sequential(f, g)).requires_grad_(False)

    @classmethod
    def around(cls, network: nn.Module, recipe: SSLRecipe, initial: torch.Generator) -> BYOL:
        """The model that trains ``network``; all else is drawn from ``initial``."""
        hidden, out = recipe.projector_hidden or _BYOL_HIDDEN, recipe.projector_out
        with seeded(initial):
            heads = [
                projector(width, hidden, out, bias=True) for width in (network.embedding_dim, out)
            ]
            model = cls(network, *heads, recipe)
            if recipe.target_initialisation == "random":
                for module in model.target.modules():
                    if hasattr(module, "reset_parameters"):
                        module.reset_parameters()
        return model

    def loss(self, pair: list[Tensor], autocast: AbstractContextManager) -> Tensor:
        """Moves the target, then the symmetric prediction loss of two normalised views."""
        self._follow()
        views = [_channels_last(view) for view in pair]
        with autocast:
            predictions = [self.predictor(self.g(self.f(view))).float() for view in views]
            with torch.no_grad():
                targets = [self.target(view).float() for view in views]
        return byol_loss(*predictions, *targets)

    @torch.no_grad()
    def _follow(self) -> None:
        online = [*self.f.parameters(), *self.g.parameters()]
        torch._foreach_lerp_(
            list(self.target.parameters()), online, 1 - self.recipe.target_momentum
        )


def _channels_last(batch: Tensor) -> Tensor:
    return batch.contiguous(memory_format=torch.channels_last)
