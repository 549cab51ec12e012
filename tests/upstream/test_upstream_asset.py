"""ASSET's separation by its authors' code, on dull CIFAR-10 images with glaring ones among them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.api import DefenderView, ImageSet
from bench.encoders.defender import DefenderEncoder
from bench.encoders.encoder import Encoder
from bench.errors import InputError
from bench.upstream.checkout import located
from bench.upstream.child import Job
from bench.upstream.job import UpstreamError
from defenses.asset import Asset
from defenses.upstream import _asset_driver as driver
from defenses.upstream import asset as adapter
from defenses.upstream.asset import UpstreamAsset

SMALL = {"batch_size": 32, "inner_iterations": 5, "neighbours": 5}


def view_of(defense, cifar10: ImageSet, *, glaring: int = 4, seed: int = 5) -> DefenderView:
    """A pool of 32 images of which the first ``glaring`` are noise: one batch."""
    generator = torch.Generator().manual_seed(1)
    encoder = Encoder.initialise(
        "resnet-narrow", {"width": 8, "stem_stride": 2}, generator=generator
    )
    encoder.network.eval()
    lent = DefenderEncoder(encoder, defense.requires)
    auxiliary = cifar10.select(torch.arange(100))
    pool = dull(cifar10, 100, 132)
    noise = torch.randint(2, pool[:glaring].shape, generator=generator, dtype=torch.uint8)
    pool[:glaring] = noise * 255
    return DefenderView(
        encoder=lent,
        auxiliary=auxiliary,
        embed_auxiliary=lambda: lent.embed(auxiliary.float()),
        generator=torch.Generator().manual_seed(seed),
        seed=seed,
        progress=None,
        suspicious=ImageSet(pool, name="suspicious pool"),
        base=ImageSet(dull(cifar10, 200, 240), name="base"),
    )


def dull(images: ImageSet, start: int, stop: int) -> torch.Tensor:
    pixels = images.uint8(slice(start, stop)).float()
    return ((pixels - 128) / 5 + 128).round().to(torch.uint8)


@pytest.fixture(scope="module")
def unskipped():
    reason = UpstreamAsset().absent()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def fitted(cifar10, unskipped):
    """The defense after one batch, and what it was shown."""
    defense = UpstreamAsset(**SMALL)
    view = view_of(defense, cifar10)
    before = view.encoder.embed(cifar10.float(slice(0, 8)))
    defense.fit(view)
    assert torch.equal(view.encoder.embed(cifar10.float(slice(0, 8))), before)
    return defense, view


def test_it_scores_as_the_native_entry_does_with_that_detector(fitted, cifar10, tmp_path):
    defense, view = fitted
    images = cifar10.float(slice(300, 332))
    scores = defense.score(images)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert (scores >= 0).all()
    assert scores.std() > 0
    assert torch.allclose(defense.score(images[:5]), scores[:5], rtol=1e-4)
    assert len(defense.found) == 1
    assert defense.found[0] > 0
    assert 0 <= defense.flagged <= 32

    state = defense.state()
    save_file(state, tmp_path / "state.safetensors")
    restored = UpstreamAsset(**SMALL)
    restored.load_state(load_file(tmp_path / "state.safetensors"), view)
    assert torch.equal(restored.score(images), scores)
    assert restored.flagged == defense.flagged
    native = Asset(objective="label-assisted", neighbours=5)
    native.load_state({**state, "found": torch.tensor([2])}, view)
    assert torch.allclose(native.score(images), scores, rtol=1e-5)


def test_equal_under_one_seed_and_another_under_another(fitted, cifar10):
    images = cifar10.float(slice(300, 316))
    again, other = UpstreamAsset(**SMALL), UpstreamAsset(**SMALL, when_none_found="skip")
    again.fit(view_of(again, cifar10))
    other.fit(view_of(other, cifar10, seed=6))
    assert torch.equal(again.score(images), fitted[0].score(images))
    assert not torch.allclose(other.score(images), again.score(images))


def test_numbers_of_steps_and_iterations_reach_the_notebook(cifar10, unskipped):
    """Two batches in each of two epochs, the last image left out: it would be alone."""
    defense = UpstreamAsset(
        batch_size=10, max_images=21, epochs=2, inner_iterations=1, when_none_found="skip"
    )
    defense.fit(view_of(defense, cifar10))
    assert len(defense.found) == 4
    assert defense.found.sum() > 0


@pytest.mark.parametrize(
    ("when_none_found", "error", "words"),
    [
        ("fail", UpstreamError, r"(?s)exit status 1.*no suspicious samples found in batch 1$"),
        ("skip", RuntimeError, r"^no suspicious samples found$"),
    ],
)
def test_a_pool_in_which_nothing_stands_out(cifar10, unskipped, when_none_found, error, words):
    defense = UpstreamAsset(**SMALL, when_none_found=when_none_found)
    with pytest.raises(error, match=words):
        defense.fit(view_of(defense, cifar10, glaring=0))


def test_flat_scores_where_nothing_was_found(cifar10, unskipped):
    defense = UpstreamAsset(**SMALL, when_none_found="flat")
    defense.fit(view_of(defense, cifar10, glaring=0))
    assert not defense.found.any()
    assert not defense.score(cifar10.float(slice(0, 5))).any()


def test_a_detector_that_scores_otherwise_here_is_an_error(cifar10, unskipped, monkeypatch):
    def other(kind, logits, seed):
        network = network_of(kind, logits, seed)
        network.relu = torch.nn.Identity()
        return network

    network_of = adapter.detector_network
    monkeypatch.setattr(adapter, "detector_network", other)
    defense = UpstreamAsset(**SMALL)
    with pytest.raises(UpstreamError, match="scores otherwise here"):
        defense.fit(view_of(defense, cifar10))


def test_all_but_the_last_child_of_what_the_loop_is_given_embed(cifar10):
    encoder = Encoder.initialise(
        "resnet-narrow", {"width": 8}, generator=torch.Generator().manual_seed(1)
    )
    images = cifar10.float(slice(0, 8))
    victim = driver._Victim(encoder).eval()
    features = torch.nn.Sequential(*list(victim.children())[:-1], torch.nn.Flatten())
    torch.testing.assert_close(features(images), encoder.embed(images))


def test_only_the_numbers_of_the_notebook_are_replaced():
    ranges = driver._ranges({"epochs": 3, "inner_iterations": 7})
    assert [len(ranges(1)), len(ranges(100)), len(ranges(driver._Given(100)))] == [3, 7, 100]


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_separation_network_keeps_its_layers_whatever_the_epochs(epochs, unskipped, tmp_path):
    path = located("ASSET")
    job = Job(path, tmp_path, tmp_path, tmp_path, "cpu", 1, {})
    names = {"nn": torch.nn, "torch": torch}
    separation = driver.separation_network(job, names, 16)
    names["range"] = driver._ranges({"epochs": epochs, "inner_iterations": 1})
    network = separation(input_size=8192, hidden_size=128, num_layers=2)
    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
    assert [layer.in_features for layer in layers] == [16, 128, 128]


def test_what_is_smaller_than_published_is_said():
    images = {"suspicious": 10_000, "base": 1_000}
    assert UpstreamAsset(epochs=5).reduced(images) == ""
    assert UpstreamAsset().reduced(images) == "20 of 98 steps"
    assert UpstreamAsset().reduced({"suspicious": 50_000, "base": 256}) == (
        "256 of 1,000 base images"
    )
    assert UpstreamAsset(
        batch_size=256, inner_iterations=20, base_images=500, max_images=1024
    ).reduced(images) == (
        "4 of 98 steps, batches of 256 instead of 512, 20 of 100 inner iterations, "
        "500 of 1,000 base images"
    )


def test_it_refuses_what_the_code_cannot_take(cifar10, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="32-pixel images, not 224"):
        UpstreamAsset().check(224)
    defense = UpstreamAsset(neighbours=101)
    with pytest.raises(ValueError, match="neighbours is 101"):
        defense.fit(view_of(defense, cifar10))
    with pytest.raises(RuntimeError, match="has not been fitted"):
        defense.score(cifar10.float(slice(0, 2)))
    monkeypatch.setenv("BENCH_THIRD_PARTY", str(tmp_path))
    defense = UpstreamAsset(**SMALL)
    with pytest.raises(InputError, match="ASSET"):
        defense.fit(view_of(defense, cifar10))
