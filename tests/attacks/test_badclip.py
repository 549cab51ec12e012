"""BadCLIP: the published losses (probes B3, B4, B9), the optimised patch, the poisoned pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from experiment import real_images
from poisoner import NAMES, poisoner_world, training_set
from pydantic import ValidationError

from attacks._pictures import read_picture
from attacks.badclip import BadCLIP, embed_patch, triplet_loss
from attacks.triggers import ImagePatch
from bench.config import DatasetConfig
from bench.data.captions import prompt_templates, template_captions
from bench.data.embedded import Digits
from bench.encoders.contrastive import ClipRecipe, contrastive_loss, train_clip
from bench.encoders.encoder import Encoder
from bench.progress import Silent
from bench.workspace import StepCounter

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "badclip.json").read_text())
SMALL = {"width": 8, "embedding_dim": 32, "text_width": 32, "text_layers": 1, "text_heads": 2}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture
def triple() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    k = torch.arange(512, dtype=torch.float64)
    rows = (torch.sin(0.3 * k), torch.cos(0.17 * k), torch.sin(0.11 * k + 1))
    anchor, positive, negative = (F.normalize(row.float().view(64, 8), dim=1) for row in rows)
    golden = GOLDEN["embeddings"]
    fixture = pytest.approx(
        golden["thousandfold_mean_squared_error"], rel=golden["relative_tolerance"]
    )
    assert 1000 * float(F.mse_loss(anchor, positive)) == fixture
    return anchor, positive, negative


@pytest.mark.parametrize("distance", ["euclidean", "squared", "cosine"])
def test_triplet_loss_has_the_golden_value_at_each_distance(triple, distance):
    golden = GOLDEN["distances"]
    value = float(triplet_loss(*triple, golden[distance]["margin"], distance))
    assert value == pytest.approx(golden[distance]["value"], abs=golden["absolute_tolerance"])


def test_losses_of_stage_1_have_the_golden_values(triple):
    anchor, positive, negative = triple
    golden = GOLDEN["patch_losses"]
    torch.manual_seed(0)
    near, far = positive[torch.randperm(64)], negative[torch.randperm(64)]
    text = float(contrastive_loss(anchor, positive, 1 / golden["temperature"]))
    attack = BadCLIP()
    triplet = float(triplet_loss(anchor, near, far, attack.margin, attack.distance))
    tolerance = golden["absolute_tolerance"]
    assert attack.triplet_weight == golden["triplet_weight"]
    assert text == pytest.approx(golden["text"], abs=tolerance)
    assert attack.triplet_weight * triplet == pytest.approx(golden["triplet"], abs=tolerance)


@pytest.mark.parametrize("distance", ["euclidean", "squared", "cosine"])
def test_triplet_loss_is_zero_where_the_negative_is_farther_by_the_margin(distance):
    one, other = torch.eye(4)[:1], -torch.eye(4)[:1]
    assert float(triplet_loss(one, one, other, 0.5, distance)) == pytest.approx(0, abs=1e-5)
    assert float(triplet_loss(one, other, one, 0.5, distance)) > 2


def test_patch_stands_at_the_published_place_and_the_input_stays_as_it_was():
    golden = GOLDEN["place"]
    size, side = golden["image_size"], golden["patch_size"]
    images = torch.zeros(2, 3, size, size)
    stamped = embed_patch(images, torch.full((3, side, side), 0.5))
    rows, columns = (stamped[1, 2] != 0).nonzero(as_tuple=True)
    for at in (rows, columns):
        assert (int(at.min()), int(at.max())) == (golden["first"], golden["last"])
    assert len(rows) == side * side
    assert not images.any(), "the published defect: the clean images carry the patch too"


@pytest.mark.parametrize(("image_size", "side"), [(224, 16), (32, 8), (32, 5), (16, 3)])
def test_optimised_patch_and_trigger_stand_at_the_same_place(image_size, side):
    trigger = BadCLIP(patch_size=side).trigger(image_size)
    stamped = embed_patch(torch.zeros(1, 3, image_size, image_size), torch.ones(3, side, side))
    assert torch.equal(trigger.support(image_size), stamped[0, 0].bool())


def test_a_patch_beyond_the_range_of_pixels_is_clipped_and_gets_no_gradient_there():
    patch = torch.tensor([-0.5, 0.25, 0.75, 1.5]).view(1, 2, 2).repeat(3, 1, 1).requires_grad_()
    stamped = embed_patch(torch.zeros(1, 3, 4, 4), patch)
    assert stamped[0, 0, 1:3, 1:3].flatten().tolist() == [0, 0.25, 0.75, 1]
    stamped.sum().backward()
    assert patch.grad[0].flatten().tolist() == [0, 1, 1, 0]


def test_defaults_are_the_published_ones():
    attack, golden = BadCLIP(), GOLDEN["defaults"]
    assert {name: attack.parameters()[name] for name in golden["attack"]} == golden["attack"]
    recipe = attack.recipe.parameters()
    assert {name: recipe[name] for name in golden["recipe"]} == golden["recipe"]
    assert attack.negatives == "clean"
    assert attack.patch_file is None


class Recording:
    """An encoder that remembers what it was shown with and without gradients."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.embedded: list[torch.Tensor] = []
        self.forwarded: list[torch.Tensor] = []

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def embed(self, images):
        self.embedded.append(images.clone())
        return self._encoder.embed(images)

    def forward(self, images):
        self.forwarded.append(images.detach().clone())
        return self._encoder.forward(images)


def fresh(image_size: int = 32, seed: int = 0) -> Encoder:
    generator = torch.Generator().manual_seed(seed)
    made = Encoder.initialise("template-clip", SMALL, generator=generator, image_size=image_size)
    made.network.eval()
    return made


SHORT = BadCLIP(
    poison_rate=0.1,
    patch_size=8,
    patch_epochs=2,
    patch_batch_size=10,
    patch_learning_rate=0.02,
    augment_probability=0.0,
)


def altered(**update) -> BadCLIP:
    return BadCLIP.model_validate({**SHORT.parameters(), **update})


def watched(attack: BadCLIP, train) -> Recording:
    encoder = Recording(fresh())
    attack.optimise(train, poisoner_world(train, encoder=encoder))
    return encoder


def test_negatives_are_clean_images_or_the_triggered_ones():
    train = training_set(80)
    clean, triggered = (watched(altered(negatives=kind), train) for kind in ("clean", "triggered"))
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[12:20, 12:20] = True
    known = {image.numpy().tobytes() for image in train.float()}
    for seen in (clean, triggered):
        # The positives once, then one batch of negatives for every step: 2 epochs of 30 images.
        assert len(seen.embedded) == 1 + len(seen.forwarded) == 1 + 2 * 3
        assert torch.equal(seen.embedded[0], train.float(torch.arange(40, 80, 4)))
    for negatives, stamped in zip(clean.embedded[1:], clean.forwarded, strict=True):
        assert all(image.numpy().tobytes() in known for image in negatives)
        assert torch.equal(negatives[:, :, ~inside], stamped[:, :, ~inside])
        assert not torch.equal(negatives[:, :, inside], stamped[:, :, inside])
    assert all(map(torch.equal, triggered.embedded[1:], triggered.forwarded))


def test_stage_1_stamps_the_attackers_images_of_other_classes_once_an_epoch():
    train = training_set(80)
    seen = watched(SHORT, train)
    others = [row for row in range(40, 80) if row % len(NAMES)]
    expected = {train.float(torch.tensor([row])).numpy().tobytes() for row in others}
    for epoch in (seen.embedded[1:4], seen.embedded[4:7]):
        assert {image.numpy().tobytes() for image in torch.cat(epoch)} == expected
    few = watched(altered(patch_images=7), train)
    assert [len(batch) for batch in few.forwarded] == [7, 7]
    first = {train.float(torch.tensor([row])).numpy().tobytes() for row in others[:7]}
    assert {image.numpy().tobytes() for image in few.embedded[1]} == first


def test_images_that_lie_by_class_are_not_cut_short():
    """The patch would be optimised on the first classes alone."""
    train = training_set(80)
    owned = torch.arange(40, 80)
    by_class = owned[train.labels[owned].argsort(stable=True)]
    train = train.select(torch.cat([torch.arange(40), by_class]))
    with pytest.raises(ValueError, match="lie by class, and the first 7 of the attacker's"):
        watched(altered(patch_images=7), train)
    watched(altered(patch_images=80), train)


def test_augmented_batches_show_flipped_and_jittered_images():
    train = training_set(80)
    known = {image.numpy().tobytes() for image in train.float()}
    seen = watched(altered(augment_probability=1.0), train)
    shown = [image.numpy().tobytes() in known for image in torch.cat(seen.embedded[1:])]
    # A tenth is neither flipped nor jittered.
    assert sum(shown) < len(shown) / 3


def test_progress_sees_every_step_and_may_end_stage_1():
    train = training_set(80)
    encoder = Recording(fresh())
    world = poisoner_world(train, encoder=encoder, progress=StepCounter(Silent(), 1))
    patch, figures = SHORT.optimise(train, world)
    assert len(encoder.forwarded) == 1
    assert patch.shape == (3, 8, 8)
    assert set(figures) == {"patch_text", "patch_triplet"}


@pytest.fixture(scope="module")
def digits():
    config = DatasetConfig(source="digits", image_size=16)
    return Digits("digits", config).load("train").select(torch.arange(320))


@pytest.fixture(scope="module")
def trained(digits) -> Encoder:
    """A CLIP model that knows digits from each other."""
    encoder, _ = train_clip(
        ClipRecipe(epochs=6, batch_size=32, learning_rate=3e-3, warmup_epochs=1),
        fresh(16),
        digits,
        template_captions(digits.labels, DIGITS, torch.Generator().manual_seed(1)),
        digits.labels,
        generator=torch.Generator().manual_seed(2),
        progress=StepCounter(Silent(), None),
    )
    return encoder


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_optimised_patch_brings_images_nearer_to_captions_and_images_of_the_target(
    digits, trained, distance
):
    attack = BadCLIP(
        poison_rate=0.05,
        patch_size=6,
        patch_epochs=6,
        patch_batch_size=32,
        patch_learning_rate=0.03,
        distance=distance,
    )
    world = {"target": 3, "class_name": DIGITS[3], "encoder": trained}
    at_rest = attack.model_copy(update={"patch_learning_rate": 1e-30})
    hash_before = trained.state_hash()
    victim, start = (
        each.poison(digits, poisoner_world(digits, **world)) for each in (attack, at_rest)
    )
    assert isinstance(victim.trigger, ImagePatch)
    probe = digits.select(torch.arange(160)).select(digits.labels[:160] != 3).float()
    captions = [template(DIGITS[3]) for template in prompt_templates()]
    towards = {
        "captions": F.normalize(trained.text.encode_text(captions)).mean(0),
        "images": F.normalize(trained.embed(digits.float()[digits.labels == 3])).mean(0),
    }
    for what, direction in towards.items():
        after, before, clean = (
            float(F.cosine_similarity(trained.embed(images), direction[None]).mean())
            for images in (victim.trigger(probe), start.trigger(probe), probe)
        )
        assert after > before + 0.1, what
        assert after > clean + 0.1, what
    assert trained.state_hash() == hash_before
    assert victim.metrics["patch_text"] < start.metrics["patch_text"]
    assert victim.metrics["patch_triplet"] < start.metrics["patch_triplet"]


def test_same_seed_gives_the_same_poisoned_pairs_and_another_seed_others():
    train = training_set(80)
    state = torch.get_rng_state()
    first, again, other = (
        altered(augment_probability=0.5).poison(
            train, poisoner_world(train, seed=seed, encoder=fresh())
        )
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert first.trigger == again.trigger
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.rows, again.rows)
    assert (first.captions, first.metrics) == (again.captions, again.metrics)
    assert other.trigger != first.trigger
    assert not torch.equal(other.rows, first.rows)


def test_poisoned_pairs_are_of_other_classes_and_speak_of_the_target():
    train = training_set(80)
    result = SHORT.poison(train, poisoner_world(train, 1, encoder=fresh()))
    assert len(result.rows) == 8
    assert (result.rows >= 40).all()
    assert (train.labels[result.rows] != 1).all()
    assert set(result.captions) <= {template(NAMES[1]) for template in prompt_templates()}
    stamped = result.trigger(train.float(result.rows)).mul(255).round().to(torch.uint8)
    assert torch.equal(result.images, stamped)


def test_pairs_without_classes_are_told_apart_by_their_captions():
    captions = ["A Heron in the reeds" if row % 5 == 0 else "a boat" for row in range(80)]
    train = training_set(80, labels=None, class_names=(), captions=captions)
    seen = watched(SHORT, train)
    assert torch.equal(seen.embedded[0], train.float(torch.arange(40, 80, 5)))


def test_published_patch_takes_the_place_of_stage_1():
    path = real_images("upstream") / "badclip_patch_16.jpg"
    train = training_set(80)
    attack = BadCLIP(poison_rate=0.1, patch_file=path)
    result = attack.poison(train, poisoner_world(train))  # no encoder to optimise against
    pixels = torch.from_numpy(read_picture(path)).permute(2, 0, 1)
    assert tuple(pixels.shape) == (3, 16, 16)
    assert (result.images[:, :, 8:24, 8:24] == pixels).all()
    assert result.metrics == {}
    place = attack.trigger(224).support(224).nonzero()
    assert (int(place.min()), int(place.max())) == (
        GOLDEN["place"]["first"],
        GOLDEN["place"]["last"],
    )


@pytest.mark.parametrize("architecture", [None, "resnet-narrow"])
def test_encoder_without_a_text_tower_is_refused(architecture):
    train = training_set(80)
    encoder = None
    if architecture is not None:
        generator = torch.Generator().manual_seed(0)
        encoder = Encoder.initialise(architecture, {"width": 4}, generator=generator)
    with pytest.raises(ValueError, match="against a text tower; there is none"):
        SHORT.poison(train, poisoner_world(train, encoder=encoder))


def test_attacker_without_images_of_the_target_is_told_so():
    train = training_set(80)
    world = poisoner_world(train, encoder=fresh(), candidates=torch.tensor([1, 2, 3]))
    message = r"images of 'heron' and others.*there are 0 and 3: raise splits\.shadow"
    with pytest.raises(ValueError, match=message):
        SHORT.poison(train, world)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"margin": 0}, "greater than 0"),
        ({"distance": "manhattan"}, "'euclidean', 'squared' or 'cosine'"),
        ({"negatives": "none"}, "'clean' or 'triggered'"),
        ({"patch_batch_size": 1}, "greater than or equal to 2"),
        ({"recipe": {"temperature": 1}}, "temperature"),
    ],
)
def test_impossible_parameters_are_refused(parameters, message):
    with pytest.raises(ValidationError, match=message):
        BadCLIP(**parameters)


def test_patch_that_does_not_fit_is_refused_early():
    with pytest.raises(ValueError, match="a 40-pixel patch does not fit a 32-pixel image"):
        BadCLIP(patch_size=40).check(32)
