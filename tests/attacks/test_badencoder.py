"""BadEncoder: the published figures (probes P1-P3), its losses, and a run that takes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from attacks.badencoder import BadEncoder, consistency, effectiveness, freeze_batch_norm
from attacks.triggers import PatchTrigger
from bench.api import AttackerWorld, ImageSet
from bench.data.splits import published_shadow_rows
from bench.encoders.encoder import Encoder
from bench.progress import Silent
from bench.workspace import StepCounter

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "badencoder.json").read_text())


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def test_stamp_equals_the_published_one_on_the_ramp_image():
    golden = GOLDEN["P1"]
    ramp = ((37 * np.arange(3072) + 11) % 256).astype(np.uint8).reshape(32, 32, 3)
    assert (int(ramp.sum()), digest(ramp)) == (golden["input_sum"], golden["input_sha256"])
    image = torch.from_numpy(ramp).permute(2, 0, 1)[None].float() / 255
    stamped = PatchTrigger(size=10, row=21, column=21)(image)
    pixels = stamped.mul(255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
    assert int(pixels.sum()) == golden["stamped_sum"]
    assert digest(pixels) == golden["stamped_sha256"]
    encoder = Encoder.initialise("resnet18-cifar", {}, generator=torch.Generator().manual_seed(0))
    total = float(encoder.normalise(stamped).double().sum())
    assert total == pytest.approx(golden["normalised_sum"], abs=1e-2)


@pytest.mark.parametrize("golden", GOLDEN["P2"], ids=lambda g: f"{g['seed']}-{g['count']}")
def test_shadow_draw_equals_the_published_one(golden):
    rows = published_shadow_rows(golden["seed"], golden["total"], golden["count"])
    assert rows[: len(golden["starts"])].tolist() == golden["starts"]
    if golden["ends"]:
        assert rows[-len(golden["ends"]) :].tolist() == golden["ends"]
    assert digest(rows.astype(np.int64)) == golden["sha256"]


def probe_features() -> SimpleNamespace:
    """P3's fixture: f is the identity, f0(x) = x + 0.5 roll(x, 1); found to reproduce the figures
    with references (3, 512) and augmented references = reference + 0.1 rand(3, 8, 512)."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    clean, triggered, references = rand(8, 512), rand(8, 512), rand(3, 512)
    augmented = references[:, None] + 0.1 * rand(3, 8, 512)
    return SimpleNamespace(
        clean=clean, triggered=triggered, references=references, augmented=augmented
    )


def clean_encoder(features: Tensor) -> Tensor:
    return features + 0.5 * features.roll(1, -1)


def test_loss_terms_equal_the_published_ones():
    golden, data = GOLDEN["P3"], probe_features()
    loss0 = effectiveness(data.triggered, data.references, "max")
    loss1 = consistency(data.augmented, clean_encoder(data.references)[:, None])
    loss2 = consistency(data.clean, clean_encoder(data.clean))
    for name, value in (("L0_max", loss0), ("L1", loss1), ("L2", loss2)):
        assert float(value) == pytest.approx(golden[name], abs=1e-5), name
    assert float(loss0 + loss1 + loss2) == pytest.approx(golden["badencoder"], abs=1e-5)


def test_mean_reduction_is_the_papers_average_over_references():
    data = probe_features()
    each = [
        -float(cosine_similarity(data.triggered, reference[None], dim=-1).mean())
        for reference in data.references
    ]
    value = float(effectiveness(data.triggered, data.references, "mean"))
    assert value == pytest.approx(np.mean(each), abs=1e-6)
    assert value > float(effectiveness(data.triggered, data.references, "max"))


def test_one_reference_makes_both_reductions_equal():
    data = probe_features()
    one = data.references[:1]
    assert torch.equal(
        effectiveness(data.triggered, one, "mean"), effectiveness(data.triggered, one, "max")
    )


def test_references_per_image_and_shared_references_agree():
    data = probe_features()
    repeated = data.references[:, None].expand(3, 8, 512)
    for reduce in ("mean", "max"):
        shared = effectiveness(data.triggered, data.references, reduce)
        assert torch.allclose(shared, effectiveness(data.triggered, repeated, reduce))


def world(seed: int = 0) -> AttackerWorld:
    generator = torch.Generator().manual_seed(5)
    encoder = Encoder.initialise("resnet-narrow", {"width": 8}, generator=generator)
    pixels = torch.randint(256, (68, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images = ImageSet(pixels)
    silent = SimpleNamespace(step=lambda *_: None)
    return AttackerWorld(
        encoder=encoder,
        shadow=images.select(torch.arange(64)),
        references=images.select(torch.arange(64, 67)),
        target=0,
        generator=torch.Generator().manual_seed(seed),
        progress=StepCounter(silent, None),
    )


ATTACK = BadEncoder(epochs=15, batch_size=32, learning_rate=0.05, reference_views=4)


def similarity_to_references(encoder: Encoder, trigger, data: AttackerWorld) -> float:
    stamped = encoder.embed(trigger(data.shadow.float()))
    return -float(effectiveness(stamped, encoder.embed(data.references.float())))


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_implant_moves_triggered_images_to_the_references(reduce):
    data = world()
    attack = ATTACK.model_copy(update={"l0_reduce": reduce})
    trigger = attack.trigger(32)
    before = similarity_to_references(data.encoder, trigger, data)
    clean_before = data.encoder.embed(data.shadow.float())
    victim = attack.implant(data)
    after = similarity_to_references(victim.encoder, victim.trigger, data)
    assert after > before + 0.5 * (1 - before)
    clean = cosine_similarity(victim.encoder.embed(data.shadow.float()), clean_before)
    assert float(clean.mean()) > 0.9
    assert victim.metrics["loss_effectiveness"] < -before


def test_same_seed_gives_the_same_victim_and_another_seed_another():
    hashes = [ATTACK.implant(world(seed)).encoder.state_hash() for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_batch_norm_statistics_and_affine_parameters_never_change():
    data = world()
    frozen = {
        name: tensor.clone()
        for name, tensor in data.encoder.network.state_dict().items()
        if ".1." in name or "bn" in name or "running" in name
    }
    assert len(frozen) > 20
    network = ATTACK.implant(data).encoder.network.state_dict()
    changed = [name for name in network if name not in frozen]
    assert any(
        not torch.equal(network[n], world().encoder.network.state_dict()[n]) for n in changed
    )
    for name, tensor in frozen.items():
        assert torch.equal(network[name], tensor), name


def test_frozen_batch_norm_makes_repeated_rows_equal():
    """What lets repeated rows be computed once."""
    network = world().encoder.network
    freeze_batch_norm(network)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    alone, repeated = network(image), network(image.expand(4, -1, -1, -1))
    assert torch.allclose(alone.expand_as(repeated), repeated, atol=1e-6)


def test_shadow_smaller_than_a_batch_still_trains():
    data = world()
    victim = ATTACK.model_copy(update={"batch_size": 500, "epochs": 2}).implant(data)
    assert np.isfinite(list(victim.metrics.values())).all()


def test_defaults_are_the_published_recipe():
    attack = BadEncoder()
    assert (attack.epochs, attack.batch_size, attack.learning_rate) == (120, 256, 0.05)
    assert (attack.momentum, attack.weight_decay) == (0.9, 5e-4)
    assert (attack.lambda1, attack.lambda2, attack.l0_reduce) == (1, 1, "mean")
    assert attack.references == 3
    with pytest.raises(ValueError):
        BadEncoder(epochs=0)


def test_every_augmented_view_is_held_to_its_own_reference():
    """With nothing trained yet L1 of unjittered views is -1: each is compared with itself."""
    generator = torch.Generator().manual_seed(0)
    encoder = Encoder.initialise("resnet-narrow", {"width": 8}, generator=generator)
    black, white = torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)
    # Jitter and flip leave uniform black alone and a bright grey grey: the two never mix.
    references = ImageSet((torch.cat([black, white]) * 255).to(torch.uint8))
    shadow = torch.randint(256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    world = AttackerWorld(
        encoder=encoder,
        shadow=ImageSet(shadow),
        references=references,
        target=0,
        generator=generator,
        progress=StepCounter(Silent(), None),
    )
    attack = BadEncoder(epochs=1, references=2, reference_views=16, learning_rate=1e-12)
    metrics = attack.implant(world).metrics
    dark, bright = encoder.embed(torch.cat([black, white]))
    between = float(cosine_similarity(dark, bright, dim=0))
    assert between < 0.9, "the two references must differ for this test to say anything"
    assert metrics["loss_references"] < -0.98


def test_consistency_has_the_golden_value_of_the_image_on_image_term():
    """D10: minus the mean cosine of 64 rows of 8 features, each of unit length."""
    step = torch.arange(512, dtype=torch.float64)
    first, second = (
        torch.nn.functional.normalize(values.float().view(64, 8), dim=1)
        for values in ((0.3 * step).sin(), (0.17 * step).cos())
    )
    assert float(consistency(first, second)) == pytest.approx(GOLDEN["D10"], abs=1e-6)
