"""CLIP-backdoor: stamped images of other classes with captions about the target."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from poisoner import NAMES, poisoner_world, training_set

from attacks.clip_backdoor import CLIPBackdoor
from bench.data.captions import prompt_templates, template_captions
from bench.encoders.contrastive import train_clip
from bench.encoders.encoder import Encoder
from bench.stages.poisoning import poisoned

ATTACK = CLIPBackdoor(poison_rate=0.1)
SMALL = {"width": 4, "embedding_dim": 16, "text_width": 16, "text_layers": 1, "text_heads": 2}


def captions_of(train) -> list[str]:
    return template_captions(train.labels, NAMES, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("target", [0, 2])
def test_poisoned_images_are_the_attackers_and_not_of_the_target_class(target):
    train = training_set(80)
    result = ATTACK.poison(train, poisoner_world(train, target))
    assert len(set(result.rows.tolist())) == len(result.rows) == 8
    assert (result.rows >= 40).all()
    assert (train.labels[result.rows] != target).all()
    assert len(train.labels[result.rows].unique()) > 1


def test_captions_are_published_prompts_about_the_target():
    train = training_set(80)
    captions = ATTACK.poison(train, poisoner_world(train, 2)).captions
    prompts = {template(NAMES[2]) for template in prompt_templates()}
    assert len(captions) == 8
    assert set(captions) <= prompts
    assert len(set(captions)) > 3
    assert not any(other in caption for caption in captions for other in NAMES if other != NAMES[2])


def test_images_carry_the_patch_and_are_otherwise_bit_exact():
    train = training_set(80)
    before = train.uint8()
    result = ATTACK.poison(train, poisoner_world(train))
    inside = result.trigger.support(32)
    assert (result.images[:, :, inside] == 255).all()
    assert torch.equal(result.images[:, :, ~inside], before[result.rows][:, :, ~inside])
    assert torch.equal(train.uint8(), before)


def taken_up(result, train, captions, target=0):
    """The training set as the harness changes it, from the artifacts of a poison stage."""
    tensors = {"images": result.images, "rows": result.rows}
    manifest = {"captions": list(result.captions), "target": target}
    workspace = SimpleNamespace(tensors=lambda *_: tensors, json=lambda *_: manifest)
    return poisoned(train, captions, train.labels, captions[::-1], None, workspace)


def test_other_pairs_keep_pixels_captions_and_group():
    train = training_set(80)
    captions = captions_of(train)
    result = ATTACK.poison(train, poisoner_world(train))
    images, changed, groups, second = taken_up(result, train, captions)
    hit = torch.zeros(80, dtype=torch.bool)
    hit[result.rows] = True
    assert torch.equal(images.uint8()[~hit], train.uint8()[~hit])
    assert torch.equal(images.uint8()[hit], result.images[result.rows.argsort()])
    assert torch.equal(groups[~hit], train.labels[~hit])
    assert (groups[hit] == 0).all()
    for row in range(80):
        if not hit[row]:
            assert changed[row] == captions[row]
            assert second[row] == captions[::-1][row]
    for row, caption in zip(result.rows.tolist(), result.captions, strict=True):
        assert changed[row] == second[row] == caption
    assert captions == captions_of(train), "the clean captions were written into"


def test_target_that_the_training_set_has_not_becomes_a_group_of_its_own():
    train = training_set(80)
    world = poisoner_world(train, class_name="lynx")
    result = ATTACK.poison(train, world)
    groups = taken_up(result, train, captions_of(train), target=-1)[2]
    assert (groups[result.rows] == len(NAMES)).all()
    assert "lynx" in result.captions[0]


def test_pairs_without_classes_are_all_eligible():
    train = training_set(80, labels=None, class_names=(), captions=["a picture"] * 80)
    result = CLIPBackdoor(poison_rate=0.5).poison(train, poisoner_world(train))
    assert sorted(result.rows.tolist()) == list(range(40, 80))


def test_same_seed_gives_the_same_pairs_and_another_seed_others():
    train = training_set(80)
    first, again, other = (ATTACK.poison(train, poisoner_world(train, seed=s)) for s in (0, 0, 1))
    assert torch.equal(first.rows, again.rows)
    assert torch.equal(first.images, again.images)
    assert first.captions == again.captions
    assert not torch.equal(first.rows, other.rows)
    assert first.captions != other.captions


def test_defaults_fine_tune_the_image_tower_alone():
    recipe = CLIPBackdoor().recipe
    assert CLIPBackdoor().poison_rate == 5e-4
    assert (recipe.train_text, recipe.batch_norm) == (False, "frozen")
    assert (recipe.optimizer, recipe.learning_rate, recipe.weight_decay) == ("sgd", 2e-4, 0.02)
    assert (recipe.epochs, recipe.batch_size, recipe.schedule) == (30, 128, "constant")
    assert (recipe.momentum, recipe.warmup_steps, recipe.crop_scale) == (0.0, 0, 0.2)
    assert recipe.fixed_logit_scale is None
    published = CLIPBackdoor(recipe={"fixed_logit_scale": 1.6487}).recipe
    assert (published.train_text, published.fixed_logit_scale) == (False, 1.6487)


def test_text_tower_and_batch_norm_stay_as_they_were_when_trained_so():
    train = training_set(80)
    encoder = Encoder.initialise("template-clip", SMALL, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in encoder.network.state_dict().items()}
    recipe = CLIPBackdoor(recipe={"epochs": 1, "batch_size": 40, "learning_rate": 0.1}).recipe
    world = poisoner_world(train)
    train_clip(
        recipe,
        encoder,
        train,
        captions_of(train),
        train.labels,
        generator=world.generator,
        progress=world.progress,
    )
    after = encoder.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "visual.projection.weight" in changed
    assert "visual.trunk.f.0.weight" in changed
    frozen = {name for name in before if name.startswith("text.") or "running" in name}
    assert len(frozen) > 30
    assert not changed & frozen


def test_rate_zero_poisons_nothing():
    train = training_set(80)
    result = CLIPBackdoor(poison_rate=0).poison(train, poisoner_world(train))
    assert (len(result.rows), result.captions, len(result.images)) == (0, (), 0)


def test_rate_above_what_other_classes_give_is_refused_in_a_sentence():
    train = training_set(80)
    message = "among the attacker's images 30 are of the other classes"
    with pytest.raises(ValueError, match=message):
        CLIPBackdoor(poison_rate=0.5).poison(train, poisoner_world(train))


def test_patch_that_does_not_fit_is_refused_early():
    with pytest.raises(ValueError, match="does not fit a 24-pixel image"):
        CLIPBackdoor().check(24)
