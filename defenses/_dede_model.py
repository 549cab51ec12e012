"""DeDe's decoder: rebuild an image from its embedding and a few visible patches.

A masked autoencoder whose class slot is replaced, between encoder and decoder, by a projection of
the embedding under inspection. State-dict keys and shapes are those of the published checkpoints.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.api import read_state_dict

CHANNELS = 3
PUBLISHED_HEAD_WIDTH = 64


def keep_count(tokens: int, mask_ratio: float) -> int:
    """How many of ``tokens`` patches stay visible at ``mask_ratio``.

    The expression is the published one, truncation of ``1 - 0.9 < 0.1`` included: 64 patches at
    0.9 keep 6, and at 0.99 none.
    """
    return int(tokens * (1 - mask_ratio))


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(N, C, H, W) -> (N, T, C p p), patches in row-major order, each laid out channel first."""
    n, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    split = images.reshape(n, channels, rows, patch_size, columns, patch_size)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, -1)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """Inverse of :func:`patchify` for square images: (N, T, C p p) -> (N, C, H, W)."""
    n, tokens, _ = patches.shape
    side = round(tokens**0.5)
    split = patches.reshape(n, side, side, -1, patch_size, patch_size)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(n, -1, side * patch_size, side * patch_size)


def random_order(
    count: int, tokens: int, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """int64 (count, tokens): one uniform permutation per row, the first entries being kept.

    ``generator`` must live on ``device``.
    """
    return torch.rand(count, tokens, generator=generator, device=device).argsort(dim=1)


def patch_mask(order: Tensor, kept: int) -> Tensor:
    """float32 (N, T): 0 on the first ``kept`` patches of ``order``, 1 on the hidden rest."""
    mask = torch.ones(order.shape, device=order.device)
    return mask.scatter_(1, order[:, :kept], 0.0)


def _blocks(depth: int, width: int, heads: int) -> nn.Sequential:
    # Here, because timm takes longer to import than a finished run takes to look up.
    from timm.models.vision_transformer import Block

    norm = partial(nn.LayerNorm, eps=1e-6)
    return nn.Sequential(
        *(Block(width, heads, qkv_bias=False, norm_layer=norm) for _ in range(depth))
    )


class _Encoder(nn.Module):
    """Transformer over the visible patches; the hidden ones are never computed."""

    def __init__(self, tokens: int, patch_size: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embedding = nn.Parameter(torch.zeros(tokens, 1, width))
        self.patchify = nn.Conv2d(CHANNELS, width, patch_size, patch_size)
        self.transformer = _blocks(depth, width, heads)
        self.layer_norm = nn.LayerNorm(width)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embedding, std=0.02)

    def forward(self, patches: Tensor, positions: Tensor) -> Tensor:
        """(N, k, 3pp) at ``positions`` (N, k) -> (N, 1 + k, width), the class slot first."""
        # A convolution whose stride is its kernel is a linear map of each patch.
        visible = F.linear(patches, self.patchify.weight.flatten(1), self.patchify.bias)
        # Not by indexing: its gradient adds up in whatever order threads come to it.
        visible = visible + F.embedding(positions, self.pos_embedding[:, 0])
        cls = self.cls_token.expand(len(patches), -1, -1).to(visible.dtype)
        return self.layer_norm(self.transformer(torch.cat([cls, visible], dim=1)))


class _Decoder(nn.Module):
    """Transformer over all patches: the visible ones in place, a learnt token elsewhere."""

    def __init__(self, tokens: int, patch_size: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embedding = nn.Parameter(torch.zeros(tokens + 1, 1, width))
        self.transformer = _blocks(depth, width, heads)
        self.head = nn.Linear(width, CHANNELS * patch_size**2)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embedding, std=0.02)

    def forward(self, first: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """(N, width) and (N, k, width) at ``positions`` (N, k) -> patches (N, T, 3pp)."""
        n, _, width = visible.shape
        tokens = len(self.pos_embedding) - 1
        hidden = self.mask_token.to(visible.dtype).expand(n, tokens, width)
        index = positions[:, :, None].expand(-1, -1, width)
        full = torch.cat([first[:, None], hidden.scatter(1, index, visible)], dim=1)
        full = self.transformer(full + self.pos_embedding.transpose(0, 1))
        return self.head(full[:, 1:])


class DecoderModel(nn.Module):
    """Embedding and visible patches -> the whole image (Hou et al. 2025, DeDe).

    Parameters
    ----------
    image_size
        Side in pixels, a multiple of ``patch_size``.
    embedding_dim
        Length D of the embeddings under inspection.
    width, heads
        Channels of every token, a multiple of the number of attention heads.
    encoder_depth, decoder_depth
        Transformer blocks before and after the embedding is put in.

    Raises
    ------
    ValueError
        When the patches do not tile the image or the heads do not divide the width.
    """

    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 4,
        embedding_dim: int = 512,
        width: int = 192,
        encoder_depth: int = 12,
        decoder_depth: int = 4,
        heads: int = 3,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"image_size {image_size} is not divisible by patch_size {patch_size}: "
                "its patches must tile the image"
            )
        if width % heads:
            raise ValueError(f"width {width} is not divisible by heads {heads}")
        self.image_size, self.patch_size, self.embedding_dim = image_size, patch_size, embedding_dim
        self.tokens = (image_size // patch_size) ** 2
        self.encoder = _Encoder(self.tokens, patch_size, width, encoder_depth, heads)
        self.decoder = _Decoder(self.tokens, patch_size, width, decoder_depth, heads)
        self.mlp = nn.Sequential(nn.Linear(embedding_dim, width, bias=False))

    def materialise_attention(self, on: bool) -> None:
        """Compute attention by plain matrix products (``on``) or by the fused kernel, in place.

        The results agree to rounding. In bfloat16 on a CPU the fused kernel's backward pass is the
        slower one by far while the attention maps are small.
        """
        for block in (*self.encoder.transformer, *self.decoder.transformer):
            block.attn.fused_attn = not on

    def forward(self, patches: Tensor, embeddings: Tensor, order: Tensor, kept: int) -> Tensor:
        """Predict every patch.

        Parameters
        ----------
        patches
            float32 (N, T, 3pp), normalised; only the first ``kept`` of ``order`` are looked at.
        embeddings
            float32 (N, D), raw encoder output (not L2-normalised).
        order
            int64 (N, T), one permutation of the patches per image.

        Returns
        -------
        Tensor
            (N, T, 3pp), visible patches included.
        """
        first = self.mlp(embeddings)
        positions = order[:, :kept]
        if kept == 0:
            # All the encoder would give is its class slot, which the embedding overwrites.
            visible = first.new_empty(len(first), 0, first.shape[1])
        else:
            index = positions[:, :, None].expand(-1, -1, patches.shape[2])
            visible = self.encoder(patches.gather(1, index), positions)[:, 1:]
        return self.decoder(first.to(visible.dtype), visible, positions)


def reconstruction_loss(
    predicted: Tensor, patches: Tensor, mask: Tensor, mask_ratio: float
) -> Tensor:
    """Mean over *all* pixels of the squared error on hidden ones, over the *nominal* ratio.

    ``predicted`` and ``patches`` (N, T, 3pp), ``mask`` (N, T). As published, the divisor is
    ``mask_ratio`` (0.9), not the share really hidden (58 of 64 patches).
    """
    error = (predicted.float() - patches).square().mean(dim=2)
    return (error * mask).mean() / mask_ratio


_BLOCK = re.compile(r"(encoder|decoder)\.transformer\.(\d+)\.")


def model_from_state(state: dict[str, Tensor], heads: int | None = None) -> DecoderModel:
    """The model whose tensors are ``state``; sizes are read off the tensors.

    Parameters
    ----------
    heads
        Attention heads, which no tensor tells; by default one per 64 channels, as published.

    Raises
    ------
    ValueError
        Lists every missing, unexpected and misshapen key.
    """
    dimensions = {"encoder.pos_embedding": 3, "encoder.patchify.weight": 4, "mlp.0.weight": 2}
    for key, ndim in dimensions.items():
        if key not in state or state[key].ndim != ndim:
            found = f"shape {tuple(state[key].shape)}" if key in state else "missing"
            raise ValueError(f"not a DeDe decoder: {key} must have {ndim} dimensions ({found})")
    blocks = {match.groups() for key in state if (match := _BLOCK.match(key))}
    depths = {part: sum(part == owner for owner, _ in blocks) for part in ("encoder", "decoder")}
    width, _, _, patch_size = state["encoder.patchify.weight"].shape
    # On the meta device nothing is drawn or allocated for weights that are replaced at once.
    with torch.device("meta"):
        model = DecoderModel(
            image_size=round(len(state["encoder.pos_embedding"]) ** 0.5) * patch_size,
            patch_size=patch_size,
            embedding_dim=state["mlp.0.weight"].shape[1],
            width=width,
            encoder_depth=depths["encoder"],
            decoder_depth=depths["decoder"],
            heads=heads or max(1, width // PUBLISHED_HEAD_WIDTH),
        )
    _check_keys(model.state_dict(), state)
    copies = {key: tensor.detach().float().clone() for key, tensor in state.items()}
    model.load_state_dict(copies, assign=True)
    return model


def load_published(path: str | Path) -> DecoderModel:
    """Load a checkpoint written by the authors' code, strictly and without unpickling objects.

    Parameters
    ----------
    path
        A ``.pth`` file: ``{'epoch', 'state_dict', 'optimizer'}`` or a bare state dict.

    Raises
    ------
    ValueError
        When the file is not a checkpoint, or its keys or shapes are not those of a DeDe decoder.
    """
    state = read_state_dict(path)
    try:
        return model_from_state(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_keys(expected: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    faults = []
    if missing := sorted(expected.keys() - state.keys()):
        faults.append(f"missing keys {missing}")
    if unexpected := sorted(state.keys() - expected.keys()):
        faults.append(f"unexpected keys {unexpected}")
    faults += [
        f"{key} has shape {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    if faults:
        raise ValueError("not a DeDe decoder: " + "; ".join(faults))
