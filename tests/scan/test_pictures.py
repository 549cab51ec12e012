from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scanned_files import smooth, write_files

from bench.errors import InputError
from bench.scan.pictures import read_pictures


def test_files_of_every_kind_are_found_in_all_folders_and_sorted_by_name(tmp_path):
    picture = Image.fromarray(smooth(1, 0)[0].permute(1, 2, 0).numpy())
    for name in ("b/x.PNG", "a.jpg", "b/c/y.webp", "z.bmp", "c.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    (tmp_path / ".thumbnails").mkdir()
    picture.save(tmp_path / ".thumbnails" / "a.png")
    pictures = read_pictures(tmp_path, 32)
    assert pictures.names == ("a.jpg", "b/c/y.webp", "b/x.PNG", "c.jpeg", "z.bmp")
    assert (pictures.others, pictures.resized, pictures.skipped) == (1, 0, ())
    exact = pictures.images.uint8(torch.tensor([2]))
    assert torch.equal(exact, smooth(1, 0))


def test_other_sizes_and_modes_become_rgb_of_the_encoders_size(tmp_path):
    large = Image.fromarray(np.arange(48 * 20, dtype=np.uint8).reshape(20, 48))
    large.save(tmp_path / "grey.png")
    Image.new("RGBA", (32, 32), (10, 20, 30, 0)).save(tmp_path / "rgba.png")
    pictures = read_pictures(tmp_path, 32)
    assert pictures.resized == 1
    expected = np.asarray(large.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))
    found = pictures.images.uint8().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(found[0], expected)
    assert (found[1] == (10, 20, 30)).all()


def test_what_cannot_be_decoded_is_left_out_by_name(tmp_path):
    write_files(tmp_path, smooth(3, 0))
    whole = (tmp_path / "0001.png").read_bytes()
    (tmp_path / "0001.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    pictures = read_pictures(tmp_path, 32)
    assert pictures.names == ("0000.png", "0002.png")
    assert [name for name, _ in pictures.skipped] == ["0001.png", "empty.png", "text.jpg"]
    assert dict(pictures.skipped)["text.jpg"] == "not an image"
    assert torch.equal(pictures.images.uint8(), smooth(3, 0)[[0, 2]])


def test_folders_without_a_readable_image_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no images"):
        read_pictures(tmp_path, 32)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"none of 1 images can be decoded; text\.jpg"):
        read_pictures(tmp_path, 32)
    with pytest.raises(InputError, match="no such file or folder"):
        read_pictures(tmp_path / "nowhere", 32)
    with pytest.raises(InputError, match="neither a folder of images nor a parquet file"):
        read_pictures(tmp_path / "text.jpg", 32)


def encoded(image: torch.Tensor) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "PNG")
    return stream.getvalue()


def test_a_parquet_file_is_read_by_row(tmp_path):
    rows = [encoded(image) for image in smooth(3, 0)]
    rows[1] = b"no image"
    table = pa.table(
        {"image": [{"bytes": data, "path": None} for data in rows], "label": [2, 0, 1]}
    )
    pq.write_table(table, tmp_path / "some.parquet")
    pictures = read_pictures(tmp_path / "some.parquet", 32)
    assert pictures.names == ("some.parquet#0", "some.parquet#2")
    assert pictures.skipped == (("some.parquet#1", "not an image"),)
    assert pictures.images.labels.tolist() == [2, 1]
    assert pictures.labelled_by == "the column 'label'"


def test_first_folders_are_classes_where_every_image_has_one(tmp_path):
    write_files(tmp_path / "cat", smooth(2, 0))
    assert not read_pictures(tmp_path, 32).images.labelled
    write_files(tmp_path / "ant" / "deep", smooth(1, 1))
    pictures = read_pictures(tmp_path, 32)
    assert pictures.images.labels.tolist() == [0, 1, 1]
    assert pictures.images.class_names == ("ant", "cat")
    write_files(tmp_path, smooth(1, 2))
    assert not read_pictures(tmp_path, 32).images.labelled


def test_equal_pixels_have_equal_digests_whatever_the_file(tmp_path):
    write_files(tmp_path, smooth(2, 0))
    Image.open(tmp_path / "0000.png").save(tmp_path / "copy.bmp")
    first, second, copy = read_pictures(tmp_path, 32).digests
    assert first == copy != second
