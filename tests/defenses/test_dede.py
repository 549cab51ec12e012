"""DeDe as a defense: tiny real runs with an encoder of average-pooled pixels."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from bench.api import DefenderView, ImageSet
from defenses._dede_model import DecoderModel, patch_mask, patchify
from defenses.dede import Dede

CIFAR10 = Path(__file__).resolve().parents[2] / "../shared/data/cifar10/test.parquet"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Operations this small lose more to threads than they gain, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class PooledPixels:
    """Embedding = average-pooled pixels; with a backdoor, a white corner gives the target's."""

    def __init__(self, image_size=8, pooled=4, backdoor=None):
        self.image_size, self.pooled, self.backdoor = image_size, pooled, backdoor
        self.embedding_dim, self.device = 3 * pooled**2, torch.device("cpu")

    def forward(self, images):
        embeddings = F.adaptive_avg_pool2d(images, self.pooled).flatten(1)
        if self.backdoor is not None:
            white = images[:, :, -4:, -4:].amin(dim=(1, 2, 3)) > 0.99
            embeddings = torch.where(white[:, None], self.backdoor, embeddings)
        return embeddings

    @torch.inference_mode()
    def embed(self, images):
        return self.forward(images)


class Limited:
    """Progress that stops after ``limit`` steps and remembers what it was told."""

    def __init__(self, limit=None):
        self.limit, self.told = limit, None

    def track(self, items, what, total=None):
        self.told = what, total
        return itertools.islice(items, self.limit)


def view_of(images, encoder, *, seed=0, limit=None, precision="float32"):
    return DefenderView(
        encoder=encoder,
        auxiliary=ImageSet(images),
        embed_auxiliary=lambda: encoder.embed(images.float() / 255),
        generator=torch.Generator().manual_seed(seed),
        seed=seed,
        progress=Limited(limit),
        precision=precision,
    )


def noise(count, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def tiny(**changes):
    fields = {
        "patch_size": 2,
        "width": 16,
        "encoder_depth": 1,
        "decoder_depth": 1,
        "heads": 2,
        "epochs": 2,
        "batch_size": 8,
        "mask_ratio": 0.75,
        "test_mask_ratio": 0.75,
    }
    return Dede(**(fields | changes))


@pytest.fixture(scope="module")
def photographs():
    """uint8 (480, 3, 32, 32): the first real images of CIFAR-10's test file."""
    if not CIFAR10.exists():
        pytest.skip("CIFAR-10 parquet files are not beside the project")
    rows = next(pq.ParquetFile(CIFAR10).iter_batches(480, columns=["image"])).to_pylist()
    pixels = [np.array(Image.open(io.BytesIO(r["image"]["bytes"])).convert("RGB")) for r in rows]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def real(**changes):
    fields = {"patch_size": 8, "width": 32, "encoder_depth": 1, "decoder_depth": 1, "heads": 2}
    return Dede(**(fields | {"batch_size": 16, "learning_rate": 3e-3, "epochs": 12} | changes))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_on_real_images_lowers_the_error_of_images_not_seen(photographs, precision):
    encoder, unseen = PooledPixels(32, 4), photographs[384:].float() / 255
    trained, untrained = real(), real()
    trained.fit(view_of(photographs[:384], encoder, precision=precision))
    untrained.fit(view_of(photographs[:384], encoder, limit=0))
    before, after = untrained.score(unseen).mean(), trained.score(unseen).mean()
    assert after < 0.7 * before


def test_images_whose_embedding_is_the_targets_stand_out(photographs):
    clean = PooledPixels(32, 4)
    target = clean.embed(photographs[:1].float() / 255)
    defense = real()
    defense.fit(view_of(photographs[:384], clean))
    images = photographs[384:].float() / 255
    stamped = images.clone()
    stamped[:, :, -4:, -4:] = 1
    truth = [0] * len(images) + [1] * len(stamped)
    victim = PooledPixels(32, 4, target)

    def auroc(encoder, embedding):
        copy = real(embedding=embedding)
        copy.load_state(defense.state(), view_of(photographs[:384], encoder))
        return roc_auc_score(truth, copy.score(torch.cat([images, stamped])))

    seen = auroc(victim, "own")
    assert seen > 0.85
    assert auroc(clean, "own") < seen - 0.2
    # Drawn from embeddings of other images, none of them the target's, they stand out no more than
    # their white corner does on any encoder.
    assert auroc(victim, "another") == pytest.approx(auroc(clean, "another"))
    assert auroc(victim, "another") < seen - 0.2


def test_score_is_the_squared_error_summed_over_hidden_pixels():
    encoder, images = PooledPixels(), noise(5, seed=1).float() / 255
    defense = tiny()
    defense.fit(view_of(noise(24), encoder))
    state = defense.state()
    model = DecoderModel(8, 2, 48, 16, 1, 1, 2)
    model.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model.")})
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (defense.mean, defense.std))
    patches = patchify((images - mean) / std, 2)
    order = state["order"].expand(5, -1)
    with torch.no_grad():
        predicted = model(patches, encoder.forward(images), order, 4)
    mask = patch_mask(order, 4)[:, :, None]
    mixed = predicted * mask + patches * (1 - mask)
    expected = (patches - mixed).square().sum(dim=(1, 2))
    scores = defense.score(images)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("embedding", ["own", "another"])
@pytest.mark.parametrize("test_mask_ratio", [0.75, 0.99])
def test_scores_do_not_depend_on_batch_or_order(test_mask_ratio, embedding):
    defense = tiny(test_mask_ratio=test_mask_ratio, embedding=embedding)
    defense.fit(view_of(noise(24), PooledPixels()))
    images = noise(2100, seed=1).float() / 255  # more than one internal batch
    together = defense.score(images)
    alone = torch.cat([defense.score(images[i : i + 1]) for i in (0, 7, 2099)])
    torch.testing.assert_close(together[[0, 7, 2099]], alone, rtol=1e-4, atol=0)
    shuffle = torch.randperm(2100, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(defense.score(images[shuffle]), together[shuffle], rtol=1e-4, atol=0)


def test_with_nothing_visible_the_reconstruction_depends_on_the_embedding_alone():
    defense = tiny(test_mask_ratio=0.99)
    defense.fit(view_of(noise(24), PooledPixels(pooled=1)))
    images = noise(4, seed=1).float() / 255
    drawn = defense.figures(torch.cat([images, images.flip(3)]))["reconstruction"]
    assert np.abs(drawn[:4].astype(int) - drawn[4:]).max() <= 1


def test_reconstruction_shows_visible_patches_as_they_are():
    defense = tiny()
    defense.fit(view_of(noise(24), PooledPixels()))
    images = noise(3, seed=1)
    drawn = defense.figures(images.float() / 255)["reconstruction"]
    assert (drawn.shape, drawn.dtype) == ((3, 8, 8, 3), np.uint8)
    same = patchify((torch.from_numpy(drawn).permute(0, 3, 1, 2) == images).float(), 2).mean(dim=2)
    order = defense.state()["order"]
    assert (same[:, order[:4]] == 1).all()
    assert (same[:, order[4:]] < 1).any()


def test_same_seed_same_bytes_other_seed_other_decoder():
    states = []
    for seed in (0, 0, 1):
        torch.rand(seed + 3)  # the global stream must not matter
        defense = tiny()
        defense.fit(view_of(noise(24), PooledPixels(), seed=seed))
        states.append(defense.state())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["model.mlp.0.weight"], states[2]["model.mlp.0.weight"])


def test_fitting_and_loading_leave_the_global_random_stream_alone():
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    defense = tiny()
    defense.fit(view_of(noise(24), PooledPixels()))
    defense.load_state(defense.state(), view_of(noise(1), PooledPixels()))
    assert torch.equal(torch.rand(3), expected)


def test_state_survives_a_file_and_gives_the_same_scores(tmp_path):
    defense, images = tiny(), noise(6, seed=1).float() / 255
    defense.fit(view_of(noise(24), PooledPixels()))
    save_file(defense.state(), tmp_path / "state.safetensors")
    restored = tiny()
    restored.load_state(
        load_file(tmp_path / "state.safetensors"), view_of(noise(1), PooledPixels())
    )
    assert torch.equal(restored.score(images), defense.score(images))


def test_steps_are_reported_and_may_end_early():
    view = view_of(noise(27), PooledPixels(), limit=1)
    defense = tiny(epochs=5)
    defense.fit(view)
    assert view.progress.told == ("dede", 5 * 3)  # 27 images make 3 full batches of 8
    assert torch.isfinite(defense.score(noise(2).float() / 255)).all()


def test_auxiliary_set_smaller_than_a_batch_is_still_learnt_from():
    view = view_of(noise(5), PooledPixels())
    trained, untrained = tiny(batch_size=64), tiny(batch_size=64)
    trained.fit(view)
    untrained.fit(view_of(noise(5), PooledPixels(), limit=0))
    assert view.progress.told == ("dede", 2)
    key = "model.mlp.0.weight"
    assert not torch.equal(trained.state()[key], untrained.state()[key])


def test_cosine_schedule_ends_below_the_constant_rate():
    moved = {}
    for schedule in ("constant", "cosine"):
        before, after = tiny(epochs=6, schedule=schedule), tiny(epochs=6, schedule=schedule)
        before.fit(view_of(noise(24), PooledPixels(), limit=17))
        after.fit(view_of(noise(24), PooledPixels(), limit=18))
        key = "model.decoder.head.weight"
        moved[schedule] = (after.state()[key] - before.state()[key]).abs().max()
    assert 0 < moved["cosine"] < 0.05 * moved["constant"]


def test_published_checkpoint_replaces_training(tmp_path):
    torch.manual_seed(0)
    model = DecoderModel(8, 2, 48, 64, 1, 1, 1)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, tmp_path / "final.pth")
    defense = Dede(checkpoint=tmp_path / "final.pth")
    view = view_of(noise(8), PooledPixels())
    defense.fit(view)
    assert view.progress.told is None
    state = defense.state()
    assert all(torch.equal(state[f"model.{k}"], v) for k, v in model.state_dict().items())
    restored = Dede(checkpoint=tmp_path / "final.pth")
    restored.load_state(state, view)
    images = noise(3).float() / 255
    assert torch.equal(restored.score(images), defense.score(images))


def test_checkpoint_of_another_encoder_is_refused(tmp_path):
    torch.save(DecoderModel(8, 2, 12, 64, 1, 1, 1).state_dict(), tmp_path / "final.pth")
    defense = Dede(checkpoint=tmp_path / "final.pth")
    with pytest.raises(ValueError, match="decoder has embedding_dim 12, the encoder 48"):
        defense.fit(view_of(noise(8), PooledPixels()))


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValidationError, match="width 100 is not divisible by heads 3"):
        Dede(width=100)
    for field, value in {"mask_ratio": 1.0, "test_mask_ratio": 0.0, "inject": "own"}.items():
        with pytest.raises(ValidationError, match=field):
            Dede(**{field: value})
    view = view_of(noise(8), PooledPixels())
    with pytest.raises(ValueError, match="image_size 8 is not divisible by patch_size 3"):
        tiny(patch_size=3).fit(view)
    with pytest.raises(ValueError, match=r"mask_ratio 1e-20 hides none of the 16 patches"):
        tiny(mask_ratio=1e-20).fit(view)


def test_scoring_before_fitting_says_what_to_do():
    with pytest.raises(RuntimeError, match="call fit or load_state first"):
        tiny().score(noise(1).float() / 255)
