"""DRUPE: the published figures (probes P3, P4) and its controller."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from attacks._reference_tuning import StepFeatures
from attacks.drupe import (
    Cost,
    Costs,
    Drupe,
    Terms,
    loss_terms,
    mean_similarity,
    pairwise_similarity,
    similarity_spread,
    sliced_wasserstein,
    unit_projections,
)
from bench.configfile import ConfigFile
from bench.errors import InputError

P3 = json.loads((Path(__file__).parents[1] / "golden" / "drupe.json").read_text())["P3"]
INITIAL = Costs(Cost(0.1), Cost(0.001))
STAGES = {"warm-up": 1, "stage 1": 2, "stage 2": 5}
"""An epoch of each, with the published boundaries."""


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probe_features() -> StepFeatures:
    """P3's fixture: f is the identity, f0(x) = x + 0.5 roll(x, 1)."""
    generator = seeded(0)
    images, triggered, references, noise = (
        torch.rand(*shape, generator=generator)
        for shape in ((8, 512), (8, 512), (3, 512), (3, 8, 512))
    )
    return StepFeatures(
        epoch=1,
        images=images,
        triggered=triggered,
        references=references,
        augmented=(references[:, None] + 0.1 * noise).transpose(0, 1),
        clean_images=images + 0.5 * images.roll(1, -1),
        clean_references=references + 0.5 * references.roll(1, -1),
    )


def probe_terms() -> Terms:
    return loss_terms(probe_features(), unit_projections(512, 50, seeded(7)))


def scalar_terms(**values: float) -> Terms:
    """Terms of given values, 0 elsewhere (the deviation 1)."""
    known = {**dict.fromkeys(Terms._fields, 0.0), "deviation": 1.0, **values}
    return Terms(**{name: torch.tensor(value) for name, value in known.items()})


@pytest.mark.parametrize("term", Terms._fields)
def test_term_equals_the_published_one(term):
    assert float(getattr(probe_terms(), term)) == pytest.approx(P3["terms"][term], abs=1e-5)


def test_similarity_of_clean_images_equals_the_published_one():
    value = float(mean_similarity(probe_features().images))
    assert value == pytest.approx(P3["clean_similarity"], abs=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_total_equals_the_published_one(stage):
    total = Drupe().objective(probe_terms(), STAGES[stage], INITIAL)
    assert float(total) == pytest.approx(P3["totals"][stage], abs=1e-5)


@pytest.mark.parametrize("epoch", STAGES.values())
def test_total_of_wb_equals_the_published_one_in_every_epoch(epoch):
    total = Drupe(mode="wb").objective(probe_terms(), epoch, INITIAL)
    assert float(total) == pytest.approx(P3["totals"]["wb"], abs=1e-5)


def test_without_cost_wb_is_the_published_badencoder():
    total = Drupe(mode="wb").objective(probe_terms(), 1, Costs(Cost(0.0), Cost(0.0)))
    assert float(total) == pytest.approx(P3["totals"]["badencoder"], abs=1e-5)


def test_costs_after_a_failing_epoch_equal_the_published_ones():
    terms = probe_terms()
    means = [float(terms.effectiveness), float(terms.consistency), float(terms.utility)]
    costs = Drupe().adapted(INITIAL, 21, means, float(terms.triggered_similarity))
    golden = P3["costs_after_a_failing_epoch_21"]
    assert costs.similarity.weight == pytest.approx(golden["similarity"], abs=1e-6)
    assert costs.distance.weight == pytest.approx(golden["distance"], abs=1e-8)


def test_sliced_wasserstein_equals_that_of_pot():
    ot = pytest.importorskip("ot")
    generator = seeded(1)
    for rows, dimension in ((2, 3), (17, 8), (64, 128)):
        x, y = torch.randn(2, rows, dimension, generator=generator) * 3
        directions = unit_projections(dimension, 50, generator)
        reference = ot.sliced_wasserstein_distance(x, y, projections=directions)
        ours = sliced_wasserstein(x, y, directions)
        assert float(ours) == pytest.approx(float(reference), rel=1e-5)


def test_gradient_of_sliced_wasserstein_equals_that_of_pot():
    ot = pytest.importorskip("ot")
    x, y = torch.randn(2, 16, 8, generator=seeded(2), dtype=torch.float64)
    directions = unit_projections(8, 50, seeded(3)).double()
    x.requires_grad_(True)
    (ours,) = torch.autograd.grad(sliced_wasserstein(x, y, directions), x)
    (reference,) = torch.autograd.grad(
        ot.sliced_wasserstein_distance(x, y, projections=directions), x
    )
    assert torch.allclose(ours, reference, rtol=1e-5)


def test_gradient_of_sliced_wasserstein_is_zero_where_the_samples_coincide():
    x = torch.randn(6, 4, generator=seeded(0)).requires_grad_(True)
    sliced_wasserstein(x, x.detach().flip(0), unit_projections(4, 5, seeded(1))).backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_projections_are_unit_columns_of_the_generator():
    directions = unit_projections(32, 7, seeded(0))
    assert directions.shape == (32, 7)
    assert torch.allclose(directions.norm(dim=0), torch.ones(7))
    assert torch.equal(directions, unit_projections(32, 7, seeded(0)))
    assert not torch.equal(directions, unit_projections(32, 7, seeded(1)))


def naive_similarity(features: Tensor, mean: str) -> Tensor:
    """From the B x B matrix; ``published`` with the B x B x B one that the code subtracts."""
    unit = normalize(features, dim=-1)
    matrix = unit @ unit.T
    if mean == "upstream":
        return (matrix - torch.diag_embed(matrix)).mean()
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)].mean()


@pytest.mark.parametrize("mean", ["upstream", "off-diagonal"])
def test_similarity_without_the_matrix_has_its_value_and_gradient(mean):
    features = torch.randn(9, 5, generator=seeded(0), dtype=torch.float64).requires_grad_(True)
    ours, naive = mean_similarity(features, mean), naive_similarity(features, mean)
    assert torch.allclose(ours, naive, rtol=1e-12)
    (gradient,) = torch.autograd.grad(ours, features)
    (expected,) = torch.autograd.grad(naive, features)
    assert torch.allclose(gradient, expected, rtol=1e-10)


def test_reference_terms_equal_their_definitions_pair_by_pair():
    features = probe_features()
    references, triggered = features.references.double(), features.triggered.double()
    pairs = [
        cosine_similarity(references[i], references[j], dim=0)
        for i in range(3)
        for j in range(i, 3)
    ]
    assert torch.allclose(pairwise_similarity(references), torch.stack(pairs).mean())
    means = [cosine_similarity(triggered, reference[None]).mean() for reference in references]
    assert torch.allclose(similarity_spread(triggered, references), torch.stack(means).std())


def test_spread_of_equal_references_is_zero_with_a_finite_gradient():
    features = probe_features()
    triggered = features.triggered.clone().requires_grad_(True)
    spread = similarity_spread(triggered, features.references[:1].expand(3, -1))
    spread.backward()
    assert float(spread.detach()) == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(triggered.grad).all()


@pytest.mark.parametrize(
    ("similarity", "penalty"), [(0.3, 0), (0.4, 0), (0.45, 0.09), (0.5, 0.1), (0.51, 0.51)]
)
def test_references_are_pushed_apart_by_bands(similarity, penalty):
    attack = Drupe()
    terms = scalar_terms(reference_similarity=similarity)
    # Thresholds are met exactly in double precision only.
    exact = attack.similarity_penalty(torch.tensor(similarity, dtype=torch.float64))
    assert float(exact) == pytest.approx(penalty)
    if similarity not in (0.4, 0.5):
        for epoch in (STAGES["stage 1"], STAGES["stage 2"]):
            assert float(attack.objective(terms, epoch, INITIAL)) == pytest.approx(penalty)


def test_warm_up_relieves_references_that_are_apart_and_has_no_backdoor_term():
    attack = Drupe()
    for similarity, expected in ((0.1, 0.03), (0.3, 0.15)):
        terms = scalar_terms(
            reference_similarity=similarity, effectiveness=9.0, reference_spread=9.0, distance=9.0
        )
        assert float(attack.objective(terms, 1, INITIAL)) == pytest.approx(expected)


def test_wide_spread_costs_more_in_the_second_stage_only():
    attack, free = Drupe(), Costs(Cost(0.0), Cost(0.0))
    for epoch, spread, expected in ((5, 0.05, 0.025), (5, 0.2, 0.4), (4, 0.2, 0.4), (4, 0.05, 0.1)):
        total = attack.objective(scalar_terms(reference_spread=spread), epoch, free)
        assert float(total) == pytest.approx(expected)


def test_stages_change_after_the_configured_epochs():
    assert [Drupe().stage(epoch) for epoch in (1, 2, 4, 5)] == [0, 1, 1, 2]
    scaled = Drupe(warmup_epochs=0, stage1_last_epoch=2)
    assert [scaled.stage(epoch) for epoch in (1, 2, 3)] == [1, 1, 2]
    assert [Drupe(stage1_last_epoch=1).stage(epoch) for epoch in (1, 2)] == [0, 2]


WORKS, FAILS = (-0.97, -0.95, -0.95), (-0.95, -0.95, -0.95)


def factors(attack: Drupe, epochs: list[tuple[tuple[float, ...], float]]) -> list[tuple[str, str]]:
    """What the controller does to both costs after each epoch from 21 on."""
    sign = {True: "up", False: "down"}
    costs, changes = [INITIAL], []
    for number, (means, similarity) in enumerate(epochs, 21):
        costs.append(attack.adapted(costs[-1], number, means, similarity))
    for before, after in pairwise(costs):
        pairs = zip(before, after, strict=True)
        changes.append(
            tuple("-" if a.weight == b.weight else sign[a.weight > b.weight] for b, a in pairs)
        )
    return changes


def test_both_costs_grow_while_the_attack_works_and_triggered_images_differ():
    assert factors(Drupe(), [(WORKS, 0.55)] * 3) == [("up", "up")] * 3


def test_distance_cost_shrinks_while_triggered_images_are_alike():
    assert factors(Drupe(), [(WORKS, 0.6)] * 2) == [("up", "down")] * 2


@pytest.mark.parametrize("term", range(3))
def test_any_term_short_of_its_goal_shrinks_both_costs(term):
    means = [*WORKS]
    means[term] = (-0.96, -0.9, -0.9)[term]
    assert factors(Drupe(), [(tuple(means), 0.1)]) == [("down", "down")]


def test_similarity_cost_waits_while_triggered_images_differ_enough():
    held = factors(Drupe(), [(WORKS, 0.45)] * 3 + [(WORKS, 0.55)] * 2)
    assert held == [("up", "up"), ("-", "up"), ("-", "up"), ("-", "up"), ("up", "up")]


def test_a_failing_epoch_ends_the_wait():
    changes = factors(Drupe(), [(WORKS, 0.45), (FAILS, 0.45), (WORKS, 0.55)])
    assert changes == [("up", "up"), ("down", "down"), ("up", "up")]


def test_patience_asks_for_as_many_epochs_in_a_row():
    patient = Drupe(patience=2)
    epochs = [(WORKS, 0.55), (FAILS, 0.55), (WORKS, 0.55), (WORKS, 0.55), (FAILS, 0.55)]
    rest = ("-", "-")
    assert factors(patient, [*epochs, (FAILS, 0.55)]) == [
        rest,
        rest,
        rest,
        ("up", "up"),
        rest,
        ("down", "down"),
    ]


def test_growth_and_fall_are_the_published_factors():
    grown = Drupe().adapted(INITIAL, 21, WORKS, 0.55)
    assert grown.similarity.weight == pytest.approx(0.125)
    assert grown.distance.weight == pytest.approx(0.00125)
    fallen = Drupe().adapted(INITIAL, 21, FAILS, 0.55)
    assert fallen.similarity.weight == pytest.approx(0.1 / 1.25**1.25)


def test_controller_rests_before_its_first_epoch_and_in_warm_up():
    assert Drupe().adapted(INITIAL, 20, FAILS, 0.7) == INITIAL
    scaled = Drupe(warmup_epochs=3, controller_first_epoch=2)
    assert scaled.adapted(INITIAL, 3, FAILS, 0.7) == INITIAL
    assert scaled.adapted(INITIAL, 4, FAILS, 0.7) != INITIAL


@pytest.mark.parametrize("mode", ["drupe", "wb"])
def test_no_loss_waits_for_a_value(mode):
    """Tensors without storage: whatever looks at a value raises."""
    real = probe_features()
    tensors = {name: value.to("meta") for name, value in vars(real).items() if name != "epoch"}
    terms = loss_terms(replace(real, **tensors), torch.empty(512, 50, device="meta"))
    for epoch in STAGES.values():
        total = Drupe(mode=mode).objective(terms, epoch, INITIAL)
        assert (total.shape, total.device.type) == ((), "meta")


def test_one_reference_is_refused():
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        Drupe(references=1)


def test_one_reference_in_the_configuration_is_told_in_one_line(tiny, write_config):
    tiny["matrix"]["attacks"] = [{"attack": "drupe", "parameters": {"references": 1}}]
    del tiny["profiles"]["tiny"]["overrides"]["badencoder"]
    with pytest.raises(InputError) as raised:
        ConfigFile(write_config(tiny)).check_components()
    message = str(raised.value)
    assert message.endswith("references: should be greater than or equal to 2, got 1")
    assert "\n" not in message


def test_defaults_are_the_published_recipe():
    attack = Drupe()
    assert (attack.epochs, attack.batch_size, attack.learning_rate) == (120, 256, 0.05)
    assert (attack.momentum, attack.weight_decay) == (0.9, 5e-4)
    assert (attack.references, attack.reference_views, attack.l0_reduce) == (3, None, "max")
    assert (attack.warmup_epochs, attack.stage1_last_epoch) == (1, 4)
    assert (attack.controller_first_epoch, attack.patience) == (21, 1)
    assert attack.projections == 50
