"""Contrastive losses and the training of CLIP encoders."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from bench.config import DatasetConfig
from bench.data.captions import template_captions
from bench.data.embedded import Digits
from bench.data.imageset import ImageSet
from bench.encoders.contrastive import (
    ClipRecipe,
    contrastive_loss,
    in_modal_loss,
    train_clip,
    warmup_cosine,
)
from bench.encoders.encoder import Encoder
from bench.evaluation.zero_shot import class_embeddings, zero_shot_predict

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "clip.json").read_text())
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SMALL = {"width": 8, "embedding_dim": 32, "text_width": 32, "text_layers": 1, "text_heads": 2}
RECIPE = ClipRecipe(epochs=3, batch_size=32, learning_rate=3e-3, warmup_epochs=1, weight_decay=0.01)


class Steps:
    """Progress that stops after ``limit`` steps and counts what it was offered."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.offered = 0

    def track(self, items, what, total=None):
        items = list(items)
        self.offered = len(items)
        yield from items[: self.limit]


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return Digits("digits", DatasetConfig(source="digits", image_size=16)).load("train")


@pytest.fixture(scope="module")
def some(digits) -> ImageSet:
    return digits.select(torch.arange(96))


def captions_of(images: ImageSet) -> list[str]:
    return template_captions(images.labels, NAMES, torch.Generator().manual_seed(1))


def fresh(seed: int = 0) -> Encoder:
    generator = torch.Generator().manual_seed(seed)
    return Encoder.initialise("template-clip", SMALL, generator=generator, image_size=16)


def trained(images, recipe=RECIPE, *, seed=0, limit=None, encoder=None, **options):
    return train_clip(
        recipe,
        encoder or fresh(),
        images,
        options.pop("captions", None) or captions_of(images),
        options.pop("groups", images.labels),
        generator=torch.Generator().manual_seed(seed),
        progress=options.pop("progress", None) or Steps(limit),
        **options,
    )


def changed(recipe=RECIPE, **update) -> ClipRecipe:
    return ClipRecipe.model_validate({**recipe.parameters(), **update})


@pytest.fixture
def triple() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    k = torch.arange(512, dtype=torch.float64)
    rows = (torch.sin(0.3 * k), torch.cos(0.17 * k), torch.sin(0.11 * k + 1))
    return tuple(F.normalize(row.float().view(64, 8), dim=1) for row in rows)


def test_loss_has_the_golden_values_of_badclip_and_of_text_on_pair(triple):
    image, text, _ = triple
    golden = GOLDEN["contrastive_loss"]
    value = float(contrastive_loss(image, text, 1 / golden["temperature"]))
    assert value == pytest.approx(golden["value"], abs=golden["absolute_tolerance"])
    golden = GOLDEN["text_on_pair_loss"]
    value = float(contrastive_loss(image, text, math.exp(golden["log_scale"])))
    assert value == pytest.approx(golden["value"], abs=golden["absolute_tolerance"])


def test_loss_with_the_inmodal_term_has_the_golden_value(triple):
    image, text, augmented = triple
    golden = GOLDEN["loss_with_inmodal_term"]
    scale = 1 / golden["temperature"]
    within = in_modal_loss(image, augmented, scale) + in_modal_loss(text, image, scale)
    value = float(contrastive_loss(image, text, scale) + within / 2)
    assert value == pytest.approx(golden["value"], abs=golden["absolute_tolerance"])


def test_schedule_has_the_golden_rates_at_upstreams_steps():
    golden = GOLDEN["cosine_schedule"]
    fixed = golden["total"], golden["warmup"], golden["learning_rate"]
    rates = [warmup_cosine(step, *fixed) for step in golden["steps"]]
    assert rates == pytest.approx(golden["values"], rel=golden["relative_tolerance"])
    last = warmup_cosine(golden["last_step"], *fixed)
    assert last == pytest.approx(golden["last_value"], rel=golden["last_relative_tolerance"], abs=0)


def test_multi_positive_loss_is_the_plain_one_when_all_groups_differ(triple):
    image, text, augmented = triple
    groups = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for loss, second in ((contrastive_loss, text), (in_modal_loss, augmented)):
        plain = loss(image, second, 10.0)
        torch.testing.assert_close(loss(image, second, 10.0, groups), plain)


def test_multi_positive_loss_is_the_mean_over_the_positives(triple):
    image, text = triple[0][:5], triple[1][:5]
    groups = torch.tensor([0, 1, 0, 2, 0])
    logits = 4.0 * image @ text.T
    expected = 0.0
    for table in (logits, logits.T):
        log_p = table.log_softmax(1)
        for anchor in range(5):
            positives = [other for other in range(5) if groups[other] == groups[anchor]]
            expected -= float(sum(log_p[anchor, other] for other in positives)) / len(positives)
    value = float(contrastive_loss(image, text, 4.0, groups))
    assert value == pytest.approx(expected / 10, rel=1e-5)


def test_loss_ignores_length_and_who_is_whose_within_a_group(triple):
    image, text, _ = triple
    torch.testing.assert_close(
        contrastive_loss(3 * image, 0.1 * text, 5.0), contrastive_loss(image, text, 5.0)
    )
    groups = torch.arange(64) % 4
    swapped = text.clone()
    swapped[[0, 4, 8]] = text[[8, 0, 4]]
    value = contrastive_loss(image, text, 5.0, groups)
    torch.testing.assert_close(contrastive_loss(image, swapped, 5.0, groups), value)
    assert abs(float(contrastive_loss(image, swapped, 5.0) - value)) > 1e-3


def test_schedule_starts_near_zero_and_ends_there():
    recipe = changed(epochs=10, learning_rate=1.0, warmup_epochs=2)
    rates = [recipe.learning_rate_at(step, 5) for step in range(51)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[49] < 0.01
    assert rates[50] == pytest.approx(0, abs=1e-12)
    constant = changed(recipe, schedule="constant", warmup_epochs=None, warmup_steps=4)
    assert [constant.learning_rate_at(step, 5) for step in (0, 3, 49)] == [0.25, 1.0, 1.0]
    bare = changed(recipe, schedule="constant", warmup_epochs=0)
    assert bare.learning_rate_at(0, 5) == 1.0


def test_published_fine_tuning_is_the_default():
    recipe = ClipRecipe()
    assert (recipe.learning_rate, recipe.batch_size, recipe.epochs) == (1e-6, 128, 10)
    assert (recipe.optimizer, recipe.weight_decay, recipe.warmup_steps) == ("adamw", 0.1, 10_000)


def test_zero_shot_accuracy_rises_well_above_chance(digits):
    encoder, metrics = trained(digits, changed(epochs=5, batch_size=64))
    held_out = Digits("digits", DatasetConfig(source="digits", image_size=16)).load("test")
    features = encoder.embed(held_out.float())
    predicted = zero_shot_predict(features, class_embeddings(encoder.text, NAMES))
    accuracy = float((predicted == held_out.labels).float().mean())
    assert accuracy > 0.6, "chance is 0.1"
    assert metrics["loss_last"] < metrics["loss_first"]
    assert metrics["steps"] == 5 * (1397 // 64)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_runs_are_bit_equal(some, precision):
    state = torch.get_rng_state()
    recipe = changed(crop_scale=0.5)
    first, metrics = trained(some, recipe, precision=precision, limit=4)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    torch.rand(5)
    second, again = trained(some, recipe, precision=precision, limit=4)
    assert first.state_hash() == second.state_hash()
    assert metrics == again
    assert trained(some, recipe, seed=1, precision=precision, limit=4)[1] != metrics


def test_the_result_is_the_encoder_given_frozen_contiguous_and_in_eval_mode(some):
    given = fresh()
    encoder, metrics = trained(some, encoder=given, limit=2)
    assert encoder is given
    assert not encoder.network.training
    for name, value in encoder.network.named_parameters():
        assert not value.requires_grad, name
        assert value.dtype == torch.float32, name
        assert value.is_contiguous(), name
    assert metrics["logit_scale"] == pytest.approx(encoder.text.logit_scale)


def test_incomplete_batches_are_dropped_and_training_may_end_early(some):
    steps = Steps(limit=4)
    metrics = trained(some.select(torch.arange(95)), progress=steps)[1]
    assert steps.offered == 3 * 2
    assert metrics["steps"] == 4


def test_runs_that_differ_in_one_pair_share_order_and_views(some):
    altered = ImageSet(some.uint8(), labels=some.labels)
    altered._storage[0] ^= 255
    captions = captions_of(some)
    recaptioned = ["a photo of a banana.", *captions[1:]]
    recipe = changed(crop_scale=0.5)
    same_pixels, same_words = set(), set()
    for seed in range(4):
        clean = trained(some, recipe, seed=seed, limit=1)[1]["loss_first"]
        pixels = trained(altered, recipe, seed=seed, limit=1)[1]["loss_first"]
        words = trained(some, recipe, seed=seed, limit=1, captions=recaptioned)[1]["loss_first"]
        same_pixels.add(clean == pixels)
        same_words.add(clean == pytest.approx(words, abs=1e-7))
    # Equal wherever the first batch of 32 of 96 does not hold the altered pair.
    assert same_pixels == {True, False}
    assert same_words == {True, False}


def test_only_the_rows_of_used_tokens_change(some):
    before = fresh().network.text.token_embedding.weight.detach()
    encoder = trained(some, limit=3)[0]
    after = encoder.network.text.token_embedding.weight
    used = encoder.text.tokenize(captions_of(some)).unique()
    unused = torch.ones(len(after), dtype=torch.bool)
    unused[used] = False
    assert after.shape == (49_408, 32)
    assert torch.equal(after[unused], before[unused])
    assert float((after[used] - before[used]).abs().amax(1).min()) > 0


def test_an_interrupted_run_leaves_the_whole_token_embedding(some):
    class Interrupting(Steps):
        def track(self, items, what, total=None):
            yield 0
            raise KeyboardInterrupt

    encoder = fresh()
    with pytest.raises(KeyboardInterrupt):
        trained(some, encoder=encoder, progress=Interrupting())
    assert encoder.network.text.token_embedding.weight.shape == (49_408, 32)


def test_a_frozen_text_tower_stays_and_the_image_tower_learns(some):
    before = fresh()
    for precision in ("float32", "bfloat16"):
        encoder = trained(some, changed(train_text=False), precision=precision, limit=3)[0]
        for name, value in before.network.text.state_dict().items():
            assert torch.equal(encoder.network.text.state_dict()[name], value), name
        assert not torch.equal(encoder.embed(some.float()), before.embed(some.float()))


def test_first_loss_of_a_frozen_text_tower_is_that_of_a_learning_one(some):
    frozen = trained(some, changed(train_text=False), limit=1)[1]["loss_first"]
    assert frozen == pytest.approx(trained(some, limit=1)[1]["loss_first"], abs=1e-5)


def test_frozen_batch_norm_keeps_statistics_and_affine_parameters(some):
    before = fresh().network.visual.state_dict()
    encoder = trained(some, changed(batch_norm="frozen"), limit=3)[0]
    after = encoder.network.visual.state_dict()
    norms = [name for name in before if ".bn" in name or ".f.1." in name]
    assert len(norms) > 20
    assert all(torch.equal(after[name], before[name]) for name in norms)
    assert not torch.equal(after["trunk.f.0.weight"], before["trunk.f.0.weight"])


def test_logit_scale_is_fixed_when_asked_and_held_below_a_hundred(some):
    fixed = changed(fixed_logit_scale=math.exp(0.5))
    encoder, metrics = trained(some, fixed, limit=3)
    assert metrics["logit_scale"] == encoder.text.logit_scale == pytest.approx(1.6487213)
    hot = fresh()
    with torch.no_grad():
        hot.network.logit_scale.fill_(9.0)
    assert trained(some, encoder=hot, limit=1)[1]["logit_scale"] == pytest.approx(100)
    learnt = trained(some, limit=3)[1]["logit_scale"]
    assert learnt != pytest.approx(1 / 0.07, rel=1e-6)


def test_vectors_and_scalars_do_not_decay():
    network = fresh().network
    optimizer = changed(weight_decay=0.3).optimiser(network)
    decay = {
        id(value): group["weight_decay"]
        for group in optimizer.param_groups
        for value in group["params"]
    }
    for name, value in network.named_parameters():
        free = name == "logit_scale" or name.endswith("bias") or ".ln_" in name or ".bn" in name
        free = free or name.startswith(("visual.trunk.f.1.", "text.ln_final"))
        free = free or name.endswith("downsample.1.weight")
        assert decay[id(value)] == (0.0 if free else 0.3), name


def test_sgd_trains_too(some):
    recipe = changed(optimizer="sgd", learning_rate=0.1, epochs=4)
    metrics = trained(some, recipe)[1]
    assert metrics["loss_last"] < metrics["loss_first"]


def test_the_inmodal_term_adds_a_second_view_and_a_second_caption(some):
    second = template_captions(some.labels, NAMES, torch.Generator().manual_seed(2))
    with_term = changed(inmodal_weight=1.0)
    plain = trained(some, limit=1)[1]["loss_first"]
    one = trained(some, with_term, second_captions=second, limit=1)[1]["loss_first"]
    assert one > plain + 1
    other = trained(some, with_term, second_captions=second[::-1], limit=1)[1]["loss_first"]
    assert other != one
    frozen = changed(with_term, train_text=False)
    again = trained(some, frozen, second_captions=second, limit=1)[1]["loss_first"]
    assert again == pytest.approx(one, abs=1e-5)


def test_augmentation_is_off_unless_a_crop_is_asked_for(some):
    untouched = trained(some, limit=1)[1]["loss_first"]
    assert trained(some, changed(crop_scale=0.3), limit=1)[1]["loss_first"] != untouched


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ({}, {"captions": ["a cat"]}, "1 captions for 96 images"),
        ({}, {"groups": torch.zeros(3)}, "3 groups for 96 images"),
        ({"batch_size": 97}, {}, "batch_size 97 exceeds the 96 images"),
        ({"warmup_epochs": 3}, {}, "a warm-up of 9 steps leaves nothing of the 9 steps"),
        ({}, {"precision": "float16"}, "float32 or bfloat16, got 'float16'"),
        ({"inmodal_weight": 1.0}, {}, "second captions go with an inmodal_weight above 0"),
        ({}, {"second_captions": ["x"] * 96}, "second captions go with an inmodal_weight"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(some, recipe, options, message):
    with pytest.raises(ValueError, match=message):
        trained(some, changed(**recipe), **options)


def test_an_encoder_without_text_or_of_another_size_is_refused(some, encoder):
    with pytest.raises(ValueError, match="resnet-narrow has no text tower"):
        trained(some, encoder=encoder)
    large = Digits("digits", DatasetConfig(source="digits")).load("train")
    with pytest.raises(ValueError, match="images of 32 pixels, the encoder takes 16"):
        trained(large)


def test_a_diverging_run_is_an_error_not_a_result(some):
    recipe = changed(learning_rate=1e30, optimizer="sgd", schedule="constant", warmup_epochs=0)
    with pytest.raises(FloatingPointError, match="the loss is"):
        trained(some, recipe)


@pytest.mark.parametrize(
    "parameters", [{"betas": (0.9, 1.0)}, {"fixed_logit_scale": 0.5}, {"crop_scale": 0}, {"x": 1}]
)
def test_impossible_parameters_are_refused(parameters):
    with pytest.raises(ValidationError):
        ClipRecipe(**parameters)
