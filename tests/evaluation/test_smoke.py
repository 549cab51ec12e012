"""The first look at a foreign encoder: its figures, and a sentence for everything that is odd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bench.data.imageset import ImageSet
from bench.evaluation.smoke import SmokeTest, smoke_test

CLASSES = 4


class Synthetic:
    """An encoder that is any function of images; remembers how many it was shown."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self.seen = 0

    def embed(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return self.function(images)


def pictures(count: int, seed: int = 0, classes: int = CLASSES) -> ImageSet:
    """Noise with one bright row, whose place is the class; classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    storage = torch.randint(0, 64, (count, 3, 8, 8), generator=generator).to(torch.uint8)
    labels = torch.arange(count) % classes
    storage[torch.arange(count), :, 2 * labels] = 255
    names = tuple(str(label) for label in range(classes))
    return ImageSet(storage, labels=labels, class_names=names)


def row_means(images: Tensor) -> Tensor:
    """(N, 8): what tells the classes apart."""
    return images.mean((1, 3)) - 0.25


def noise(images: Tensor) -> Tensor:
    """(N, 16): of the pixel noise, which says nothing about the class."""
    return images[:, :, 1::2].flatten(1)[:, :16] - 0.125


def looked_at(function: Callable[[Tensor], Tensor]) -> SmokeTest:
    return smoke_test(Synthetic(function), pictures(200), pictures(100, seed=1))


def test_healthy_encoder_gives_no_problem():
    seen = looked_at(row_means)
    assert seen.problems == ()
    assert not seen.fatal
    assert seen.figures["knn_accuracy"] == 1.0
    assert seen.figures["chance"] == 0.25
    assert seen.figures["constant_dimensions"] == 0.0


def test_figures_are_those_of_their_definitions():
    images = pictures(200)
    embeddings = row_means(images.float())
    figures = looked_at(row_means).figures
    cosines = functional.normalize(embeddings, dim=1) @ functional.normalize(embeddings, dim=1).T
    others = ~torch.eye(200, dtype=torch.bool)
    assert figures["mean_cosine"] == pytest.approx(float(cosines[others].mean()), abs=1e-5)
    assert figures["mean_norm"] == pytest.approx(float(embeddings.norm(dim=1).mean()), rel=1e-6)


def test_chance_is_the_share_of_the_commonest_class():
    queries = pictures(80)
    common = torch.cat([torch.arange(80), torch.arange(0, 80, 4)])
    seen = smoke_test(Synthetic(row_means), pictures(200), queries.select(common))
    assert seen.figures["chance"] == 0.4


def test_only_the_first_images_are_looked_at():
    encoder = Synthetic(row_means)
    smoke_test(encoder, pictures(2100), pictures(600, seed=1))
    assert encoder.seen == 2000 + 500


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_are_fatal(value):
    def broken(images: Tensor) -> Tensor:
        embeddings = row_means(images)
        embeddings[:3] = value
        return embeddings

    seen = looked_at(broken)
    assert seen.fatal
    assert seen.problems == ("6 of 300 embeddings are not finite",)
    assert seen.figures == {}


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_constant_embedding_is_fatal(value):
    seen = looked_at(lambda images: torch.full((len(images), 8), value))
    assert seen.fatal
    assert "every image has the same embedding" in seen.problems
    assert seen.figures["constant_dimensions"] == 1.0
    assert not any("hardly differ" in problem for problem in seen.problems)


def test_embeddings_that_hardly_differ_ask_about_the_normalisation():
    seen = looked_at(lambda images: row_means(images) + 100)
    assert seen.problems == (
        "embeddings hardly differ (mean cosine 1.0000): is the normalisation right?",
    )
    assert not seen.fatal
    assert seen.figures["knn_accuracy"] == 1.0


@pytest.mark.parametrize(("dead", "told"), [(8, False), (9, True)])
def test_more_than_half_dead_dimensions_ask_about_the_weights(dead, told):
    seen = looked_at(
        lambda images: torch.cat([row_means(images), torch.ones(len(images), dead)], dim=1)
    )
    share = dead / (8 + dead)
    assert seen.figures["constant_dimensions"] == pytest.approx(share)
    expected = f"{share:.0%} of the dimensions never vary: are all weights there?"
    assert (expected in seen.problems) == told
    assert not seen.fatal


def test_accuracy_near_chance_asks_about_architecture_and_normalisation():
    seen = looked_at(noise)
    accuracy = seen.figures["knn_accuracy"]
    assert accuracy < 0.375
    assert seen.problems == (
        f"kNN accuracy {accuracy:.3f} is near chance (0.250): check architecture, mean and std",
    )
    assert not seen.fatal


def test_several_problems_are_all_told():
    seen = looked_at(
        lambda images: torch.cat(
            [noise(images)[:, :1] / 1000, torch.ones(len(images), 7) * 50], dim=1
        )
    )
    assert [problem.split()[0] for problem in seen.problems] == ["embeddings", "88%", "kNN"]
