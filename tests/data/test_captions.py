"""Captions: drawn from templates, read from files, carried by image sets."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from bench.config import DatasetConfig
from bench.data.captioned import Captions
from bench.data.captions import prompt_templates, template_captions
from bench.data.imageset import ImageSet
from bench.data.parquet import Parquet
from bench.data.sources import open_source
from bench.errors import InputError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "clip.json").read_text())
NAMES = ("cat", "dog", "frog")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def picture(value: int, size: int = 32) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def opened(path: Path, **options):
    config = DatasetConfig(source="captions", path=path.name, **options)
    return open_source("pairs", config, [], path.parent)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five pictures of grey levels 10, 20, ... and a CSV for each split."""
    root = tmp_path / "pairs"
    (root / "pictures").mkdir(parents=True)
    for number in range(1, 6):
        (root / "pictures" / f"{number}.png").write_bytes(picture(10 * number))
    (root / "train.csv").write_text(
        ",image,caption,label\n"
        "0,pictures/1.png,a cat,cat\n"
        '1,pictures/2.png,"a dog, asleep",dog\n'
        "2,pictures/3.png,a frog,frog\n"
    )
    (root / "test.csv").write_text(
        "image,caption,label\npictures/4.png,one dog,dog\npictures/5.png,one frog,frog\n"
    )
    return root


def test_templates_are_those_that_stored_results_were_made_with():
    """They come with open_clip and decide captions: another wording asks for new stage versions
    (poison, pretrain, probe)."""
    text = "\n".join(template("x") for template in prompt_templates())
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert digest == GOLDEN["templates"]["sha256_about_x"]


def test_templates_are_the_published_ones():
    templates = prompt_templates()
    assert len(templates) == GOLDEN["templates"]["count"]
    captions = [template("banana") for template in templates]
    assert "a photo of a banana." in captions
    assert len(set(captions)) == len(captions)
    assert all("banana" in caption for caption in captions)


def test_captions_name_the_class_and_vary():
    labels = torch.arange(300) % 3
    captions = template_captions(labels, NAMES, generator())
    assert all(NAMES[label] in caption for label, caption in zip(labels, captions, strict=True))
    assert len(set(captions)) > 100
    assert captions == template_captions(labels, NAMES, generator())
    other = torch.Generator().manual_seed(1)
    assert captions != template_captions(labels, NAMES, other)


def test_another_class_of_one_image_shifts_no_other_caption():
    labels = torch.arange(50) % 3
    captions = template_captions(labels, NAMES, generator())
    labels[7] = (labels[7] + 1) % 3
    changed = template_captions(labels, NAMES, generator())
    assert [row for row in range(50) if captions[row] != changed[row]] == [7]
    assert captions[7].replace("dog", "frog") == changed[7]


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_without_class_name_is_refused(label):
    with pytest.raises(ValueError, match="do not fit 3 class names"):
        template_captions(torch.tensor([0, label]), NAMES, generator())


def test_image_sets_carry_captions_through_views():
    storage = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images = ImageSet(storage, labels=torch.arange(4), captions=["a", "b", "c", "d"])
    view = images.select(torch.tensor([3, 1])).without_labels().to("cpu")
    assert view.captions == ["d", "b"]
    assert view.captioned
    assert view._captions is images._captions, "views share the captions"
    assert "captioned" in repr(view)


def test_asking_a_set_without_captions_is_an_error():
    images = ImageSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), name="some")
    assert not images.captioned
    with pytest.raises(ValueError, match="some has no captions"):
        images.captions  # noqa: B018
    with pytest.raises(ValueError, match="some: 1 captions for 2 images"):
        ImageSet(images.uint8(), captions=["a"], name="some")


def test_a_folder_of_csv_files_gives_images_captions_and_labels(folder):
    source = opened(folder)
    assert isinstance(source, Captions)
    for split in ("train", "test"):
        source.check(split)
    train, test = source.load("train"), source.load("test")
    assert train.uint8()[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert train.captions == ["a cat", "a dog, asleep", "a frog"]
    assert train.class_names == test.class_names == NAMES
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 2], [1, 2])
    assert (source.count("train"), source.classes("test")) == (3, 3)


def test_a_single_csv_is_the_training_split(folder):
    source = opened(folder / "train.csv")
    assert source.load("train").captions[0] == "a cat"
    with pytest.raises(InputError, match="dataset 'pairs' has no 'test' split"):
        source.check("test")


def test_labels_may_be_numbers_or_be_missing(folder):
    (folder / "train.csv").write_text("image,caption,label\npictures/1.png,a cat,2\n")
    (folder / "test.csv").write_text("image,caption,label\npictures/1.png,a cat,03\n")
    source = opened(folder)
    assert source.load("train").labels.tolist() == [2]
    assert source.load("test").labels.tolist() == [3]
    assert source.load("train").class_names == ("0", "1", "2", "3")
    (folder / "train.csv").write_text("image,caption\npictures/1.png,a cat\n")
    images = source.load("train")
    assert (images.labelled, images.captions) == (False, ["a cat"])


def test_a_byte_order_mark_and_a_caption_of_two_lines_are_read(folder):
    text = '\ufeffimage,caption\npictures/1.png,"a cat\nand a dog"\npictures/2.png,\n'
    (folder / "train.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"train\.csv: line 4: the caption is empty"):
        opened(folder).check("train")
    (folder / "train.csv").write_text(text.replace("2.png,", "2.png,x"), encoding="utf-8")
    assert opened(folder).load("train").captions == ["a cat\nand a dog", "x"]


def test_max_images_keeps_captions_and_images_together(folder):
    images = opened(folder, max_images=2).load("train")
    levels = {10: "a cat", 20: "a dog, asleep", 30: "a frog"}
    assert len(images) == 2
    assert images.captions == [levels[int(value)] for value in images.uint8()[:, 0, 0, 0]]


def test_fingerprint_follows_captions_and_pixels_and_not_the_place(folder, tmp_path):
    first = opened(folder).fingerprint("train")
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    assert opened(moved).fingerprint("train") == first
    (moved / "pictures" / "1.png").write_bytes(picture(99))
    second = opened(moved).fingerprint("train")
    text = (moved / "train.csv").read_text()
    (moved / "train.csv").write_text(text.replace("a cat", "a lion"))
    third = opened(moved).fingerprint("train")
    # A further class in another split renumbers those of this one.
    with (moved / "test.csv").open("a") as lines:
        lines.write("pictures/5.png,an ape,ape\n")
    assert len({first, second, third, opened(moved).fingerprint("train")}) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,label\npictures/1.png,cat\n", "no column 'caption'; the columns are image, label"),
        ("file,caption\npictures/1.png,cat\n", "no column 'image'; the columns are file, caption"),
        ("", "no column 'image'; the columns are none"),
        ("image,caption\n", "no rows"),
        ("image,caption\npictures/1.png,a\npictures/2.png, \n", "line 3: the caption is empty"),
        ("image,caption\npictures/1.png\n", "line 2: the caption is empty"),
        ("image,caption\n,a cat\n", "line 2: the image is empty"),
        ("image,caption\npictures/9.png,a cat\n", "line 2: no image file"),
        ("image,caption\npictures/1.png,a cat, asleep\n", "line 2: more fields than columns"),
        ("image,caption,label\npictures/1.png,a cat,\n", "line 2: the label is empty"),
        ("image,caption,label\npictures/1.png,a cat,-1\n", "a label is -1"),
        ('image,caption\npictures/1.png,"a cat\n', "not a readable CSV file"),
        ("image,caption\ntrain.csv,a cat\n", "line 2 is not an image"),
    ],
)
def test_mistakes_in_a_csv_are_found_before_a_run_in_one_line(folder, content, message):
    (folder / "train.csv").write_text(content)
    (folder / "test.csv").unlink()
    with pytest.raises(InputError) as caught:
        opened(folder).check("train")
    assert message in str(caught.value)
    assert "train.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(folder):
    (folder / "train.csv").write_bytes(b"image,caption\n\xff\xfe\x00,x\n")
    with pytest.raises(InputError, match="not a readable CSV file"):
        opened(folder).check("train")


def test_pictures_of_the_wrong_size_are_named_by_line(folder):
    (folder / "pictures" / "2.png").write_bytes(picture(1, size=48))
    with pytest.raises(InputError, match=r"train\.csv: line 3 is 48x48 pixels, .* wants 32x32"):
        opened(folder).check("train")
    assert len(opened(folder, resize=True).load("train")) == 3


def write_parquet(path: Path, captions, *, kind=None, **columns) -> None:
    images = [{"bytes": picture(10 * row), "path": None} for row in range(len(captions or [1]))]
    table = {"image": images, **columns}
    if captions is not None:
        table["caption"] = pa.array(captions, kind)
    pq.write_table(pa.table(table), path)


def test_parquet_files_and_folders_give_captions(tmp_path):
    write_parquet(tmp_path / "train.parquet", ["a", "b", "c"], label=[0, 1, 1])
    for path in (tmp_path, tmp_path / "train.parquet"):
        source = opened(path)
        source.check("train")
        images = source.load("train")
        assert images.captions == ["a", "b", "c"]
        assert images.labels.tolist() == [0, 1, 1]
        with pytest.raises(InputError, match="has no 'test' split"):
            source.check("test")
    one = opened(tmp_path / "train.parquet").fingerprint("train")
    assert one == opened(tmp_path).fingerprint("train")


def test_the_plain_parquet_source_reads_captions_where_there_are_some(tmp_path):
    write_parquet(tmp_path / "train.parquet", ["a", "b"])
    write_parquet(tmp_path / "test.parquet", None)
    source = Parquet("pairs", DatasetConfig(), tmp_path)
    assert source.load("train").captions == ["a", "b"]
    assert not source.load("test").captioned


@pytest.mark.parametrize(
    ("captions", "kind", "message"),
    [
        (None, None, "train.parquet: no column 'caption'"),
        (["a", None], None, "train.parquet: caption 1 is empty"),
        ([" ", "b"], None, "train.parquet: caption 0 is empty"),
        ([1, 2], None, "train.parquet: the column 'caption' holds int64, not text"),
    ],
)
def test_mistakes_in_a_parquet_file_are_found_before_a_run(tmp_path, captions, kind, message):
    write_parquet(tmp_path / "train.parquet", captions, kind=kind)
    with pytest.raises(InputError) as caught:
        opened(tmp_path).check("train")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_captions_in_some_files_of_a_split_only_are_refused(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", ["a"])
    write_parquet(tmp_path / "train-1.parquet", None)
    with pytest.raises(InputError, match="some images of 'train' have no caption"):
        Parquet("pairs", DatasetConfig(), tmp_path).check("train")


def test_a_place_without_captions_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "nowhere", "x.txt"):
        with pytest.raises(InputError, match=f"dataset 'pairs': {name} is no CSV or parquet file"):
            opened(tmp_path / name)
    with pytest.raises(ValidationError, match="source 'auto' looks at no path; with one it is 'p"):
        DatasetConfig(path="images")
    with pytest.raises(ValidationError, match="source 'captions' needs a path"):
        DatasetConfig(source="captions")
