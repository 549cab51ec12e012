"""Images, image sets and trigger files of strangers."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from campaign import Deed, case, command, experiment
from hostile_checkpoints import narrow, zip_bomb
from mistakes import png
from PIL import Image

ATTACK = ("matrix", "attacks", 1)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG whose header says a size and that goes on as it likes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join((chunk(b"IHDR", header), *chunks, chunk(b"IEND", b"")))


def scanned(folder: Path, images: str = "images", **more: Any) -> Deed:
    """``bench scan`` of images, with a good encoder."""
    torch.save(narrow(), folder / "x.pth")
    arguments = ("--images", images, "--device", "cpu", "--defenses", "mahalanobis")
    return command("scan", "x.pth", *arguments, **more)


def one_image(folder: Path, content: bytes, name: str = "a.png", **more: Any) -> Deed:
    (folder / "images").mkdir()
    (folder / "images" / name).write_bytes(content)
    return scanned(folder, says=more.pop("says", name), **more)


def data_set(folder: Path, content: bytes, name: str = "a.png", **more: Any) -> Deed:
    """``bench run`` on a folder of images, of which one is hostile."""
    place = folder / "set" / "train" / "class"
    place.mkdir(parents=True)
    (place / name).write_bytes(content)
    return on_set(folder, says=more.pop("says", name), **more)


def on_set(folder: Path, source: str = "folder", path: str = "set", **more: Any) -> Deed:
    experiment(
        folder,
        (("datasets", "strange"), {"source": source, "path": path}),
        (("profiles", "tiny", "out_of_distribution"), "strange"),
    )
    return command("run", **more)


@case("image", "PNG of 60,000 x 60,000 pixels, scanned")
def png_bomb(folder: Path) -> Deed:
    return one_image(folder, png_of(60_000, 60_000), says="too large")


@case("image", "PNG of 60,000 x 60,000 pixels, in a data set")
def png_bomb_set(folder: Path) -> Deed:
    return data_set(folder, png_of(60_000, 60_000), says="too large")


@case("image", "PNG of 13,000 x 13,000 pixels, whole and 3 MB")
def png_whole(folder: Path) -> Deed:
    return one_image(folder, solid_png(13_000), says="too large")


@cache
def solid_png(side: int) -> bytes:
    """A whole PNG of one colour, written row by row: with alpha, 4 bytes a pixel once decoded."""
    packed = zlib.compressobj(1)
    rows = b"".join(packed.compress(bytes(1 + 4 * side)) for _ in range(side)) + packed.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@case("image", "JPEG that says 65,500 x 65,500 pixels")
def jpeg_bomb(folder: Path) -> Deed:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG")
    content = bytearray(stream.getvalue())
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", 65_500, 65_500)
    return one_image(folder, bytes(content), "a.jpg", says="too large")


@case("image", "WebP that says 16,383 x 16,383 pixels")
def webp_bomb(folder: Path) -> Deed:
    frame = struct.pack("<I", 0x2F | (16_382 << 8) | (16_382 << 22) & 0xFFFFFFFF)[:4]
    bits = 16_382 | 16_382 << 14
    data = b"\x2f" + struct.pack("<I", bits) + frame + bytes(64)
    body = b"WEBPVP8L" + struct.pack("<I", len(data)) + data + (b"\0" if len(data) % 2 else b"")
    content = b"RIFF" + struct.pack("<I", len(body)) + body
    return one_image(folder, content, "a.webp", says="none of 1 images")


@case("image", "BMP that says 30,000 x 30,000 pixels")
def bmp_bomb(folder: Path) -> Deed:
    header = struct.pack("<IiiHHIIiiII", 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0)
    content = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header
    return one_image(folder, content, "a.bmp", says="too large")


@case("image", "PNG with a text of 20 MB packed into 20 kB, in a data set")
def text_bomb(folder: Path) -> Deed:
    packed = zlib.compressobj(9)
    text = b"".join(packed.compress(bytes(10**6)) for _ in range(20)) + packed.flush()
    return data_set(folder, png_of(32, 32, chunk(b"zTXt", b"a\0\0" + text)))


@case("image", "truncated PNG, scanned")
def truncated(folder: Path) -> Deed:
    return one_image(folder, png(32, 32)[:60])


@case("image", "truncated PNG, in a data set", long=True)
def truncated_set(folder: Path) -> Deed:
    deed = data_set(folder, png(32, 32)[:60], outcome="failed cell")
    experiment_out_of_distribution(folder)
    return deed


def experiment_out_of_distribution(folder: Path) -> None:
    """One cell, whose defender owns the strange images."""
    defense = {"defense": "mahalanobis", "label": "m", "auxiliary": "out-of-distribution"}
    experiment(
        folder,
        (("datasets", "strange"), {"source": "folder", "path": "set"}),
        (("profiles", "tiny", "out_of_distribution"), "strange"),
        (("matrix", "defenses"), [defense]),
        (("matrix", "attacks"), ["none"]),
    )


@case("image", "text that is called a PNG")
def text_file(folder: Path) -> Deed:
    return data_set(folder, b"<svg onload='alert(1)'/>")


@case("image", "empty file")
def empty(folder: Path) -> Deed:
    return data_set(folder, b"")


@case("image", "PNG of 0 x 0 pixels")
def nothing(folder: Path) -> Deed:
    return one_image(folder, png_of(0, 0))


@case("image", "PostScript that is called a PNG")
def postscript(folder: Path) -> Deed:
    ran = folder / "ran"
    text = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n({ran}) (w) file\nshowpage\n"
    return one_image(folder, text.encode(), says="not an image")


@case("image", "GIF of 100 frames that is called a PNG")
def gif(folder: Path) -> Deed:
    frames = [Image.new("L", (32, 32), number % 256) for number in range(100)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return one_image(folder, stream.getvalue(), says="not an image")


@case("image", "PNG that is animated: the picture shown is not the picture scored")
def apng(folder: Path) -> Deed:
    stream = io.BytesIO()
    black, white = (Image.new("RGB", (32, 32), colour) for colour in ("black", "white"))
    black.save(stream, "PNG", save_all=True, append_images=[white], default_image=True)
    return data_set(folder, stream.getvalue(), says="animat")


@case("image", "WebP that is animated")
def animated_webp(folder: Path) -> Deed:
    stream = io.BytesIO()
    black, white = (Image.new("RGB", (32, 32), colour) for colour in ("black", "white"))
    black.save(stream, "WEBP", save_all=True, append_images=[white])
    return one_image(folder, stream.getvalue(), "a.webp", says="animat")


@case("image", "named pipe among the images, scanned")
def pipe(folder: Path) -> Deed:
    (folder / "images").mkdir()
    os.mkfifo(folder / "images" / "a.png")
    return scanned(folder, says="a.png")


@case("image", "named pipe in a data set")
def pipe_set(folder: Path) -> Deed:
    place = folder / "set" / "train" / "class"
    place.mkdir(parents=True)
    os.mkfifo(place / "a.png")
    return on_set(folder, says="a.png")


@case("image", "link to /dev/zero in a data set")
def zeros_set(folder: Path) -> Deed:
    place = folder / "set" / "train" / "class"
    place.mkdir(parents=True)
    (place / "a.png").symlink_to("/dev/zero")
    return on_set(folder, says="a.png")


@case("image", "file of 20 GB (with a hole) in a data set")
def hole_set(folder: Path) -> Deed:
    deed = data_set(folder, b"")
    with (folder / "set" / "train" / "class" / "a.png").open("r+b") as file:
        file.truncate(20 * 10**9)
    return deed


@case("image", "folder that is called like an image")
def folder_set(folder: Path) -> Deed:
    (folder / "set" / "train" / "a.png").mkdir(parents=True)
    return on_set(folder, says="no images")


@case("image", "file whose name breaks the line and clears the terminal")
def named(folder: Path) -> Deed:
    return one_image(folder, b"text", "a\n\x1b[2Jb.png", says="not an image")


@case("image", "data set that is a file")
def file_set(folder: Path) -> Deed:
    (folder / "set").write_text("no folder")
    return on_set(folder, says="set")


@case("image set", "truncated parquet file")
def truncated_parquet(folder: Path) -> Deed:
    parquet(folder, [png(32, 32)] * 100, [0] * 100)
    content = (folder / "set" / "train.parquet").read_bytes()
    (folder / "set" / "train.parquet").write_bytes(content[:-100])
    return on_set(folder, "parquet", says="train.parquet")


def parquet(folder: Path, images: list[bytes], labels: list[int]) -> None:
    (folder / "set").mkdir(exist_ok=True)
    table = pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(labels)})
    pq.write_table(table, folder / "set" / "train.parquet")


@case("image set", "parquet file of 1 MB that holds one image 20,000 times")
def parquet_bomb(folder: Path) -> Deed:
    (folder / "set").mkdir()
    one = np.random.default_rng(0).bytes(10**6)
    dictionary = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(20_000, dtype=np.int32)), pa.array([one], pa.binary())
    )
    table = pa.table({"image": dictionary})
    pq.write_table(table, folder / "set" / "train.parquet", store_schema=False)
    return on_set(folder, "parquet", says="train.parquet")


@case("image set", "parquet file of 20,000,000 rows in a few kB")
def parquet_rows(folder: Path) -> Deed:
    (folder / "set").mkdir()
    step = 10**6
    empty = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(step, dtype=np.int8)), pa.array([b""], pa.binary())
    )
    labels = pa.array(np.zeros(step, dtype=np.int64))
    table = pa.table({"image": empty, "label": labels})
    with pq.ParquetWriter(
        folder / "set" / "train.parquet", table.schema, store_schema=False
    ) as writer:
        for _ in range(20):
            writer.write_table(table)
    return on_set(folder, "parquet", says="train.parquet")


@case("image set", "parquet file with a label of 2^62")
def parquet_label(folder: Path) -> Deed:
    parquet(folder, [png(32, 32)] * 3, [0, 1, 2**62])
    return on_set(folder, "parquet", says="label")


@case("image", "PNG of 1 x 30,000,000 pixels, scanned")
def png_line(folder: Path) -> Deed:
    return one_image(folder, png_of(1, 30_000_000), says="none of 1 images")


@case("image set", "named pipe in the place of a parquet file, to run")
def parquet_pipe(folder: Path) -> Deed:
    (folder / "set").mkdir()
    os.mkfifo(folder / "set" / "train.parquet")
    return on_set(folder, "parquet", says="no regular file")


@case("image set", "named pipe in the place of a parquet file, to look at")
def parquet_pipe_listed(folder: Path) -> Deed:
    (folder / "set").mkdir()
    os.mkfifo(folder / "set" / "train.parquet")
    experiment(folder, (("datasets", "strange"), {"source": "parquet", "path": "set"}))
    return command("list", "datasets", outcome="set aside", says="no regular file")


@case("image set", "parquet file whose class names are nested 100,000 deep")
def parquet_nested(folder: Path) -> Deed:
    (folder / "set").mkdir()
    table = pa.table({"image": pa.array([png(32, 32)] * 3, pa.binary()), "label": [0, 1, 2]})
    table = table.replace_schema_metadata({"huggingface": "[" * 100_000})
    pq.write_table(table, folder / "set" / "train.parquet")
    experiment(folder, (("datasets", "strange"), {"source": "parquet", "path": "set"}))
    return command("doctor", outcome="set aside", says="dataset strange: parquet")


@case("image set", "parquet file with two columns of images")
def parquet_twice(folder: Path) -> Deed:
    (folder / "set").mkdir()
    images = pa.array([png(32, 32)] * 3, pa.binary())
    table = pa.Table.from_arrays([images, images], names=["image", "image"])
    pq.write_table(table, folder / "set" / "train.parquet")
    return on_set(folder, "parquet", says="two columns 'image'")


@case("image set", "parquet file of other columns")
def parquet_columns(folder: Path) -> Deed:
    (folder / "set").mkdir()
    pq.write_table(pa.table({"x": [1]}), folder / "set" / "train.parquet")
    return on_set(folder, "parquet", says="no column 'image'")


@case("image set", "captions with a label of 5,000 digits")
def csv_label(folder: Path) -> Deed:
    return captions(folder, f"a.png,a cat,{'9' * 5000}", says="train.csv")


def captions(folder: Path, row: str, **more: Any) -> Deed:
    (folder / "set").mkdir(exist_ok=True)
    (folder / "set" / "a.png").write_bytes(png(32, 32))
    (folder / "set" / "train.csv").write_text(f"image,caption,label\n{row}\n", encoding="utf-8")
    return on_set(folder, "captions", **more)


@case("image set", "captions of an image that is a system file")
def csv_outside(folder: Path) -> Deed:
    return captions(folder, "../../../../../../../../../etc/passwd,a cat,0", says="not an image")


@case("image set", "captions of an image that is /dev/zero")
def csv_zeros(folder: Path) -> Deed:
    return captions(folder, "/dev/zero,a cat,0", says="no image file")


@case("image set", "captions with a field of 10 MB")
def csv_field(folder: Path) -> Deed:
    return captions(folder, f"a.png,{'a' * 10**7},0", says="train.csv")


@case("image set", "captions with bytes that are no text")
def csv_bytes(folder: Path) -> Deed:
    deed = captions(folder, "a.png,a cat,0", says="train.csv")
    (folder / "set" / "train.csv").write_bytes(b"image,caption\na.png,\xff\xfe\0\n")
    return deed


def triggered(folder: Path, name: str) -> Deed:
    """``bench run`` of a victim whose trigger is in a file."""
    torch.save(narrow(), folder / "v.pth")
    entry = {
        "from": "v.pth",
        "architecture": "resnet-narrow",
        "settings": {"width": 4, "stem_stride": 2},
        "target": 0,
        "trigger": {"kind": "patch", "file": name},
    }
    experiment(folder, (ATTACK, entry))
    return command("run", says=name)


def npy(shape: str, kind: str = "|u1") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (63 - (10 + len(header)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


@case("trigger", "npz whose array says 10^15 bytes")
def npz_shape(folder: Path) -> Deed:
    with zipfile.ZipFile(folder / "t.npz", "w") as file:
        for name in ("tm", "t"):
            file.writestr(f"{name}.npy", npy("(1000000000000000,)"))
    return triggered(folder, "t.npz")


@case("trigger", "npz of 2 GB of zeros packed into 2 MB")
def npz_bomb(folder: Path) -> Deed:
    zip_bomb(folder / "t.npz", {"t.npy": b"", "tm.npy": npy("(2000000000,)")}, zeros=2 * 10**9)
    return triggered(folder, "t.npz")


@case("trigger", "npz of pickled objects")
def npz_objects(folder: Path) -> Deed:
    np.savez(folder / "t.npz", tm=np.array([{}], dtype=object), t=np.zeros(3))
    return triggered(folder, "t.npz")


@case("trigger", "picture of 13,000 x 13,000 pixels", long=True)
def trigger_bomb(folder: Path) -> Deed:
    (folder / "t.png").write_bytes(solid_png(13_000))
    return triggered(folder, "t.png")


@case("trigger", "named pipe")
def trigger_pipe(folder: Path) -> Deed:
    os.mkfifo(folder / "t.png")
    return triggered(folder, "t.png")


@case("trigger", "stored text of a picture that is 4 MB of zeros packed again and again")
def stored_png(folder: Path) -> Deed:
    import base64

    torch.save(narrow(), folder / "v.pth")
    text = base64.b64encode(png_of(60_000, 60_000)).decode()
    entry = {
        "from": "v.pth",
        "architecture": "resnet-narrow",
        "settings": {"width": 4, "stem_stride": 2},
        "target": 0,
        "trigger": {"kind": "image-patch", "png": text, "row": 0, "column": 0},
    }
    experiment(folder, (ATTACK, entry))
    return command("run", says="png")
