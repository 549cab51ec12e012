"""What a stored cell carries beside its row and scores: looks, draws, encoders."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from attacks.triggers import PatchTrigger
from bench.data.imageset import ImageSet
from bench.report.schema import ReportError, load_cells
from bench.stages.picturing import LARGEST_SIDE, PICTURES, plane, save_pictures

CORNER = PatchTrigger(size=2, row=0, column=0, colour=(1.0, 1.0, 1.0))


def images(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(250, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 5
    return ImageSet(pixels, labels=labels, class_names=tuple("abcde"), name="noise")


def embeddings(count, dimension=6):
    generator = torch.Generator().manual_seed(1)
    clean = torch.randn(count, dimension, generator=generator)
    return {"clean": clean, "triggered": clean + 1}


def test_pictures_are_those_of_other_classes_and_the_difference_is_amplified(tmp_path):
    test = images(20, 32)
    save_pictures(
        tmp_path, test, 0, {"clean": None, "triggered": CORNER}, {"victim": embeddings(20)}
    )
    with np.load(tmp_path / PICTURES, allow_pickle=False) as archive:
        arrays = dict(archive)
    source = test.uint8()[[1, 2, 3, 4]].permute(0, 2, 3, 1).numpy()
    assert np.array_equal(arrays["clean"], source)
    assert (arrays["triggered"][:, :2, :2] == 255).all()
    assert np.array_equal(arrays["triggered"][:, 2:], source[:, 2:])
    change = 255 - source[:, :2, :2].astype(float)
    assert arrays["gain"] == pytest.approx(127.5 / change.max())
    amplified = 127.5 + change * 127.5 / change.max()
    assert np.abs(arrays["difference"][:, :2, :2] - amplified).max() <= 0.51
    assert (arrays["difference"][:, 2:] == 128).all()


def test_large_pictures_are_reduced(tmp_path):
    save_pictures(
        tmp_path, images(6, 224), 0, {"clean": None, "triggered": None}, {"victim": embeddings(6)}
    )
    with np.load(tmp_path / PICTURES, allow_pickle=False) as archive:
        assert archive["clean"].shape == (4, 56, 56, 3)
        assert max(archive["clean"].shape[1:3]) <= LARGEST_SIDE
        assert (archive["difference"] == 128).all()  # an empty trigger: nothing to amplify


def test_plane_holds_the_principal_components_of_unit_embeddings():
    of_target = np.arange(40) % 5 == 0
    found = embeddings(40)
    points, groups, variance = plane(found, of_target)
    assert {g: int((groups == g).sum()) for g in np.unique(groups)} == {
        "clean": 32, "triggered": 32, "target": 8,
    }  # fmt: skip
    rows = np.concatenate(
        [found["clean"][~of_target], found["triggered"][~of_target], found["clean"][of_target]]
    ).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    spread = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
    assert variance == pytest.approx(spread[:2] / spread.sum(), rel=1e-4)
    assert np.abs(points) == pytest.approx(np.abs(PCA(2).fit_transform(rows)), abs=1e-4)


@pytest.mark.parametrize("dimension", [1, 2])
def test_plane_of_few_dimensions_and_equal_embeddings(dimension):
    same = torch.ones(10, dimension)
    points, _, variance = plane({"clean": same, "triggered": same}, np.arange(10) < 2)
    assert np.allclose(points, 0, atol=1e-6)
    assert variance.tolist() == [0, 0]


def test_every_cell_carries_the_looks_of_its_attack(tiny_run):
    for cell in load_cells(tiny_run.results):
        pictures = cell.attack_pictures()
        assert {"clean", "triggered", "victim_points", "twin_points"} <= set(pictures)
        assert (pictures["clean"] != pictures["triggered"]).any()
        same = np.array_equal(pictures["victim_points"], pictures["twin_points"])
        assert same == cell.control


@pytest.mark.parametrize(
    "change",
    [
        {"gain": None},
        {"triggered": np.zeros((1, 8, 8, 3), np.uint8)},
        {"clean": np.zeros((4, 32, 32, 3), np.float32)},
        {"victim_points": np.full((3, 2), np.nan, np.float32)},
        {"twin_variance": None},
    ],
)
def test_damaged_pictures_are_refused(tiny_run, tmp_path, change):
    cell = load_cells(tiny_run.results)[0]
    arrays = {k: v for k, v in (cell.attack_pictures() | change).items() if v is not None}
    np.savez(tmp_path / PICTURES, **arrays)
    with pytest.raises(ReportError, match=r"attack\.npz: damaged"):
        replace(cell, path=tmp_path).attack_pictures()


def test_every_cell_carries_the_draws_of_its_intervals_and_names_its_encoders(tiny_run):
    by_attack = {}
    for cell in load_cells(tiny_run.results):
        draws = cell.draws()
        assert {"auroc", "auroc_placebo"} <= set(draws)
        for name, values in draws.items():
            assert len(values) == 50
            assert np.quantile(values, [0.025, 0.975]) == pytest.approx(
                cell.intervals[name], abs=1e-6
            )
        by_attack.setdefault(cell.row["attack"], []).append(cell.encoders)
    assert all(first == other for first, *others in by_attack.values() for other in others)
    control, attacked = by_attack["none"][0], by_attack["badencoder"][0]
    assert control["victim"] == control["twin"] == attacked["twin"] != attacked["victim"]
