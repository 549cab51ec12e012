"""DECREE's inversion: published figures, the closed forms against naive ones, the steps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from defenses._decree_inversion import (
    EPSILON,
    CostController,
    Schedule,
    TriggerSearch,
    batches_per_epoch,
    mask_size,
    mean_similarity,
    relative_size,
    self_similarity,
    shuffled_batches,
    square_mask,
    stamp,
    to_unbounded,
    to_unit,
)

DOUBLE = torch.float64
FIRST = torch.sin(0.37 * torch.arange(128, dtype=DOUBLE) + 0.1).view(8, 16)
SECOND = torch.cos(0.21 * torch.arange(80, dtype=DOUBLE)).view(5, 16)


def controller(**changes):
    fields = {"goal": 0.99, "cost": 1e-3, "factor": 5.0, "patience": 5, "smallest": 1e-5}
    return CostController(**(fields | changes))


def search(forward, side=4, dtype=torch.float32, normalise=lambda images: images, **changes):
    start = torch.rand(4, side, side, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    return TriggerSearch(
        start[0],
        start[1:],
        normalise=normalise,
        forward=forward,
        controller=controller(**changes),
        dtype=dtype,
        device="cpu",
    )


def noise(count, side=4, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_self_similarity_is_the_published_figure():
    assert self_similarity(FIRST).item() == pytest.approx(0.37514146392107633, abs=1e-12)


def test_mean_similarity_is_the_published_figure():
    assert mean_similarity(FIRST, SECOND).item() == pytest.approx(-0.024333660252042942, abs=1e-12)


def test_self_similarity_is_the_mean_over_pairs_of_different_rows():
    rows = torch.randn(9, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    pairs = [F.cosine_similarity(rows[i], rows[j], 0) for i in range(9) for j in range(9) if i != j]
    assert self_similarity(rows).item() == pytest.approx(float(sum(pairs)) / len(pairs), abs=1e-12)


def test_self_similarity_of_a_single_image_is_refused_and_not_nan():
    with pytest.raises(ValueError, match="at least two embeddings, got 1"):
        self_similarity(FIRST[:1])


def test_parametrisation_is_the_published_one_and_goes_back_without_error():
    values = torch.linspace(0, 1, 9, dtype=DOUBLE)
    half = torch.tensor([8.752194993247171, 0.9729549888, 0.5493061110, 0.2554127985], dtype=DOUBLE)
    expected = torch.cat([-half, torch.zeros(1, dtype=DOUBLE), half.flip(0)])
    parameters = to_unbounded(values)
    # The figures for the values between are given to ten digits.
    torch.testing.assert_close(parameters, expected, rtol=0, atol=1e-10)
    assert parameters[0].item() == pytest.approx(-8.752194993247171, abs=1e-12)
    torch.testing.assert_close(to_unit(parameters), values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parametrisation_is_finite_and_stays_in_range(dtype):
    values = torch.tensor([0.0, EPSILON, 0.5, 1 - EPSILON, 1.0], dtype=DOUBLE)
    parameters = torch.cat([to_unbounded(values), torch.tensor([-1e3, 1e3], dtype=DOUBLE)])
    units = to_unit(parameters.to(dtype))
    assert parameters.isfinite().all()
    assert ((units >= 0) & (units <= 1)).all()


def test_stamp_and_size_are_the_published_figures():
    count = torch.arange(48, dtype=DOUBLE)
    mask = to_unit((count[:16] - 8) / 5).view(4, 4)
    pattern = to_unit(2 * torch.sin(count)).view(4, 4, 3).permute(2, 0, 1)
    images = (torch.arange(96) % 256).view(2, 4, 4, 3).permute(0, 3, 1, 2).to(DOUBLE) / 255
    stamped = 255 * stamp(images, mask, pattern)
    assert mask_size(mask).item() == pytest.approx(22.61749709926515, abs=1e-9)
    assert stamped.sum().item() == pytest.approx(8034.842135959662, abs=1e-9)
    expected = [211.1972724896004, 193.88375437721527, 49.15917283133871]
    assert stamped[1, :, 2, 3].tolist() == pytest.approx(expected, abs=1e-9)


def test_stamping_normalised_images_is_normalising_stamped_ones():
    images, mask, pattern = noise(5), noise(1, seed=1)[0, 0], noise(1, seed=2)[0]
    mean, std = torch.rand(3, 1, 1), 0.1 + torch.rand(3, 1, 1)
    ours = stamp((images - mean) / std, mask, (pattern - mean) / std)
    torch.testing.assert_close(ours, (stamp(images, mask, pattern) - mean) / std)


def test_relative_sizes_are_the_published_figures():
    sizes = [13441.6773, 2822.1482, 25714.9752, 10555.1579]
    expected = [0.0892969, 0.0187483, 0.1708318, 0.0701209]
    # The figures are given cut to seven digits.
    assert [relative_size(size, 224) for size in sizes] == pytest.approx(expected, abs=1e-6)
    assert relative_size(3 * 10 * 10, 32) == pytest.approx(0.0977, abs=1e-4)


def test_controller_and_early_stop_are_the_published_trace():
    steps = controller()
    similarities = [1.0] * 14 + [0.5] * 40 + [1.0] * 30
    changes = {}
    for step, similarity in enumerate(similarities):
        before = steps.cost
        steps.update(similarity, 1000 - step if step < 8 else 2000)
        if steps.cost != before:
            changes[step] = steps.cost
    expected = {5: 5e-3, 11: 2.5e-2, 19: 5e-3, 25: 1e-3, 31: 2e-4, 37: 4e-5, 43: 8e-6}
    expected |= {59: 4e-5, 65: 2e-4, 71: 1e-3, 77: 5e-3, 83: 2.5e-2}
    assert list(changes) == list(expected)
    assert list(changes.values()) == pytest.approx(list(expected.values()), abs=1e-12)
    assert (steps.stale, steps.best) == (76, 993)


def test_controller_waits_for_a_first_trigger_and_stops_growing_at_the_largest_cost():
    steps = controller(cost=5e4)
    for _ in range(40):
        steps.update(0.5, 10)
    assert (steps.stale, steps.best) == (0, math.inf)
    for _ in range(200):
        steps.update(-1.0, 10)  # the absolute value counts
    assert 1e5 <= steps.cost < 5e5
    assert steps.stale == 199


@pytest.mark.parametrize(
    ("side", "margin", "total"), [(32, 5, 484.0000539999999), (224, 24, 30976.00192)]
)
def test_square_mask_is_the_published_figure(side, margin, total):
    mask = square_mask(side, margin)
    assert mask.sum().item() == pytest.approx(total, abs=1e-9)
    assert mask[margin, margin] == mask[-margin - 1, -margin - 1] == 1
    assert mask[margin - 1, margin] == EPSILON


def test_step_is_that_of_the_equations_written_out():
    """Against separate images, the double loop over pairs and torch's own Adam, in float64."""
    weight = torch.randn(6, 48, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    ours = search(lambda images: images.flatten(1) @ weight.T, dtype=DOUBLE)
    images = noise(5).double()
    theta = [p.detach().clone().requires_grad_() for p in (ours._mask, ours._pattern)]
    optimizer = torch.optim.Adam(theta, lr=0.5, betas=(0.5, 0.9))
    cost = controller()
    for _ in range(14):
        mask, pattern = (torch.tanh(t) / (2 - 1e-7) + 0.5 for t in theta)
        stamped = [(1 - mask) * image + mask * pattern for image in images]
        embedded = [weight @ image.flatten() for image in stamped]
        pairs = itertools.permutations(embedded, 2)
        similarity = torch.stack([F.cosine_similarity(a, b, 0) for a, b in pairs]).mean()
        loss = -similarity + cost.cost * 3 * mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cost.update(similarity.item(), 3 * mask.sum().item())
        assert ours.step(images, 0.5) == pytest.approx(similarity.item(), abs=1e-9)
        torch.testing.assert_close(ours._mask, theta[0], rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(ours._pattern, theta[1], rtol=1e-7, atol=1e-9)
    assert ours.controller.cost == cost.cost


def test_float32_follows_float64_closely():
    weight = torch.randn(6, 48, generator=torch.Generator().manual_seed(1))
    runs = [
        search(lambda images: images.flatten(1) @ weight.T, dtype=d)
        for d in (torch.float32, DOUBLE)
    ]
    for _ in range(10):
        single, double = (run.step(noise(5), 0.1) for run in runs)
        assert single == pytest.approx(double, abs=1e-4)


def test_what_is_kept_are_the_values_that_the_step_was_computed_with():
    weight = torch.randn(6, 48, generator=torch.Generator().manual_seed(1))
    forward = lambda images: images.flatten(1) @ weight.T  # noqa: E731
    ours, images = search(forward, goal=1e-6), noise(5)
    kept = to_unit(ours._mask).detach(), to_unit(ours._pattern).detach()
    similarity = ours.step(images, 0.5)
    assert torch.equal(ours.smallest.mask, kept[0])
    assert torch.equal(ours.smallest.pattern, kept[1])
    assert ours.smallest.size == pytest.approx(mask_size(kept[0]).item())
    again = self_similarity(forward(stamp(images, *kept))).item()
    assert ours.smallest.similarity == similarity == pytest.approx(again, abs=1e-6)


def test_a_later_trigger_counts_only_if_it_is_smaller_and_reaches_the_goal():
    told = iter([(0.995, 50.0), (0.5, 10.0), (0.999, 60.0), (0.992, 40.0)])
    steps = controller()
    assert [steps.update(*step) for step in told] == [True, False, False, True]
    assert (steps.best, steps.stale) == (40.0, 0)


def test_the_closest_is_kept_when_nothing_reaches_the_goal():
    weight = torch.randn(6, 48, generator=torch.Generator().manual_seed(1))
    ours = search(lambda images: images.flatten(1) @ weight.T, goal=0.9999999)
    similarities = [ours.step(noise(5), 0.1) for _ in range(8)]
    assert ours.smallest is None
    assert ours.closest.similarity == max(similarities, key=abs)


def test_learning_rates_change_at_their_epochs():
    schedule = Schedule((0.5, 0.1, 0.05), (30, 50))
    assert [schedule.at(epoch) for epoch in (0, 29, 30, 49, 50, 999)] == [
        0.5,
        0.5,
        0.1,
        0.1,
        0.05,
        0.05,
    ]


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [
        (10, 4, [4, 4, 2]),
        (9, 4, [4, 5]),
        (8, 4, [4, 4]),
        (3, 4, [3]),
        (5, 4, [5]),
        (1000, 128, None),
    ],
)
def test_every_epoch_shows_each_image_once_and_leaves_none_alone(count, size, sizes):
    batches = batches_per_epoch(count, size)
    drawn = shuffled_batches(count, size, torch.Generator().manual_seed(0))
    epochs = [[next(drawn) for _ in range(batches)] for _ in range(2)]
    orders = [torch.cat([batch.rows for batch in epoch]) for epoch in epochs]
    assert sizes is None or [len(batch.rows) for batch in epochs[0]] == sizes
    assert [batch.last for batch in epochs[0]] == [False] * (batches - 1) + [True]
    assert [{batch.epoch for batch in epoch} for epoch in epochs] == [{0}, {1}]
    assert all(torch.equal(order.sort().values, torch.arange(count)) for order in orders)
    assert not torch.equal(*orders)
