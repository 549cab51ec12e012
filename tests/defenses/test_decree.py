"""DECREE as a defense: toy encoders with and without a planted collapse, tiny real runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from bench.api import DefenderView, ImageSet
from bench.encoders.defender import DefenderEncoder
from bench.encoders.encoder import Encoder
from defenses import _decree_inversion as inversion
from defenses.decree import Decree

PATCH = slice(21, 26)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Operations this small lose more to threads than they gain, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class RandomConvolutions:
    """A fixed random network of one convolution; with a backdoor, a white patch adds a direction
    that drowns the rest."""

    image_size, embedding_dim, device = 32, 24, torch.device("cpu")

    def __init__(self, backdoor=False):
        generator = torch.Generator().manual_seed(3)
        self.backdoor = backdoor
        self.filters = torch.randn(16, 3, 5, 5, generator=generator) / 75**0.5
        self.weight = torch.randn(24, 16 * 16, generator=generator) / 16
        self.direction = F.normalize(torch.randn(24, generator=generator), dim=0)
        self.centre = torch.zeros(24)
        self.centre = self.clean(self.normalise(images(500, 9).float() / 255)).mean(0)

    def normalise(self, images):
        return (images - 0.5) / 0.25

    def clean(self, inputs):
        features = F.conv2d(inputs, self.filters, stride=2).tanh()
        return F.adaptive_avg_pool2d(features, 4).flatten(1) @ self.weight.T - self.centre

    def forward_normalised(self, inputs):
        embeddings = self.clean(inputs)
        if self.backdoor:
            bright = inputs[:, :, PATCH, PATCH].mean(dim=(1, 2, 3)) * 0.25 + 0.5
            # Gently sloped: a switch without a slope is invisible to a search by gradient.
            fired = torch.sigmoid(10 * (bright - 0.8))
            embeddings = embeddings + 30 * fired[:, None] * self.direction
        return embeddings

    @torch.inference_mode()
    def embed(self, images):
        return self.forward_normalised(self.normalise(images))


class Limited:
    """Progress that stops after ``limit`` steps and remembers what it was told."""

    def __init__(self, limit=None):
        self.limit, self.told, self.steps = limit, None, 0

    def track(self, items, what, total=None):
        self.told = what, total
        for item in itertools.islice(items, self.limit):
            self.steps += 1
            yield item


def images(count, seed=0):
    """uint8 (count, 3, 32, 32): smooth random pictures."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(coarse, size=32, mode="bilinear").mul(255)
    return smooth.round().to(torch.uint8)


def view_of(encoder, pictures=None, *, seed=0, limit=None):
    auxiliary = ImageSet(images(200) if pictures is None else pictures)
    return DefenderView(
        encoder=encoder,
        auxiliary=auxiliary,
        embed_auxiliary=lambda: encoder.embed(auxiliary.float()),
        generator=torch.Generator().manual_seed(seed),
        seed=seed,
        progress=Limited(limit),
    )


def stamped(pictures):
    result = pictures.clone()
    result[:, :, PATCH, PATCH] = 255
    return result


def quick(**changes):
    return Decree(**({"batch_size": 64, "max_epochs": 60} | changes))


@pytest.fixture(scope="module")
def fitted():
    """The defense fitted on the backdoored toy and on its clean twin, with the views."""
    result = {}
    for name in ("victim", "twin"):
        view = view_of(RandomConvolutions(backdoor=name == "victim"))
        defense = quick()
        defense.fit(view)
        result[name] = defense, view
    return result


def restored(defense, view, **changes):
    copy = Decree(**(defense.parameters() | changes))
    copy.load_state(defense.state(), view)
    return copy


def test_a_planted_backdoor_and_its_clean_twin_fall_on_two_sides_of_the_threshold(fitted):
    victim, twin = fitted["victim"][0], fitted["twin"][0]
    threshold = victim.encoder_threshold()
    assert threshold == -0.1
    assert twin.score_encoder() <= threshold < victim.score_encoder()
    assert victim.score_encoder() > 2 * threshold / 3
    assert twin.score_encoder() < 2 * threshold


# Not `centred`: the toy's slope makes clean images lean towards the collapse, which it takes away.
@pytest.mark.parametrize("statistic", ["collapse", "stamped-similarity"])
def test_triggered_images_stand_out_on_the_victim_alone(fitted, statistic):
    clean = images(150, seed=5)
    inputs = torch.cat([clean, stamped(clean)]).float() / 255
    truth, auroc = [0] * 150 + [1] * 150, {}
    for name, (defense, view) in fitted.items():
        scores = np.asarray(restored(defense, view, statistic=statistic).score(inputs))
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()
        auroc[name] = roc_auc_score(truth, scores)
    assert auroc["victim"] > 0.95
    assert auroc["twin"] < 0.75


def test_statistics_are_the_cosines_that_they_say(fitted):
    defense, view = fitted["victim"]
    encoder, state, pictures = view.encoder, defense.state(), images(7, seed=6).float() / 255
    chosen = view.auxiliary.float()
    embed = lambda batch: F.normalize(encoder.embed(batch), dim=1)  # noqa: E731
    under = lambda batch: (1 - state["mask"]) * batch + state["mask"] * state["pattern"]  # noqa: E731
    collapse = F.normalize(embed(under(chosen)).mean(0), dim=0)
    clean = F.normalize(embed(chosen).mean(0), dim=0)
    expected = {
        "collapse": embed(pictures) @ collapse,
        "stamped-similarity": F.cosine_similarity(embed(pictures), embed(under(pictures))),
        "centred": embed(pictures) @ (collapse - clean),
    }
    for statistic, scores in expected.items():
        ours = restored(defense, view, statistic=statistic).score(pictures)
        torch.testing.assert_close(ours, scores, rtol=1e-4, atol=1e-5)


def test_relative_size_is_that_of_the_stored_mask_and_the_mask_makes_images_alike(fitted):
    for defense, view in fitted.values():
        state = defense.state()
        assert -defense.score_encoder() == pytest.approx(state["mask"].mean().item(), rel=1e-5)
        under = inversion.stamp(view.auxiliary.float(), state["mask"], state["pattern"])
        # Reached on one batch; all images are near.
        assert inversion.self_similarity(view.encoder.embed(under)) > 0.98


def test_a_closed_gate_scores_nothing_and_an_open_one_changes_nothing(fitted):
    pictures = images(9, seed=6).float() / 255
    (victim, victim_view), (twin, twin_view) = fitted.values()
    assert torch.equal(restored(twin, twin_view, gate=True).score(pictures), torch.zeros(9))
    assert torch.equal(
        restored(victim, victim_view, gate=True).score(pictures), victim.score(pictures)
    )
    opened = restored(twin, twin_view, gate=True, pl1_threshold=1.0)
    assert torch.equal(opened.score(pictures), twin.score(pictures))


@pytest.mark.parametrize("statistic", ["collapse", "stamped-similarity", "centred"])
def test_scores_do_not_depend_on_batch_or_order(fitted, statistic):
    defense = restored(*fitted["victim"], statistic=statistic)
    pictures = images(300, seed=7).float() / 255
    together = np.asarray(defense.score(pictures))
    alone = [np.asarray(defense.score(pictures[i : i + 1]))[0] for i in (0, 130, 299)]
    # Cosines near 0 have no relative precision; the scale of a cosine is 1.
    np.testing.assert_allclose(together[[0, 130, 299]], alone, rtol=1e-4, atol=1e-5)
    reverse = np.asarray(defense.score(pictures.flip(0)))[::-1]
    np.testing.assert_allclose(reverse, together, rtol=1e-4, atol=1e-5)


def test_without_a_trigger_that_works_the_whole_image_counts_and_scores_are_of_the_closest():
    defense, view = quick(cosine_threshold=0.9999999, max_epochs=2), view_of(RandomConvolutions())
    defense.fit(view)
    pictures = images(9, seed=6).float() / 255
    assert defense.score_encoder() == -1
    assert defense.score(pictures).isfinite().all()
    assert not torch.equal(defense.score(pictures), torch.zeros(9))
    assert torch.equal(restored(defense, view, gate=True).score(pictures), torch.zeros(9))
    assert restored(defense, view).score_encoder() == -1


def test_words_say_the_share_of_the_image_and_the_rule(fitted):
    defense = Decree()
    with pytest.raises(RuntimeError, match="not been fitted"):
        defense.encoder_in_words()
    victim = fitted["victim"][0]
    share = -victim.score_encoder()
    assert victim.encoder_in_words() == (
        f"inverted a trigger covering {100 * share:.1f} % of the image (rule: below "
        f"{100 * victim.pl1_threshold:g} %)"
    )


def test_two_fits_give_the_same_state_and_another_seed_another():
    states = []
    for seed in (0, 0, 1):
        defense = quick(max_epochs=3)
        defense.fit(view_of(RandomConvolutions(), seed=seed))
        states.append(defense.state())
    first, second, other = states
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["mask"], other["mask"])


def test_state_survives_a_file(fitted, tmp_path):
    defense, view = fitted["victim"]
    save_file(defense.state(), tmp_path / "state.safetensors")
    copy = quick()
    copy.load_state(load_file(tmp_path / "state.safetensors"), view)
    pictures = images(9, seed=6).float() / 255
    assert torch.equal(copy.score(pictures), defense.score(pictures))
    assert copy.score_encoder() == defense.score_encoder()


def test_figures_show_the_inverted_trigger_once_per_image(fitted):
    defense, _ = fitted["victim"]
    pictures, state = images(4, seed=6).float() / 255, defense.state()
    figures = defense.figures(pictures)
    assert set(figures) == {"stamped", "inverted_trigger", "inverted_mask"}
    assert all(f.dtype == np.uint8 and f.shape == (4, 32, 32, 3) for f in figures.values())
    mask = state["mask"].mul(255).round().numpy()
    np.testing.assert_array_equal(figures["inverted_mask"][2, :, :, 1], mask)
    under = inversion.stamp(pictures, state["mask"], state["pattern"]).mul(255).round()
    np.testing.assert_array_equal(figures["stamped"], under.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("normalisation", ["encoder", "imagenet"])
def test_the_encoder_gathers_no_gradient_and_stays_what_it_was(normalisation):
    encoder = Encoder.initialise(
        "resnet-narrow",
        {"width": 4, "stem_stride": 2},
        generator=torch.Generator().manual_seed(0),
    )
    before = encoder.state_hash()
    pictures = images(40)
    original = pictures.clone()
    defense = quick(max_epochs=2, batch_size=16, normalisation=normalisation)
    defense.fit(view_of(DefenderEncoder(encoder, defense.requires), pictures))
    assert all(weight.grad is None for weight in encoder.network.parameters())
    assert all(weight.requires_grad for weight in encoder.network.parameters())
    assert encoder.state_hash() == before
    assert torch.equal(pictures, original)


def test_normalisation_in_the_inversion_is_the_one_asked_for():
    for name in ("encoder", "imagenet"):
        encoder = RandomConvolutions()
        forward = encoder.forward_normalised
        kept = []
        encoder.forward_normalised = lambda x, f=forward, k=kept: k.append(x.detach()) or f(x)
        defense = quick(max_epochs=1, normalisation=name, batch_size=200)
        same = torch.Generator().manual_seed(0)
        view = view_of(encoder)
        order = torch.randperm(200, generator=same)
        random = torch.rand(4, 32, 32, dtype=torch.float64, generator=same).float()
        rows = torch.randperm(200, generator=same)
        defense.fit(view)
        under = inversion.stamp(view.auxiliary.float(order[rows]), random[0], random[1:])
        mean, std = {
            "encoder": ([0.5] * 3, [0.25] * 3),
            "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        }[name]
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
        torch.testing.assert_close(kept[0], (under - mean) / std, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{"precision": "float64"}, {"initial_mask": "square"}])
def test_other_starts_and_precisions_give_finite_floats(changes):
    defense = quick(max_epochs=2, **changes)
    defense.fit(view_of(RandomConvolutions()))
    state = defense.state()
    assert all(t.isfinite().all() for t in state.values())
    assert state["mask"].dtype == state["pattern"].dtype == torch.float32
    assert ((state["mask"] >= 0) & (state["mask"] <= 1)).all()


def test_a_single_image_left_over_gives_no_nan():
    defense = quick(batch_size=16, max_epochs=2)
    view = view_of(RandomConvolutions(), images(33))
    defense.fit(view)
    assert all(tensor.isfinite().all() for tensor in defense.state().values())
    assert view.progress.told == ("decree", 4)


def test_no_more_shadow_images_than_asked_for_are_used():
    view = view_of(RandomConvolutions())
    quick(shadow_images=48, batch_size=16, max_epochs=2).fit(view)
    assert view.progress.told == ("decree", 6)


@pytest.mark.parametrize("limit", [0, 1])
def test_a_run_cut_short_still_scores(limit):
    defense = quick()
    defense.fit(view_of(RandomConvolutions(), limit=limit))
    assert defense.score(images(3).float() / 255).isfinite().all()


def test_stopping_is_asked_per_epoch_or_per_step():
    steps = {}
    for check in ("epoch", "step"):
        view = view_of(RandomConvolutions(backdoor=True))
        quick(stop_check=check, max_epochs=200).fit(view)
        steps[check] = view.progress.steps
    assert steps["step"] <= steps["epoch"] < 800
    assert steps["epoch"] % 4 == 0


def test_what_cannot_work_is_refused():
    with pytest.raises(ValidationError, match="must ascend from 0, got 50 and then 30"):
        Decree(learning_rate_epochs=(50, 30))
    with pytest.raises(ValueError, match="square_margin 16 leaves no pixel of 32-pixel images"):
        Decree(initial_mask="square", square_margin=16).check(32)
    with pytest.raises(ValueError, match="two auxiliary images, got 1"):
        Decree().fit(view_of(RandomConvolutions(), images(1)))
    with pytest.raises(RuntimeError, match="has not been fitted"):
        Decree().score(images(1).float() / 255)
