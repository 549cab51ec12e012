"""A user's mistake: one line with file, line and key, exit status 2, nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from mistakes import PROFILE, line_of, png, set_in

from bench.encoders.architectures import build
from bench.errors import InputError


@pytest.mark.parametrize(
    ("keys", "value", "marked", "message"),
    [
        (("matrix", "attacks", 1), "badencodr", "badencodr", "did you mean 'badencoder'?"),
        (("matrix", "defenses", 3), "mahalanobys", "mahalanobys", "did you mean 'mahalanobis'?"),
        (("default_profile",), "tinny", "tinny", "did you mean 'tiny'?"),
        ((*PROFILE, "dataset"), "digts", "digts", "did you mean 'digits'?"),
        ((*PROFILE, "pretraining_seed"), -1, "pretraining_seed", "a seed for all (0 or more)"),
        ((*PROFILE, "pretraining_seed"), {1: -1}, "pretraining_seed", "{1: 0}; got {1: -1}"),
        (
            (*PROFILE, "overrides", "dede", "mask_ratio"),
            1.5,
            "mask_ratio",
            "profiles.tiny.overrides.dede.mask_ratio: should be less than 1, got 1.5",
        ),
        (
            (*PROFILE, "overrides", "dede", "mask_ration"),
            0.5,
            "mask_ration",
            "unknown key; did you mean 'mask_ratio'?",
        ),
        (
            ("matrix", "defenses", 0, "parameters"),
            {"epochs": 0},
            "epochs: 0",
            "matrix.defenses[0].parameters.epochs: should be greater than or equal to 1, got 0",
        ),
        ((*PROFILE, "overrides", "dedee"), {}, "dedee", "did you mean 'dede'?"),
        ((*PROFILE, "pretraining", "epochs"), -1, "epochs: -1", "profiles.tiny.pretraining.epochs"),
        ((*PROFILE, "encoder", "architecture"), "resnet", "resnet", "did you mean"),
        (("protocol", "poison_rate"), -0.1, "poison_rate", "should be greater than 0, got -0.1"),
        (("matrix", "attacks"), [], "attacks", "must not be empty"),
        (("matrix", "defenses"), [], "defenses", "must not be empty"),
        ((*PROFILE, "seeds"), [], "seeds", "must not be empty"),
        ((*PROFILE, "sedes"), [0], "sedes", "unknown key; did you mean 'seeds'?"),
        (("matrix", "defenses", 1, "label"), "dede-id", "dede-id", "stands twice"),
        ((*PROFILE, "splits", "shadow"), 100000, "", "the splits ask for"),
        ((*PROFILE, "out_of_distribution"), "digits", "", "also the dataset or a downstream set"),
        ((*PROFILE, "downstreams", 0, "target"), 99, "target: 99", "class 99 does not exist"),
        ((*PROFILE, "pretraining", "batch_size"), 5000, "batch_size: 5000", "images of pretrain"),
        ((*PROFILE, "pretraining", "learning_rate"), float("inf"), ".inf", "finite number"),
        ((*PROFILE, "encoder", "settings", "width"), "abc", "settings:", "width should be like"),
        ((*PROFILE, "encoder", "settings", "width"), -1, "settings:", "width must be"),
        ((*PROFILE, "encoder", "std"), [0, 1, 1], "", "should be greater than 0"),
        ((*PROFILE, "threads"), 10**11, "threads", "should be less than or equal to 1024"),
        ((*PROFILE, "resources"), {"fit": {"gpus": 1.5}}, "gpus: 1.5", "a share of one GPU in"),
        ((*PROFILE, "resources"), {"fit": {"gpus": 1e-5}}, "gpus: 1", "a share of one GPU in"),
        ((*PROFILE, "resources"), {"fit": {"cpus": True}}, "cpus: true", "resources.fit.cpus: "),
        ((*PROFILE, "seeds"), [1, 1], "seeds", "stands twice"),
        (
            (*PROFILE, "overrides", "badencoder", "patch_size"),
            40,
            "",
            "a 40-pixel patch at row 21, column 21 does not fit a 32-pixel image",
        ),
        ((*PROFILE, "overrides", "dede", "patch_size"), 5, "", "does not divide the 32-pixel"),
        (
            ("matrix", "defenses", 0, "parameters"),
            {"heads": 5},
            "",
            "matrix.defenses[0].parameters: width 12 is not divisible by heads 5",
        ),
        (("tables",), {"leaderboard": {"columns": ["aurok"]}}, "", "did you mean 'auroc'?"),
        (("tables",), {"t": {"metrics": ["aurok"]}}, "", "tables.t.metrics: unknown metric"),
        (("tables",), {"t": {"metric": "auroc"}}, "", "a table of kind 'pivot' has no 'metric'"),
        (("tables",), {"t": {"colums": "attack"}}, "", "tables.t.colums: unknown key"),
        (("tables",), {"summary": {"metrics": ["auroc"]}}, "", "name of a built-in table"),
        (("tables",), {"cells": {"metrics": ["auroc"]}}, "", "name of a built-in table"),
        (
            ("tables",),
            {"t": {"metrics": ["tpr"], "threshold_fpr": 0.2}},
            "threshold_fpr",
            "no cell stores thresholds at 0.2; there are: 0.01, 0.05",
        ),
        (("tables",), {"../t": {"metrics": ["auroc"]}}, "", "becomes a file name"),
        (
            ("tables",),
            {"t": {"metrics": ["auroc"], "profiles": "tinny"}},
            "tinny",
            "tables.t.profiles[0]: unknown profile 'tinny'; did you mean 'tiny'?",
        ),
        (("profiles", "big"), {"extends": "tinny"}, "", "did you mean 'tiny'?"),
        (("profiles", "big"), {"extends": "big"}, "", "big extends itself: big -> big"),
    ],
)
def test_mistake_in_the_file_is_named_with_line_and_key(
    tiny, write_config, refused, keys, value, marked, message
):
    path = write_config(set_in(tiny, keys, value))
    error = refused("run")
    assert message in error
    if marked:
        numbers = {n for n, text in enumerate(path.read_text().splitlines(), 1) if marked in text}
        assert any(f"bench.yaml:{number}: " in error for number in numbers), error


def test_syntax_error_has_its_line(write_config, refused):
    write_config("default_profile: quick\nmatrix: [a, b\nprofiles: {}\n")
    assert "bench.yaml:3: YAML syntax error" in refused("run")


def test_duplicate_key_is_an_error(write_config, refused):
    write_config("default_profile: quick\nmatrix: {}\ndefault_profile: other\n")
    assert "bench.yaml:3: default_profile: this key stands twice" in refused("run")


def test_nesting_beyond_measure_is_an_error(write_config, refused):
    write_config("[" * 3000)
    assert "bench.yaml:" in refused("run")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "dog"], "the column 'label' holds"),
        ([0.0, 1.0], "the column 'label' holds double, not integers"),
        ([0, -1], "a label of 'train' is -1"),
        (None, "has no labels"),
    ],
)
def test_unusable_labels_are_refused_before_anything_is_written(
    tiny, write_config, refused, tmp_path, labels, message
):
    (tmp_path / "pictures").mkdir()
    images = [{"bytes": png(32, 32), "path": None}] * 300
    frame = pd.DataFrame({"image": images})
    if labels is not None:
        frame["label"] = labels * 150
    for split in ("train", "test"):
        frame.to_parquet(tmp_path / "pictures" / f"{split}.parquet")
    tiny["datasets"]["digits"] = {"source": "parquet", "path": "pictures"}
    counts = dict.fromkeys(tiny["profiles"]["tiny"]["splits"], 20)
    tiny["profiles"]["tiny"]["splits"] = counts
    write_config(tiny)
    assert message in refused("run")


def test_cache_that_is_a_file_is_refused(tiny, write_config, refused, tmp_path):
    (tmp_path / "afile").write_text("")
    write_config(tiny)
    assert "afile is a file" in refused("run", "--cache", "afile")


def test_missing_file_is_named(refused):
    assert "nowhere.yaml: no such file" in refused("run", "--config", "nowhere.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "tinny"), "unknown profile 'tinny'; did you mean 'tiny'?"),
        (("--attacks", "badencodr"), "unknown attack 'badencodr'; did you mean 'badencoder'?"),
        (("--defenses", "dede-idd"), "unknown defense 'dede-idd'; did you mean 'dede-id'?"),
        (("--attacks", ""), "no attack selected"),
        (("--seeds", "one"), "--seeds wants integers"),
        (("--device", "tpu"), "'tpu' is not one of"),
        (("--limit-steps", "0"), "limit-steps"),
        (("--frobnicate",), "No such option"),
    ],
)
def test_mistake_on_the_command_line_is_named(tiny, write_config, refused, arguments, message):
    write_config(tiny)
    assert message in refused("run", *arguments)


def test_missing_data_says_what_fixes_it(tiny, write_config, refused):
    tiny["datasets"]["cifar10"] = {}
    tiny["profiles"]["tiny"]["dataset"] = "cifar10"
    path = write_config(tiny)
    error = refused("run")
    assert f"bench.yaml:{line_of(path, 'dataset: cifar10')}: profiles.tiny.dataset: " in error
    assert "run `bench download cifar10`" in error


def test_missing_data_path_is_named(tiny, write_config, refused):
    tiny["datasets"]["digits"] = {"source": "parquet", "path": "not-there"}
    write_config(tiny)
    assert "datasets.digits: dataset 'digits': no folder not-there" in refused("run")


def write_parquet(folder: Path, image_column: str, images: list[bytes]) -> None:
    folder.mkdir()
    for split in ("train", "test"):
        pd.DataFrame(
            {
                image_column: [{"bytes": data, "path": None} for data in images],
                "label": [0] * len(images),
            }
        ).to_parquet(folder / f"{split}.parquet")


@pytest.mark.parametrize(
    ("column", "image", "message"),
    [
        ("picture", png(32, 32), "no column 'image'; the columns are picture, label"),
        ("image", png(32, 16), "image 1 is 32x16 pixels, dataset 'digits' wants 32x32"),
        ("image", b"no image at all", "image 1 is not an image"),
    ],
)
def test_unusable_parquet_is_refused_before_anything_is_written(
    tiny, write_config, refused, tmp_path, column, image, message
):
    write_parquet(tmp_path / "pictures", column, [png(32, 32), image])
    tiny["datasets"]["digits"] = {"source": "parquet", "path": "pictures"}
    tiny["profiles"]["tiny"]["splits"] |= {"calibration": 20, "validation": 20}
    path = write_config(tiny)
    error = refused("run")
    assert f"bench.yaml:{line_of(path, '  digits:')}: datasets.digits: " in error
    assert message in error


def test_status_and_report_of_a_folder_without_a_run_say_so(tiny, write_config, refused):
    write_config(tiny)
    for command in ("status", "report"):
        assert "manifest.json" in refused(command)


def test_reporting_on_all_profiles_needs_one_that_was_run(tiny, write_config, refused):
    write_config(tiny)
    assert "no profile has stored cells" in refused("report", "--all")
    assert "exclude each other" in refused("report", "--all", "--profile", "tiny")


def test_export_of_an_unknown_table_names_the_nearest(tiny, write_config, refused):
    write_config(tiny)
    assert "leaderboard" in refused("export", "--format", "csv", "--table", "leaderbord")


def test_reporting_commands_import_no_torch():
    code = (
        "import sys, bench, bench.cli, bench.config, bench.cells, bench.report.export\n"
        "assert 'torch' not in sys.modules and 'attacks' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class NotTensors:
    """What a malicious or mistaken pickle may hold."""


def narrow_state() -> dict[str, torch.Tensor]:
    return build("resnet-narrow", width=4, stem_stride=2).state_dict()


def without_a_key() -> object:
    state = narrow_state()
    del state["f.0.weight"]
    return {"state_dict": state}


def with_another_key() -> object:
    return {**narrow_state(), "f.77.weight": torch.zeros(2)}


def with_a_wrong_shape() -> object:
    return {**narrow_state(), "f.0.weight": torch.zeros(4, 3, 5, 5)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without_a_key, "f.0.weight"),
        (with_another_key, "f.77.weight"),
        (with_a_wrong_shape, "f.0.weight"),
        (NotTensors, "damaged, or a pickle of more than tensors, which is never loaded"),
    ],
)
def test_unusable_encoder_checkpoint_is_refused_with_line_and_key(
    tiny, write_config, refused, tmp_path, content, message
):
    torch.save(content(), tmp_path / "encoder.pth")
    tiny["profiles"]["tiny"]["encoder"]["checkpoint"] = "encoder.pth"
    path = write_config(tiny)
    error = refused("run")
    number = line_of(path, "checkpoint: encoder.pth")
    assert f"bench.yaml:{number}: profiles.tiny.encoder.checkpoint: " in error
    assert "encoder.pth" in error
    assert message in error


def test_imported_encoder_takes_the_place_of_pretraining(tiny, session_of, tmp_path):
    torch.save(narrow_state(), tmp_path / "encoder.pth")
    tiny["profiles"]["tiny"]["encoder"]["checkpoint"] = "encoder.pth"
    session = session_of(tiny, attacks=("none",), defenses=("mahalanobis",))
    outcome = session.run()
    assert outcome.failed == {}
    assert "import resnet-narrow" in outcome.computed
    torch.save({k: v + 0.01 for k, v in narrow_state().items()}, tmp_path / "encoder.pth")
    again = session_of(tiny, attacks=("none",), defenses=("mahalanobis",))
    assert again.cells[0].key != session.cells[0].key


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file: decoder.pth"), (NotTensors, "decoder.pth"), (without_a_key, "missing")],
)
def test_unusable_dede_checkpoint_is_refused_with_line_and_key(
    tiny, write_config, refused, tmp_path, content, message
):
    if content is not None:
        torch.save(content(), tmp_path / "decoder.pth")
    tiny["matrix"]["defenses"][0]["parameters"] = {"checkpoint": "decoder.pth"}
    write_config(tiny)
    error = refused("run")
    assert "matrix.defenses[0].parameters.checkpoint: " in error
    assert message in error


def test_a_profile_may_extend_another(tiny, session_of):
    tiny["profiles"]["large"] = {"extends": "tiny", "seeds": [3], "threads": 1}
    tiny["profiles"]["larger"] = {"extends": "large", "pretraining": {"epochs": 2}}
    tiny["default_profile"] = "larger"
    profile = session_of(tiny).profile
    assert (profile.seeds, profile.threads, profile.pretraining) == ((3,), 1, {"epochs": 2})
    assert profile.splits == session_of({**tiny, "default_profile": "tiny"}).profile.splits


def test_overrides_of_an_extended_profile_are_laid_over_component_by_component(tiny, session_of):
    tiny["profiles"]["tiny"]["overrides"] = {"lof": {"neighbours": 5}, "strip": {"overlays": 3}}
    tiny["profiles"]["large"] = {"extends": "tiny", "overrides": {"lof": {"neighbours": 7}}}
    tiny["default_profile"] = "large"
    overrides = session_of(tiny).profile.overrides
    assert overrides == {"lof": {"neighbours": 7}, "strip": {"overlays": 3}}


@pytest.mark.parametrize(
    ("keys", "value", "place"),
    [
        ((*PROFILE, "out_of_distribution"), "again", "profiles.tiny.out_of_distribution"),
        (
            (*PROFILE, "downstreams", 0, "dataset"),
            "again",
            "profiles.tiny.downstreams[0].dataset",
        ),
    ],
)
@pytest.mark.parametrize("named", [{"stored_as": "digits"}, {}, {"max_images": 500}])
def test_the_same_images_under_another_name_have_no_second_role(
    tiny, write_config, refused, keys, value, place, named
):
    tiny["datasets"]["again"] = {"source": "digits", **named}
    write_config(set_in(tiny, keys, value))
    assert f"{place}: 'again' is 'digits' under another name" in refused("run")


def test_a_defense_may_have_another_setting_on_clip_encoders(tiny, write_config, session_of):
    tiny["matrix"] = {"attacks": ["none", "clip-backdoor"], "defenses": ["lof"]}
    tiny["profiles"]["tiny"]["overrides"]["lof"] = {"neighbours": 5}
    tiny["profiles"]["tiny"]["clip"]["overrides"] = {"lof": {"neighbours": 9}}
    cells = session_of(tiny).cells
    fits = {c.identity["attack"]: c.stage.inputs["victim"].inputs["fit"] for c in cells}
    used = {name: fit.spec["component"]["parameters"]["neighbours"] for name, fit in fits.items()}
    assert used == {"none": 5, "clip-backdoor": 9}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"loff": {}}, "clip.overrides.loff: unknown attack or defense 'loff'; did you mean 'lof'"),
        ({"clip-backdoor": {}}, "the attack clip-backdoor is for one family: overrides.clip"),
        ({"lof": {"neighbours": 0}}, "profiles.tiny.clip.overrides.lof.neighbours: should be"),
    ],
)
def test_mistakes_in_the_overrides_of_a_family_are_named(
    tiny, write_config, refused, overrides, message
):
    tiny["profiles"]["tiny"]["clip"]["overrides"] = overrides
    write_config(tiny)
    assert message in refused("run")


def test_a_nul_in_a_path_is_refused(tiny, write_config, refused):
    tiny["datasets"]["mine"] = {"source": "folder", "path": "a\0b"}
    write_config(tiny)
    assert "datasets.mine.path: 'a\\x00b' holds a NUL" in refused("run")


def test_a_profile_cannot_be_called_like_a_smoke_run(tiny, write_config, refused):
    tiny["profiles"]["tiny-smoke"] = {"extends": "tiny"}
    write_config(tiny)
    assert "tiny-smoke: results of smoke runs" in refused("run")


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ({"large": {"extends": ["tiny"]}}, "extends wants the name of a profile, got ['tiny']"),
        ({"large": {"extends": {"a": 1}}}, "extends wants the name of a profile, got {'a': 1}"),
        (
            {"large": {"extends": "zero"}, "zero": 3},
            "large extends zero, which is no profile but 3",
        ),
        ({3: {"extends": "nope"}}, "3 extends an unknown profile 'nope'"),
        (
            {f"p{n}": {"extends": f"p{n + 1}"} for n in range(2000)} | {"p2000": {}},
            "more than 20 profiles extend one another",
        ),
    ],
)
def test_what_a_profile_cannot_extend_is_refused(tiny, write_config, refused, profiles, message):
    tiny["profiles"] |= profiles
    write_config(tiny)
    assert message in refused("run")


def test_a_profile_may_have_a_matrix_of_its_own(tiny, session_of):
    tiny["profiles"]["tiny"]["matrix"] = {"attacks": ["none"], "defenses": ["mahalanobis"]}
    session = session_of(tiny)
    assert [(c.identity["attack"], c.identity["defense"]) for c in session.cells] == [
        ("none", "mahalanobis")
    ]
    tiny["profiles"]["tiny"]["matrix"]["defenses"].append({"defense": "knn", "label": "x"})
    with pytest.raises(InputError, match=r"profiles\.tiny\.matrix\.defenses\[1\]\.defense"):
        session_of(tiny).check()
    tiny["profiles"]["tiny"]["matrix"]["defenses"][1] = "mahalanobis"
    with pytest.raises(InputError, match=r"profiles\.tiny\.matrix\.defenses\[1\]\.label.*twice"):
        session_of(tiny)
