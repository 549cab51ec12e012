"""The command from end to end, on an untrained encoder: noise among soft gradients stands out."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import scanned_defenses
import torch
from safetensors.torch import save_file
from scanned_files import noise, read_scores, smooth, write_files

from bench.scan.findings import encoder_sentence
from bench.scan.running import Result

SAMPLE = "mahalanobis,knn-distance"
"""Of which the first sees noise, given an untrained encoder."""


def described(folder):
    return json.loads((folder / "scan.json").read_text())


def test_with_clean_images_the_odd_ones_are_flagged_and_the_files_say_so(
    command, checkpoint, images, clean, tmp_path
):
    result = command(
        checkpoint, "--images", images, "--auxiliary", clean, "--defenses", SAMPLE, "--fpr", "0.1"
    )
    assert result.exit_code == 0, result.output
    folder = tmp_path / "scan-epoch_3"
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html",
        "scan.json",
        "scores.csv",
    ]
    scores = read_scores(folder)
    assert list(scores["file"]) == [f"{number:04d}.png" for number in range(60)]
    assert scores["mahalanobis_flagged"][-6:].all()
    assert scores["mahalanobis_flagged"][:-6].mean() < 0.3
    assert set(np.argsort(scores["mahalanobis"])[-6:]) == set(range(54, 60))
    flags = scores["mahalanobis_flagged"].astype(int) + scores["knn-distance_flagged"]
    assert np.array_equal(scores["flagged_by"], flags)
    said = described(folder)
    assert said["encoder"]["architecture"] == "resnet-narrow"
    assert said["encoder"]["guessed_settings"] == ["stem_stride"]
    assert re.fullmatch("[0-9a-f]{64}", said["encoder"]["sha256"])
    assert (said["auxiliary"]["fitted_on"], said["auxiliary"]["held_out"]) == (180, 20)
    assert [one["status"] for one in said["defenses"]] == ["ok", "ok"]
    assert said["defenses"][0]["flagged"]["observed"] == int(scores["mahalanobis_flagged"].sum())
    assert "no shape tells stem_stride 2" in result.output
    assert "default of resnet-narrow" in result.output


def test_without_clean_images_there_are_ranks_and_no_thresholds(
    command, checkpoint, images, tmp_path
):
    result = command(checkpoint, "--images", images, "--defenses", SAMPLE, "--output", "out")
    assert result.exit_code == 0, result.output
    assert "fitted on the scanned images" in result.output
    assert "flagged" not in (tmp_path / "out" / "scores.csv").read_text()
    said = described(tmp_path / "out")
    assert said["auxiliary"] is None
    assert all(one["fitted_on_scanned_images"] for one in said["defenses"])
    assert "fitted on the scanned images" in (tmp_path / "out" / "report.html").read_text()


def test_scores_depend_on_neither_file_format_nor_listing_nor_a_second_run(
    command, checkpoint, encoder, images, clean, tmp_path
):
    save_file(dict(encoder.network.state_dict()), tmp_path / "x.safetensors")
    encoder.save(tmp_path / "own.safetensors")
    arguments = ("--images", images, "--auxiliary", clean, "--defenses", SAMPLE)
    for path in (checkpoint, tmp_path / "x.safetensors", tmp_path / "own.safetensors"):
        assert command(path, *arguments, "--output", f"out-{path.name}").exit_code == 0
    # Written in another order, a folder lists its files in another one.
    shutil.move(images, tmp_path / "before")
    for path in sorted((tmp_path / "before").iterdir(), reverse=True):
        images.mkdir(exist_ok=True)
        shutil.copy(path, images / path.name)
    assert command(checkpoint, *arguments, "--output", "out-again").exit_code == 0
    assert command(checkpoint, *arguments, "--output", "out-again").exit_code == 0
    written = {path.read_text() for path in tmp_path.glob("out-*/scores.csv")}
    assert len(written) == 1


def test_a_detector_is_shown_no_name_no_label_and_no_order(
    command, plug_in, checkpoint, images, tmp_path
):
    plug_in("defenses", watching="scanned_defenses:Watching")
    write_files(tmp_path / "clean" / "cat", smooth(60, 4))
    write_files(tmp_path / "clean" / "dog", smooth(60, 5))
    arguments = ("--images", images, "--auxiliary", tmp_path / "clean", "--defenses", "watching")
    assert command(checkpoint, *arguments).exit_code == 0
    view = scanned_defenses.seen["view"]
    assert (len(view.auxiliary), view.auxiliary.name) == (108, "auxiliary")
    assert not view.auxiliary.labelled
    assert view.auxiliary.class_names == ()
    assert view.auxiliary.rows.tolist() == list(range(108))
    assert (view.suspicious, view.base, view.trigger_support) == (None, None, None)
    assert str(tmp_path) not in repr(view)
    with pytest.raises(PermissionError):
        view.encoder.forward(torch.zeros(1, 3, 32, 32))
    torch.testing.assert_close(
        view.embed_auxiliary(), view.encoder.embed(view.auxiliary.float()), rtol=1e-4, atol=1e-5
    )
    first = scanned_defenses.seen["batches"][0].mul(255).round().to(torch.uint8)
    in_files = torch.cat([smooth(54, 1), noise(6, 2)])
    assert not torch.equal(first, in_files)
    assert sorted(map(bytes, first.numpy())) == sorted(map(bytes, in_files.numpy()))


def test_pool_base_and_labels_come_to_who_requires_them(
    command, plug_in, checkpoint, images, tmp_path
):
    plug_in("defenses", pool="scanned_defenses:WatchingPool")
    write_files(tmp_path / "clean" / "cat", smooth(60, 4))
    write_files(tmp_path / "clean" / "dog", smooth(60, 5))
    result = command(
        checkpoint, "--images", images, "--auxiliary", tmp_path / "clean", "--defenses", "pool"
    )
    assert result.exit_code == 0, result.output
    view = scanned_defenses.seen["view"]
    assert (len(view.suspicious), view.suspicious.labelled) == (60, False)
    assert view.suspicious.name == "suspicious pool"
    assert (len(view.base), view.base.labels.unique().tolist()) == (108, [0, 1])
    assert view.auxiliary.class_names == ("cat", "dog")
    assert described(tmp_path / "scan-epoch_3")["defenses"][0]["fitted_on_scanned_images"]


def test_what_is_lacking_skips_a_detector_with_its_reason(
    command, plug_in, checkpoint, images, clean, tmp_path
):
    plug_in(
        "defenses",
        text="scanned_defenses:WantsText",
        labels="scanned_defenses:WantsLabels",
        pool="scanned_defenses:WantsPool",
        told="scanned_defenses:WantsTrigger",
        package="scanned_defenses:WantsPackage",
    )
    names = "text,labels,pool,told,package,knn-distance"
    result = command(checkpoint, "--images", images, "--defenses", names)
    assert result.exit_code == 0, result.output
    for sentence in (
        "text: skipped: it requires a text tower, which resnet-narrow has not",
        "labels: skipped: it requires labelled clean images, and no clean images were given",
        "pool: skipped: it requires a clean base set, and no clean images were given",
        "told: skipped: it must be told where the trigger lies",
        "package: skipped: needs no_such_library: pip install no_such_library",
    ):
        assert sentence in result.output
    result = command(
        checkpoint, "--images", images, "--auxiliary", clean, "--defenses", names, "--output", "y"
    )
    statuses = {one["name"]: one["status"] for one in described(tmp_path / "y")["defenses"]}
    assert statuses == {
        "text": "skipped",
        "labels": "skipped",
        "pool": "ok",
        "told": "skipped",
        "package": "skipped",
        "knn-distance": "ok",
    }
    assert "one subfolder per class" in result.output


def test_a_detector_that_raises_is_reported_and_the_others_go_on(
    command, plug_in, checkpoint, images, tmp_path
):
    plug_in(
        "defenses",
        raises="scanned_defenses:RaisesInFit",
        nan="scanned_defenses:ReturnsNan",
        figures="scanned_defenses:BadFigures",
    )
    result = command(
        checkpoint, "--images", images, "--defenses", "raises,nan,figures,knn-distance"
    )
    assert result.exit_code == 1
    assert "raises: failed: ArithmeticError: no luck" in result.output
    assert "nan: failed: ValueError: ReturnsNan.score returned 60 non-finite" in result.output
    scores = read_scores(tmp_path / "scan-epoch_3")
    # Pictures that cannot be drawn do not cost the scores.
    assert set(scores) == {"file", "figures", "knn-distance"}
    statuses = [one["status"] for one in described(tmp_path / "scan-epoch_3")["defenses"]]
    assert statuses == ["failed", "failed", "failed", "ok"]


def test_a_detectors_own_words_come_before_the_verdict():
    result = Result("own", {}, encoder_score=0.3, encoder_threshold=0.1, verdict="backdoored")
    assert encoder_sentence(result) == "encoder score 0.3 (rule: backdoored above 0.1): backdoored"
    result.encoder_in_words = "found a patch of 5 pixels (rule: below 10)"
    assert encoder_sentence(result) == "found a patch of 5 pixels (rule: below 10): backdoored"


@pytest.mark.parametrize(
    ("rule", "verdict"), [("0.5", "backdoored"), ("0.9", "clean"), ("null", "no rule")]
)
def test_the_encoders_verdict_is_said_with_its_rule_and_its_caveat(
    command, plug_in, checkpoint, images, tmp_path, rule, verdict
):
    plug_in("defenses", judge="scanned_defenses:Judge")
    result = command(
        checkpoint, "--images", images, "--defenses", "judge", "--set", f"judge.rule={rule}"
    )
    assert result.exit_code == 0, result.output
    said = described(tmp_path / "scan-epoch_3")["defenses"][0]
    assert (said["encoder_score"], said["encoder_verdict"]) == (0.7, verdict)
    page = (tmp_path / "scan-epoch_3" / "report.html").read_text()
    if verdict == "no rule":
        assert "judge: encoder score 0.7 (no rule)" in result.output
        assert "a score and no rule" in page
    else:
        assert f"(rule: backdoored above {rule}): {verdict}" in result.output
        assert "threshold was set" in page if verdict == "backdoored" else "does not show" in page
    # One picture, although it was asked about several images: it is the same for all.
    assert page.split("inverted trigger", 1)[1].split("<h2>", 1)[0].count("<img") == 1


def test_detectors_draw_from_the_seed_alone(command, plug_in, checkpoint, images, tmp_path):
    plug_in("defenses", random="scanned_defenses:Random")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(name) + seed)
        arguments = ("--defenses", "random", "--seed", seed, "--output", name)
        assert command(checkpoint, "--images", images, *arguments).exit_code == 0
    texts = [(tmp_path / name / "scores.csv").read_text() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]


def test_images_in_both_sets_are_counted(command, checkpoint, images, clean):
    for number in range(3):
        shutil.copy(images / f"{number:04d}.png", clean / f"copy{number}.png")
    result = command(
        checkpoint, "--images", images, "--auxiliary", clean, "--defenses", "knn-distance"
    )
    assert "3 of the 203 clean images have the pixels of a scanned one" in result.output


def test_too_few_clean_images_give_no_threshold_and_say_how_many_would(
    command, checkpoint, images, tmp_path
):
    write_files(tmp_path / "few", smooth(100, 4))
    result = command(
        checkpoint, "--images", images, "--auxiliary", "few", "--defenses", "knn-distance"
    )
    assert result.exit_code == 0, result.output
    assert "10 held-out clean images cannot vouch for 0.05" in result.output
    assert "190 clean images can" in result.output
    assert "knn-distance_flagged" not in read_scores(tmp_path / "scan-epoch_3")


def test_unreadable_files_are_left_out_and_said(command, checkpoint, images, tmp_path):
    (images / "\x1b[31mred.png").write_text("no image")
    result = command(checkpoint, "--images", images, "--defenses", "knn-distance")
    assert result.exit_code == 0, result.output
    assert "1 unreadable and left out" in result.output
    assert "\x1b" not in result.output
    assert len(read_scores(tmp_path / "scan-epoch_3")["file"]) == 60
    assert "not an image" in (tmp_path / "scan-epoch_3" / "report.html").read_text()


def test_bad_input_is_one_line_and_writes_nothing(refusal, checkpoint, images, clean, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for expected, *arguments in (
        ("no such file", tmp_path / "no.pth", "--images", images),
        ("no such file", checkpoint, "--images", tmp_path / "no"),
        ("holds no images", checkpoint, "--images", empty),
        ("holds no images", checkpoint, "--images", images, "--auxiliary", empty),
        ("are the same", checkpoint, "--images", images, "--auxiliary", images / ".." / "images"),
        ("did you mean 'lof'", checkpoint, "--images", images, "--defenses", "lofe"),
        ("names none", checkpoint, "--images", images, "--defenses", ","),
        ("a share between 0 and 1", checkpoint, "--images", images, "--fpr", "1"),
        ("'resnet-narrow'", checkpoint, "--images", images, "--architecture", "resnet-narow"),
        ("instead of", checkpoint, "--images", images, "--architecture", "resnet18-cifar"),
        ("defense.parameter=value", checkpoint, "--images", images, "--set", "k=3"),
        ("not among the defenses", checkpoint, "--images", images, "--set", "dede.width=8"),
        ("did you mean 'k'", checkpoint, "--images", images, "--set", "knn-distance.kk=3"),
        ("knn-distance.k:", checkpoint, "--images", images, "--set", "knn-distance.k=0"),
        ("is a file", checkpoint, "--images", images, "--output", checkpoint),
        ("none of the defenses can run", checkpoint, "--images", images, "--defenses", "dede",
         "--set", "dede.patch_size=5"),
    ):  # fmt: skip
        assert expected in refusal(*arguments), arguments


def test_an_encoder_that_sees_nothing_is_refused_before_anything_is_fitted(
    refusal, encoder, images, tmp_path
):
    state = {name: torch.zeros_like(value) for name, value in encoder.network.state_dict().items()}
    torch.save(state, tmp_path / "zero.pth")
    assert "every image has the same embedding" in refusal(
        tmp_path / "zero.pth", "--images", images
    )
    state = dict(encoder.network.state_dict())
    state["f.1.bias"] = torch.full_like(state["f.1.bias"], float("nan"))
    torch.save(state, tmp_path / "nan.pth")
    assert "60 of 60 embeddings are not finite" in refusal(tmp_path / "nan.pth", "--images", images)


def test_a_scan_overwrites_a_scan_and_nothing_else(command, refusal, checkpoint, images, tmp_path):
    arguments = (checkpoint, "--images", images, "--defenses", "knn-distance", "--output", "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scores.csv").write_text("mine")
    assert "no scan wrote" in refusal(*arguments)
    (tmp_path / "out" / "scores.csv").unlink()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert command(*arguments).exit_code == 0
    assert command(*arguments).exit_code == 0
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_the_default_detectors_run_on_images_alone(command, checkpoint, images, clean, tmp_path):
    from bench.scan.selection import first_aid

    faster = ("--set", "decree.max_epochs=1")
    result = command(checkpoint, "--images", images, "--auxiliary", clean, *faster)
    assert result.exit_code == 0, result.output
    names = [one["name"] for one in described(tmp_path / "scan-epoch_3")["defenses"]]
    assert names == first_aid()
    assert {"decree", "lof", "mahalanobis", "knn-distance", "isolation-forest"} == set(names)
