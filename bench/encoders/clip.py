"""CLIP (Radford et al. 2021): an image tower, a text tower, and captions to embeddings.

The towers are open_clip's, except the small image tower of ``template-clip``. open_clip is imported
where a network is made or a caption is read, because that takes seconds.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bench.encoders.architectures import SimCLRBase

__all__ = [
    "CLIP",
    "MAX_LOG_SCALE",
    "ImageTower",
    "TextTower",
    "clip_rn50",
    "clip_rn50_visual",
    "template_clip",
    "trimmed",
]

INITIAL_LOG_SCALE = math.log(1 / 0.07)
MAX_LOG_SCALE = math.log(100)
"""Upper bound of the learnt ``logit_scale`` (a logarithm), section 2.5 of the paper."""

_VOCABULARY = 49_408
_CAPTIONS_PER_BATCH = 256
_RN50_FEATURES = {"stem": "avgpool", **{f"layer{i}": f"layer{i}" for i in range(1, 5)}}


class ImageTower(nn.Module):
    """Normalised images -> embeddings that are not of unit length.

    Parameters
    ----------
    visual
        (N, 3, S, S) -> (N, D).
    embedding_dim
        D.
    features
        Name of each intermediate feature -> path of the module inside ``visual`` that gives it,
        input to output.
    """

    def __init__(self, visual: nn.Module, embedding_dim: int, features: Mapping[str, str]) -> None:
        super().__init__()
        self.visual = visual
        self.embedding_dim = embedding_dim
        self._features = dict(features)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, S, S) -> (N, ``embedding_dim``)."""
        return self.visual(images)

    def feature_modules(self) -> dict[str, nn.Module]:
        """The modules whose outputs are the intermediate features, input to output."""
        return {name: self.visual.get_submodule(path) for name, path in self._features.items()}


class CLIP(ImageTower):
    """An image tower and a text tower with a common embedding space.

    Parameters
    ----------
    visual, embedding_dim, features
        As in :class:`ImageTower`.
    text
        ``open_clip.transformer.TextTransformer`` with causal attention.

    Attributes
    ----------
    logit_scale
        Logarithm of the factor on cosine similarities (one over the temperature); starts at
        ln(1 / 0.07).
    """

    def __init__(
        self,
        visual: nn.Module,
        text: nn.Module,
        embedding_dim: int,
        features: Mapping[str, str],
    ) -> None:
        super().__init__(visual, embedding_dim, features)
        self.text = text
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOG_SCALE))

    @property
    def context_length(self) -> int:
        """Most tokens of a caption, its two end marks included."""
        return self.text.context_length

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """int64 (M, ``context_length``) byte-pair tokens on the CPU, padded with 0.

        Longer captions are cut; their last token is the end mark all the same.
        """
        from open_clip import tokenize

        return tokenize(list(captions), context_length=self.context_length)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """int64 (M, L) tokens, L up to ``context_length`` -> (M, ``embedding_dim``).

        The embedding is read at the end mark, the largest token. Attention is causal, so what
        follows it has no influence and may be cut off (:func:`trimmed`), and the last block need
        only ask for the end mark: a third of the time of a tower of two blocks.
        """
        text, length = self.text, tokens.shape[1]
        mask = text.attn_mask[:length, :length]
        hidden = text.token_embedding(tokens) + text.positional_embedding[:length]
        *blocks, last = text.transformer.resblocks
        for block in blocks:
            hidden = block(hidden, attn_mask=mask)
        rows, ends = torch.arange(len(tokens), device=tokens.device), tokens.argmax(1)
        keys = last.ln_1(hidden)
        query = keys[rows, ends].unsqueeze(1)
        behind = mask[ends].repeat_interleave(text.heads, dim=0).unsqueeze(1)
        attended = last.attn(query, keys, keys, need_weights=False, attn_mask=behind)[0]
        end = hidden[rows, ends] + last.ls_1(attended.squeeze(1))
        end = end + last.ls_2(last.mlp(last.ln_2(end)))
        return text.ln_final(end) @ text.text_projection


class TextTower:
    """captions -> embeddings, in inference mode and float32.

    Embeddings are kept, 4 D bytes for each distinct caption, until a weight of the tower changes.
    """

    def __init__(self, network: CLIP) -> None:
        self.__network = network
        self.__known: dict[str, Tensor] = {}
        self.__checksum: tuple[object, ...] = ()

    def __repr__(self) -> str:
        return f"TextTower({self.__network.embedding_dim} dimensions)"

    @property
    def logit_scale(self) -> float:
        """Factor on cosine similarities, already exponentiated: in [1, 100]."""
        return float(self.__network.logit_scale.detach().exp())

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """int64 (M, L) byte-pair tokens on the CPU, cut to the context and padded with 0."""
        return self.__network.tokenize(_listed(captions))

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """float32 (M, D) embeddings on the encoder's device, not of unit length.

        Batched inside; each distinct caption is encoded once while the weights stay the same.

        Raises
        ------
        TypeError
            When given one string instead of a sequence of them.
        """
        captions = _listed(captions)
        checksum = self._weights()
        if checksum != self.__checksum:
            self.__known, self.__checksum = {}, checksum
        unknown = [caption for caption in dict.fromkeys(captions) if caption not in self.__known]
        for start in range(0, len(unknown), _CAPTIONS_PER_BATCH):
            batch = unknown[start : start + _CAPTIONS_PER_BATCH]
            self.__known.update(zip(batch, self._encode(batch), strict=True))
        if not captions:
            device = self.__network.logit_scale.device
            return torch.empty(0, self.__network.embedding_dim, device=device)
        # Stacked outside inference mode, so that a caller may train on the result.
        return torch.stack([self.__known[caption] for caption in captions])

    def _encode(self, captions: list[str]) -> Tensor:
        network = self.__network
        device = network.logit_scale.device
        tokens = trimmed(network.tokenize(captions)).to(device)
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            return network.encode_text(tokens)

    def _weights(self) -> tuple[object, ...]:
        """Device and checksum of every parameter.

        Tensors count their in-place changes, but fused optimisers go uncounted.
        """
        parameters = [value.detach() for value in self.__network.text.parameters()]
        sums = torch.stack([value.view(torch.int32).sum() for value in parameters])
        return (parameters[0].device, *sums.tolist())


def trimmed(tokens: Tensor) -> Tensor:
    """int64 (M, L) tokens without the columns behind the last end mark."""
    return tokens[:, : int(tokens.argmax(1).max()) + 1] if len(tokens) else tokens


def template_clip(
    width: int,
    stem_stride: int,
    embedding_dim: int,
    text_width: int,
    text_layers: int,
    text_heads: int,
    context_length: int,
) -> CLIP:
    """A small surrogate of CLIP: a narrow ResNet and a short transformer.

    Parameters
    ----------
    width, stem_stride
        As in :class:`~bench.encoders.architectures.SimCLRBase`, one block per stage.
    embedding_dim
        Length of an embedding; both towers end in a linear projection without bias.
    text_width, text_layers, text_heads
        Of the transformer; the heads share the width.
    context_length
        Most tokens of a caption, its two end marks included.

    Raises
    ------
    ValueError
        When a setting is out of range.
    """
    from open_clip.transformer import TextTransformer

    if min(embedding_dim, text_width, text_layers, text_heads) < 1:
        raise ValueError(
            "embedding_dim, text_width, text_layers and text_heads must be at least 1, got "
            f"{embedding_dim}, {text_width}, {text_layers} and {text_heads}"
        )
    if text_width % text_heads:
        raise ValueError(f"text_width {text_width} is no multiple of text_heads {text_heads}")
    if not 3 <= context_length <= 77:
        raise ValueError(f"context_length must be in [3, 77], got {context_length}")
    trunk = SimCLRBase((1, 1, 1, 1), width=width, stem_stride=stem_stride)
    projection = nn.Linear(trunk.embedding_dim, embedding_dim, bias=False)
    nn.init.normal_(projection.weight, std=trunk.embedding_dim**-0.5)
    text = TextTransformer(
        context_length=context_length,
        vocab_size=_VOCABULARY,
        width=text_width,
        heads=text_heads,
        layers=text_layers,
        output_dim=embedding_dim,
    )
    features = {"stem": "trunk.f.2", **{f"layer{i}": f"trunk.f.{2 + i}" for i in range(1, 5)}}
    visual = nn.Sequential(OrderedDict(trunk=trunk, projection=projection))
    return CLIP(visual, text, embedding_dim, features)


def clip_rn50() -> CLIP:
    """OpenAI's CLIP RN50, both towers, as open_clip's ``RN50-quickgelu``; 1024 dimensions."""
    from open_clip.transformer import QuickGELU, TextTransformer

    text = TextTransformer(
        context_length=77,
        vocab_size=_VOCABULARY,
        width=512,
        heads=8,
        layers=12,
        output_dim=1024,
        act_layer=QuickGELU,
    )
    return CLIP(_rn50(), text, 1024, _RN50_FEATURES)


def clip_rn50_visual() -> ImageTower:
    """The image tower of CLIP RN50 alone; takes 224-pixel images only, 1024 dimensions."""
    return ImageTower(_rn50(), 1024, _RN50_FEATURES)


def _rn50() -> nn.Module:
    from open_clip.modified_resnet import ModifiedResNet

    return ModifiedResNet((3, 4, 6, 3), output_dim=1024, heads=32, image_size=224, width=64)


def _listed(captions: Sequence[str]) -> list[str]:
    if isinstance(captions, str):
        raise TypeError(f"captions must be a sequence of strings, got the string {captions!r}")
    return list(captions)
