"""Contrastive training of CLIP encoders on images and captions (Radford et al. 2021, section 2.3).

The recipe covers training from scratch and the fine-tuning of BadCLIP (Liang et al. 2024), of
text-on-pair poisoning as in DECREE's code, and of CleanCLIP (Bansal et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.component import Component, Field, Progress
from bench.data.augmentation import Augmentation
from bench.data.imageset import ImageSet
from bench.encoders.clip import CLIP, MAX_LOG_SCALE, trimmed
from bench.encoders.encoder import Encoder
from bench.encoders.randomness import stream
from bench.encoders.ssl import check_finite

__all__ = ["ClipRecipe", "contrastive_loss", "in_modal_loss", "train_clip", "warmup_cosine"]


class ClipRecipe(Component):
    """Hyper-parameters of contrastive training; the defaults are BadCLIP's published fine-tuning.

    Attributes
    ----------
    epochs
        Passes over the pairs; the last incomplete batch of each is dropped.
    batch_size
        Pairs per step, each a negative of all others (but those of its group).
    optimizer, learning_rate, momentum, betas, weight_decay
        ``momentum`` is SGD's alone, ``betas`` AdamW's. Norms, biases and the logit scale do not
        decay, nor do rows of the token embedding that no caption uses.
    schedule
        ``cosine`` to zero after the warm-up, see :func:`warmup_cosine`, or ``constant`` after it.
    warmup_steps
        Linear warm-up of the learning rate; ``warmup_epochs``, when given, takes its place.
    train_text
        Whether the text tower learns; text-on-pair poisoning leaves it alone.
    batch_norm
        ``train``, or ``frozen``: statistics and affine parameters as they are.
    crop_scale
        Smallest share of the area that a random crop keeps, then flipped with probability 0.5;
        None: images as they are, as BadCLIP's code has them.
    fixed_logit_scale
        Factor on cosine similarities, in [1, 100]; None: learnt, with its logarithm held in
        [0, ln 100]. DECREE's code uses exp(0.5), which a temperature of 0.5 would not give.
    inmodal_weight
        Of CleanCLIP's term, which pulls each image to an augmented view of itself and each caption
        to a second one; CleanCLIP: 1.
    """

    version: ClassVar[int] = 1

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=128, ge=2)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=1e-6, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.1, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(default=10_000, ge=0)
    warmup_epochs: int | None = Field(default=None, ge=0)
    train_text: bool = True
    batch_norm: Literal["train", "frozen"] = "train"
    crop_scale: float | None = Field(default=None, gt=0, le=1)
    fixed_logit_scale: float | None = Field(default=None, ge=1, le=100)
    inmodal_weight: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _betas_below_one(self) -> ClipRecipe:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")
        return self

    def warmup(self, steps_per_epoch: int) -> int:
        """Steps of the warm-up."""
        if self.warmup_epochs is None:
            return self.warmup_steps
        return self.warmup_epochs * steps_per_epoch

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of the 0-based ``step``."""
        warmup, total = self.warmup(steps_per_epoch), self.epochs * steps_per_epoch
        if self.schedule == "constant":
            return self.learning_rate * min(1.0, (step + 1) / max(1, warmup))
        return warmup_cosine(step, total, warmup, self.learning_rate)

    def optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        """Fused AdamW or SGD over what ``network`` trains, vectors and scalars without decay."""
        trained = [value for value in network.parameters() if value.requires_grad]
        groups = [
            {
                "params": [value for value in trained if value.ndim >= 2],
                "weight_decay": self.weight_decay,
            },
            {"params": [value for value in trained if value.ndim < 2], "weight_decay": 0.0},
        ]
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                groups, lr=self.learning_rate, momentum=self.momentum, fused=True
            )
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, fused=True)


def warmup_cosine(step: int, total: int, warmup: int, learning_rate: float) -> float:
    """Learning rate of the 0-based ``step``: linear from zero, then half a cosine back to zero.

    Step ``warmup - 1`` is the first at the full rate; step ``total``, the first that is no longer
    taken, would have rate 0. Steps beyond ``total`` rise again: BadCLIP's code counts its epochs
    from 1, so that its first step has 39 % of the rate and its last epoch lies beyond the zero.
    """
    if step < warmup:
        return learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def contrastive_loss(
    image: Tensor, text: Tensor, logit_scale: Tensor | float, groups: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE: the mean of image-to-text and text-to-image cross entropy.

    Radford et al. 2021, figure 3. Pairs of one group are positives of each other: the loss of an
    anchor is the mean of -log p over its positives (Khosla et al. 2020, equation 2, "outside").

    Parameters
    ----------
    image, text
        float32 (B, D); scaled to unit length here.
    logit_scale
        Factor on cosine similarities, already exponentiated.
    groups
        int64 (B,), or None: every pair is a group of its own.
    """
    logits = logit_scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    targets = _targets(logits, groups)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def in_modal_loss(
    embeddings: Tensor,
    augmented: Tensor,
    logit_scale: Tensor | float,
    groups: Tensor | None = None,
) -> Tensor:
    """CleanCLIP's InfoNCE within one modality, from ``embeddings`` to ``augmented`` only.

    Arguments as in :func:`contrastive_loss`.
    """
    logits = logit_scale * F.normalize(embeddings, dim=1) @ F.normalize(augmented, dim=1).T
    return F.cross_entropy(logits, _targets(logits, groups))


def train_clip(
    recipe: ClipRecipe,
    encoder: Encoder,
    images: ImageSet,
    captions: Sequence[str],
    groups: Tensor | None,
    *,
    second_captions: Sequence[str] | None = None,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    progress: Progress,
) -> tuple[Encoder, dict[str, float]]:
    """Train a CLIP encoder, fresh or pretrained, in place.

    Batch order and views come from two streams of ``generator``: two runs on sets of one length
    differ by their pixels, captions and groups alone (victim and clean twin).

    Parameters
    ----------
    encoder
        With a text tower; moved to ``device``.
    images
        Of the encoder's size; kept as uint8 on the device.
    captions
        One per image. Each distinct one is read once per run and encoded once per step.
    groups
        int64 (N,), see :func:`contrastive_loss`; None: every pair is a group of its own.
    second_captions
        Another caption per image, for ``inmodal_weight`` > 0 only.
    generator
        On the CPU; the only source of randomness. The global generators are left alone.
    precision
        ``float32``, or ``bfloat16`` for autocast.
    progress
        Sees every step and may end the training early.

    Returns
    -------
    Encoder
        The same, in eval mode, parameters frozen, on ``device``.
    dict
        ``loss_first`` and ``loss_last``, means over the first and the last epoch that ran,
        ``steps``, and ``logit_scale``, exponentiated.

    Raises
    ------
    ValueError
        When the encoder has no text tower, lengths, sizes or precision do not fit, or the warm-up
        is as long as the training.
    FloatingPointError
        When the loss is no longer finite.
    """
    _check(recipe, encoder, images, captions, groups, second_captions, precision)
    order, views = (stream(generator) for _ in range(2))
    network: CLIP = encoder.to(device).network
    _open_for_training(recipe, network)
    pairs = [captions] if second_captions is None else [captions, second_captions]
    with torch.enable_grad(), _captions(recipe, network, pairs) as text:
        run = _Run(recipe, encoder, images.to(device), text, groups, views, precision)
        losses = run.losses(order, progress)
    network.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    per_epoch = len(images) // recipe.batch_size
    return encoder, {
        "loss_first": float(losses[:per_epoch].mean()),
        "loss_last": float(losses[(len(losses) - 1) // per_epoch * per_epoch :].mean()),
        "steps": float(len(losses)),
        "logit_scale": float(network.logit_scale.exp()),
    }


class _Captions:
    """The distinct captions of a run as tokens, and which of them each image has."""

    def __init__(self, network: CLIP, tokens: Tensor, ids: Tensor) -> None:
        self.network = network
        self.tokens = tokens
        self.ids = ids  # (views, N) on the CPU

    def encode(self, rows: Tensor) -> Tensor:
        """Embeddings of the captions of ``rows``, of all views one after the other."""
        device = self.network.logit_scale.device
        distinct, inverse = self.ids[:, rows].flatten().unique(return_inverse=True)
        embeddings = self.network.encode_text(trimmed(self.tokens[distinct]).to(device))
        # An embedding's backward pass sums in a fixed order; that of indexing does not.
        return F.embedding(inverse.to(device), embeddings.float())


class _FrozenCaptions(_Captions):
    """The same of a text tower that does not learn: every caption is encoded once per run."""

    def __init__(self, network: CLIP, tokens: Tensor, ids: Tensor) -> None:
        super().__init__(network, tokens, ids)
        device = network.logit_scale.device
        with torch.no_grad():
            parts = [network.encode_text(trimmed(part).to(device)) for part in tokens.split(256)]
        self.embeddings = torch.cat(parts)

    def encode(self, rows: Tensor) -> Tensor:
        return self.embeddings[self.ids[:, rows].flatten().to(self.embeddings.device)]


@contextmanager
def _captions(
    recipe: ClipRecipe, network: CLIP, captions: list[Sequence[str]]
) -> Iterator[_Captions]:
    """Tokenise the captions of each view, and narrow the token embedding to what they use."""
    known: dict[str, int] = {}
    ids = torch.tensor(
        [[known.setdefault(caption, len(known)) for caption in view] for view in captions]
    )
    tokens = network.tokenize(list(known))
    if not recipe.train_text:
        yield _FrozenCaptions(network, tokens, ids)
        return
    # Most of the 49,408 rows are in no caption: their gradients are zero, yet they would take
    # several times the optimiser's time of all other parameters. Renumbering keeps the order, by
    # which the end mark, the largest token, is found.
    whole = network.text.token_embedding
    used, renumbered = tokens.unique(return_inverse=True)
    rows = used.to(whole.weight.device)
    narrow = nn.Embedding.from_pretrained(whole.weight.detach()[rows], freeze=False)
    network.text.token_embedding = narrow
    try:
        yield _Captions(network, renumbered, ids)
    finally:
        network.text.token_embedding = whole
        with torch.no_grad():
            whole.weight[rows] = narrow.weight


class _Run:
    """One training run: batches, views, loss and steps."""

    def __init__(
        self,
        recipe: ClipRecipe,
        encoder: Encoder,
        images: ImageSet,
        text: _Captions,
        groups: Tensor | None,
        views: torch.Generator,
        precision: str,
    ) -> None:
        self.recipe = recipe
        self.encoder = encoder
        self.network: CLIP = encoder.network
        self.images = images
        self.text = text
        self.groups = groups
        self.views = views
        self.low = precision == "bfloat16"
        crop = None if recipe.crop_scale is None else (recipe.crop_scale, 1.0)
        self.plain = Augmentation(crop, jitter_probability=0.0, grayscale_probability=0.0)
        self.strong = Augmentation(crop)

    def losses(self, order: torch.Generator, progress: Progress) -> Tensor:
        """Run the steps; float32 (steps,) losses on the CPU."""
        recipe, scale = self.recipe, self.network.logit_scale
        optimizer = recipe.optimiser(self.network)
        size, per_epoch = recipe.batch_size, len(self.images) // recipe.batch_size
        losses, done = torch.zeros(recipe.epochs * per_epoch, device=scale.device), 0
        for step in progress.track(range(recipe.epochs * per_epoch), "contrastive"):
            position = step % per_epoch
            if position == 0:
                check_finite(losses[:done])
                permutation = torch.randperm(len(self.images), generator=order)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step, per_epoch)
            loss = self._loss(permutation[position * size :][:size])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if scale.requires_grad:
                with torch.no_grad():
                    scale.clamp_(0, MAX_LOG_SCALE)
            losses[step], done = loss.detach(), step + 1
        check_finite(losses[:done])
        return losses[:done].cpu()

    def _loss(self, rows: Tensor) -> Tensor:
        batch = self.images.float(rows)
        pixels = [batch if self.recipe.crop_scale is None else self.plain(batch, self.views)]
        if self.recipe.inmodal_weight > 0:
            pixels.append(self.strong(batch, self.views))
        inputs = self.encoder.normalise(torch.cat(pixels))
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        with (
            torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.low),
            # Fused attention is slow backwards for short captions on a processor, and its sums on
            # an accelerator come in no fixed order.
            sdpa_kernel(SDPBackend.MATH),
        ):
            image, text = self.network(inputs), self.text.encode(rows)
        image, text = (value.float().split(len(rows)) for value in (image, text))
        groups = None if self.groups is None else self.groups[rows].to(inputs.device)
        scale = self.network.logit_scale.exp()
        loss = contrastive_loss(image[0], text[0], scale, groups)
        if self.recipe.inmodal_weight > 0:
            within = in_modal_loss(*image, scale, groups) + in_modal_loss(*text, scale, groups)
            loss = loss + self.recipe.inmodal_weight * within / 2
        return loss


def _open_for_training(recipe: ClipRecipe, network: CLIP) -> None:
    """Training mode, and gradients for what the recipe trains."""
    network.to(memory_format=torch.channels_last).train().requires_grad_(True)
    network.text.requires_grad_(recipe.train_text)
    if recipe.batch_norm == "frozen":
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval().requires_grad_(False)
    if recipe.fixed_logit_scale is not None:
        with torch.no_grad():
            network.logit_scale.fill_(math.log(recipe.fixed_logit_scale))
        network.logit_scale.requires_grad_(False)


def _targets(logits: Tensor, groups: Tensor | None) -> Tensor:
    """Class indices (B,), or the (B, B) shares that each anchor's positives have."""
    if groups is None:
        return torch.arange(len(logits), device=logits.device)
    positive = (groups[:, None] == groups).to(logits.dtype)
    return positive / positive.sum(1, keepdim=True)


def _check(
    recipe: ClipRecipe,
    encoder: Encoder,
    images: ImageSet,
    captions: Sequence[str],
    groups: Tensor | None,
    second_captions: Sequence[str] | None,
    precision: str,
) -> None:
    count = len(images)
    if encoder.text is None:
        raise ValueError(f"{encoder.architecture} has no text tower to train with captions")
    if images.image_size != encoder.image_size:
        raise ValueError(
            f"{images.name} has images of {images.image_size} pixels, the encoder takes "
            f"{encoder.image_size}"
        )
    for what, values in (
        ("captions", captions),
        ("second captions", second_captions),
        ("groups", groups),
    ):
        if values is not None and len(values) != count:
            raise ValueError(f"{len(values)} {what} for {count} images of {images.name}")
    if (second_captions is not None) != (recipe.inmodal_weight > 0):
        raise ValueError("second captions go with an inmodal_weight above 0, and only with it")
    if recipe.batch_size > count:
        raise ValueError(f"batch_size {recipe.batch_size} exceeds the {count} images")
    per_epoch = count // recipe.batch_size
    if recipe.warmup(per_epoch) >= recipe.epochs * per_epoch:
        raise ValueError(
            f"a warm-up of {recipe.warmup(per_epoch)} steps leaves nothing of the "
            f"{recipe.epochs * per_epoch} steps of training; lower warmup_steps or warmup_epochs"
        )
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be float32 or bfloat16, got {precision!r}")
