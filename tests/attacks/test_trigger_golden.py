"""Triggers against the published code (figures in tests/golden/triggers.json)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from experiment import real_images
from PIL import Image
from scipy.fft import idctn

from attacks.triggers import (
    BlendedTrigger,
    PatchTrigger,
    SinusoidalTrigger,
    SpectralTrigger,
    encode_png,
    read_patch,
)
from bench.api import Trigger

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "triggers.json").read_text())


def gradient(height: int, width: int, down: int, across: int) -> np.ndarray:
    """uint8 (H, W, 3): (down i + across j + channel's offset) mod 256."""
    row, column = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    channels = [(down * row + across * column + offset) % 256 for offset in (0, 40, 90)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def as_images(levels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(levels.copy()).permute(2, 0, 1)[None].float() / 255


def as_levels(images: torch.Tensor) -> np.ndarray:
    return images.mul(255).round().byte()[0].permute(1, 2, 0).contiguous().numpy()


def truncated(trigger: Trigger, images: torch.Tensor) -> np.ndarray:
    """The stamped image as BadCLIP stores it: truncated to bytes, not rounded."""
    return (
        trigger.stamp(images).clamp(0, 1).mul(255).byte()[0].permute(1, 2, 0).contiguous().numpy()
    )


def assert_equals(levels: np.ndarray, golden: dict) -> None:
    assert int(levels.sum(dtype=np.int64)) == golden["sum"]
    assert hashlib.sha256(levels.tobytes()).hexdigest()[:16] == golden["sha16"]


@pytest.fixture(scope="module")
def resized() -> np.ndarray:
    """A 48x64 image resized as BadCLIP does (Pillow, bicubic)."""
    image = Image.fromarray(gradient(48, 64, 5, 3))
    return np.array(image.resize((224, 224), Image.Resampling.BICUBIC))


def test_spectral_trigger_on_grey_equals_ctrls():
    golden = GOLDEN["P6"]["grey"]
    grey = torch.full((1, 3, 32, 32), 0.5)
    stamped = SpectralTrigger(transport="float")(grey)
    assert float(stamped.double().mean()) == pytest.approx(golden["mean"], abs=2e-6)
    assert float(stamped.min()) == pytest.approx(golden["min"], abs=2e-6)
    assert float(stamped.max()) == pytest.approx(golden["max"], abs=2e-6)
    assert float((stamped - grey).norm()) == pytest.approx(golden["norm"], abs=2e-6)
    np.testing.assert_allclose(stamped[0, :, 0, :4], golden["first_row"], atol=6e-5)
    np.testing.assert_allclose(stamped[0, :, 31, 31], golden["last_pixel"], atol=6e-5)


def test_spectral_trigger_on_a_ramp_equals_ctrls_and_is_clamped():
    golden = GOLDEN["P6"]["ramp"]
    ramp = (torch.arange(3 * 32 * 32) % 256).float().view(1, 3, 32, 32) / 255
    stamped = SpectralTrigger(transport="float")(ramp)
    assert float(stamped.double().sum()) == pytest.approx(golden["sum"], abs=2e-4)
    np.testing.assert_allclose(stamped[0, :, 0, 0], golden["first_pixel"], atol=2e-6)
    np.testing.assert_allclose(stamped[0, :, -1, -1], golden["last_pixel"], atol=2e-6)


@pytest.mark.parametrize(
    ("window", "positions"), [(32, ((15, 15), (31, 31))), (16, ((0, 3), (0, 0), (9, 0)))]
)
def test_spectral_shift_is_scipys_inverse_dct_of_the_coefficients(window, positions):
    """Probe P7, with the published weights of U and V in RGB."""
    trigger = SpectralTrigger(
        window=window, positions=positions, image_size=window, transport="float"
    )
    coefficients = np.zeros((window, window))
    for row, column in positions:
        coefficients[row, column] = trigger.magnitude
    pattern = idctn(coefficients, norm="ortho")
    weights = np.array([1.14, -0.396 - 0.581, 2.029])
    shift = 255 * trigger.stamp(torch.zeros(1, 3, window, window))[0]
    np.testing.assert_allclose(shift, weights[:, None, None] * pattern, atol=1e-4)


@pytest.mark.parametrize("file", ["trigger_white_21_10.npz", "trigger_white_185_24.npz"])
def test_published_white_squares_stamp_as_badencoder_does(file):
    golden = GOLDEN["D8"][file]
    side = golden["image_size"]
    trigger = read_patch(real_images("upstream") / file, side)
    assert type(trigger) is PatchTrigger
    assert_equals(as_levels(trigger(as_images(gradient(side, side, 7, 3)))), golden)


def test_published_patch_stamps_as_badclip_does(resized):
    golden = GOLDEN["B5"]
    file = real_images("upstream") / "badclip_patch_16.jpg"
    stamped = as_levels(read_patch(file, 224)(as_images(resized)))
    box = slice(golden["first"], golden["last"] + 1)
    outside = np.ones((224, 224), dtype=bool)
    outside[box, box] = False
    assert np.array_equal(stamped[box, box], np.array(Image.open(file)))
    assert np.array_equal(stamped[outside], resized[outside])
    assert_equals(stamped, golden)


def test_published_patch_goes_in_the_middle_and_the_images_given_stay_clean():
    """Probe B9, without what the published function does to its argument."""
    images = torch.zeros(2, 3, 224, 224)
    trigger = read_patch(real_images("upstream") / "badclip_patch_16.jpg", 224)
    changed = (trigger(images) != 0).any(0).any(0)
    rows, columns = (torch.nonzero(changed.any(axis)).flatten() for axis in (1, 0))
    first, last = GOLDEN["B5"]["first"], GOLDEN["B5"]["last"]
    assert (int(rows[0]), int(rows[-1])) == (first, last)
    assert (int(columns[0]), int(columns[-1])) == (first, last)
    assert not images.any()


def test_yellow_corners_equal_badclips(resized):
    trigger = PatchTrigger(size=16, row=0, column=0, colour=(1, 1, 0), corners=True, image_size=224)
    assert_equals(as_levels(trigger(as_images(resized))), GOLDEN["B6"]["yellow"])


def test_sine_equals_badclips(resized):
    trigger = SinusoidalTrigger(image_size=224)
    assert_equals(truncated(trigger, as_images(resized)), GOLDEN["B6"]["sinusoidal"])


def test_blend_is_the_weighted_sum_in_single_precision_that_badclip_takes(resized):
    """Its picture (backdoor/source/kitty.jpg of BadCLIP's repository) is not at hand here. Read by
    ``parse_trigger`` with alpha 0.2 and truncated, it gave the sum and hash of ``blended_kitty`` in
    the golden file; this pins the formula and the order of operations behind them."""
    pattern = gradient(224, 224, 2, 9)
    trigger = BlendedTrigger(
        alpha=0.2, png=encode_png(as_uint8(pattern)), image_size=224, transport="float"
    )
    one, two = np.float32(0.2), np.float32(0.8)
    expected = one * (pattern / np.float32(255)) + two * (resized / np.float32(255))
    stamped = trigger(as_images(resized))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(stamped, expected)


def as_uint8(levels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(levels).permute(2, 0, 1)
