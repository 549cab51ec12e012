"""DRUPE's fine-tuning: what it draws, computes, reports and reaches."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import attacks._reference_tuning as reference_tuning
from attacks._reference_tuning import FineTuning
from attacks.drupe import Drupe, Terms, loss_terms, unit_projections
from bench.api import AttackerWorld, ImageSet
from bench.config import DatasetConfig
from bench.data.embedded import Digits
from bench.encoders.encoder import Encoder
from bench.workspace import StepCounter


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def silent(limit: int | None = None) -> StepCounter:
    return StepCounter(SimpleNamespace(step=lambda *_: None), limit)


def world(seed: int = 0, images: int = 64, **changes) -> AttackerWorld:
    generator = seeded(5)
    encoder = Encoder.initialise(
        "resnet-narrow", {"width": 4, "stem_stride": 2}, generator=generator
    )
    pixels = torch.randint(256, (images + 3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return AttackerWorld(
        encoder=encoder,
        shadow=ImageSet(pixels[:images]),
        references=ImageSet(pixels[images:]),
        target=0,
        generator=seeded(seed),
        **{"progress": silent(), **changes},
    )


SHORT = {
    "epochs": 4,
    "batch_size": 24,
    "reference_views": 5,
    "stage1_last_epoch": 2,
    "controller_first_epoch": 3,
}


class Watched(Drupe):
    """DRUPE that keeps what its own methods were given."""

    terms: ClassVar[list[tuple[int, Terms]]] = []
    asked: ClassVar[list[tuple[int, list[float], float]]] = []

    def objective(self, terms, epoch, costs):
        self.terms.append((epoch, Terms(*(term.detach() for term in terms))))
        return super().objective(terms, epoch, costs)

    def adapted(self, costs, epoch, means, last_similarity):
        self.asked.append((epoch, means, last_similarity))
        return super().adapted(costs, epoch, means, last_similarity)


@pytest.fixture
def watched():
    Watched.terms.clear()
    Watched.asked.clear()
    return Watched(**SHORT)


def test_same_seed_gives_the_same_victim_and_another_seed_another():
    victims = [Drupe(**SHORT).implant(world(seed)) for seed in (0, 0, 1)]
    hashes = [victim.encoder.state_hash() for victim in victims]
    assert hashes[0] == hashes[1] != hashes[2]
    assert victims[0].metrics == victims[1].metrics


def test_every_step_draws_its_projections_from_the_worlds_generator(monkeypatch):
    data, drawn = world(), []

    def recorded(dimension: int, count: int, generator: torch.Generator) -> Tensor:
        assert generator is data.generator
        drawn.append(unit_projections(dimension, count, generator))
        return drawn[-1]

    monkeypatch.setattr("attacks.drupe.unit_projections", recorded)
    Drupe(**SHORT, projections=6).implant(data)
    assert {directions.shape for directions in drawn} == {(data.encoder.embedding_dim, 6)}
    assert len(drawn) == 8
    assert not any(torch.equal(one, other) for one, other in combinations(drawn, 2))


def test_metrics_are_the_last_epochs_means_its_costs_and_its_stage(watched):
    metrics = watched.implant(world()).metrics
    last = [terms for epoch, terms in watched.terms if epoch == 4]
    means = torch.stack([torch.stack(terms) for terms in last]).mean(0).tolist()
    names = ("loss_effectiveness", "loss_references", "loss_utility", *Terms._fields[3:])
    assert {name: metrics[name] for name in names} == pytest.approx(
        dict(zip(names, means, strict=True)), rel=1e-5
    )
    assert metrics["stage"] == 2
    # One controlled epoch, the third, lies before the last; random features miss the goals.
    assert metrics["similarity_cost"] == pytest.approx(0.1 / 1.25**1.25)
    assert metrics["distance_cost"] == pytest.approx(0.001 / 1.25**1.25)


def test_controller_is_asked_once_per_epoch_with_its_means_and_last_batch(watched):
    watched.implant(world())
    assert [epoch for epoch, *_ in watched.asked] == [1, 2, 3]
    for epoch, means, last_similarity in watched.asked:
        seen = [terms for number, terms in watched.terms if number == epoch]
        assert len(seen) == 2
        expected = torch.stack([torch.stack(terms[:3]) for terms in seen]).mean(0).tolist()
        assert means == pytest.approx(expected, rel=1e-5)
        assert last_similarity == pytest.approx(float(seen[-1].triggered_similarity))


def test_a_run_cut_short_reports_what_it_saw():
    victim = Drupe(**SHORT).implant(world(progress=silent(limit=1)))
    assert victim.metrics["stage"] == 0
    assert victim.metrics["loss_utility"] == pytest.approx(-1, abs=1e-4)


def test_bfloat16_keeps_losses_in_float32(watched):
    watched.implant(world(precision="bfloat16"))
    assert {term.dtype for _, terms in watched.terms for term in terms} == {torch.float32}
    assert torch.isfinite(torch.stack([torch.stack(terms) for _, terms in watched.terms])).all()


def test_each_row_is_computed_once_per_step_and_clean_features_once_per_run():
    data = world()
    batches: list[Tensor] = []
    data.encoder.network.register_forward_pre_hook(
        lambda _module, inputs: batches.append(inputs[0].detach().clone())
    )
    Drupe(**SHORT).implant(data)
    clean_images, clean_references, *steps = batches
    assert (len(clean_images), len(clean_references)) == (64, 3)
    assert len(steps) == 4 * (64 // 24)
    for rows in steps:
        assert len(rows) == 24 + 24 + 3 + 3 * 5
        sure = rows[: 24 + 24 + 3].flatten(1)  # an augmented view may equal its reference
        assert len(sure.unique(dim=0)) == len(sure)


def test_without_a_number_of_views_a_step_has_one_per_image_of_the_batch():
    data = world()
    sizes: list[int] = []
    data.encoder.network.register_forward_pre_hook(
        lambda _module, inputs: sizes.append(len(inputs[0]))
    )
    Drupe(**{**SHORT, "reference_views": None, "epochs": 1}).implant(data)
    assert sizes[2:] == [5 * 24 + 3] * 2


def test_augmented_views_belong_to_their_references(monkeypatch):
    """With views that change nothing, each has its own reference's features."""
    monkeypatch.setattr(
        reference_tuning,
        "jitter_views",
        lambda images, count, _: images.repeat(count, 1, 1, 1).unflatten(0, (count, len(images))),
    )
    features = next(FineTuning(Drupe(**SHORT), world()).steps("drupe"))
    assert features.augmented.shape[:2] == (5, 3)
    expected = features.references.expand_as(features.augmented)
    assert torch.allclose(features.augmented, expected, atol=1e-5)
    terms = loss_terms(features, unit_projections(features.images.shape[1], 5, seeded(0)))
    assert float(terms.consistency.detach()) == pytest.approx(-1, abs=1e-5)


def test_implant_raises_the_success_rate_on_digits():
    digits = Digits("digits", DatasetConfig(source="digits")).load("train")
    labels, target = digits.labels, 0
    bank, shadow, tested = (torch.arange(*ends) for ends in ((500,), (500, 628), (700, 900)))
    references = (labels[:500] == target).nonzero()[:3, 0]
    encoder = Encoder.initialise(
        "resnet-narrow", {"width": 8, "stem_stride": 2}, generator=seeded(3)
    )
    attack = Drupe(
        epochs=12,
        batch_size=16,
        learning_rate=0.1,
        reference_views=4,
        stage1_last_epoch=8,
        controller_first_epoch=10,
        # All features of an untrained encoder are alike: the full weight would push the
        # references out of their class.
        very_alike_weight=0.3,
    )

    def predicted(images: Tensor) -> Tensor:
        known = normalize(encoder.embed(digits.float(bank)), dim=1)
        similarity = normalize(encoder.embed(images), dim=1) @ known.T
        return labels[bank][similarity.topk(5).indices].mode(1).values

    def rates() -> tuple[float, float]:
        """Clean accuracy, and success on images of other classes."""
        images, truth = digits.float(tested), labels[tested]
        success = predicted(attack.trigger(32)(images))[truth != target] == target
        return float((predicted(images) == truth).float().mean()), float(success.float().mean())

    accuracy, success = rates()
    victim = attack.implant(
        AttackerWorld(
            encoder=encoder,
            shadow=digits.select(shadow).without_labels(),
            references=digits.select(references).without_labels(),
            target=target,
            generator=seeded(0),
            progress=silent(),
        )
    )
    assert victim.encoder is encoder
    accuracy_after, success_after = rates()
    assert success < 0.1
    assert success_after > 0.6
    assert accuracy_after > accuracy - 0.15


def test_shadow_smaller_than_a_batch_still_trains():
    victim = Drupe(**{**SHORT, "batch_size": 500}).implant(world())
    assert all(torch.isfinite(torch.tensor(list(victim.metrics.values()))))
