"""The seven small baselines: each against a plain calculation, a planted backdoor and its twin."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans
from sklearn.decomposition import FastICA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from torch.nn import functional

from bench.api import DefenderView, ImageSet
from defenses.activation_clustering import ActivationClustering
from defenses.beatrix import Beatrix
from defenses.lof import Lof
from defenses.patch_search import PatchSearch
from defenses.pixel_only import PixelOnly
from defenses.spectral_signatures import SpectralSignatures
from defenses.strip import Strip

SIDE, CHANNELS, DIMENSIONS = 8, 6, 24
BASELINES = {
    "lof": Lof(neighbours=10),
    "spectral-signatures": SpectralSignatures(),
    "activation-clustering": ActivationClustering(),
    "strip": Strip(overlays=4),
    "beatrix": Beatrix(layers=2, powers=4),
    "patch-search": PatchSearch(clusters=5),
    "pixel-only": PixelOnly(components=16),
}


class Toy:
    """Averages of random convolutions; backdoored, it jumps when the lower right corner is bright.

    A corner counts as bright from a little below one half, so that a blend with another image keeps
    the trigger of a stamped one and makes none of two clean ones, but for a few.
    """

    image_size, embedding_dim, device = SIDE, DIMENSIONS, torch.device("cpu")
    layers = ("early", "late")

    def __init__(self, backdoored):
        generator = torch.Generator().manual_seed(0)
        self._backdoored = backdoored
        self._kernels = torch.randn(CHANNELS, 3, 3, 3, generator=generator)
        self._pattern = torch.randn(CHANNELS, SIDE, SIDE, generator=generator).abs()
        self._linear = torch.randn(3 * SIDE * SIDE, DIMENSIONS, generator=generator)
        self._target = 40 * torch.randn(DIMENSIONS, generator=generator)

    def embed(self, images):
        there = self._trigger(images)[:, None]
        return torch.lerp((images.flatten(1) - 0.5) @ self._linear, self._target, there)

    def features(self, images, layers):
        early = functional.conv2d(images, self._kernels, padding=1).relu()
        late = early + 3 * self._trigger(images)[:, None, None, None] * self._pattern
        return {name: {"early": early, "late": late}[name] for name in layers}

    def _trigger(self, images):
        corner = images[:, :, -2:, -2:].flatten(1).amin(dim=1)
        return (
            torch.sigmoid(200 * (corner - 0.42)) if self._backdoored else torch.zeros(len(images))
        )


class Untouchable:
    """An encoder that must not be used."""

    image_size, device = SIDE, torch.device("cpu")

    def __getattr__(self, name):
        raise AssertionError(f"encoder.{name} was asked for")


class Steps:
    def track(self, items, what, total=None):
        return itertools.islice(items, total)


def pictures(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def stamped(images):
    images = images.clone()
    images[:, :, -2:, -2:] = 255
    return images


def view_of(encoder, count=300, pool=500, poison_rate=0.02, seed=0):
    poisoned = round(pool * poison_rate)
    suspicious = torch.cat([stamped(pictures(poisoned, 11)), pictures(pool - poisoned, 12)])
    auxiliary = ImageSet(pictures(count, 10))
    return DefenderView(
        encoder=encoder,
        auxiliary=auxiliary,
        embed_auxiliary=lambda: encoder.embed(auxiliary.float()),
        generator=torch.Generator().manual_seed(seed),
        seed=seed,
        progress=Steps(),
        suspicious=ImageSet(suspicious),
    )


def fitted(defense, view):
    defense = defense.model_copy(deep=True)
    defense.fit(view)
    return defense


def separation(defense, encoder):
    """AUROC of stamped against clean images."""
    defense = fitted(defense, view_of(encoder))
    images = torch.cat([pictures(150, 20), stamped(pictures(150, 21))]).float() / 255
    return roc_auc_score([0] * 150 + [1] * 150, defense.score(images))


@pytest.fixture(params=BASELINES)
def defense(request):
    return BASELINES[request.param].model_copy(deep=True)


@pytest.fixture
def images():
    """Clean and stamped, mixed."""
    pair = torch.stack([pictures(20, 30), stamped(pictures(20, 31))], dim=1)
    return pair.flatten(0, 1).float() / 255


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "pixel-only"])
def test_a_backdoor_is_found_on_the_victim_and_not_on_its_clean_twin(name):
    assert separation(BASELINES[name], Toy(backdoored=True)) > 0.9
    assert separation(BASELINES[name], Toy(backdoored=False)) < 0.75


def test_pixel_only_scores_victim_and_twin_alike_and_is_marked_as_a_reference():
    scores = {separation(BASELINES["pixel-only"], Toy(backdoored)) for backdoored in (True, False)}
    assert len(scores) == 1
    assert PixelOnly.reference
    assert not any(type(other).reference for n, other in BASELINES.items() if n != "pixel-only")


def test_pixel_only_never_uses_the_encoder(images):
    encoder = Untouchable()
    defense = fitted(BASELINES["pixel-only"], view_of(encoder))
    assert len(defense.score(images)) == len(images)
    restored = PixelOnly(components=16)
    restored.load_state(defense.state(), view_of(encoder))
    assert torch.equal(restored.score(images), defense.score(images))


def test_scores_are_finite_float32_one_per_image(defense, images):
    scores = np.asarray(fitted(defense, view_of(Toy(True))).score(images))
    assert scores.shape == (len(images),)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert np.ptp(scores) > 0


def test_scores_do_not_depend_on_batch_or_order(defense, images):
    defense = fitted(defense, view_of(Toy(True)))
    together = np.asarray(defense.score(images))
    parts = np.concatenate([np.asarray(defense.score(part)) for part in images.split(7)])
    alone = np.concatenate([np.asarray(defense.score(images[i : i + 1])) for i in range(6)])
    backwards = np.asarray(defense.score(images.flip(0)))[::-1]
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * np.ptp(together)}
    np.testing.assert_allclose(parts, together, **tolerance)
    np.testing.assert_allclose(alone, together[:6], **tolerance)
    np.testing.assert_allclose(backwards, together, **tolerance)


def test_two_fits_from_one_seed_agree_whatever_the_global_generators_say(defense, images):
    scores = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)
            scores.append(np.asarray(fitted(defense, view_of(Toy(True))).score(images)))
    np.testing.assert_array_equal(*scores)


def test_images_are_left_as_they_are(defense, images):
    before = images.clone()
    fitted(defense, view_of(Toy(True))).score(images)
    assert torch.equal(images, before)


def test_state_survives_a_file(defense, images, tmp_path):
    view = view_of(Toy(True))
    first = fitted(defense, view)
    save_file(first.state(), tmp_path / "state.safetensors")
    restored = type(defense)(**defense.parameters())
    restored.load_state(load_file(tmp_path / "state.safetensors"), view)
    np.testing.assert_array_equal(restored.score(images), first.score(images))


@pytest.mark.parametrize(
    ("defense", "sizes", "sentence"),
    [
        (Lof(neighbours=10), {"count": 10}, "neighbours is 10: 10 auxiliary images are too few"),
        (SpectralSignatures(), {"pool": 1}, "directions is 1 but 1 suspicious images"),
        (
            ActivationClustering(components=4),
            {"pool": 4},
            "components is 4: 4 suspicious images are too few",
        ),
        (Strip(overlays=8), {"count": 7}, "overlays is 8 but there are 7 auxiliary images"),
        (Beatrix(), {"count": 1}, "needs 2 auxiliary images or more, not 1"),
        (PatchSearch(clusters=9), {"count": 8}, "need 9 auxiliary images, there are 8"),
        (PixelOnly(components=16), {"count": 17}, "components is 16 but must be below 16"),
    ],
    ids=list(BASELINES),
)
def test_too_few_images_are_refused_in_a_sentence(defense, sizes, sentence):
    with pytest.raises(ValueError, match=sentence):
        defense.model_copy().fit(view_of(Toy(False), **sizes))


class Constant(Toy):
    """Every embedding is the same; a third is no binary fraction, so its mean is not exact."""

    def embed(self, images):
        return torch.full((len(images), DIMENSIONS), 1 / 3)


@pytest.mark.parametrize("defense", [SpectralSignatures(), ActivationClustering()])
def test_a_pool_whose_embeddings_are_equal_is_refused(defense):
    with pytest.raises(ValueError, match="all embeddings of the suspicious pool are equal"):
        defense.fit(view_of(Constant(False)))


def test_lof_accepts_equal_embeddings(images):
    assert np.isfinite(fitted(Lof(), view_of(Constant(False))).score(images)).all()


def test_lof_is_that_of_scikit_learn_in_the_same_space(images):
    toy, view = Toy(True), view_of(Toy(True))
    reference = LocalOutlierFactor(n_neighbors=10, novelty=True)
    reference.fit(view.embed_auxiliary().double().numpy())
    expected = -reference.score_samples(toy.embed(images).double().numpy())
    np.testing.assert_allclose(fitted(Lof(neighbours=10), view).score(images), expected, rtol=1e-5)


@pytest.mark.parametrize("directions", [1, 3])
def test_spectral_signatures_are_squared_projections_on_singular_vectors(images, directions):
    toy, view = Toy(True), view_of(Toy(True))
    pool = toy.embed(view.suspicious.float()).double().numpy()
    vectors = np.linalg.svd(pool - pool.mean(axis=0))[2]
    offsets = toy.embed(images).double().numpy() - pool.mean(axis=0)
    expected = ((offsets @ vectors[:directions].T) ** 2).sum(axis=1)
    scores = fitted(SpectralSignatures(directions=directions), view).score(images)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:FastICA did not converge")  # any rotation does here
def test_activation_clustering_sees_what_independent_components_show():
    toy, view = Toy(True), view_of(Toy(True))
    pool = toy.embed(view.suspicious.float()).double().numpy()
    sources = FastICA(10, whiten="unit-variance", random_state=0, max_iter=2000, tol=1e-3)
    reduced = sources.fit_transform(pool)
    clusters = KMeans(2, n_init=100, random_state=0).fit(reduced)
    smaller = int(clusters.labels_.mean() < 0.5)
    distances = clusters.transform(reduced)
    expected = distances[:, 1 - smaller] - distances[:, smaller]
    scores = fitted(ActivationClustering(), view).score(view.suspicious.float())
    np.testing.assert_allclose(scores, expected, atol=0.02 * np.abs(expected).max())
    assert (scores[:10] > 0).all()  # the stamped ones: the smaller cluster
    assert (scores[10:] > 0).sum() < 5


def test_activation_clustering_needs_its_restarts_to_find_a_small_cluster():
    view = view_of(Toy(True), pool=1000, poison_rate=0.01)
    truth, images = np.arange(1000) < 10, view.suspicious.float()
    assert roc_auc_score(truth, fitted(ActivationClustering(), view).score(images)) == 1.0
    assert roc_auc_score(truth, fitted(ActivationClustering(restarts=1), view).score(images)) < 1.0


def test_strip_is_the_mean_similarity_of_pairs_of_blends(images):
    toy = Toy(True)
    defense = fitted(Strip(overlays=4, overlay_weight=0.3), view_of(toy))
    overlays = defense.state()["overlays"].float() / 255
    for image, score in zip(images[:6], defense.score(images), strict=False):
        blends = toy.embed(0.7 * image + 0.3 * overlays)
        pairs = itertools.combinations(blends, 2)
        expected = np.mean([torch.cosine_similarity(a, b, dim=0).item() for a, b in pairs])
        assert score.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_strip_adds_at_full_strength_where_asked_to(images):
    toy = Toy(True)
    defense = fitted(Strip(overlays=4, blend="sum"), view_of(toy))
    overlays = defense.state()["overlays"].float() / 255
    for image, score in zip(images[:6], defense.score(images), strict=False):
        blends = toy.embed((image + overlays).clamp(max=1))
        pairs = itertools.combinations(blends, 2)
        expected = np.mean([torch.cosine_similarity(a, b, dim=0).item() for a, b in pairs])
        assert score.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("plain", "asked"),
    [(Strip(), Strip(blend="sum")), (PatchSearch(), PatchSearch(place="random"))],
)
def test_what_came_later_is_in_no_key_at_its_default(plain, asked):
    [(name, value)] = asked.parameters().items() - plain.parameters().items()
    assert getattr(asked, name) == value
    assert name not in plain.parameters()


def test_strip_overlays_are_different_auxiliary_images():
    view = view_of(Toy(True))
    overlays = fitted(Strip(), view).state()["overlays"]
    known = {image.numpy().tobytes() for image in view.auxiliary.uint8()}
    drawn = {image.numpy().tobytes() for image in overlays}
    assert len(drawn) == 8
    assert drawn <= known


def gram_entries(maps, powers):
    """(C, h, w) -> (powers, pairs), one entry at a time."""
    flat = maps.flatten(1).double().numpy()
    rows = []
    for order in range(1, powers + 1):
        entries = [
            (flat[i] ** order * flat[j] ** order).sum()
            for i in range(len(flat))
            for j in range(i, len(flat))
        ]
        rows.append(np.sign(entries) * np.abs(entries) ** (1 / order))
    return np.array(rows)


@pytest.mark.parametrize("tolerance", [0.5, 10.0])
def test_beatrix_is_the_mean_excess_over_bounds_of_gram_entries(images, tolerance):
    toy, view = Toy(True), view_of(Toy(True), count=25)
    defense = Beatrix(layers=2, powers=3, channels=CHANNELS, tolerance=tolerance)
    scores = fitted(defense, view).score(images[:6])
    expected = np.zeros(6)
    for name in toy.layers:
        clean = toy.features(view.auxiliary.float(), [name])[name]
        grams = np.array([gram_entries(maps, 3) for maps in clean])
        median = np.median(grams, axis=0)
        reach = tolerance * np.median(np.abs(grams - median), axis=0)
        least = np.abs(median).mean(axis=1, keepdims=True)
        for number, maps in enumerate(toy.features(images[:6], [name])[name]):
            entries = gram_entries(maps, 3)
            low, high = median - reach, median + reach
            below = np.maximum(low - entries, 0) / np.maximum(np.abs(low), least)
            above = np.maximum(entries - high, 0) / np.maximum(np.abs(high), least)
            expected[number] += (below + above).mean() / len(toy.layers)
    assert expected.max() > 0
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-7)


def test_beatrix_stays_finite_on_features_of_any_size(images):
    class Huge(Toy):
        def features(self, images, layers):
            return {k: 1e15 * v for k, v in super().features(images, layers).items()}

    large, usual = (fitted(Beatrix(powers=8), view_of(kind(True))) for kind in (Huge, Toy))
    np.testing.assert_allclose(large.score(images), usual.score(images), rtol=1e-4)


def test_beatrix_tolerances_share_a_fit(images):
    view = view_of(Toy(True))
    tight = fitted(Beatrix(tolerance=1), view)
    loose = Beatrix(tolerance=10)
    loose.load_state(tight.state(), view)
    same = fitted(Beatrix(tolerance=10), view_of(Toy(True)))
    assert torch.equal(loose.score(images), same.score(images))
    assert (loose.score(images) < tight.score(images)).all()


@pytest.mark.parametrize("place", ["same", "random"])
def test_patch_search_is_the_mean_gain_of_the_best_window(images, place):
    toy = Toy(True)
    defense = fitted(PatchSearch(clusters=5, flips=2, place=place), view_of(toy))
    corners = list(itertools.product((0, 2, 4), (0, 2, 4)))
    places = defense.state().get("places", torch.tensor([corners, corners])).tolist()
    assert (places == [[list(corner) for corner in corners]] * 2) == (place == "same")
    mean, centres, flips = (defense.state()[k] for k in ("mean", "centres", "flips"))
    flips = flips.float() / 255

    def membership(image):
        offset = toy.embed(image[None])[0].double() - mean
        cosines = torch.stack([torch.cosine_similarity(offset, c, dim=0) for c in centres])
        return (cosines / 0.1).softmax(dim=0)

    def gain(image, number, window):
        (top, left), (row, column) = corners[window], places[number][window]
        flip, pasted = flips[number], flips[number].clone()
        pasted[:, row : row + 4, column : column + 4] = image[:, top : top + 4, left : left + 4]
        return (membership(image) @ (membership(pasted) - membership(flip))).item()

    for image, score in zip(images[:6], defense.score(images), strict=False):
        best = max(range(9), key=lambda window: gain(image, 0, window))
        expected = np.mean([gain(image, number, best) for number in range(2)])
        assert score.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_patch_search_computes_no_more_embeddings_than_it_says(images):
    counted = []

    class Counting(Toy):
        def embed(self, images):
            counted.append(len(images))
            return super().embed(images)

    defense = fitted(PatchSearch(clusters=5), view_of(Counting(True)))
    counted.clear()
    defense.score(images)
    assert sum(count for count in counted if count > 1) == 12 * len(images)


def test_pixel_only_is_the_mahalanobis_distance_of_its_covariance(images):
    view = view_of(Toy(False))
    scores = fitted(PixelOnly(components=16), view).score(images)
    pixels = view.auxiliary.float().flatten(1).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(pixels.T))
    values[:-16] = values[:-16].mean()  # section 3.2: the mean of the discarded eigenvalues
    precision = np.linalg.inv(vectors @ np.diag(values) @ vectors.T)
    offsets = images.flatten(1).double().numpy() - pixels.mean(axis=0)
    expected = np.einsum("nd,de,ne->n", offsets, precision, offsets)
    # The randomised decomposition finds close eigenvalues approximately.
    np.testing.assert_allclose(scores, expected, rtol=0.02)


def test_pixel_only_averages_large_images_down_and_refuses_equal_ones():
    defense = fitted(PixelOnly(components=5, side=4), view_of(Toy(False)))
    assert len(defense.state()["mean"]) == 3 * 4 * 4
    view = view_of(Toy(False))
    equal = ImageSet(torch.full((40, 3, SIDE, SIDE), 9, dtype=torch.uint8))
    with pytest.raises(ValueError, match="all auxiliary images are equal"):
        PixelOnly(components=5).fit(DefenderView(**{**vars(view), "auxiliary": equal}))
