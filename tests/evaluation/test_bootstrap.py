"""The bootstrap of source images: exactness, stratification, shared draws, pairing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from bench.evaluation.bootstrap import Bootstrap, Sample, percentile_interval
from bench.evaluation.detection import auroc, fpr_at_tpr, tpr_at_fpr

LABELS = np.random.default_rng(5).integers(0, 4, 90)


def tied(seed: int, shift: float = 0.0) -> Sample:
    """Scores of all images on a coarse grid, many of them tied."""
    return Sample.of_all(np.random.default_rng(seed).normal(shift, 1, len(LABELS)).round(1))


def repeated(sample: Sample, weights: np.ndarray) -> np.ndarray:
    """The scores with every image repeated as often as the draw holds it: the naive bootstrap."""
    return np.repeat(sample.scores, weights[sample.images])


def naive_auroc(clean: Sample, triggered: Sample, weights: np.ndarray) -> float:
    """Every pair by itself; those of an image with itself keep their share of the sample's."""
    wins, pairs = {True: 0.0, False: 0.0}, {True: 0, False: 0}
    shared = 0
    for image, score in zip(triggered.images, triggered.scores, strict=True):
        for other, against in zip(clean.images, clean.scores, strict=True):
            itself = bool(other == image)
            times = int(weights[image]) * (1 if itself else int(weights[other]))
            wins[itself] += times * (1.0 if score > against else 0.5 if score == against else 0.0)
            pairs[itself] += times
            shared += itself
    share = shared / (len(clean.scores) * len(triggered.scores))
    return (1 - share) * wins[False] / pairs[False] + share * wins[True] / pairs[True]


def test_auroc_draws_equal_the_naive_loop_with_ties():
    bootstrap = Bootstrap(LABELS, draws=30, seed=3)
    clean, triggered = tied(0).where(LABELS != 1), tied(1, 0.8).where(LABELS != 2)
    naive = [naive_auroc(clean, triggered, weights) for weights in bootstrap.multiplicities]
    np.testing.assert_allclose(bootstrap.auroc_draws(clean, triggered), naive, atol=1e-12)


def test_auroc_draws_of_different_images_equal_sklearn():
    bootstrap = Bootstrap(LABELS, draws=30, seed=3)
    clean, triggered = tied(0).where(LABELS < 2), tied(1, 0.8).where(LABELS >= 2)
    naive = [
        auroc(repeated(clean, weights), repeated(triggered, weights))
        for weights in bootstrap.multiplicities
    ]
    np.testing.assert_allclose(bootstrap.auroc_draws(clean, triggered), naive, atol=1e-12)
    truth = np.repeat([0, 1], [len(clean.scores), len(triggered.scores)])
    pooled = np.concatenate([clean.scores, triggered.scores])
    weights = bootstrap.multiplicities[0][np.concatenate([clean.images, triggered.images])]
    assert naive[0] == pytest.approx(roc_auc_score(truth, pooled, sample_weight=weights))


def test_draws_centre_on_the_estimate_where_a_score_hardly_changes():
    """Every image is a hair above itself, as where trigger and decoy are all but equal."""
    labels = np.arange(400) % 10
    decoyed = Sample.of_all(np.random.default_rng(0).normal(size=400))
    triggered = Sample.of_all(decoyed.scores + 1e-9)
    draws = Bootstrap(labels, draws=4000).auroc_draws(decoyed, triggered)
    estimate = auroc(decoyed.scores, triggered.scores)
    assert estimate == 0.5 + 1 / 800
    # An image that met itself as often as w^2 would put the draws at 0.5025.
    np.testing.assert_allclose(draws, estimate, atol=1e-12)


def test_aupr_draws_equal_sklearn_with_ties():
    bootstrap = Bootstrap(LABELS, draws=60, seed=3)
    clean, triggered = tied(0), tied(1, 0.8).where(LABELS != 2)
    truth = np.repeat([0, 1], [len(clean.scores), len(triggered.scores)])
    pooled = np.concatenate([clean.scores, triggered.scores])
    rows = np.concatenate([clean.images, triggered.images])
    expected = [
        average_precision_score(truth, pooled, sample_weight=weights[rows])
        for weights in bootstrap.multiplicities
    ]
    np.testing.assert_allclose(bootstrap.aupr_draws(clean, triggered), expected, atol=1e-12)


def test_mean_draws_equal_the_naive_loop():
    bootstrap = Bootstrap(LABELS, draws=40)
    flagged = tied(0).scores > 0.3
    expected = [
        np.repeat(flagged[10:], weights[10:]).mean() for weights in bootstrap.multiplicities
    ]
    images = np.arange(10, len(LABELS))
    np.testing.assert_allclose(bootstrap.mean_draws(images, flagged[10:]), expected, atol=1e-12)


def test_every_draw_holds_as_many_images_of_a_class_as_the_class_has():
    bootstrap = Bootstrap(LABELS, draws=200)
    assert bootstrap.multiplicities.shape == (200, len(LABELS))
    for label in np.unique(LABELS):
        members = label == LABELS
        assert (bootstrap.multiplicities[:, members].sum(1) == members.sum()).all()
    # With replacement, uniformly: every image comes once on average (standard error 0.07).
    assert np.abs(bootstrap.multiplicities.mean(0) - 1).max() < 0.35
    assert len(np.unique(bootstrap.multiplicities, axis=0)) == 200


def test_draws_follow_from_labels_and_seed_alone():
    first, again, other = Bootstrap(LABELS), Bootstrap(LABELS.copy()), Bootstrap(LABELS, seed=1)
    drawn = first.auroc_draws(tied(0), tied(1))
    np.testing.assert_array_equal(first.multiplicities, again.multiplicities)
    assert (first.multiplicities != other.multiplicities).any()
    np.testing.assert_array_equal(drawn, again.auroc_draws(tied(0), tied(1)))


def test_draws_of_a_class_do_not_depend_on_the_other_classes():
    kept = LABELS != 1
    np.testing.assert_array_equal(
        Bootstrap(LABELS).multiplicities[:, kept], Bootstrap(LABELS[kept]).multiplicities
    )


def test_classes_of_equal_size_are_drawn_differently():
    first, second = np.split(Bootstrap(np.repeat([0, 1], 20), draws=500).multiplicities, 2, axis=1)
    assert (first != second).any()
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


def test_draws_made_in_pieces_are_the_draws_made_at_once(monkeypatch):
    whole = Bootstrap(LABELS, draws=50).multiplicities
    monkeypatch.setattr("bench.evaluation.bootstrap._PICKS_AT_ONCE", 70)
    np.testing.assert_array_equal(Bootstrap(LABELS, draws=50).multiplicities, whole)


def test_a_placebo_equal_to_the_victim_leaves_no_delta():
    bootstrap = Bootstrap(LABELS)
    clean, triggered = tied(0), tied(1, 0.5)
    of_victim, of_twin = (bootstrap.auroc_draws(clean, triggered) for _ in range(2))
    assert percentile_interval(of_victim - of_twin) == (0.0, 0.0)


def test_pairing_makes_the_delta_narrower_than_independent_draws():
    bootstrap = Bootstrap(LABELS)
    clean, triggered = tied(0), tied(1, 0.5)
    noise = np.random.default_rng(9).normal(0, 0.05, len(LABELS))
    near = Sample.of_all(triggered.scores + noise)
    of_near = bootstrap.auroc_draws(clean, near)
    low, high = percentile_interval(of_near - bootstrap.auroc_draws(clean, triggered))
    independent = of_near - Bootstrap(LABELS, seed=1).auroc_draws(clean, triggered)
    apart_low, apart_high = percentile_interval(independent)
    assert high - low < 0.5 * (apart_high - apart_low)
    assert low <= auroc(clean.scores, near.scores) - auroc(clean.scores, triggered.scores) <= high


def test_an_empty_trigger_gives_half_for_a_pair_in_every_draw():
    clean = tied(0)
    assert set(Bootstrap(LABELS).auroc_draws(clean, clean)) == {0.5}


def test_interval_is_the_percentiles_and_holds_the_point_value():
    bootstrap = Bootstrap(LABELS)
    clean, triggered = tied(0), tied(1, 0.5)
    draws = bootstrap.auroc_draws(clean, triggered)
    low, high = percentile_interval(draws)
    np.testing.assert_allclose((low, high), np.quantile(draws, [0.025, 0.975]), atol=1e-12)
    assert low < auroc(clean.scores, triggered.scores) < high
    low, high = percentile_interval(bootstrap.aupr_draws(clean, triggered))
    assert low < high
    flagged = clean.scores > 0
    low, high = bootstrap.mean(clean.images, flagged)
    assert low < flagged.mean() < high


def test_interval_does_not_change_under_increasing_transforms():
    bootstrap = Bootstrap(LABELS, draws=100)
    clean, triggered = tied(0), tied(1, 0.5)
    curved = [Sample.of_all(np.exp(sample.scores)) for sample in (clean, triggered)]
    draws = bootstrap.auroc_draws(clean, triggered)
    np.testing.assert_array_equal(bootstrap.auroc_draws(*curved), draws)


def test_images_may_appear_in_one_condition_each():
    bootstrap = Bootstrap(LABELS, draws=50)
    first_half = np.arange(len(LABELS)) < 45
    clean, triggered = tied(0).where(first_half), tied(1, 0.5).where(~first_half)
    naive = [
        auroc(repeated(clean, weights), repeated(triggered, weights))
        for weights in bootstrap.multiplicities
    ]
    np.testing.assert_allclose(bootstrap.auroc_draws(clean, triggered), naive, atol=1e-12)


def test_draws_without_positives_are_left_out_of_the_interval():
    bootstrap = Bootstrap([0, 0], draws=100)
    draws = bootstrap.auroc_draws(Sample([0], [0.0]), Sample([1], [1.0]))
    assert np.isnan(draws).any()
    assert percentile_interval(draws) == (1.0, 1.0)
    assert np.isnan(bootstrap.mean([], [])).all()


def test_malformed_samples_and_labels_are_refused():
    with pytest.raises(ValueError, match="named twice"):
        Sample([1, 1], [0.0, 1.0])
    with pytest.raises(ValueError, match="must not be negative"):
        Sample([-1], [0.0])
    with pytest.raises(ValueError, match="not finite"):
        Sample([0], [np.nan])
    with pytest.raises(ValueError, match="images for"):
        Sample([0, 1], [0.0])
    with pytest.raises(ValueError, match="must be integers"):
        Sample([0.0], [0.0])
    with pytest.raises(ValueError, match="vector of integers"):
        Bootstrap([0.5, 1.0])
    with pytest.raises(ValueError, match="must not be negative"):
        Bootstrap([-1, 0])


@pytest.mark.parametrize("rounding", [1, 6])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.37, 0.95, 1.0])
def test_rates_read_off_the_curve_equal_those_of_the_resampled_images(rate, rounding):
    """Every draw against the plain function on the repeated scores; rounding makes ties."""
    random = np.random.default_rng(5)
    labels = np.arange(60) % 3
    clean = Sample.of_all(random.normal(size=60).round(rounding))
    triggered = Sample.of_all(random.normal(1, 1, size=60).round(rounding)).where(labels != 0)
    bootstrap = Bootstrap(labels, draws=40, seed=2)
    true_rates = bootstrap.tpr_at_fpr_draws(clean, triggered, rate)
    false_rates = bootstrap.fpr_at_tpr_draws(clean, triggered, rate)
    for draw, weights in enumerate(bootstrap.multiplicities):
        negatives = np.repeat(clean.scores, weights[clean.images])
        positives = np.repeat(triggered.scores, weights[triggered.images])
        assert true_rates[draw] == pytest.approx(tpr_at_fpr(negatives, positives, rate))
        if rate > 0:
            assert false_rates[draw] == pytest.approx(fpr_at_tpr(negatives, positives, rate))
