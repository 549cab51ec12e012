"""Probes, kNN, attack success, filtering and the validity gate."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import pytest
import torch

from bench.evaluation.downstream import (
    Probe,
    attack_success_rate,
    clean_accuracy,
    filtered_rates,
    predict,
    train_probe,
    validity_gate,
)


def clusters(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes around fixed directions of a 16-dimensional space, at any length."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    noise = 0.3 * torch.randn(n, 16, generator=generator)
    length = 1 + 9 * torch.rand(n, 1, generator=generator)
    return (2 * torch.eye(16)[labels] + noise) * length, labels


def trained(features: torch.Tensor, labels: torch.Tensor, seed: int = 0, **changes):
    settings = {"epochs": 15, "batch_size": 32, "learning_rate": 1e-3, "hidden": (32, 16)}
    settings |= changes
    generator = torch.Generator().manual_seed(seed)
    return train_probe(features, labels, 3, generator=generator, **settings)


def weights_of(probe: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(probe.parameters())


def test_probe_learns_separable_features_of_any_length():
    probe = trained(*clusters(300, 0))
    features, labels = clusters(90, 1)
    found = predict(probe, features)
    assert found.dtype == torch.int64
    assert clean_accuracy(found, labels) > 0.95
    assert torch.equal(predict(probe, 5 * features), found)


def test_probe_has_the_published_layers_and_comes_back_frozen():
    probe = trained(*clusters(60, 0), epochs=1, hidden=(512, 256))
    assert isinstance(probe, Probe)
    assert {name: tuple(p.shape) for name, p in probe.named_parameters()} == {
        "fc1.weight": (512, 16),
        "fc1.bias": (512,),
        "fc2.weight": (256, 512),
        "fc2.bias": (256,),
        "fc3.weight": (3, 256),
        "fc3.bias": (3,),
    }
    assert probe.dropout2.p == 0.5
    assert not probe.training
    assert not any(parameter.requires_grad for parameter in probe.parameters())


def test_probe_follows_from_the_generator_alone_dropout_included():
    features, labels = clusters(100, 0)
    torch.manual_seed(1)
    first = trained(features, labels)
    torch.manual_seed(2)
    again = trained(features, labels)
    other = trained(features, labels, seed=1)
    assert torch.equal(weights_of(first), weights_of(again))
    assert not torch.equal(weights_of(first), weights_of(other))
    assert not torch.equal(weights_of(first), weights_of(trained(features, labels, dropout=0.0)))


def test_probe_training_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    trained(*clusters(60, 0), epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_probe_trains_inside_no_grad_too():
    features, labels = clusters(60, 0)
    with torch.no_grad():
        probe = trained(features, labels, epochs=2)
    assert torch.equal(weights_of(probe), weights_of(trained(features, labels, epochs=2)))


def test_progress_watches_every_step_and_cuts_training_short():
    class FirstSteps:
        def __init__(self) -> None:
            self.seen: list[tuple[str, int | None]] = []

        def track(self, items, what, total=None):
            self.seen.append((what, total))
            return islice(items, 2)

    features, labels = clusters(70, 0)
    progress = FirstSteps()
    cut = trained(features, labels, epochs=4, progress=progress)
    assert progress.seen == [("probe", 12)]
    # 70 images at batch 32 are 3 steps an epoch: an epoch over the first 64 drawn is 2 steps.
    assert not torch.equal(weights_of(cut), weights_of(trained(features, labels, epochs=4)))
    assert not torch.equal(weights_of(cut), weights_of(trained(features, labels, epochs=0)))


def test_malformed_training_sets_are_refused():
    features, labels = clusters(30, 0)
    with pytest.raises(ValueError, match="features must be"):
        trained(features, labels[:-1])
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got 0 to 5"):
        trained(features, torch.full((30,), 5).scatter(0, torch.tensor([0]), 0))


def test_attack_success_is_counted_with_and_without_the_target_class():
    labels = [0, 0, 1, 1, 1, 2]
    predictions = torch.tensor([0, 0, 0, 0, 1, 2])
    success = attack_success_rate(predictions, labels, 0)
    assert success.non_target == 0.5
    assert success.all == 4 / 6
    assert clean_accuracy(predictions, labels) == 4 / 6
    assert math.isnan(attack_success_rate([0], [0], 0).non_target)


def test_filtering_by_hand():
    # clean: passes 1 1 1 0 0, right 1 1 0 1 0; triggered without the target class (last two rows):
    # passes 1 1 0 0, taken for the target 1 0 1 1. A score equal to the threshold passes.
    found = filtered_rates(
        0.5,
        0,
        clean_scores=[0.1, 0.5, 0.2, 0.6, 0.9],
        clean_predictions=[0, 1, 1, 1, 0],
        clean_labels=[0, 1, 2, 1, 2],
        triggered_scores=[0.3, 0.5, 0.8, 0.9, 0.1, 0.1],
        triggered_predictions=[0, 1, 0, 0, 0, 0],
        triggered_labels=[1, 1, 2, 2, 0, 0],
    )
    assert found.ca_filtered == 2 / 5
    assert found.asr_filtered == 1 / 4
    assert found.ca_passing == 2 / 3


@pytest.mark.parametrize("threshold", [math.inf, -math.inf])
def test_filters_that_pass_all_or_nothing(threshold: float):
    generator = np.random.default_rng(0)
    labels, predictions = generator.integers(0, 3, (2, 50))
    scores = generator.normal(size=50)
    found = filtered_rates(
        threshold,
        1,
        clean_scores=scores,
        clean_predictions=predictions,
        clean_labels=labels,
        triggered_scores=scores,
        triggered_predictions=predictions,
        triggered_labels=labels,
    )
    if threshold > 0:
        assert found.ca_filtered == found.ca_passing == clean_accuracy(predictions, labels)
        assert found.asr_filtered == attack_success_rate(predictions, labels, 1).non_target
    else:
        assert (found.ca_filtered, found.asr_filtered) == (0, 0)
        assert math.isnan(found.ca_passing)


@pytest.mark.parametrize(
    ("success", "success_twin", "accuracy", "accuracy_twin", "status"),
    [
        (0.95, 0.10, 0.90, 0.91, "ok"),
        (0.80, 0.30, 0.90, 0.85, "ok"),  # on every bound; 0.90 - 0.85 rounds to above 0.05
        (0.80, 0.30, 0.85, 0.90, "ok"),
        (0.799, 0.10, 0.90, 0.90, "attack-weak"),
        (0.30, 0.10, 0.90, 0.90, "attack-weak"),
        (0.299, 0.10, 0.90, 0.90, "attack-invalid"),
        (0.80, 0.301, 0.90, 0.90, "attack-invalid"),
        (0.95, 0.10, 0.849, 0.90, "attack-invalid"),
        (0.95, 0.10, 0.90, 0.849, "attack-invalid"),
    ],
)
def test_gate_at_its_bounds(success, success_twin, accuracy, accuracy_twin, status):
    found, reason = validity_gate(success, success_twin, accuracy, accuracy_twin)
    assert found == status
    assert bool(reason) == (status != "ok")


def test_gate_says_every_condition_missed_with_its_figures():
    _, reason = validity_gate(0.5, 0.2, 0.7, 0.9)
    assert reason == (
        "The attack success rate is 0.500, below 0.8. "
        "The attack success rate 0.500 is less than 0.5 above the 0.200 of the clean twin. "
        "The clean accuracy 0.700 is more than 0.05 from the 0.900 of the clean twin."
    )


def test_gate_refuses_a_rate_that_was_not_measured():
    with pytest.raises(ValueError, match="attack success rate of the twin must be in"):
        validity_gate(0.9, math.nan, 0.9, 0.9)


@pytest.mark.parametrize(
    ("success", "status"),
    [
        (1.0, "uncontrolled"),
        (0.8, "uncontrolled"),
        (0.799, "attack-weak"),
        (0.3, "attack-weak"),
        (0.299, "attack-invalid"),
    ],
)
def test_gate_without_a_twin_never_says_ok(success, status):
    found, reason = validity_gate(success, None, 0.9, None)
    assert found == status
    assert "Uncontrolled: there is no clean twin to compare with." in reason
    assert ("below 0.8" in reason) == (success < 0.8)


def test_gate_with_half_a_twin_is_uncontrolled():
    assert validity_gate(0.9, 0.1, 0.9, None)[0] == "uncontrolled"
    assert validity_gate(0.9, None, 0.9, 0.9)[0] == "uncontrolled"
