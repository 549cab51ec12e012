"""ASSET's parts: adjusted outlyingness, inner separation, thresholds and networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from attacks.triggers import PatchTrigger
from defenses._asset_networks import detector_network
from defenses._asset_separation import (
    adjusted_outlyingness,
    outlying,
    separate,
    separation_net,
    threshold,
)

# Probes of the published functions (A1 to A7).
VALUES = [0.1, 0.2, 0.25, 0.3, 0.31, 0.33, 0.36, 0.4, 0.45, 0.5, 0.9, 1.5]
# fmt: off
PUBLISHED = {
    1: [2.375065, 1.342428, 0.826110, 0.309791, 0.206527, 0,
        0.030369, 0.070862, 0.121477, 0.172092, 0.577016, 1.184401],
    -1: [2.049835, 1.261437, 0.867238, 0.473039, 0.394199, 0.236519,
         0, 0.041761, 0.093961, 0.146162, 0.563768, 1.190176],
}
# fmt: on


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("shape", [(12,), (12, 1)])
def test_outlyingness_is_the_published_one(sign, shape):
    found = adjusted_outlyingness(sign * torch.tensor(VALUES).view(shape))
    np.testing.assert_allclose(found, PUBLISHED[sign], atol=1e-5)


def test_outlyingness_follows_scale_and_shift():
    values = torch.tensor(VALUES)
    torch.testing.assert_close(
        adjusted_outlyingness(values * 7 - 3), adjusted_outlyingness(values), rtol=1e-4, atol=1e-4
    )


def test_scores_without_spread_are_no_outliers_and_the_only_other_one_is():
    assert not adjusted_outlyingness(torch.full((9,), 0.3)).any()
    assert adjusted_outlyingness(torch.tensor([0.3])).tolist() == [0]
    odd = adjusted_outlyingness(torch.tensor([0.5] * 20 + [0.9]))
    assert odd[:20].tolist() == [0] * 20
    assert math.isinf(odd[20])


def test_only_the_upper_side_is_suspicious_unless_both_are_asked_for():
    middle = torch.linspace(0.4, 0.6, 41)
    scores = torch.cat([middle, torch.tensor([0.0, 1.0])])
    assert outlying(scores).nonzero().flatten().tolist() == [42]
    assert outlying(scores, sides="both").nonzero().flatten().tolist() == [41, 42]
    assert not outlying(scores, cut=100).any()


@pytest.mark.parametrize(
    ("formula", "regularisation", "expected"),
    [("asset", 1e-6, 2.48691295), ("gaussian", 0, 2.564576137887001)],
)
def test_thresholds_are_the_published_and_the_intended_one(formula, regularisation, expected):
    scores = torch.from_numpy(np.concatenate([np.linspace(0, 2, 40), np.linspace(2, 9, 10)]))
    found = threshold(scores, formula, regularisation=regularisation)
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_intended_threshold_is_where_the_density_falls_to_the_level():
    scores = torch.randn(4001, generator=torch.Generator().manual_seed(0))
    kept = scores[scores <= scores.median()].double()
    normal = torch.distributions.Normal(kept.mean(), kept.var(correction=0).add(1e-6).sqrt())
    level = normal.log_prob(torch.tensor(threshold(scores))).exp()
    assert float(level) == pytest.approx(1e-6, rel=1e-4)
    wide = scores * 1e9
    below = wide[wide <= wide.median()].double()
    assert threshold(wide) == pytest.approx(float(below.mean()), rel=1e-6)


def test_variance_over_logits_is_the_published_loss():
    logits = torch.arange(40, dtype=torch.float64).sin().view(4, 10)
    assert float(logits.var(dim=1).mean()) == pytest.approx(0.5280214182811962, abs=1e-12)


def test_networks_have_the_published_sizes():
    network = detector_network("resnet18", 10, seed=0)
    assert sum(p.numel() for p in network.parameters()) == 11_173_962
    net = separation_net(8192)
    assert sum(p.numel() for p in net.parameters()) == 1_065_345
    assert [module.out_features for module in net if isinstance(module, nn.Linear)] == [128, 128, 1]


def test_resnet18_has_8192_features_before_it_pools_and_repeats_them_in_training_mode():
    network = detector_network("resnet18", 10, seed=0).train()
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen = []
    network.layer4.register_forward_hook(lambda *call: seen.append(call[2].flatten(1)))
    with torch.no_grad():
        assert network(images).shape == (4, 10)
        network(images)
    assert seen[0].shape == (4, 8192)
    assert torch.equal(*seen)


@pytest.mark.parametrize("side", [16, 32, 48])
def test_the_small_network_takes_images_of_any_side_one_by_one(side):
    network = detector_network("small", 7, seed=1).train()
    images = torch.rand(5, 3, side, side, generator=torch.Generator().manual_seed(0))
    together = network(images)
    assert together.shape == (5, 7)
    torch.testing.assert_close(network(images[2:3]), together[2:3])


def test_networks_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (detector_network("small", 10, seed)[0].weight for seed in (1, 1, 2))
    separate(torch.zeros(4, 2), torch.zeros(4, 2), 0, iterations=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_badnets_patch_of_the_demonstration_is_a_patch_trigger():
    trigger = PatchTrigger(size=4, row=27, column=27, image_size=32)
    stamped = trigger(torch.zeros(1, 3, 32, 32)).mul(255)
    expected = torch.zeros(32, 32)
    expected[27:31, 27:31] = 255
    assert torch.equal(stamped[0], expected.expand(3, 32, 32))


def mixed(seed=0, clean=120, poison=4, dimensions=32):
    """Features of a pool, the last ``poison`` of them from elsewhere, and of a base set."""
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(clean + poison, dimensions, generator=generator)
    pool[clean:] = 8 + 0.1 * pool[clean:]
    return pool, torch.randn(100, dimensions, generator=generator)


def test_separation_puts_what_the_base_set_lacks_above_the_rest():
    pool, base = mixed()
    outputs = separate(pool, base, seed=0)
    assert outputs.shape == (124,)
    assert outputs[120:].min() > outputs[:120].max()
    assert outlying(outputs).nonzero().flatten().tolist() == [120, 121, 122, 123]


def test_separation_is_that_of_a_loop_written_out():
    pool, base = mixed()
    torch.manual_seed(3)
    net = separation_net(32, hidden=16)
    to_one, to_zero = (torch.optim.Adam(net.parameters(), lr=1e-3) for _ in range(2))
    criterion = nn.MSELoss()
    for _ in range(5):
        to_one.zero_grad()
        criterion(net(pool), torch.ones(124, 1)).backward()
        to_one.step()
        to_zero.zero_grad()
        criterion(net(base), torch.zeros(100, 1)).backward()
        to_zero.step()
    expected = net(pool).detach().flatten()
    outputs = separate(pool, base, 3, hidden=16, iterations=5, learning_rate=1e-3, start="random")
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)


def test_an_even_start_finds_what_a_random_one_saturates_on():
    """Features a hundred times too long: the sign of the untrained output is a toss."""
    pool, base = mixed()
    pool[120:] *= 100
    hits = {
        start: [
            {120, 121, 122, 123}
            <= set(outlying(separate(pool, base, seed, start=start)).nonzero().flatten().tolist())
            for seed in range(8)
        ]
        for start in ("even", "random")
    }
    assert all(hits["even"])
    assert not all(hits["random"])


def test_an_even_start_says_nothing_before_it_is_trained():
    pool, base = mixed()
    assert separate(pool, base, 0, iterations=0).eq(0.5).all()
    assert separate(pool, base, 0, iterations=0, start="random").std() > 0
