from __future__ import annotations

import hashlib
import shutil

import pytest
import torch
from safetensors.torch import save_file
from scanned_files import ctrl_keys

from bench.encoders.encoder import Encoder
from bench.encoders.weights import write_safetensors
from bench.errors import InputError
from bench.scan.opening import Wishes, open_encoder, parse_colour, parse_settings
from bench.store import seal


def test_a_file_of_ours_describes_itself(encoder, tmp_path):
    own = Encoder(encoder.network, "resnet-narrow", {"width": 8}, mean=(0, 0, 0), image_size=24)
    own.save(tmp_path / "x.safetensors")
    opened = open_encoder(tmp_path / "x.safetensors", Wishes())
    assert opened.encoder.state_hash() == encoder.state_hash()
    assert opened.encoder.mean == (0, 0, 0)
    assert opened.encoder.image_size == 24
    assert opened.network == opened.normalisation == "the file says so"
    assert opened.guessed == ()
    content = (tmp_path / "x.safetensors").read_bytes()
    assert opened.digest == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "wishes",
    [
        Wishes(architecture="resnet18-cifar"),
        Wishes(settings={"width": 4}),
        Wishes(mean=(0.0, 0.0, 0.0)),
        Wishes(image_size=64),
    ],
)
def test_what_a_file_of_ours_says_cannot_be_contradicted(encoder, tmp_path, wishes):
    encoder.save(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="says its own"):
        open_encoder(tmp_path / "x.safetensors", wishes)
    agreeing = Wishes("resnet-narrow", {"width": 8}, encoder.mean, encoder.std, 32)
    open_encoder(tmp_path / "x.safetensors", agreeing)


def test_a_victims_folder_opens_while_it_is_whole(encoder, tmp_path):
    folder = tmp_path / "victim"
    folder.mkdir()
    encoder.save(folder / "encoder.safetensors")
    (folder / "victim.json").write_text("{}")
    seal(folder)
    assert open_encoder(folder, Wishes()).encoder.state_hash() == encoder.state_hash()
    (folder / "victim.json").write_text("{ }")
    with pytest.raises(InputError, match="damaged"):
        open_encoder(folder, Wishes())
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(InputError, match=r"holds no encoder\.safetensors"):
        open_encoder(folder, Wishes())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_foreign_file_is_recognised_and_its_guesses_are_said(encoder, tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    state = dict(encoder.network.state_dict())
    if suffix == ".pth":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        save_file(state, path)
    opened = open_encoder(path, Wishes())
    assert opened.encoder.state_hash() == encoder.state_hash()
    assert opened.encoder.settings == {"width": 8, "stem_stride": 2}
    assert opened.guessed == ("stem_stride",)
    assert "default of resnet-narrow" in opened.normalisation
    told = open_encoder(path, Wishes(settings={"stem_stride": 1}, mean=(0.5, 0.5, 0.5)))
    assert told.guessed == ()
    assert told.encoder.settings["stem_stride"] == 1
    assert told.normalisation.startswith("mean: --mean; std: the default")


def test_shapes_win_over_what_the_user_says(checkpoint):
    with pytest.raises(InputError, match=r"width is 8 by its shapes, not 4"):
        open_encoder(checkpoint, Wishes(settings={"width": 4}))


def test_an_architecture_that_does_not_fit_is_refused_with_keys_and_a_hint(checkpoint):
    with pytest.raises(InputError, match=r"misshapen; they look like resnet-narrow \(width 8\)"):
        open_encoder(checkpoint, Wishes(architecture="resnet18-cifar"))


def test_unknown_keys_are_refused_with_and_without_a_named_architecture(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"x\.pth: the keys \(a\) are those of no known"):
        open_encoder(tmp_path / "x.pth", Wishes())
    with pytest.raises(InputError, match="a unexpected"):
        open_encoder(tmp_path / "x.pth", Wishes(architecture="resnet-narrow"))


def test_ctrls_layout_is_not_normalised(encoder, tmp_path):
    torch.save(ctrl_keys(encoder.network.state_dict()), tmp_path / "x.pth")
    opened = open_encoder(tmp_path / "x.pth", Wishes())
    assert (opened.encoder.mean, opened.encoder.std) == ((0, 0, 0), (1, 1, 1))
    assert "does not normalise" in opened.normalisation


class Stranger:
    """Stands for code that unpickling would run."""


def test_a_pickle_of_more_than_tensors_is_refused(tmp_path):
    torch.save({"state_dict": {"f.0.weight": Stranger()}}, tmp_path / "x.pth")
    for wishes in (Wishes(), Wishes(architecture="resnet-narrow")):
        with pytest.raises(InputError, match="never loaded"):
            open_encoder(tmp_path / "x.pth", wishes)


def test_missing_and_strange_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        open_encoder(tmp_path / "x.pth", Wishes())
    (tmp_path / "x.bin").write_bytes(b"1")
    with pytest.raises(InputError, match=r"not a \.safetensors or \.pth file"):
        open_encoder(tmp_path / "x.bin", Wishes())


@pytest.mark.parametrize(
    "lie",
    [
        {"settings": [1]},
        {"settings": {"width": "wide"}},
        {"settings": {"width": -1}},
        {"mean": "red"},
        {"mean": None},
        {"image_size": "large"},
        {"architecture": ["x"]},
        {"architecture": "resnet99"},
    ],
)
def test_metadata_that_lies_is_one_line(encoder, tmp_path, lie):
    said = {
        "architecture": "resnet-narrow",
        "settings": {"width": 8, "stem_stride": 2},
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "image_size": 32,
    }
    write_safetensors(tmp_path / "x.safetensors", encoder.network.state_dict(), said | lie)
    if lie == {"mean": None}:
        open_encoder(tmp_path / "x.safetensors", Wishes())  # the default, as Encoder reads it
        return
    with pytest.raises(InputError) as caught:
        open_encoder(tmp_path / "x.safetensors", Wishes())
    assert "\n" not in str(caught.value)
    assert "x.safetensors" in str(caught.value)


def test_settings_and_colours_are_parsed_strictly():
    assert parse_settings("width=8, stem_stride=1", None) == {"width": 8, "stem_stride": 1}
    assert parse_settings(None, None) == {}
    assert parse_colour("0,0.5,1", "--mean") == (0, 0.5, 1)
    for text in ("width", "width=", "width=8.5", "=8"):
        with pytest.raises(InputError, match="name=integer"):
            parse_settings(text, None)
    with pytest.raises(InputError, match="did you mean 'width'"):
        parse_settings("widht=8", "resnet-narrow")
    for text in ("1,2", "a,b,c", "nan,0,0", "0,0,255", ""):
        with pytest.raises(InputError, match="three numbers"):
            parse_colour(text, "--std")
