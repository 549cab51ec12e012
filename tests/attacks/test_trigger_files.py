"""Triggers from files and from configuration; attacks that carry a patch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trigger_kinds import random_images, random_levels

from attacks import _trigger_files
from attacks.none import NoAttack
from attacks.triggers import (
    BlendedTrigger,
    ImagePatch,
    PatchTrigger,
    SinusoidalTrigger,
    SpectralTrigger,
    encode_png,
    parse_trigger,
    read_patch,
)


def arrays(side: int = 32, dtype: type = np.float64) -> dict[str, np.ndarray]:
    """A 4-pixel white square at row 5, column 7, as published files have it."""
    mask, patch = np.ones((side, side, 3), dtype), np.zeros((side, side, 3), dtype)
    mask[5:9, 7:11], patch[5:9, 7:11] = 0, 255
    return {"t": patch, "tm": mask}


@pytest.fixture
def saved(tmp_path):
    def save(name: str = "trigger.npz", **content: np.ndarray) -> Path:
        np.savez(tmp_path / name, **content)
        return tmp_path / name

    return save


@pytest.fixture
def picture(tmp_path) -> Path:
    levels = random_levels(3, 6, 4).permute(1, 2, 0).numpy()
    Image.fromarray(levels).save(tmp_path / "patch.png")
    return tmp_path / "patch.png"


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint8])
@pytest.mark.parametrize("leading", [False, True])
def test_published_square_is_read_with_and_without_a_leading_axis(saved, leading, dtype):
    content = arrays(dtype=dtype)
    if leading:
        content = {key: array[None] for key, array in content.items()}
    trigger = read_patch(saved(info=np.array(["white", "replace"]), **content), 32)
    assert trigger == PatchTrigger(size=4, row=5, column=7)


def test_published_stamp_of_any_shape_is_x_times_tm_plus_t(saved):
    content = arrays()
    content["tm"][20, 3] = 0
    content["t"][20, 3] = (0, 17, 200)
    trigger = read_patch(saved(**content), 32)
    assert type(trigger) is ImagePatch
    assert int(trigger.support(32).sum()) == 17
    images = random_images(3, 32)
    levels = (images * 255).round().permute(0, 2, 3, 1).numpy()
    published = levels * content["tm"] + content["t"]
    stamped = (trigger(images) * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(stamped, published)


def test_stamp_that_does_not_change_exactly_the_mask_is_caught(saved, monkeypatch):
    """A mutation: the trigger made of the file lies one pixel lower."""
    make = _trigger_files._patch_of
    monkeypatch.setattr(
        _trigger_files, "_patch_of", lambda p, m, row, *rest: make(p, m, row + 1, *rest)
    )
    with pytest.raises(ValueError, match="does not change exactly the pixels of its mask"):
        read_patch(saved(**arrays()), 32)


def altered(key: str, place: tuple, value: float) -> dict[str, np.ndarray]:
    content = arrays()
    content[key][place] = value
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (arrays(64), "made for images of 64x64 pixels, not 32x32"),
        (altered("tm", (0, 0), 0.5), "tm should hold 0 .* and 1"),
        (altered("tm", (0, 0, 1), 0), "same in all three channels"),
        (altered("t", (0, 0), 3), "t should be 0 where tm is 1"),
        (altered("t", (6, 8), 300), "whole numbers from 0 to 255"),
        (altered("t", (6, 8), 0.5), "whole numbers from 0 to 255"),
        (altered("t", (6, 8), np.nan), "whole numbers from 0 to 255"),
        ({"t": np.zeros((32, 32, 3)), "tm": np.ones((32, 32, 3))}, "changes no pixel"),
        ({"x": np.zeros(3)}, "no array 'tm', only x"),
        ({**arrays(), "t": np.zeros((32, 32))}, r"\(H, W, 3\) or \(1, H, W, 3\)"),
        ({k: np.stack([a, a]) for k, a in arrays().items()}, r"got \(2, 32, 32, 3\)"),
        ({**arrays(), "t": np.array(["a"])}, "t should hold numbers"),
        ({**arrays(), "tm": np.array([{}, []], dtype=object)}, "it would need pickle"),
    ],
)
def test_damaged_npz_is_refused_in_one_line_that_names_it(saved, content, message):
    path = saved("broken.npz", **content)
    with pytest.raises(ValueError, match=message) as raised:
        read_patch(path, 32)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["patch.npz", "patch.png", "patch.JPG"])
@pytest.mark.parametrize(
    "content", [None, b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04"]
)
def test_file_that_is_missing_or_none_is_refused_in_one_line_that_names_it(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="no such file" if content is None else "not a") as raised:
        read_patch(path, 32)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_single_array_and_truncated_archive_are_refused(tmp_path, saved):
    with (tmp_path / "single.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    whole = saved(**arrays()).read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("single.npz", "half.npz"):
        with pytest.raises(ValueError, match="npz archive"):
            read_patch(tmp_path / name, 32)


def test_picture_goes_in_the_middle_or_where_it_is_told(picture):
    levels = random_levels(3, 6, 4)
    images = random_images(1, 32)
    for place, (row, column) in (({}, (13, 14)), ({"row": 1, "column": 28}, (1, 28))):
        trigger = read_patch(picture, 32, **place)
        stamped = (trigger(images)[0] * 255).round().byte()
        assert torch.equal(stamped[:, row : row + 6, column : column + 4], levels)
        assert int(trigger.support(32).sum()) == 24


def test_picture_of_one_colour_is_a_patch_and_alpha_is_a_mask(tmp_path):
    Image.new("RGB", (5, 5), (255, 255, 0)).save(tmp_path / "yellow.png")
    trigger = read_patch(tmp_path / "yellow.png", 32, 0, 0)
    assert trigger == PatchTrigger(size=5, row=0, column=0, colour=(1, 1, 0))
    levels = random_levels(4, 5, 5)
    Image.fromarray(levels.permute(1, 2, 0).numpy()).save(tmp_path / "holes.png")
    assert int(read_patch(tmp_path / "holes.png", 32).support(32).sum()) == int(
        (levels[3] == 255).sum()
    )


def test_patch_larger_than_the_image_is_refused(picture, saved):
    with pytest.raises(ValueError, match=r"patch\.png: a 6x4 picture does not fit a 5-pixel image"):
        read_patch(picture, 5)
    with pytest.raises(ValueError, match="does not fit a 32-pixel image"):
        read_patch(picture, 32, row=30, column=0)
    with pytest.raises(ValueError, match="says its own place"):
        read_patch(saved(**arrays()), 32, row=3)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"kind": "patch", "size": 4, "row": 2}, PatchTrigger(size=4, row=2, image_size=64)),
        ({"kind": "spectral", "magnitude": 50}, SpectralTrigger(magnitude=50, image_size=64)),
        (
            {"kind": "sinusoidal", "transport": "float"},
            SinusoidalTrigger(image_size=64, transport="float"),
        ),
        ({"kind": "blended", "seed": 3}, BlendedTrigger(seed=3, image_size=64)),
    ],
)
def test_trigger_of_a_configuration_file_has_its_fields(value, expected):
    assert parse_trigger(value, 64, Path()) == expected


def test_trigger_of_a_configuration_file_reads_pixels_relative_to_it(picture):
    root = picture.parent
    value = {"kind": "image-patch", "file": "patch.png", "row": 3, "transport": "jpeg-90"}
    trigger = parse_trigger(value, 32, root)
    assert (trigger.row, trigger.column, trigger.transport) == (3, 14, "jpeg-90")
    assert "file" in value, "the configuration is left as it was"
    blended = parse_trigger({"kind": "blended", "file": "patch.png", "alpha": 0.1}, 32, root)
    expected = Image.open(picture).resize((32, 32), Image.Resampling.BICUBIC)
    levels = torch.from_numpy(np.array(expected)).permute(2, 0, 1)
    assert blended == BlendedTrigger(alpha=0.1, png=encode_png(levels))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kind": "pach"}, "unknown kind of trigger 'pach'; did you mean 'patch'"),
        ({"size": 3}, "unknown kind of trigger None; valid: blended, image-patch"),
        ({"kind": ["patch"]}, "unknown kind"),
        ("patch", "mapping with a kind"),
        ({"kind": "patch", "sise": 3}, "patch trigger: unknown key 'sise'; did you mean 'size'"),
        ({"kind": "patch", "image_size": 3}, "unknown key 'image_size'"),
        ({"kind": "spectral", "file": "x.png"}, "spectral trigger: unknown key 'file'"),
        ({"kind": "patch", "file": "patch.png", "size": 3}, "'size' comes from the file"),
        ({"kind": "patch", "file": "gone.png"}, r"gone\.png: no such file"),
        ({"kind": "blended", "file": "gone.png"}, r"gone\.png: no such file"),
        ({"kind": "blended", "file": "patch.png", "alpha": 2}, "blended trigger: alpha: "),
        ({"kind": "image-patch", "file": "patch.png", "row": -1}, "row: should be a whole number"),
        ({"kind": "image-patch", "file": "patch.png", "row": 29}, "does not fit a 32-pixel"),
        ({"kind": "image-patch", "row": 2, "column": 2}, "image-patch trigger: name a file"),
        ({"kind": "patch", "size": 40}, "patch trigger: a 40-pixel patch"),
        ({"kind": "spectral", "window": 24}, "do not tile a 32-pixel image"),
    ],
)
def test_mistake_in_a_configuration_file_is_told_in_one_line(picture, value, message):
    with pytest.raises(ValueError, match=message) as raised:
        parse_trigger(value, 32, picture.parent)
    assert "\n" not in str(raised.value)


def test_attack_carries_the_patch_of_a_file_with_its_transport(saved, picture):
    attack = NoAttack(patch_file=saved(**arrays()), transport="float")
    attack.check(32)
    assert attack.trigger(32) == PatchTrigger(size=4, row=5, column=7, transport="float")
    middle = NoAttack(patch_file=picture).trigger(64)
    assert (middle.row, middle.column) == (29, 30)
    assert NoAttack().trigger(32) == PatchTrigger()


def test_attack_refuses_what_cannot_fit_before_anything_runs(saved, picture):
    with pytest.raises(ValueError, match="a 10-pixel patch at row 21, column 21 does not fit"):
        NoAttack().check(28)
    with pytest.raises(ValueError, match="made for images of 32x32 pixels, not 64x64"):
        NoAttack(patch_file=saved(**arrays())).check(64)
    with pytest.raises(ValueError, match="picture does not fit a 4-pixel image"):
        NoAttack(patch_file=picture).check(4)
    with pytest.raises(ValueError, match="no such file"):
        NoAttack(patch_file=picture.with_name("gone.npz")).check(32)
    with pytest.raises(ValueError, match="patch_row comes from patch_file"):
        NoAttack(patch_file=picture, patch_row=3)
    with pytest.raises(ValueError, match="jpeg-<quality>"):
        NoAttack(transport="jpg")
