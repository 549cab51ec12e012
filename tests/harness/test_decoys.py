"""The decoy of an audit: the first look-alike that does not activate the backdoor (invariant 6)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.data.imageset import ImageSet
from bench.stages.auditing import _choose_decoy

TARGET, OTHERS = 2, 90


class Candidate:
    def __init__(self, success: float) -> None:
        self.success = success
        self.name = f"patch of {success}"

    def describe(self) -> str:
        return self.name


class Stamp:
    """A trigger whose look-alikes reach the target in these shares of the images."""

    def __init__(self, *shares: float) -> None:
        self.shares = shares

    def decoys(self):
        return iter([Candidate(share) for share in self.shares])


class Victim:
    """Reads the target off as many images as a candidate says; knows which images it was shown."""

    heads = ("probe", "another")

    def features(self, images: ImageSet, stamp: Candidate) -> torch.Tensor:
        assert len(images) == OTHERS
        assert not (images.labels == TARGET).any()
        return torch.arange(len(images)) < round(stamp.success * len(images))

    def predict(self, head: str, features: torch.Tensor) -> torch.Tensor:
        assert head == "probe"
        return torch.where(features, TARGET, 0)


@pytest.fixture
def validation() -> ImageSet:
    labels = torch.arange(OTHERS + 10) % 10
    return ImageSet(torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8), labels=labels)


@pytest.mark.parametrize(
    ("shares", "tried"),
    [((0.1, 0.0), 1), ((0.9, 0.3, 0.1, 0.0), 3), ((0.2,), 1), ((0.9, 0.2), 2), ((), 0)],
)
def test_the_first_look_alike_below_the_bound_is_the_decoy(validation, shares, tried):
    found, decoy = _choose_decoy(
        Stamp(*shares), Victim(), validation, TARGET, {"decoy_max_success": 0.2}
    )
    assert len(found) == tried
    assert [row["attack_success_rate"] for row in found] == pytest.approx(shares[:tried], abs=0.006)
    below = [share < 0.2 for share in shares[:tried]]
    assert [row["used"] for row in found] == below
    assert not any(below[:-1])
    if below and below[-1]:
        assert decoy is not None
        assert decoy.success == shares[tried - 1]
    else:
        assert decoy is None


def test_the_bound_is_the_protocols(validation):
    _, decoy = _choose_decoy(Stamp(0.3), Victim(), validation, TARGET, {"decoy_max_success": 0.5})
    assert decoy is not None
    assert np.isclose(decoy.success, 0.3)
