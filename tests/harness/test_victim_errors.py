"""Mistakes about imported victims: one line with file, line and key, nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mistakes import png

from attacks.triggers import PatchTrigger
from bench.encoders.architectures import build
from bench.encoders.encoder import Encoder
from bench.store import seal
from bench.workspace import trigger_record

NARROW = {"width": 4, "stem_stride": 2}
PATCH = {"kind": "patch", "size": 10, "row": 21, "column": 21}
PTH = {"from": "victim.pth", "architecture": "resnet-narrow", "settings": NARROW}
MARKS = {"trigger": PATCH, "target": 0}
HERE = "matrix.attacks[0]"


def encoder(architecture: str = "resnet-narrow", seed: int = 0, **options: Any) -> Encoder:
    settings = options.pop("settings", NARROW if architecture == "resnet-narrow" else {})
    generator = torch.Generator().manual_seed(seed)
    return Encoder.initialise(architecture, settings, generator=generator, **options)


def write_folder(folder: Path, content: Encoder, victim: bool) -> None:
    """A folder as an implant stage (or, for a clean encoder, a pretrain stage) leaves it."""
    folder.mkdir()
    content.save(folder / "encoder.safetensors")
    if victim:
        record = {"trigger": trigger_record(PatchTrigger())}
        (folder / "triggers.json").write_text(json.dumps(record))
        (folder / "victim.json").write_text(json.dumps({"target": 0}))
    seal(folder)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with one of each: what entries of these tests name."""
    write_folder(tmp_path / "victim", encoder(), victim=True)
    write_folder(tmp_path / "twin", encoder(seed=1), victim=False)
    write_folder(tmp_path / "other victim", encoder(seed=2), victim=True)
    (tmp_path / "empty").mkdir()
    state = build("resnet-narrow", **NARROW).state_dict()
    torch.save({"state_dict": state}, tmp_path / "victim.pth")
    return tmp_path


def refusal(write_config, refused, tiny, entry: dict[str, Any]) -> tuple[str, list[str]]:
    """The message about an experiment with that entry alone, and the lines of its file."""
    tiny["matrix"]["attacks"] = [{"label": "theirs", **entry}]
    path = write_config(tiny)
    return refused("run"), path.read_text().splitlines()


@pytest.mark.parametrize(
    ("entry", "key", "message"),
    [
        ({"from": "nowhere"}, "from", "no such file or folder: nowhere"),
        ({"from": "nowhere.pth"}, "from", "no such file or folder: nowhere.pth"),
        ({"from": "empty"}, "from", "empty holds no encoder.safetensors; a victim's folder does"),
        ({"from": "victim.pth"}, "from", "victim.pth does not say its architecture; name it"),
        ({**PTH, "architecture": "resnet-narow"}, "architecture", "mean 'resnet-narrow'?"),
        ({**PTH, "settings": {"widht": 4}}, "settings", "has no setting 'widht'"),
        ({**PTH, **MARKS, "settings": {"width": 8}}, "from", "the keys do not fit the architec"),
        ({**PTH, **MARKS, "std": [0, 1, 1]}, "std[0]", "should be greater than 0, got 0"),
        ({**PTH, **MARKS, "mean": [0, 0]}, "mean", ""),
        ({**PTH, "target": 0}, "", "trigger: this key is required: no file says it"),
        ({**PTH, "trigger": PATCH}, "", "target: this key is required: no file says it"),
        ({"from": "twin", "target": 0}, "", "trigger: this key is required: no file says it"),
        ({"from": "victim", "target": 10}, "target", "class 10 does not exist: 'digits' (train)"),
        ({"from": "victim", "target": -1}, "target", "should be greater than or equal to 0"),
        ({"from": "victim", "downstream": "digts"}, "downstream", "did you mean 'digits'?"),
        ({"from": "victim", "clean_twn": "twin"}, "clean_twn", "did you mean 'clean_twin'?"),
        ({"from": "victim", "parameters": {}}, "parameters", "unknown key"),
        (
            {"from": "victim", "architecture": "resnet18-cifar"},
            "architecture",
            "encoder.safetensors says its own, resnet-narrow; leave it out",
        ),
        ({"from": "victim", "settings": {"width": 8}}, "settings", "says its own, {'stem_stride'"),
        ({"from": "victim", "std": [1, 1, 1]}, "std", "says its own, (0.2023, 0.1994, 0.201)"),
        ({"from": "victim", "clean_twin": "gone"}, "clean_twin", "no such file or folder: gone"),
        ({"from": "victim", "clean_twin": "victim"}, "clean_twin", "victim is a victim itself"),
        (
            {"from": "victim", "clean_twin": "other victim"},
            "clean_twin",
            "other victim is a victim itself: it has a trigger",
        ),
        (
            {"from": "victim", "clean_twin": "victim/encoder.safetensors"},
            "clean_twin",
            "is the victim's own file",
        ),
    ],
)
def test_mistake_about_an_imported_victim_is_named_with_line_and_key(
    tiny, write_config, refused, files, entry, key, message
):
    error, lines = refusal(write_config, refused, tiny, entry)
    place = f"{HERE}{'.' if key else ''}{key}"
    assert place in error
    assert message in error
    assert error.count("bench.yaml:") == 1
    if key:
        name = key.partition("[")[0]
        numbers = [n for n, text in enumerate(lines, 1) if f"{name}:" in text]
        numbers += [number + 1 for number in numbers]  # a list starts on the next line
        assert any(f"bench.yaml:{number}: " in error for number in numbers), error


@pytest.mark.parametrize(
    ("trigger", "message"),
    [
        ({**PATCH, "row": 30}, "a 10-pixel patch at row 30, column 21 does not fit a 32-pixel"),
        ({**PATCH, "size": 33}, "does not fit a 32-pixel image"),
        ({**PATCH, "kind": "pach"}, "unknown kind of trigger 'pach'; did you mean 'patch'?"),
        ({"size": 3}, "unknown kind of trigger None"),
        ({}, "unknown kind of trigger None"),
        ({**PATCH, "colr": [1, 1, 1]}, "unknown key 'colr'; did you mean 'colour'?"),
        ({"kind": "spectral", "window": 20}, "windows of 20 pixels do not tile a 32-pixel image"),
        ({"kind": "blended"}, "blended trigger: name a file or a seed"),
        ({"kind": "image-patch"}, "image-patch trigger: name a file"),
        ({"kind": "blended", "seed": 1, "alpha": 2}, "alpha: "),
        ({"kind": "patch", "file": "gone.npz"}, "gone.npz: no such file"),
        ({"kind": "patch", "file": "text.npz"}, "text.npz: not an .npz archive"),
        ({"kind": "patch", "file": "small.npz"}, "made for images of 16x16 pixels, not 32x32"),
        ({"kind": "image-patch", "file": "large.png"}, "a 40x40 picture does not fit a 32-pixel"),
        ({"kind": "patch", "file": "text.npz", "size": 3}, "'size' comes from the file"),
        ({**PATCH, "transport": "jpeg-0"}, "a quality from 1 to 100, not 'jpeg-0'"),
    ],
)
def test_unusable_trigger_is_told_at_its_key(tiny, write_config, refused, files, trigger, message):
    (files / "text.npz").write_text("no archive")
    mask = np.ones((16, 16, 3))
    mask[:4, :4] = 0
    np.savez(files / "small.npz", tm=mask, t=np.zeros_like(mask))
    (files / "large.png").write_bytes(png(40, 40))
    error, lines = refusal(write_config, refused, tiny, {"from": "victim", "trigger": trigger})
    number = next(n for n, text in enumerate(lines, 1) if "trigger:" in text)
    assert f"bench.yaml:{number}: {HERE}.trigger: " in error
    assert message in error


@pytest.mark.parametrize("name", ["encoder.safetensors", "triggers.json", "manifest.json"])
def test_damaged_folder_is_refused_before_anything_is_read_from_it(
    tiny, write_config, refused, files, name
):
    with (files / "victim" / name).open("ab") as file:
        file.write(b"more")
    error, _ = refusal(write_config, refused, tiny, {"from": "victim"})
    what = "its manifest cannot be read" if name == "manifest.json" else f"{name} does not match"
    assert f"{HERE}.from: victim is damaged: {what}" in error


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_file_that_holds_no_encoder_is_refused(tiny, write_config, refused, files, suffix):
    (files / f"theirs.{suffix}").write_bytes(b"no tensors")
    entry = {**PTH, **MARKS, "from": f"theirs.{suffix}"}
    error, _ = refusal(write_config, refused, tiny, entry)
    assert f"{HERE}.from: " in error
    assert f"theirs.{suffix}: " in error


@pytest.mark.parametrize(
    ("twin", "message"),
    [
        (
            encoder(settings={"width": 2}),
            "the victim a resnet-narrow (width 4, stem_stride 2): a clean twin has the same",
        ),
        (encoder("template-clip"), "twin.safetensors is a template-clip (width 32, "),
        (encoder(image_size=48), "is an encoder of 48-pixel images; the data set's have 32"),
    ],
    ids=["width", "architecture", "image size"],
)
def test_clean_twin_of_another_network_is_refused(
    tiny, write_config, refused, files, twin, message
):
    twin.save(files / "twin.safetensors")
    entry = {"from": "victim", "clean_twin": "twin.safetensors"}
    error, _ = refusal(write_config, refused, tiny, entry)
    assert f"{HERE}.clean_twin: twin.safetensors is " in error
    assert message in error


def test_published_twin_must_fit_the_network_of_the_victim(tiny, write_config, refused, files):
    torch.save(build("resnet-narrow", width=8).state_dict(), files / "twin.pth")
    error, _ = refusal(write_config, refused, tiny, {"from": "victim", "clean_twin": "twin.pth"})
    assert f"{HERE}.clean_twin: " in error
    assert "the keys do not fit the architecture" in error


def test_encoder_and_trigger_of_another_image_size_are_refused(tiny, write_config, refused, files):
    encoder(image_size=48).save(files / "large.safetensors")
    error, _ = refusal(write_config, refused, tiny, {"from": "large.safetensors", **MARKS})
    assert f"{HERE}.from: large.safetensors is an encoder of 48-pixel images; the data set" in error


def test_downstream_set_of_another_image_size_is_refused(tiny, write_config, refused, files):
    tiny["datasets"]["large"] = {"source": "digits", "image_size": 48}
    error, _ = refusal(write_config, refused, tiny, {**PTH, **MARKS, "downstream": "large"})
    assert f"{HERE}.downstream: 'large' has images of 48 pixels, the profile's defenders" in error
    assert "own images of 32" in error


def test_two_victims_under_one_label_are_refused(tiny, write_config, refused, files):
    tiny["matrix"]["attacks"] = [{"from": "victim"}, {"from": "twin/../victim"}]
    write_config(tiny)
    assert "matrix.attacks[1].label: the label 'victim' stands twice" in refused("run")


def test_checkpoint_of_more_than_tensors_is_never_loaded(tiny, write_config, refused, files):
    torch.save({"state_dict": {"f.0.weight": torch.zeros(1)}, "who": Path}, files / "theirs.pth")
    error, _ = refusal(write_config, refused, tiny, {**PTH, **MARKS, "from": "theirs.pth"})
    assert "damaged, or a pickle of more than tensors, which is never loaded" in error


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("victim.json", "[1]", "victim.json: input should be an object"),
        ("victim.json", '{"target": "abc"}', "victim.json, target: input should be a valid int"),
        ("victim.json", '{"target": -3}', "victim.json, target: input should be greater"),
        ("victim.json", "{", "victim.json: invalid JSON"),
        ("triggers.json", '{"trigger": {"kind": "patch"}}', "triggers.json, trigger.parameters: f"),
        ("triggers.json", '{"trigger": "abc"}', "triggers.json, trigger: input should be"),
    ],
)
def test_victim_whose_files_say_something_else_is_refused(
    tiny, write_config, refused, files, name, content, message
):
    (files / "victim" / name).write_text(content)
    seal(files / "victim")
    error, _ = refusal(write_config, refused, tiny, {"from": "victim"})
    assert f"{HERE}.from: {message}" in error


def test_downstream_that_is_the_pretraining_set_under_another_name_is_refused(
    tiny, write_config, refused, files
):
    tiny["datasets"]["few"] = {"source": "digits", "max_images": 900}
    error, _ = refusal(write_config, refused, tiny, {"from": "victim", "downstream": "few"})
    assert f"{HERE}.downstream: 'few' is 'digits' under another name" in error


def test_downstream_that_is_the_out_of_distribution_set_is_refused(
    tiny, write_config, refused, files
):
    entry = {"from": "victim", "downstream": "photographs"}
    error, _ = refusal(write_config, refused, tiny, entry)
    assert f"{HERE}.downstream: 'photographs' is the out-of-distribution set" in error
