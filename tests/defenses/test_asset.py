"""ASSET: what fit and score do with a pool, a base set and an encoder."""

from __future__ import annotations

import itertools

import pytest
import torch
from experiment import real_images
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

from bench.api import DefenderView, ImageSet
from bench.config import DatasetConfig
from bench.data.parquet import Parquet
from defenses import asset
from defenses.asset import Asset

SMALL = {
    "network": "small",
    "epochs": 6,
    "batch_size": 60,
    "learning_rate": 0.003,
    "inner_iterations": 40,
}
SIDE = 8


class Bands:
    """Embeds an image as the means of 12 bands; a white corner, the trigger of a victim, moves half
    of them far up. Counts the images it is given."""

    image_size, embedding_dim, device = SIDE, 12, torch.device("cpu")

    def __init__(self, backdoored=True):
        self.backdoored, self.images = backdoored, 0

    @torch.inference_mode()
    def embed(self, images):
        self.images += len(images)
        features = images.flatten(1).unflatten(1, (12, -1)).mean(2)
        if self.backdoored:
            features[:, :6] += 4 * (images[:, :, :3, :3] == 1).flatten(1).all(1, keepdim=True)
        return features


class Steps:
    def __init__(self, limit=None):
        self.limit = limit

    def track(self, items, what, total=None):
        return itertools.islice(items, self.limit)


def stamped(images):
    images = images.clone()
    images[:, :, :3, :3] = 255
    return images


def drawn(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(40, 200, (count, 3, SIDE, SIDE), generator=generator).to(torch.uint8)


def view_of(encoder=None, *, seed=0, poison=6, labels=True, base=50, limit=None):
    encoder = encoder or Bands()
    pool = drawn(120, 1)
    pool[:poison] = stamped(pool[:poison])
    order = torch.randperm(120, generator=torch.Generator().manual_seed(2))
    auxiliary = drawn(40, 3)
    # The class goes by the first band, so that a triggered image looks like one of the last class.
    classes = Bands().embed(auxiliary.float() / 255)[:, 0].argsort().argsort() // 10
    return DefenderView(
        encoder=encoder,
        auxiliary=ImageSet(
            auxiliary,
            labels=classes if labels else None,
            class_names=("a", "b", "c", "d") if labels else (),
        ),
        embed_auxiliary=lambda: Bands(encoder.backdoored).embed(auxiliary.float() / 255),
        generator=torch.Generator().manual_seed(seed),
        seed=seed,
        progress=Steps(limit),
        suspicious=ImageSet(pool[order]),
        base=ImageSet(drawn(base, 4)),
    )


def unseen():
    clean = drawn(80, 5)
    return torch.cat([clean[:40], stamped(clean[40:])]).float() / 255


@pytest.fixture(scope="module")
def fitted():
    """The default objective on a backdoored encoder. Read only."""
    encoder = Bands()
    detector = Asset(**SMALL)
    detector.fit(view_of(encoder))
    return detector, encoder.images


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"objective": "label-assisted", "neighbours": 5},
        {"objective": "label-assisted", "neighbours": 5, "update": "alternating", "epochs": 12},
    ],
    ids=["variance", "label-assisted", "label-assisted-alternating"],
)
def test_what_was_found_in_the_pool_is_recognised_in_new_images(options):
    detector = Asset(**{**SMALL, **options})
    detector.fit(view_of())
    scores = detector.score(unseen())
    assert scores.shape == (80,)
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all()
    assert (scores >= 0).all()
    # Alternating steps undo much of each other.
    least = 0.7 if "update" in options else 0.95
    assert roc_auc_score([0] * 40 + [1] * 40, scores) > least


def test_every_image_is_embedded_once_per_fit(fitted):
    _, images = fitted
    assert images == 120 + 50


def test_label_assistance_embeds_no_image_twice_either():
    encoder = Bands()
    Asset(**SMALL, objective="label-assisted", neighbours=5).fit(view_of(encoder))
    assert encoder.images == 120 + 50


def test_sizes_of_what_was_found_are_kept(fitted):
    detector, _ = fitted
    assert detector.found.shape == (12,)
    per_epoch = detector.found.view(6, 2).sum(dim=1)
    assert (per_epoch >= 3).all(), "of the 6 that carry the trigger"
    assert set(detector.flagged) == {"gaussian", "asset"}
    assert all(0 <= count <= 120 for count in detector.flagged.values())


def test_every_epoch_has_an_ascent(fitted):
    detector, _ = fitted
    ran = detector.found.view(6, 2) >= asset.LEAST_FOUND
    assert ran.any(dim=1).all()


def test_the_descent_flattens_clean_images():
    """Variance of the base set's logits, from the first step to the last."""
    short, whole = Asset(**SMALL, when_none_found="flat"), Asset(**SMALL)
    short.fit(view_of(limit=1))
    whole.fit(view_of())
    base = view_of().base.float()
    before, after = (
        detector._network(base).detach().var(dim=1).mean() for detector in (short, whole)
    )
    assert after < 0.5 * before


def test_scores_are_the_variance_or_the_cross_entropy_of_the_network(fitted):
    detector, _ = fitted
    images = unseen()
    with torch.no_grad():
        logits = detector._network(images)
    torch.testing.assert_close(detector.score(images), logits.var(dim=1))
    assisted = Asset(**SMALL, objective="label-assisted", neighbours=1)
    assisted.fit(view_of())
    # With one neighbour, an auxiliary image has its own label.
    auxiliary = view_of().auxiliary
    with torch.no_grad():
        logits = assisted._network(auxiliary.float())
    assert logits.shape == (40, 4)
    expected = -logits.log_softmax(1)[torch.arange(40), auxiliary.labels]
    torch.testing.assert_close(assisted.score(auxiliary.float()), expected)


@pytest.mark.parametrize("objective", ["variance", "label-assisted"])
def test_scores_do_not_depend_on_batch_or_order(objective):
    detector = Asset(**SMALL, objective=objective, neighbours=5)
    detector.fit(view_of())
    images = unseen()
    together = detector.score(images)
    alone = torch.cat([detector.score(images[i : i + 1]) for i in range(80)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=0)
    torch.testing.assert_close(detector.score(images.flip(0)).flip(0), together, rtol=1e-4, atol=0)


@pytest.mark.parametrize("objective", ["variance", "label-assisted"])
def test_state_survives_a_file(objective, tmp_path):
    detector = Asset(**SMALL, objective=objective, neighbours=5)
    detector.fit(view_of())
    save_file(detector.state(), tmp_path / "state.safetensors")
    restored = Asset(**detector.parameters())
    restored.load_state(load_file(tmp_path / "state.safetensors"), view_of(seed=9))
    assert torch.equal(restored.score(unseen()), detector.score(unseen()))
    assert torch.equal(restored.found, detector.found)
    assert restored.flagged == detector.flagged


def test_fit_follows_the_generator(fitted):
    detector, _ = fitted
    images = unseen()
    same, other = Asset(**SMALL), Asset(**SMALL)
    same.fit(view_of())
    other.fit(view_of(seed=1))
    assert torch.equal(same.score(images), detector.score(images))
    assert not torch.equal(other.score(images), detector.score(images))


def test_nothing_suspicious_fails_by_name():
    with pytest.raises(
        RuntimeError,
        match=r"^no suspicious samples found: no batch of the pool had two",
    ):
        Asset(**SMALL, outlyingness=1000).fit(view_of())


def test_nothing_suspicious_may_be_an_answer_instead(tmp_path):
    detector = Asset(**SMALL, outlyingness=1000, when_none_found="flat")
    detector.fit(view_of())
    assert detector.found.tolist() == [0] * 12
    assert detector.flagged == {"gaussian": 0, "asset": 0}
    assert not detector.score(unseen()).any()
    save_file(detector.state(), tmp_path / "state.safetensors")
    restored = Asset(**detector.parameters())
    restored.load_state(load_file(tmp_path / "state.safetensors"), view_of())
    assert not restored.score(unseen()).any()


def test_one_suspicious_image_is_too_few_for_an_ascent(monkeypatch):
    def one(outputs, cut, sides):
        return torch.arange(len(outputs)) == 0

    monkeypatch.setattr(asset, "outlying", one)
    detector = Asset(**SMALL, when_none_found="flat")
    detector.fit(view_of())
    assert detector.found.tolist() == [1] * 12
    assert not detector.score(unseen()).any()


def test_a_run_cut_short_before_anything_was_found_is_no_failure():
    detector = Asset(**SMALL, outlyingness=1000)
    detector.fit(view_of(limit=3))
    assert len(detector.found) == 3


def test_without_a_backdoor_the_embedding_separates_nothing_much():
    clean = Asset(**SMALL, when_none_found="flat")
    clean.fit(view_of(Bands(backdoored=False)))
    poisoned = Asset(**SMALL)
    poisoned.fit(view_of())
    assert clean.found.sum() < 0.5 * poisoned.found.sum()


def test_the_port_has_the_published_settings_and_ignores_the_encoder(monkeypatch):
    detector = Asset(variant="dede-port", network="small", epochs=2, neighbours=5)
    assert (detector.hidden_size, detector.inner_iterations, detector.batch_size) == (512, 10, 128)
    assert (detector.features, detector.sides, detector.update) == ("pixels", "both", "alternating")
    assert detector.requires == {"suspicious", "auxiliary_labels"}
    assert Asset(**detector.parameters()) == detector
    seen = []

    def watched(pool, base, *rest, **settings):
        seen.append((pool.shape[1], settings["hidden"], settings["iterations"], float(pool.min())))
        return torch.zeros(len(pool))

    monkeypatch.setattr(asset, "separate", watched)
    detector.when_none_found = "flat"
    detector.fit(view_of())
    assert {found[:3] for found in seen} == {(3 * SIDE * SIDE, 512, 10)}
    assert min(found[3] for found in seen) < 0, "pixels are normalised"


def test_requirements_follow_the_objective():
    assert Asset().requires == {"suspicious"}
    assert Asset(objective="label-assisted").requires == {"suspicious", "auxiliary_labels"}


@pytest.mark.parametrize(
    ("options", "view", "message"),
    [
        ({}, {"base": 1}, "the base set has 1 images; ASSET needs two at least"),
        ({"objective": "label-assisted"}, {"labels": False}, "has no labels, and the objective"),
        (
            {"objective": "label-assisted", "neighbours": 41},
            {},
            "neighbours is 41 but there are 40 auxiliary images",
        ),
    ],
)
def test_what_it_cannot_be_fitted_on_is_said(options, view, message):
    with pytest.raises(ValueError, match=message):
        Asset(**{**SMALL, **options}).fit(view_of(**view))


def test_unfitted_it_says_so():
    with pytest.raises(RuntimeError, match="has not been fitted"):
        Asset().score(unseen())


def test_resnet18_is_trained_and_scores_in_evaluation_mode():
    detector = Asset(epochs=1, batch_size=120)
    detector.fit(view_of())
    images = unseen()[36:44]
    together = detector.score(images)
    alone = torch.cat([detector.score(images[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=0)


def test_real_images_are_told_apart():
    """CIFAR-10 with bands as embeddings: eight triggered images in a pool of 400."""
    source = Parquet("cifar10", DatasetConfig(), real_images("cifar10"))
    images = source.load("test").uint8(slice(0, 900))
    encoder = Bands()
    encoder.image_size = 32

    def patched(pixels):
        pixels = pixels.clone()
        pixels[:, :, :8, :8] = 255
        return pixels

    pool = torch.cat([patched(images[:8]), images[8:400]])
    view = DefenderView(
        encoder=encoder,
        auxiliary=ImageSet(images[400:410]),
        embed_auxiliary=lambda: encoder.embed(images[400:410].float() / 255),
        generator=torch.Generator().manual_seed(0),
        seed=0,
        progress=Steps(),
        suspicious=ImageSet(pool),
        base=ImageSet(images[410:600]),
    )
    detector = Asset(**{**SMALL, "epochs": 10, "batch_size": 200})
    detector.fit(view)
    test = torch.cat([images[600:750], patched(images[750:900])]).float() / 255
    scores = detector.score(test)
    assert roc_auc_score([0] * 150 + [1] * 150, scores) > 0.75
