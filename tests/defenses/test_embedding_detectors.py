"""The three detectors that look at embeddings alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

from bench.api import DefenderView, ImageSet
from defenses.isolation_forest import IsolationForest
from defenses.knn_distance import KnnDistance
from defenses.mahalanobis import Mahalanobis

DETECTORS = [
    KnnDistance(k=3),
    KnnDistance(k=3, metric="euclidean"),
    Mahalanobis(),
    IsolationForest(trees=20),
]


class Pixels:
    """Embedding = the pixels themselves."""

    image_size, embedding_dim, device = 2, 12, torch.device("cpu")

    def forward(self, images):
        return images.flatten(1)

    @torch.inference_mode()
    def embed(self, images):
        return self.forward(images)


class Steps:
    def track(self, items, what, total=None):
        return itertools.islice(items, total)


def view_of(images, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return DefenderView(
        encoder=Pixels(),
        auxiliary=ImageSet(images),
        embed_auxiliary=lambda: Pixels().embed(images.float() / 255),
        generator=generator,
        seed=seed,
        progress=Steps(),
    )


def around(level, count, seed):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randint(-20, 21, (count, 3, 2, 2), generator=generator)
    return (torch.tensor(level).view(1, 3, 1, 1) + spread).to(torch.uint8)


CLEAN, POISON = (200, 100, 50), (50, 100, 200)


@pytest.fixture(params=DETECTORS, ids=lambda d: f"{type(d).__name__}-{getattr(d, 'metric', '')}")
def detector(request):
    return request.param.model_copy(deep=True)


def test_images_unlike_the_auxiliary_ones_score_higher(detector):
    detector.fit(view_of(around(CLEAN, 200, 0)))
    images = torch.cat([around(CLEAN, 50, 1), around(POISON, 50, 2)]).float() / 255
    scores = np.asarray(detector.score(images))
    assert scores.shape == (100,)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert roc_auc_score([0] * 50 + [1] * 50, scores) == 1.0


def test_scores_do_not_depend_on_batch_or_order(detector):
    detector.fit(view_of(around(CLEAN, 60, 0)))
    images = around(CLEAN, 1500, 1).float() / 255
    together = np.asarray(detector.score(images))
    alone = [np.asarray(detector.score(images[i : i + 1]))[0] for i in (0, 700, 1499)]
    np.testing.assert_allclose(together[[0, 700, 1499]], alone, rtol=1e-4)
    np.testing.assert_allclose(np.asarray(detector.score(images.flip(0)))[::-1], together, 1e-4)


def test_two_fits_give_the_same_scores(detector):
    images, scores = around(CLEAN, 20, 1).float() / 255, []
    for _ in range(2):
        again = detector.model_copy(deep=True)
        again.fit(view_of(around(CLEAN, 60, 0)))
        scores.append(np.asarray(again.score(images)))
    np.testing.assert_array_equal(*scores)


def test_state_survives_a_file_or_is_none_when_the_fit_is_repeated(detector, tmp_path):
    detector.fit(view_of(around(CLEAN, 60, 0)))
    state = detector.state()
    if isinstance(detector, IsolationForest):
        assert state is None
        return
    save_file(state, tmp_path / "state.safetensors")
    restored = type(detector)(**detector.parameters())
    restored.load_state(load_file(tmp_path / "state.safetensors"), view_of(around(CLEAN, 1, 3)))
    images = around(CLEAN, 20, 1).float() / 255
    assert torch.equal(restored.score(images), detector.score(images))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_knn_distance_is_the_mean_over_the_k_nearest(metric):
    bank, images = around(CLEAN, 40, 0), around(CLEAN, 7, 1)
    detector = KnnDistance(k=4, metric=metric)
    detector.fit(view_of(bank))
    flat = [set_.float().div(255).flatten(1).double().numpy() for set_ in (images, bank)]
    naive = np.sort(cdist(*flat, metric), axis=1)[:, :4].mean(axis=1)
    np.testing.assert_allclose(detector.score(images.float() / 255), naive, rtol=1e-5)


def test_knn_distance_says_when_the_auxiliary_set_is_too_small():
    with pytest.raises(ValueError, match="k is 10 but there are 4 auxiliary images"):
        KnnDistance().fit(view_of(around(CLEAN, 4, 0)))


def test_mahalanobis_approaches_the_textbook_distance_with_many_images():
    auxiliary, images = around(CLEAN, 20_000, 0), around(CLEAN, 50, 1)
    detector = Mahalanobis()
    detector.fit(view_of(auxiliary))
    points = auxiliary.float().div(255).flatten(1).double().numpy()
    offsets = images.float().div(255).flatten(1).double().numpy() - points.mean(axis=0)
    naive = np.einsum("nd,de,ne->n", offsets, np.linalg.inv(np.cov(points.T)), offsets)
    np.testing.assert_allclose(detector.score(images.float() / 255), naive, rtol=0.05)


def test_mahalanobis_shrinks_a_covariance_of_few_images_as_ledoit_and_wolf_do():
    auxiliary, images = around(CLEAN, 40, 0), around(CLEAN, 9, 1)
    auxiliary[:, 1] = auxiliary[:, 0]
    detector = Mahalanobis()
    detector.fit(view_of(auxiliary))
    points = auxiliary.float().div(255).flatten(1).double().numpy()
    count, dimensions = points.shape
    centred = points - points.mean(axis=0)
    covariance = centred.T @ centred / count
    sphere = np.trace(covariance) / dimensions * np.eye(dimensions)
    outer = np.einsum("nd,ne->nde", centred, centred)
    noise = ((outer - covariance) ** 2).sum() / count**2
    share = min(1, noise / ((covariance - sphere) ** 2).sum())  # Ledoit and Wolf 2004, section 3
    assert 0.01 < share < 0.99
    precision = np.linalg.inv((1 - share) * covariance + share * sphere)
    offsets = images.float().div(255).flatten(1).double().numpy() - points.mean(axis=0)
    expected = np.einsum("nd,de,ne->n", offsets, precision, offsets)
    np.testing.assert_allclose(detector.score(images.float() / 255), expected, rtol=1e-5)


def test_mahalanobis_accepts_dead_dimensions_and_refuses_only_dead_ones():
    images = around(CLEAN, 50, 0)
    images[:, 1] = 7
    detector = Mahalanobis()
    detector.fit(view_of(images))
    assert torch.isfinite(detector.score(images.float() / 255)).all()
    with pytest.raises(ValueError, match="all auxiliary embeddings are equal"):
        detector.fit(view_of(torch.full((5, 3, 2, 2), 9, dtype=torch.uint8)))


def test_isolation_forest_accepts_fewer_images_than_its_subsample():
    detector = IsolationForest(trees=5)
    detector.fit(view_of(around(CLEAN, 12, 0)))
    scores = detector.score(around(CLEAN, 5, 1).float() / 255)
    assert ((scores > 0) & (scores < 1)).all()
