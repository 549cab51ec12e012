"""Where images come from, and what an image set promises."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from experiment import real_images
from PIL import Image

from bench.config import DatasetConfig
from bench.data.embedded import Photographs
from bench.data.folder import Folder
from bench.data.imageset import ImageSet
from bench.data.parquet import Parquet
from bench.data.sources import open_source
from bench.data.splits import permuted_rows, pick_references
from bench.data.torchvision_copies import Torchvision
from bench.errors import InputError


def encoded(value: int, size: int = 32, suffix: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, dtype=np.uint8)).save(stream, suffix)
    return stream.getvalue()


def write_parquet(path: Path, values: list[int], size: int = 32) -> None:
    frame = pd.DataFrame(
        {
            "image": [{"bytes": encoded(value, size), "path": None} for value in values],
            "label": [value % 2 for value in values],
        }
    )
    table = pa.Table.from_pandas(frame, preserve_index=False)
    features = {"info": {"features": {"label": {"names": ["even", "odd"]}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path)


def test_digits_are_rgb_and_the_last_400_are_the_test(tmp_path):
    source = open_source("digits", DatasetConfig(source="digits"), [], tmp_path)
    train, test = source.load("train"), source.load("test")
    assert (len(train), len(test), train.image_size) == (1397, 400, 32)
    assert len(train.class_names) == 10
    pixels = train.float(slice(0, 8))
    assert pixels.dtype == torch.float32
    assert 0 <= float(pixels.min()) < 0.1 < 0.9 < float(pixels.max()) <= 1
    assert source.fingerprint("train") != source.fingerprint("test")


def test_photographs_are_unlabelled_crops_that_differ(tmp_path):
    source = open_source("photographs", DatasetConfig(source="photographs"), [], tmp_path)
    images = source.load("train")
    assert len(images) == 1500
    assert not images.labelled
    assert len({bytes(image.numpy().tobytes()) for image in images.uint8()}) > 1400
    with pytest.raises(InputError, match="no 'test' split"):
        source.load("test")


def test_parquet_gives_images_labels_and_class_names(tmp_path):
    write_parquet(tmp_path / "train.parquet", [10, 201, 30])
    images = Parquet("some", DatasetConfig(), tmp_path).load("train")
    assert images.uint8()[:, 0, 0, 0].tolist() == [10, 201, 30]
    assert images.labels.tolist() == [0, 1, 0]
    assert images.class_names == ("even", "odd")


def test_fingerprint_follows_the_content(tmp_path):
    source = Parquet("some", DatasetConfig(), tmp_path)
    write_parquet(tmp_path / "train.parquet", [1, 2])
    first = source.fingerprint("train")
    write_parquet(tmp_path / "train.parquet", [1, 3])
    assert source.fingerprint("train") != first


def test_wrong_size_is_an_error_unless_resizing_is_asked_for(tmp_path):
    write_parquet(tmp_path / "train.parquet", [1, 2], size=48)
    with pytest.raises(InputError, match="image 0 is 48x48 pixels, dataset 'some' wants 32x32"):
        Parquet("some", DatasetConfig(), tmp_path).check("train")
    resized = Parquet("some", DatasetConfig(resize=True), tmp_path)
    resized.check("train")
    assert resized.load("train").image_size == 32


def test_folder_of_classes_and_flat_folder(tmp_path):
    for split, classes in (("train", ("cat", "dog")), ("test", ("cat", "dog"))):
        for label, name in enumerate(classes):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "a.png").write_bytes(encoded(100 * label + 5))
    labelled = Folder("pets", DatasetConfig(), tmp_path)
    assert labelled.load("train").class_names == ("cat", "dog")
    assert labelled.load("test").labels.tolist() == [0, 1]
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "x.png").write_bytes(encoded(7))
    images = Folder("flat", DatasetConfig(), flat).load("train")
    assert (len(images), images.labelled) == (1, False)


def test_a_class_that_one_split_lacks_shifts_no_number(tmp_path):
    for split, names in (("train", ("cat", "dog", "owl")), ("test", ("ant", "dog", ".trash"))):
        for name in names:
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            (folder / "a.png").write_bytes(encoded(len(name)))
    source = Folder("x", DatasetConfig(source="folder", path="."), tmp_path)
    train, test = source.load("train"), source.load("test")
    assert train.class_names == test.class_names == ("ant", "cat", "dog", "owl")
    assert (train.labels.tolist(), test.labels.tolist()) == ([1, 2, 3], [0, 2])
    before = source.fingerprint("train")
    (tmp_path / "test" / "ant").rename(tmp_path / "test" / "zebra")
    assert source.load("train").labels.tolist() == [0, 1, 2]
    assert source.fingerprint("train") != before


def test_photographs_have_crops_up_to_their_own_size(tmp_path):
    assert Photographs("p", DatasetConfig(source="photographs", image_size=96)).load("train")
    with pytest.raises(InputError, match="image_size is 512, and the photographs have 427"):
        Photographs("p", DatasetConfig(source="photographs", image_size=512)).check("train")


def test_named_set_is_found_under_a_data_root(tmp_path):
    (tmp_path / "cifar10").mkdir()
    write_parquet(tmp_path / "cifar10" / "train.parquet", [1])
    source = open_source("cifar10", DatasetConfig(), [tmp_path / "no", tmp_path], tmp_path)
    assert isinstance(source, Parquet)


def test_torchvision_copy_is_used_and_never_downloaded_unasked(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    source = open_source("cifar10", DatasetConfig(), [tmp_path], tmp_path)
    assert isinstance(source, Torchvision)
    for asked in (source.load, source.check, source.count, source.classes, source.labels):
        with pytest.raises(InputError, match="Dataset not found or corrupted"):
            asked("train")
    assert list((tmp_path / "cifar-10-batches-py").iterdir()) == []


def test_a_torchvision_copy_tells_its_labels_without_decoding(tmp_path):
    for label, count in ((0, 3), (1, 1), (2, 2)):
        folder = tmp_path / "gtsrb" / "GTSRB" / "Training" / f"{label:05}"
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{number}.ppm").write_bytes(encoded(40 * label, suffix="PPM"))
    source = open_source("gtsrb", DatasetConfig(), [tmp_path], tmp_path)
    assert isinstance(source, Torchvision)
    source.check("train")
    assert (source.count("train"), source.classes("train")) == (6, 3)
    images = source.load("train")
    assert images.labels.tolist() == source.labels("train").tolist() == [0, 0, 0, 1, 2, 2]
    assert images.uint8()[:, 0, 0, 0].tolist() == [0, 0, 0, 40, 80, 80]
    few = open_source("gtsrb", DatasetConfig(max_images=4), [tmp_path], tmp_path)
    assert (few.count("train"), few.load("train").labels.tolist()) == (
        6,
        few.labels("train").tolist(),
    )


def test_the_unlabelled_part_of_stl10_is_counted_without_being_read(tmp_path, monkeypatch):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    with (folder / "unlabeled_X.bin").open("wb") as file:
        file.truncate(100_000 * 3 * 96 * 96)
    source = open_source("stl10", DatasetConfig(resize=True), [tmp_path], tmp_path)
    monkeypatch.setattr(source, "_dataset", lambda *_, **__: pytest.fail("it was opened"))
    source.check("train")
    small = open_source("stl10", DatasetConfig(), [tmp_path], tmp_path)
    monkeypatch.setattr(small, "_dataset", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(InputError, match=r"96x96 pixels, dataset 'stl10' wants 32x32"):
        small.check("train")
    assert (source.count("train"), source.classes("train")) == (100_000, 0)
    assert source.labels("train") is None


def test_a_folder_of_pictures_may_have_the_name_of_torchvisions_copy(tmp_path):
    folder = tmp_path / "gtsrb" / "train" / "stop"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(encoded(1))
    source = open_source("gtsrb", DatasetConfig(), [tmp_path], tmp_path)
    assert isinstance(source, Folder)
    assert source.load("train").class_names == ("stop",)


@pytest.mark.parametrize(
    ("name", "split", "count", "classes"),
    [("cifar10", "test", 10_000, 10), ("gtsrb", "test", 12_630, 43)],
)
def test_real_sets_load_whole(name, split, count, classes):
    images = Parquet(name, DatasetConfig(), real_images(name)).load(split)
    assert (len(images), len(images.class_names)) == (count, classes)
    assert torch.bincount(images.labels).min() > 0


def test_view_shares_storage_and_composes():
    storage = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 8, 8).contiguous()
    images = ImageSet(storage, labels=torch.arange(5), class_names=tuple("abcde"))
    view = images.select(torch.tensor([4, 2, 0])).select(torch.tensor([2, 0]))
    assert view.rows.tolist() == [0, 4]
    assert view.labels.tolist() == [0, 4]
    assert view.float()[:, 0, 0, 0].tolist() == pytest.approx([0, 4 / 255])
    assert view._storage.data_ptr() == storage.data_ptr()
    with pytest.raises(ValueError, match="has no labels"):
        view.without_labels().labels  # noqa: B018
    assert [len(batch) for batch in images.batches(2)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("storage", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), None, "must be uint8"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), None, "must be uint8"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3), "3 labels for 2 images"),
    ],
)
def test_image_set_refuses_what_is_no_image_set(storage, labels, message):
    with pytest.raises(ValueError, match=message):
        ImageSet(storage, labels=labels)


def test_references_are_of_the_target_class_and_scarcity_is_named():
    labels = torch.tensor([0, 1, 0, 1, 1])
    rows = torch.tensor([4, 3, 2, 1])
    assert pick_references(rows, labels, 1, 2, "some").tolist() == [4, 3]
    with pytest.raises(InputError, match=r"1 reference images of class 0 .* needs 2"):
        pick_references(rows, labels, 0, 2, "some")


def test_too_many_rows_asked_for_is_named():
    with pytest.raises(InputError, match="has 10 training images, the splits ask for 20"):
        permuted_rows(10, {"seed": 0, "start": 5, "stop": 20}, "some")


def test_one_set_of_files_serves_at_two_sizes(tmp_path):
    folder = tmp_path / "pictures" / "train"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(folder / "a.png")
    config = DatasetConfig(stored_as="pictures", image_size=64, resize=True)
    larger = open_source("pictures-64", config, [tmp_path], tmp_path).load("train")
    assert larger.uint8().shape == (1, 3, 64, 64)
    with pytest.raises(InputError, match=r"is not at"):
        open_source("pictures-64", DatasetConfig(), [tmp_path], tmp_path)
