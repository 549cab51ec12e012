from __future__ import annotations

import pytest
import torch
import torchvision.transforms.functional as reference

from bench.data import augmentation
from bench.data.augmentation import REFERENCE_JITTER, SIMCLR, Augmentation, jitter_views

STILL = Augmentation(
    crop_scale=None, flip_probability=0, jitter_probability=0, grayscale_probability=0
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(64, 3, 32, 32, generator=generator(9))


def only(**changes) -> Augmentation:
    return Augmentation(**{**STILL.__dict__, **changes})


def is_gray(views: torch.Tensor) -> torch.Tensor:
    return (views.amax(1) - views.amin(1)).flatten(1).amax(1) < 1e-5


@pytest.mark.parametrize("augment", [SIMCLR, REFERENCE_JITTER])
def test_views_are_in_range_and_come_from_the_generator_alone(images, augment):
    before, state = images.clone(), torch.get_rng_state()
    views = augment(images, generator(1))
    assert views.shape == images.shape
    assert views.dtype == torch.float32
    assert views.min() >= 0
    assert views.max() <= 1
    assert torch.equal(images, before), "the input was changed"
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    torch.rand(3)
    assert torch.equal(augment(images, generator(1)), views)
    assert not torch.equal(augment(images, generator(2)), views)


def test_every_image_draws_its_own_parameters():
    same = torch.rand(1, 3, 32, 32, generator=generator(5)).expand(40, 3, 32, 32)
    views = SIMCLR(same, generator())
    distances = torch.cdist(views.flatten(1), views.flatten(1)) + torch.eye(40) * 1e3
    assert distances.min() > 1e-3


def test_views_do_not_depend_on_chunks_or_neighbours(images, monkeypatch):
    views = SIMCLR(images, generator())
    others = images.clone()
    others[1:] = 0.5
    torch.testing.assert_close(SIMCLR(others, generator())[0], views[0])
    monkeypatch.setattr(augmentation, "_CHUNK", 7)
    torch.testing.assert_close(SIMCLR(images, generator()), views)


def test_nothing_switched_on_changes_nothing(images):
    torch.testing.assert_close(STILL(images, generator()), images, rtol=0, atol=1e-6)


def test_half_of_the_images_are_mirrored(images):
    many = images.repeat(32, 1, 1, 1)
    views = only(flip_probability=0.5)(many, generator())
    mirrored = (views == many.flip(-1)).flatten(1).all(1)
    kept = (views == many).flatten(1).all(1)
    assert torch.all(mirrored ^ kept)
    assert 0.45 < mirrored.float().mean() < 0.55


def test_a_fifth_of_the_images_turns_gray(images):
    views = SIMCLR(images.repeat(32, 1, 1, 1), generator())
    assert 0.17 < is_gray(views).float().mean() < 0.23


def test_a_fifth_of_the_images_escapes_the_jitter(images):
    many = images.repeat(32, 1, 1, 1)
    views = only(jitter_probability=0.8)(many, generator())
    kept = torch.isclose(views, many, atol=1e-6).flatten(1).all(1)
    assert 0.17 < kept.float().mean() < 0.23


def test_crops_have_the_stated_area_and_ratio_and_lie_inside():
    top, left, height, width = SIMCLR._draw(20_000, generator(), 32, 32)[:, :4].unbind(1)
    assert torch.all((top >= 0) & (left >= 0) & (top + height <= 32) & (left + width <= 32))
    area, ratio = height * width / 1024, width / height
    # Sides are whole pixels, so both ranges are left by at most the rounding of a short side.
    assert area.min() > 0.06
    assert area.max() <= 1
    assert ratio.min() > 0.65
    assert ratio.max() < 1.5
    # Uniform on [0.08, 1], less the large, long ones that do not fit.
    assert 0.46 < area.mean() < 0.54
    assert (area < 0.54).float().mean() == pytest.approx(0.54, abs=0.05)
    assert ratio.log().mean().abs() < 0.01


def test_a_crop_equals_the_reference_resized_crop(images):
    draws = SIMCLR._draw(len(images), generator(), 32, 32)
    top, left, height, width, flip = draws[:, :5].unbind(1)
    views = augmentation._resized_crop(images, top, left, height, width, flip)
    for image, view, box in zip(images, views, draws[:, :5].int().tolist(), strict=True):
        expected = reference.resized_crop(image, *box[:4], [32, 32], antialias=True)
        expected = reference.hflip(expected) if box[4] else expected
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


def test_colour_operations_in_any_order_equal_the_reference_ones(images):
    draws = only(jitter_probability=1)._draw(len(images), generator(), 32, 32)
    views = only(jitter_probability=1)(images, generator())
    adjust = (
        reference.adjust_brightness,
        reference.adjust_contrast,
        reference.adjust_saturation,
        reference.adjust_hue,
    )
    orders = draws[:, 9:13].argsort(1).tolist()
    assert len({tuple(order) for order in orders}) > 10
    for image, view, factors, order in zip(
        images, views, draws[:, 5:9].tolist(), orders, strict=True
    ):
        expected = image
        for operation in order:
            expected = adjust[operation](expected, factors[operation])
        torch.testing.assert_close(view, expected, rtol=0, atol=2e-5)


def test_hue_leaves_gray_and_black_images_alone():
    flat = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 8, 8)
    views = only(jitter_probability=1, brightness=0, contrast=0, saturation=0)(flat, generator())
    torch.testing.assert_close(views, flat, rtol=0, atol=1e-6)


def test_jitter_views_are_independent_and_uncropped(images):
    views = jitter_views(images, 5, generator())
    assert views.shape == (5, 64, 3, 32, 32)
    assert not torch.equal(views[0], views[1])
    halves = torch.zeros(200, 3, 16, 16)
    halves[..., 8:] = 1
    for view in jitter_views(halves, 1, generator())[0]:
        # A crop would move or lose the edge; colours may change, contrast may lift the black.
        left, right = view[..., :8].flatten(1), view[..., 8:].flatten(1)
        assert torch.all(left == left[:, :1])
        assert torch.all(right == right[:, :1])
        assert not torch.equal(left, right)
