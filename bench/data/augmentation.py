"""SimCLR's image augmentations for whole batches: every image draws its own parameters.

The operations are those of torchvision's tensor transforms (crops, ``adjust_*``), written for a
batch with one parameter per image: a crop is two small matrix products, brightness, contrast,
saturation and grayscale are one affine form, hue is a closed form without look-ups. On two CPU
cores this takes about a third of the time of kornia's ``AugmentationSequential`` (figures in
``docs/decisions.md``), and unlike there the order of the colour operations is drawn per image, as
in the published pipeline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["REFERENCE_JITTER", "SIMCLR", "Augmentation", "jitter_views"]

_CROP_ATTEMPTS = 10
_CHUNK = 256  # images whose intermediate results stay in the processor's cache
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


@dataclass(frozen=True)
class Augmentation:
    """A distribution of views: random resized crop, flip, colour jitter, grayscale, in this order.

    Chen et al. 2020 (SimCLR), appendix A, with the strengths of the published CIFAR-10 code.

    Attributes
    ----------
    crop_scale
        Range of the crop's share of the area, resized back to the image's own size; None: no crop.
    crop_ratio
        Range of the crop's width / height, drawn log-uniformly.
    flip_probability, jitter_probability, grayscale_probability
        Chance of each, per image, in [0, 1].
    brightness, contrast, saturation
        Half width of the range of the factor around 1, in [0, 1].
    hue
        Half width of the range of the hue shift, in turns, in [0, 0.5].
    """

    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grayscale_probability: float = 0.2

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One view of each image.

        Parameters
        ----------
        images
            float32 (N, 3, H, W) in [0, 1], on any device; left as it is.
        generator
            A CPU generator, the only source of randomness: the same on every device.

        Returns
        -------
        Tensor
            float32 (N, 3, H, W) in [0, 1] on the device of ``images``.
        """
        draws = self._draw(len(images), generator, images.shape[-2], images.shape[-1])
        draws = draws.to(images.device)
        # One pass over an accelerator's memory, small ones over a processor's cache.
        size = _CHUNK if images.device.type == "cpu" else max(len(images), 1)
        views = torch.empty_like(images, memory_format=torch.contiguous_format)
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            views[part] = self._apply(images[part], draws[part])
        return views

    def _draw(self, count: int, generator: torch.Generator, height: int, width: int) -> Tensor:
        """float32 (N, 14): top, left, crop height, crop width, flip, 4 factors, 4 keys of the
        order, grayscale."""
        uniform = torch.rand(count, 2 * _CROP_ATTEMPTS + 13, generator=generator)
        area, ratio, rest = uniform.split([_CROP_ATTEMPTS, _CROP_ATTEMPTS, 13], dim=1)
        crop = self._crops(area, ratio, rest[:, 0], rest[:, 1], height, width)
        flip = rest[:, 2:3] < self.flip_probability
        jittered = rest[:, 3:4] < self.jitter_probability
        widths = torch.tensor([self.brightness, self.contrast, self.saturation, self.hue])
        centres = torch.tensor([1.0, 1.0, 1.0, 0.0])
        factors = centres + widths * (2 * rest[:, 4:8] - 1)
        factors = torch.where(jittered, factors, centres)
        gray = rest[:, 12:13] < self.grayscale_probability
        return torch.cat([crop, flip, factors, rest[:, 8:12], gray], dim=1)

    def _crops(
        self, area: Tensor, ratio: Tensor, top: Tensor, left: Tensor, height: int, width: int
    ) -> Tensor:
        """(N, 4) top, left, height, width in whole pixels: the first of ten tries that fits.

        The rule of torchvision's ``RandomResizedCrop``; its fallback, the largest centred crop
        with a permitted ratio, is the whole image whenever the image is square.
        """
        whole = torch.tensor([0.0, 0.0, height, width]).expand(len(area), 4)
        if self.crop_scale is None:
            return whole
        low, high = self.crop_scale
        pixels = height * width * (low + (high - low) * area)
        first, last = (math.log(value) for value in self.crop_ratio)
        aspect = torch.exp(first + (last - first) * ratio)
        widths, heights = (pixels * aspect).sqrt().round(), (pixels / aspect).sqrt().round()
        fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
        chosen = fits.int().argmax(1, keepdim=True)
        h, w = heights.gather(1, chosen).squeeze(1), widths.gather(1, chosen).squeeze(1)
        corners = [(top * (height - h + 1)).floor(), (left * (width - w + 1)).floor()]
        crops = torch.stack([*corners, h, w], dim=1)
        return torch.where(fits.any(1, keepdim=True), crops, whole)

    def _apply(self, images: Tensor, draws: Tensor) -> Tensor:
        top, left, height, width, flip = draws[:, :5].unbind(1)
        factors, order = draws[:, 5:9], draws[:, 9:13].argsort(1)
        if self.crop_scale is not None:
            views = _resized_crop(images, top, left, height, width, flip)
        else:
            views = torch.where(flip.bool()[:, None, None, None], images.flip(-1), images)
        for position in range(4):
            operation = order[:, position]
            factor = factors.gather(1, operation[:, None]).squeeze(1)
            shifted = ((operation == _HUE) & (factor != 0)).nonzero().squeeze(1)
            views = _blend(views, operation, torch.where(operation == _HUE, 1.0, factor))
            views[shifted] = _shift_hue(views[shifted], factor[shifted])
        gray = draws[:, 13]
        return _blend(views, torch.full_like(order[:, 0], _SATURATION), 1 - gray)


SIMCLR = Augmentation()
# BadEncoder's augmented references: the same jitter and flip, no crop.
REFERENCE_JITTER = Augmentation(crop_scale=None)


def jitter_views(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` independent views of each image without cropping: BadEncoder's references.

    Flip with probability 0.5, ColorJitter(0.4, 0.4, 0.4, 0.1) with 0.8, grayscale with 0.2
    (Jia et al. 2022, the published code).

    Returns
    -------
    Tensor
        float32 (count, N, 3, H, W) in [0, 1].
    """
    repeated = images.repeat(count, 1, 1, 1)
    return REFERENCE_JITTER(repeated, generator).unflatten(0, (count, len(images)))


def _resized_crop(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, flip: Tensor
) -> Tensor:
    """Each image's crop, mirrored where ``flip``, bilinearly resized to the image's size."""
    count, channels, rows, columns = images.shape
    across = _resampling(left, width, columns)
    across = torch.where(flip.bool()[:, None, None], across.flip(1), across)
    down = _resampling(top, height, rows)
    wide = torch.bmm(images.reshape(count, channels * rows, columns), across.transpose(1, 2))
    return torch.matmul(down[:, None], wide.view(images.shape)).clamp_(0, 1)


def _resampling(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(N, size, size): the weight of every source pixel (last axis) in every output pixel.

    Pixel centres at one half, as ``interpolate(align_corners=False)``; nothing outside of the crop
    contributes.
    """
    grid = torch.arange(size, dtype=start.dtype, device=start.device)
    inside = (grid + 0.5) * (length / size)[:, None] - 0.5
    source = start[:, None] + torch.minimum(inside.clamp_(min=0), (length - 1)[:, None])
    return (1 - (source[:, :, None] - grid).abs_()).clamp_(min=0)


def _blend(images: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """Brightness, contrast or saturation of each image by its ``factor``; 1 changes nothing.

    All three are factor * image + (1 - factor) * other, where the other is black, the mean gray
    level or the gray image.
    """
    red, green, blue = images.unbind(1)
    gray = (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)[:, None]
    rest = 1 - factor
    flat, own = (
        torch.where(operation == kind, rest, 0.0)[:, None, None, None]
        for kind in (_CONTRAST, _SATURATION)
    )
    other = gray * own + gray.mean((2, 3), keepdim=True) * flat
    return (images * factor[:, None, None, None]).add_(other).clamp_(0, 1)


def _shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Each image with its hue turned by ``turns`` (fractions of the circle), value and saturation
    kept."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    scale = 1 / chroma.clamp(min=1e-12)  # for grays every numerator below is 0
    sector = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    sector.add_(6 * turns[:, None, None])
    sector.sub_((sector / 6).floor_().mul_(6))
    base = value - chroma
    shares = (
        (sector - 3).abs_().sub_(1),
        2 - (sector - 2).abs_(),
        2 - (sector - 4).abs_(),
    )
    return torch.stack([share.clamp_(0, 1).mul_(chroma).add_(base) for share in shares], dim=1)
