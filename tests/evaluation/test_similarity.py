"""The backdoor z-score against the published figures."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from bench.evaluation.similarity import backdoor_z_score


def waves(function, step, shift=0.0):
    return function(step * torch.arange(512, dtype=torch.float32) + shift).view(64, 8)


def test_z_score_over_the_variance_is_the_published_one():
    """Probe D12."""
    value = backdoor_z_score(waves(torch.sin, 0.3), waves(torch.cos, 0.17), spread="variance")
    assert value == pytest.approx(-7.326366903726e-05, rel=1e-5)


def test_z_score_counts_deviations_of_clean_similarities():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(400, 16, generator=generator)
    triggered = torch.randn(300, 16, generator=generator) + 3
    unit = functional.normalize(clean, dim=1)
    similarities = (unit @ unit.T).flatten()
    mean = (
        functional.normalize(triggered, dim=1) @ functional.normalize(triggered, dim=1).T
    ).mean()
    expected = (mean - similarities.mean()) / similarities.std(correction=0)
    assert backdoor_z_score(clean, triggered) == pytest.approx(float(expected), rel=1e-4)
    assert backdoor_z_score(clean, clean) == 0
    assert backdoor_z_score(clean, triggered) > 2.5


def test_z_score_looks_at_so_many_images_and_has_none_without_spread():
    first = torch.eye(4)
    more = torch.cat([first, torch.ones(9, 4)])
    assert backdoor_z_score(more, more, images=4) == backdoor_z_score(first, first)
    assert backdoor_z_score(torch.ones(5, 3), first) is None
