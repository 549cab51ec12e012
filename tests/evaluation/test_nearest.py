"""The vote of nearest neighbours: published figures, and blocks that change nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from bench.data.imageset import ImageSet
from bench.evaluation import nearest
from bench.evaluation.nearest import knn_predict, raw_pixel_knn

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "evaluation.json").read_text(encoding="utf-8")
)["knn_vote"]


@pytest.fixture
def golden_vote() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    bank = functional.normalize(torch.randn(64, 300, generator=generator), dim=0).T
    queries = functional.normalize(torch.randn(5, 64, generator=generator))
    return queries, bank, torch.arange(300) % 10


@pytest.mark.parametrize("case", GOLDEN["predictions"], ids=lambda case: str(case["temperature"]))
def test_knn_reproduces_the_published_vote(golden_vote, case):
    found = knn_predict(*golden_vote, 10, k=GOLDEN["k"], temperature=case["temperature"])
    assert found.dtype == torch.int64
    assert found.tolist() == case["classes"]


def test_knn_does_not_depend_on_batching_or_on_feature_length(golden_vote, monkeypatch):
    queries, bank, labels = golden_vote
    whole = knn_predict(queries, bank, labels, 10)
    monkeypatch.setattr(nearest, "_VALUES_AT_ONCE", 4000)
    lengths = torch.linspace(0.1, 9, len(bank))[:, None]
    assert torch.equal(knn_predict(7 * queries, lengths * bank, labels, 10), whole)


def test_knn_with_a_small_bank_lets_all_rows_vote():
    bank, labels = torch.eye(3), torch.tensor([2, 0, 1])
    assert knn_predict(bank, bank, labels, 3).tolist() == [2, 0, 1]


def test_knn_reproduces_the_vote_of_decrees_code():
    """Probe D9 of the published DECREE code."""
    steps = torch.arange(512, dtype=torch.float32)
    queries, bank = (wave.view(64, 8) for wave in (torch.sin(0.3 * steps), torch.cos(0.17 * steps)))
    found = knn_predict(queries[:6], bank, torch.arange(64) % 4, 4, k=10, temperature=0.5)
    assert found.tolist() == [0, 1, 3, 0, 1, 3]


@pytest.fixture
def pictures() -> tuple[ImageSet, ImageSet]:
    """Twenty to ask and forty that are known, of two classes: the upper half of one is brighter."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    pixels = 0.4 + 0.2 * torch.rand(60, 3, 8, 8, generator=generator)
    pixels[labels == 1, :, :4] += 0.1
    images = ImageSet(pixels.mul(255).byte(), labels=labels, class_names=("dark", "bright"))
    return images.select(torch.arange(20)), images.select(torch.arange(20, 60))


def test_raw_pixel_knn_tells_pictures_apart_by_pixels_alone(pictures):
    asked, known = pictures
    assert torch.equal(raw_pixel_knn(asked, known, 2, k=10), asked.labels)
    # As the vote on pixels that are standardised all at once.
    pixels = known.float()
    mean, deviation = (f(dim=(0, 2, 3), keepdim=True) for f in (pixels.mean, pixels.std))
    flat = [((each.float() - mean) / deviation).flatten(1) for each in pictures]
    for k in (1, 3, 40):
        found = knn_predict(*flat, known.labels, 2, k=k, temperature=0.01)
        assert torch.equal(raw_pixel_knn(asked, known, 2, k=k, temperature=0.01), found)
    assert torch.equal(nearest._channels(known, 40, "cpu")[0], mean)
    assert torch.equal(nearest._channels(known, 40, "cpu")[1], deviation)


@pytest.mark.parametrize("at_once", [1, 7, 13, 39])
def test_pixels_are_floats_a_few_images_at_a_time(pictures, at_once, monkeypatch):
    asked, known = pictures
    whole = [raw_pixel_knn(asked, known, 2, k=k, temperature=0.01) for k in (1, 5, 40)]
    sizes, floats = [], ImageSet.float

    def counted(images, positions=None):
        pixels = floats(images, positions)
        if len(images) == len(known):
            sizes.append(len(pixels))
        return pixels

    monkeypatch.setattr(nearest, "_PIXELS_AT_ONCE", at_once * 3 * 8 * 8)
    monkeypatch.setattr(nearest, "_VALUES_AT_ONCE", 200)
    monkeypatch.setattr(ImageSet, "float", counted)
    found = [raw_pixel_knn(asked, known, 2, k=k, temperature=0.01) for k in (1, 5, 40)]
    assert all(torch.equal(*pair) for pair in zip(whole, found, strict=True))
    assert max(sizes) == at_once
    for here, there in zip(
        nearest._channels(known, 40, "cpu"), nearest._channels(known, at_once, "cpu"), strict=True
    ):
        torch.testing.assert_close(here, there, rtol=1e-6, atol=0)


def test_labels_outside_the_classes_are_refused(pictures):
    with pytest.raises(ValueError, match=r"labels must be in \[0, 1\), got 0 to 1"):
        raw_pixel_knn(*pictures, 1)
