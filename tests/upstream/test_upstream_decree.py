"""DECREE's inversion by its authors' code, on CIFAR-10 images and an untrained encoder."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision import transforms

from bench.api import DefenderView, ImageSet
from bench.encoders.defender import DefenderEncoder
from bench.encoders.encoder import Encoder
from bench.errors import InputError
from bench.upstream.formats import write_images
from bench.upstream.job import UpstreamError
from defenses.upstream import _decree_driver as driver
from defenses.upstream import decree as adapter
from defenses.upstream._lending import write_encoder
from defenses.upstream.decree import UpstreamDecree

EASY = {"cosine_threshold": 0.5, "max_epochs": 2, "shadow_images": 64, "batch_size": 32}
"""An untrained encoder embeds all images alike: every step reaches so low a threshold."""
HARD = {**EASY, "cosine_threshold": 0.999999, "max_epochs": 2}


def view_of(defense, images: ImageSet, *, architecture="resnet-narrow", seed=5) -> DefenderView:
    generator = torch.Generator().manual_seed(1)
    encoder = Encoder.initialise(architecture, {"width": 8, "stem_stride": 2}, generator=generator)
    encoder.network.eval()
    lent = DefenderEncoder(encoder, defense.requires)
    auxiliary = images.without_labels()
    return DefenderView(
        encoder=lent,
        auxiliary=auxiliary,
        embed_auxiliary=lambda: lent.embed(auxiliary.float()),
        generator=torch.Generator().manual_seed(seed),
        seed=seed,
        progress=None,
    )


@pytest.fixture(scope="module")
def images(cifar10):
    return cifar10.select(torch.arange(66))


def fitted(upstream, images, parameters, **options):
    defense = upstream("defenses", "decree", **parameters)
    view = view_of(defense, images, **options)
    before = view.encoder.embed(images.float())
    defense.fit(view)
    assert torch.equal(view.encoder.embed(images.float()), before)
    return defense, view


def test_a_trigger_that_reaches_the_threshold_is_kept_in_floats(upstream, images, tmp_path):
    defense, view = fitted(upstream, images, EASY)
    state = defense.state()
    pl1 = state["pl1"].item()
    assert 0 < pl1 < 1
    assert defense.score_encoder() == -pl1
    assert state["mask"].double().mean().item() == pytest.approx(pl1, rel=1e-6)
    # A picture of eight bits has 256 values at most.
    assert len(state["pattern"].mul(255).frac().unique()) > 256
    assert state["pattern"].min() >= 0
    assert state["pattern"].max() <= 1
    scores = defense.score(images.float())
    assert scores.isfinite().all()
    assert scores.std() > 0

    save_file(state, tmp_path / "state.safetensors")
    restored = UpstreamDecree(**EASY)
    restored.load_state(load_file(tmp_path / "state.safetensors"), view)
    assert torch.equal(restored.score(images.float()), scores)
    assert restored.score_encoder() == defense.score_encoder()
    gated = UpstreamDecree(**EASY, gate=True, pl1_threshold=pl1 / 2)
    gated.load_state(state, view)
    assert gated.score(images.float()).abs().max() == 0


def test_without_a_trigger_the_closest_scores_and_the_encoder_is_clean(upstream, images):
    """Equal under one seed, another under another; and CLIP's normalisation is taken over."""
    clip = {"architecture": "template-clip"}
    first, again, other = (
        fitted(upstream, images, HARD, seed=seed, **clip)[0] for seed in (5, 5, 6)
    )
    assert first.score_encoder() == -1
    assert not first.score_encoder() > first.encoder_threshold()
    pictures = images.float()
    assert torch.equal(first.score(pictures), again.score(pictures))
    assert not torch.allclose(first.score(pictures), other.score(pictures))
    assert first.score(pictures).std() > 0
    moved = first.state()["mask"]
    assert 0.05 < moved.mean() < 0.95


def test_the_remaining_parameters_reach_the_code(upstream, images):
    """A square start, and a batch that would have one image is avoided."""
    defense, _ = fitted(
        upstream,
        images,
        {**EASY, "shadow_images": 65, "max_epochs": 1, "initial_mask": "square"},
    )
    mask = defense.state()["mask"]
    assert mask[6:26, 6:26].mean() > 2 * mask[:4].mean()


def test_code_that_sees_other_images_is_an_error(upstream, images, monkeypatch):
    defense = upstream("defenses", "decree", **{**EASY, "max_epochs": 1})
    monkeypatch.setattr(
        adapter, "write_images", lambda path, given, _labels: write_images(path, given)
    )
    # Of one class the code takes a tenth, rounded up.
    with pytest.raises(UpstreamError, match=r"saw 7 of 64 shadow images"):
        defense.fit(view_of(defense, images))


def test_what_is_smaller_than_published_is_said():
    images = {"auxiliary": 12_000}
    assert UpstreamDecree().reduced(images) == ""
    assert UpstreamDecree(max_images=2000).reduced(images) == ""
    assert UpstreamDecree().reduced({"auxiliary": 300}) == "300 of 1,000 shadow images"
    assert UpstreamDecree(max_images=500, max_epochs=60, batch_size=64).reduced(images) == (
        "500 of 1,000 shadow images, batches of 64 instead of 128, at most 60 of 1,000 epochs"
    )


def test_it_refuses_other_sizes_and_too_few_images(images):
    with pytest.raises(ValueError, match="32-pixel images, not 224"):
        UpstreamDecree().check(224)
    defense = UpstreamDecree()
    with pytest.raises(ValueError, match="needs two auxiliary images, got 1"):
        defense.fit(view_of(defense, images.select(torch.arange(1))))
    with pytest.raises(RuntimeError, match="has not been fitted"):
        defense.score(images.float())


def test_an_absent_submodule_is_named(images, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_THIRD_PARTY", str(tmp_path))
    defense = UpstreamDecree(**EASY)
    with pytest.raises(InputError, match="DECREE"):
        defense.fit(view_of(defense, images))


def test_the_encoder_and_its_normalisation_reach_the_script(tmp_path, images):
    cifar = transforms.Compose(
        [transforms.Normalize([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])]
    )
    for architecture, same in (("resnet-narrow", True), ("template-clip", False)):
        lent = view_of(UpstreamDecree(), images, architecture=architecture).encoder
        write_encoder(tmp_path / "encoder.safetensors", lent)
        written = Encoder.load(tmp_path / "encoder.safetensors")
        pictures = images.float()
        assert torch.equal(written.embed(pictures), lent.embed(pictures))
        main = SimpleNamespace(test_transform_cifar10=cifar)
        driver._normalise_as(main, written)
        assert (main.test_transform_cifar10 is cifar) is same
        torch.testing.assert_close(
            main.test_transform_cifar10(pictures), lent.normalise(pictures), rtol=0, atol=1e-6
        )


def test_the_parameters_of_the_most_similar_step_are_kept():
    main = SimpleNamespace(
        adjust_learning_rate=lambda *_: None,
        compute_self_cos_sim=lambda embeddings: embeddings.mean(),
        assert_range=lambda *_: None,
    )
    watch = driver._Watch(main, 2)
    with pytest.raises(FloatingPointError, match="no similarity is a number"):
        watch.result()
    mask, pattern = torch.zeros(4, 4).double(), torch.zeros(4, 4, 3).double()
    optimizer = torch.optim.SGD([mask.requires_grad_(), pattern.requires_grad_()])
    for epoch, similarities in enumerate([(0.2, -0.6, 0.1), (0.3, 0.4)]):
        main.adjust_learning_rate(optimizer, epoch, None)
        main.assert_range(torch.zeros(5, 4, 4, 3), 0, 255)
        for similarity in similarities:
            main.compute_self_cos_sim(torch.full((5, 8), similarity))
            # The optimiser moves what the step was computed with.
            mask.data += 1
            pattern.data -= 1
    with pytest.raises(driver._LastEpochError):
        main.adjust_learning_rate(optimizer, 2, None)
    result = watch.result()
    unit = np.tanh(1) / 2 + 0.5
    np.testing.assert_allclose(result["mask"], np.full((4, 4), unit), rtol=1e-6)
    np.testing.assert_allclose(result["pattern"], np.full((4, 4, 3), 255 * (1 - unit)), rtol=1e-5)
    assert result["similarity"] == pytest.approx(0.6)
    assert (result["reached"], result["epochs"], result["images"]) == (0, 2, 15)

    main.assert_range(torch.full((4, 4, 3), 0.25), 0, 1)
    main.assert_range(torch.full((4, 4, 3), 99.0), 0, 255)
    result = watch.result()
    assert (result["reached"], result["mask"].shape, result["mask"][0, 0]) == (1, (4, 4), 0.25)
    assert result["pattern"][0, 0, 0] == 99
