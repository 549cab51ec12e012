"""Mistakes about attacks and the CLIP model: one line with file, line and key, nothing written."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mistakes import PROFILE, line_of, png, set_in


def with_attack(content: dict[str, Any], name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The tiny experiment with one attack, its parameters among the profile's overrides."""
    content["matrix"]["attacks"] = [name]
    content["profiles"]["tiny"]["overrides"].setdefault(name, {}).update(parameters)
    return content


PATCHED = ("none", "badencoder", "drupe", "sslbkd", "clip-backdoor")
RATE = "of 1277 training images is 638; among the attacker's images "


@pytest.mark.parametrize(
    ("attack", "parameters", "key", "message"),
    [
        *((name, {"patch_size": 40}, "", "does not fit a 32-pixel image") for name in PATCHED),
        ("sslbkd", {"patch_column": 30}, "", "row 21, column 30 does not fit a 32-pixel image"),
        ("badclip", {"patch_size": 40}, "", "a 40-pixel patch does not fit a 32-pixel image"),
        ("ctrl", {"window": 20}, "", "windows of 20 pixels do not tile a 32-pixel image"),
        ("ctrl", {"positions": [[32, 0]]}, "", "(row, column) pairs from 0 to 31"),
        ("ctrl", {"poison_rate": 0.5}, "poison_rate", f"{RATE}10 are of the target class"),
        ("sslbkd", {"poison_rate": 0.5}, "poison_rate", f"{RATE}10 are of the target class"),
        ("badclip", {"poison_rate": 0.5}, "poison_rate", f"{RATE}90 are of the other classes"),
        ("ctrl", {"recipe": {"batch_size": 5000}}, "recipe.batch_size", "more than the 1277"),
        (
            "sslbkd",
            {"recipe": {"batch_size": 5000}},
            "recipe.batch_size",
            "batch_size 5000 is more than the 1277 images of pretraining",
        ),
        (
            "badclip",
            {"recipe": {"epochs": 1, "batch_size": 128, "warmup_steps": 9}},
            "recipe.warmup_steps",
            "a warm-up of 9 steps leaves nothing of the 9 of training",
        ),
        ("ctrl", {"recipe": {"epoch": 1}}, "recipe.epoch", "unknown key; did you mean 'epochs'?"),
        ("sslbkd", {"recipe": {"epoch": 1}}, "recipe.epoch", "did you mean 'epochs'?"),
        ("badclip", {"recipe": {"warmup": 1}}, "recipe.warmup", "did you mean 'warmup_steps'?"),
        ("drupe", {"references": 1}, "references", "should be greater than or equal to 2, got 1"),
        ("sslbkd", {"patch_file": "no.npz"}, "patch_file", "no such file: no.npz"),
        ("badclip", {"patch_file": "no.png"}, "patch_file", "no such file: no.png"),
        ("drupe", {"transport": "jpeg-0"}, "transport", "a quality from 1 to 100, not 'jpeg-0'"),
        ("ctrl", {"transport": "png"}, "transport", "'jpeg-<quality>'"),
        ("ctrl", {"magnitude": 1e300}, "magnitude", "less than or equal to 100000"),
        (
            "ctrl",
            {"recipe": {"epochs": 2, "warmup_epochs": 2}},
            "recipe.warmup_epochs",
            "a warm-up of 2 epochs leaves nothing of the 2 of training",
        ),
        ("drupe", {"references": 500}, "references", "cannot be among splits.references, 60"),
        ("badencoder", {"references": 50}, "references", "among 60, the attack needs 50"),
        ("badclip", {"distance": "cosin"}, "distance", "should be 'euclidean', 'squared' or"),
    ],
)
def test_impossible_attack_is_refused_with_line_and_key(
    tiny, write_config, refused, attack, parameters, key, message
):
    path = write_config(with_attack(tiny, attack, parameters))
    error = refused("run")
    assert f"profiles.tiny.overrides.{attack}{'.' if key else ''}{key}: " in error
    assert message in error
    assert error.count("bench.yaml:") == 1
    place = f"{(key or attack).rpartition('.')[2]}:"
    numbers = [n for n, text in enumerate(path.read_text().splitlines(), 1) if place in text]
    assert any(f"bench.yaml:{number}: " in error for number in numbers), error


def test_parameter_of_the_entry_is_told_there_and_not_at_the_profile(tiny, write_config, refused):
    with_attack(tiny, "ctrl", {})
    tiny["matrix"]["attacks"] = [{"attack": "ctrl", "parameters": {"poison_rate": 0.4}}]
    path = write_config(tiny)
    error = refused("run")
    assert f"bench.yaml:{line_of(path, 'poison_rate: 0.4')}: " in error
    assert "matrix.attacks[0].parameters.poison_rate: poison_rate 0.4 of 1277" in error


@pytest.mark.parametrize("content", [b"no archive", None])
def test_patch_file_that_holds_no_patch_is_refused(tiny, write_config, refused, tmp_path, content):
    if content is None:
        np.savez(tmp_path / "patch.npz", t=np.zeros((32, 32, 3)))
    else:
        (tmp_path / "patch.npz").write_bytes(content)
    write_config(with_attack(tiny, "sslbkd", {"patch_file": "patch.npz"}))
    error = refused("run")
    assert "profiles.tiny.overrides.sslbkd.patch_file: " in error
    assert ("no array 'tm', only t" if content is None else "not an .npz archive") in error


CLIP = (*PROFILE, "clip")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("encoder", "architecture"), "template-clp", "did you mean 'template-clip'?"),
        (("encoder", "settings", "text_width"), 15, "text_width"),
        (("encoder", "settings", "text_with"), 16, "has no setting 'text_with'"),
        (("pretraining", "epoch"), 1, "clip.pretraining.epoch: unknown key; did you mean 'epochs'"),
        (("pretraining", "batch_size"), 5000, "more than the 1277 images of pretraining"),
        (("pretraining", "warmup_epochs"), 1, "a warm-up of "),
        (("dataset",), "digts", "clip.dataset: unknown dataset 'digts'; did you mean 'digits'?"),
        (("dataset",), "unread", "clip.dataset: captions missing: 'unread' has neither captions"),
        (("dataset",), "large", "has images of 32 pixels, the encoder's 'large' of 48"),
        (("out_of_distribution",), "large", "'large' has images of 48 pixels, the encoder's"),
        (("encoder", "architecture"), "clip-rn50", "takes images of 224 pixels only, 'digits'"),
        (("downstreams",), [{"dataset": "digits", "target": 10}], "class 10 does not exist"),
        (("downstream",), [], "unknown key; did you mean 'downstreams'?"),
    ],
)
def test_mistake_about_the_clip_model_is_named_with_line_and_key(
    tiny, write_config, refused, tmp_path, keys, value, message
):
    if value == "unread":
        (tmp_path / "unread").mkdir()
        frame = pd.DataFrame({"image": [{"bytes": png(32, 32), "path": None}] * 520})
        for split in ("train", "test"):
            frame.to_parquet(tmp_path / "unread" / f"{split}.parquet")
    tiny["datasets"]["unread"] = {"source": "parquet", "path": "unread"}
    tiny["datasets"]["large"] = {"source": "digits", "image_size": 48}
    tiny["matrix"]["attacks"] = ["badclip"]
    if value == "clip-rn50":
        tiny["profiles"]["tiny"]["clip"]["encoder"].pop("settings")
    write_config(set_in(tiny, (*CLIP, *keys), value))
    error = refused("run")
    assert message in error
    assert re.search(r"bench\.yaml:[1-9][0-9]+: profiles\.tiny\.clip\.", error)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,text\na.png,a cat\n", "no column 'caption'; the columns are image, text"),
        ("image,caption\na.png,a cat\na.png,\n", "line 3: the caption is empty"),
        ("image,caption\na.png,a cat\nb.png,a dog\n", "line 3: no image file"),
        ("image,caption\na.png,a cat, a dog\n", "line 2: more fields than columns"),
        ("image,caption,label\na.png,a cat,99999999999\n", "a label is 99999999999; labels go"),
        ("image,caption\nwide.png,a cat\n", "is 16x32 pixels, dataset 'pairs' wants 32x32"),
    ],
)
def test_unusable_captions_are_refused_with_the_line_of_the_table(
    tiny, write_config, refused, tmp_path, table, message
):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "train.csv").write_text(table)
    (tmp_path / "pairs" / "a.png").write_bytes(png(32, 32))
    (tmp_path / "pairs" / "wide.png").write_bytes(png(16, 32))
    tiny["datasets"]["pairs"] = {"source": "captions", "path": "pairs"}
    tiny["profiles"]["tiny"]["clip"]["dataset"] = "pairs"
    tiny["matrix"]["attacks"] = ["badclip"]
    path = write_config(tiny)
    error = refused("run")
    assert f"bench.yaml:{line_of(path, '  pairs:')}: datasets.pairs: " in error
    assert "train.csv: " in error
    assert message in error
