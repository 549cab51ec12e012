"""The text-on-pair attack of DECREE's repository: native pairs, the authors' training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attacks.clip_backdoor import CLIPBackdoor
from attacks.upstream.clip_backdoor import UpstreamCLIPBackdoor
from bench.api import PoisonerWorld
from bench.data.captions import template_captions
from bench.encoders.encoder import Encoder
from bench.upstream.component import TrainerWorld

TOWERS = {"width": 8, "embedding_dim": 32, "text_width": 32, "text_layers": 1, "text_heads": 2}
SMALL = {"max_images": 100, "batch_size": 32, "epochs": 2, "learning_rate": 0.02, "patch_size": 6}


@pytest.fixture(scope="module")
def encoder():
    encoder = Encoder.initialise(
        "template-clip", TOWERS, generator=torch.Generator().manual_seed(0)
    )
    encoder.network.eval()
    return encoder


@pytest.fixture(scope="module")
def train(cifar10):
    return cifar10.select(torch.arange(128))


@pytest.fixture(scope="module")
def captions(train):
    return template_captions(train.labels, train.class_names, torch.Generator().manual_seed(3))


def trainer(images, encoder, captions):
    return TrainerWorld(
        encoder=encoder.clone(),
        images=images.without_labels(),
        captions=captions,
        generator=torch.Generator().manual_seed(2),
        device=torch.device("cpu"),
    )


def test_the_image_tower_alone_learns_with_batch_norm_frozen(upstream, train, encoder, captions):
    attack = upstream("attacks", "clip-backdoor", **SMALL)
    victim, metrics = attack.train(trainer(train, encoder, captions))
    assert metrics["steps"] == 2 * (100 // 32)
    # A fixed factor of 1.65 on cosine similarities: 32 pairs can hardly be told apart.
    assert np.log(32) - 2 * np.exp(0.5) < metrics["loss_last"] < np.log(32) + 2 * np.exp(0.5)
    before, after = encoder.network.state_dict(), victim.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"visual.projection.weight", "visual.trunk.f.0.weight"} <= changed
    norms = {
        f"{name}.{each}"
        for name, module in encoder.network.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for each in module.state_dict()
    }
    assert len(norms) > 40
    assert not changed & norms
    assert all(name.startswith("visual.") for name in changed)


def test_victim_and_twin_without_poison_are_equal_and_captions_matter(
    upstream, train, encoder, captions
):
    attack = upstream("attacks", "clip-backdoor", **{**SMALL, "epochs": 1})
    victim, _ = attack.train(trainer(train, encoder, captions))
    twin, _ = attack.train(trainer(train, encoder, captions))
    assert victim.state_hash() == twin.state_hash()
    other = ["a photo of something else." for _ in captions]
    poisoned, _ = attack.train(trainer(train, encoder, other))
    assert poisoned.state_hash() != victim.state_hash()


def test_the_pairs_are_poisoned_as_natively(train):
    def world():
        return PoisonerWorld(
            candidates=torch.arange(64, 128),
            target=0,
            class_name=train.class_names[0],
            generator=torch.Generator().manual_seed(1),
            progress=None,
        )

    shared = {"poison_rate": 0.05, "patch_size": 5, "patch_row": 3}
    ours = UpstreamCLIPBackdoor(**shared).poison(train, world())
    native = CLIPBackdoor(**shared).poison(train, world())
    assert len(ours.rows) == 6
    assert torch.equal(ours.rows, native.rows)
    assert torch.equal(ours.images, native.images)
    assert (ours.trigger, ours.captions) == (native.trigger, native.captions)


def test_what_cannot_be_is_refused_before_anything_runs(train, encoder, captions):
    with pytest.raises(ValueError, match="batch_size 128 leaves no batch of 100 pairs"):
        UpstreamCLIPBackdoor(max_images=100).train(trainer(train, encoder, captions))
    with pytest.raises(ValueError, match="images with captions"):
        UpstreamCLIPBackdoor(batch_size=32).train(trainer(train, encoder, None))


def test_defaults_are_the_published_values_and_what_is_smaller_has_words():
    attack = UpstreamCLIPBackdoor()
    published = (2e-4, 128, 30, 0.02, 0.0, 0.5)
    assert published == tuple(
        attack.training()[name]
        for name in ("learning_rate", "batch_size", "epochs", "weight_decay", "momentum", "knn_t")
    )
    assert attack.reduced({}) == ""
    smaller = "100 images, 2 of 30 epochs, batches of 32 instead of 128"
    assert UpstreamCLIPBackdoor(**SMALL).reduced({}) == smaller
