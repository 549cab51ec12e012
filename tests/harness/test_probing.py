"""What classifiers on frozen encoders learn from."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from bench.data.imageset import ImageSet
from bench.graph import Stage
from bench.stages.probing import probe_images

HELD_OUT = {"all_but": {"seed": 0, "start": 0, "stop": 100}}


def by_class(count: int = 1000) -> ImageSet:
    """Images of ten classes that lie one class after the other."""
    labels = torch.arange(10).repeat_interleave(count // 10)
    pixels = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    return ImageSet(pixels, labels=labels, class_names=tuple("abcdefghij"), name="sorted")


def learnt_from(most: int | None) -> ImageSet:
    data = Stage("data", {"dataset": "sorted"})
    probe = Stage(
        "probe", {"train": HELD_OUT, "probe": {"max_train_images": most}}, {"train": data}
    )
    return probe_images(probe, SimpleNamespace(images=lambda stage: by_class()))


def test_a_bounded_number_of_images_shows_all_classes():
    few = learnt_from(200)
    assert len(few) == 200
    assert len(few.labels.unique()) == 10
    assert torch.equal(few.rows, learnt_from(200).rows)


def test_without_a_bound_all_that_are_not_held_out_are_learnt_from():
    assert len(learnt_from(None)) == len(learnt_from(5000)) == 900
