"""What holds for every kind of trigger, whatever its transport."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from trigger_kinds import KINDS, TRANSPORTS, random_images, random_levels, trigger_of

from attacks.triggers import (
    BlendedTrigger,
    ImagePatch,
    PatchTrigger,
    SinusoidalTrigger,
    SpectralTrigger,
    encode_png,
)
from bench.workspace import restore_trigger, trigger_record

every_kind = pytest.mark.parametrize("kind", KINDS)
every_transport = pytest.mark.parametrize("transport", TRANSPORTS)


def energy(trigger, image_size=32):
    """Squared distance of a stamped mid-grey image to mid-grey."""
    grey = torch.full((1, 3, image_size, image_size), 0.5)
    return float((trigger.stamp(grey) - grey).double().square().sum())


def on_8bit_levels(images):
    return torch.equal(images.mul(255).round().div(255), images)


@pytest.mark.parametrize("image_size", [32, 224])
@every_transport
@every_kind
def test_support_is_respected_and_filled(kind, transport, image_size):
    trigger = trigger_of(kind, image_size, transport)
    images = random_images(2, image_size)
    before = images.clone()
    stamped = trigger(images)
    inside = trigger.support(image_size)
    assert stamped.shape == images.shape
    assert stamped.dtype == torch.float32
    assert 0 <= float(stamped.min()) <= float(stamped.max()) <= 1
    assert torch.equal(stamped[:, :, ~inside], images[:, :, ~inside])
    assert (stamped != images).any(0).any(0)[inside].float().mean() > 0.8
    assert torch.equal(images, before)


@every_transport
@every_kind
def test_result_depends_on_the_image_alone(kind, transport):
    trigger = trigger_of(kind, 32, transport)
    images = random_images(70, 32)  # more than the images of one cached part
    stamped = trigger(images)
    assert torch.equal(trigger(images), stamped)
    assert torch.equal(trigger(images[66:68]), stamped[66:68])
    assert trigger(images[:0]).shape == (0, 3, 32, 32)


@every_kind
def test_only_float_keeps_values_between_8bit_levels(kind):
    images = random_images(3, 32)
    rounded, exact, jpeg = (trigger_of(kind, 32, t)(images) for t in TRANSPORTS)
    assert on_8bit_levels(rounded)
    assert on_8bit_levels(jpeg)
    assert not torch.equal(jpeg, rounded)
    assert (exact - rounded).abs().max() < 0.5 / 255 + 1e-6
    pixels_are_levels = "image-patch" in kind
    assert on_8bit_levels(exact) == pixels_are_levels


def test_jpeg_is_pillows_of_the_whole_stamped_image():
    trigger = trigger_of("sinusoidal", 32, "jpeg-30")
    images = random_images(2, 32)
    levels = trigger.stamp(images).clamp(0, 1).mul(255).round().byte()
    file = io.BytesIO()
    Image.fromarray(levels[1].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=30)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    assert torch.equal(trigger(images)[1].mul(255).round().byte(), expected)


@pytest.mark.parametrize("transport", ["16bit", "jpeg", "jpeg-0", "jpeg-101", "jpeg-7.5", ""])
def test_unknown_transport_is_refused(transport):
    with pytest.raises(ValueError, match="'8bit', 'float' or 'jpeg-<quality>'"):
        trigger_of("patch", 32, transport)


@every_kind
def test_decoys_look_alike_and_differ(kind):
    trigger = trigger_of(kind, 32, "jpeg-80")
    decoys = trigger.decoys()
    assert len(decoys) >= 3
    grey = torch.full((1, 3, 32, 32), 0.4)
    stamps = [one.stamp(grey) for one in (trigger, *decoys)]
    for number, decoy in enumerate(decoys):
        assert decoy.transport == "jpeg-80"
        assert energy(decoy) == pytest.approx(energy(trigger), rel=1e-5)
        assert decoy.support(32).sum() == trigger.support(32).sum()
        assert not any(torch.equal(stamps[number + 1], other) for other in stamps[: number + 1])


@every_kind
def test_record_restores_the_same_trigger_and_decoys(kind):
    images = random_images(2, 32)
    trigger = trigger_of(kind, 32)
    for one in (trigger, *trigger.decoys()):
        again = restore_trigger(json.loads(json.dumps(trigger_record(one))))
        assert again == one
        assert torch.equal(again(images), one(images))


@every_kind
def test_descriptions_tell_decoys_and_transports_apart(kind):
    trigger = trigger_of(kind, 32)
    described = [one.describe() for one in (trigger, *trigger.decoys())]
    described.append(trigger_of(kind, 32, "float").describe())
    assert len(set(described)) == len(described)


@every_kind
def test_images_of_another_size_are_refused(kind):
    with pytest.raises(ValueError, match="made for 64-pixel images, not 32"):
        trigger_of(kind, 64)(random_images(1, 32))


PNG = encode_png(random_levels(3, 8, 6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImagePatch(png=PNG, row=25, column=0), "8x6 patch at row 25, column 0 does not"),
        (lambda: ImagePatch(png=PNG, row=0, column=-1), "column"),
        (lambda: ImagePatch(png="no base64!", row=0, column=0), "base64 of a PNG"),
        (lambda: ImagePatch(png="aGVsbG8=", row=0, column=0), "base64 of a PNG"),
        (lambda: ImagePatch(png=PNG[:60], row=0, column=0), "base64 of a PNG"),
        (
            lambda: ImagePatch(png=encode_png(random_levels(4, 4, 4) // 2), row=0, column=0),
            "alpha of a patch is 0",
        ),
        (
            lambda: ImagePatch(png=encode_png(random_levels(4, 4, 4) * 0), row=0, column=0),
            "no pixel of the picture is stamped",
        ),
        (lambda: SpectralTrigger(image_size=48), "do not tile a 48-pixel image"),
        (lambda: SpectralTrigger(positions=[(32, 0)]), "pairs from 0 to 31"),
        (lambda: SpectralTrigger(positions=[(3, 3), (3, 3)]), "different"),
        (lambda: SpectralTrigger(channels=(3,)), "channels"),
        (lambda: SpectralTrigger(magnitude=0), "magnitude"),
        (lambda: BlendedTrigger(), "either a png or a seed"),
        (lambda: BlendedTrigger(png=PNG, seed=1), "either a png or a seed"),
        (lambda: BlendedTrigger(png=PNG), "the pattern has 8x6 pixels, the image 32x32"),
        (lambda: BlendedTrigger(seed=1, alpha=0), "alpha"),
        (lambda: SinusoidalTrigger(frequency=16), "16 cycles need more than 32 pixels"),
    ],
)
def test_impossible_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_transparent_pixels_are_not_stamped():
    levels = random_levels(4, 8, 8)
    images = random_images(2, 32)
    stamped = ImagePatch(png=encode_png(levels), row=4, column=6)(images)
    box = (stamped * 255).round().byte()[0, :, 4:12, 6:14]
    opaque = levels[3] == 255
    assert torch.equal(box[:, opaque], levels[:3, opaque])
    assert torch.equal(
        stamped[:, :, 4:12, 6:14][:, :, ~opaque], images[:, :, 4:12, 6:14][:, :, ~opaque]
    )


@pytest.mark.parametrize("kind", ["image-patch with holes", "blended picture"])
def test_decoys_of_a_picture_include_every_look_alike(kind):
    variants = {decoy.variant for decoy in trigger_of(kind, 32).decoys()}
    assert variants >= {
        "mirrored",
        "upside-down",
        "half-turn",
        "channels-cycled",
        "pixels-shuffled",
    }


def test_spectral_windows_tile_a_larger_image():
    grey = torch.full((1, 3, 64, 64), 0.5)
    small, large = (SpectralTrigger(image_size=side) for side in (32, 64))
    tile = small.stamp(grey[:, :, :32, :32])
    assert torch.equal(large.stamp(grey), tile.repeat(1, 1, 2, 2))


def test_spectral_decoys_move_every_coefficient_and_the_nearest_comes_first():
    trigger = SpectralTrigger()
    decoys = trigger.decoys()
    assert decoys[0].positions == ((13, 13), (29, 29))
    for decoy in decoys:
        assert not set(decoy.positions) & set(trigger.positions)
        assert (0, 0) not in decoy.positions


@pytest.mark.parametrize("window", [4, 8])
def test_spectral_decoys_exist_for_small_and_crowded_windows(window):
    positions = [(0, column) for column in range(window)]
    trigger = SpectralTrigger(positions=positions, window=window)
    assert len(trigger.decoys()) >= 3


def test_a_symmetric_picture_in_the_middle_has_decoys_elsewhere():
    levels = torch.full((3, 8, 8), 30, dtype=torch.uint8)
    decoys = ImagePatch(png=encode_png(levels), row=12, column=12).decoys()
    assert len(decoys) >= 3
    assert {(decoy.row, decoy.column) for decoy in decoys} == {(0, 0), (24, 24), (0, 24), (24, 0)}


def test_no_precision_is_lost_under_autocast():
    images = random_images(4, 32)
    for kind in KINDS:
        trigger = trigger_of(kind, 32, "float")
        with torch.autocast("cpu", torch.bfloat16):
            inside = trigger(images)
        assert torch.equal(inside, trigger(images))


def test_no_gradient_flows_through_a_call_and_images_may_require_one():
    images = random_images(1, 32).requires_grad_()
    assert not trigger_of("patch", 32)(images).requires_grad


def test_a_kind_under_another_ones_name_is_not_recorded_as_that():
    """An audit would restore the other one, and measure its stamp."""

    class Darker(PatchTrigger):
        pass

    with pytest.raises(ValueError, match="Darker needs a `name` of its own: 'patch' is that of Pa"):
        trigger_record(Darker())
