"""Encoder files and decoders of strangers."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from campaign import Deed, case, command, experiment
from PIL import Image
from safetensors.torch import save_file

from bench.encoders.architectures import build

ENCODER = ("profiles", "tiny", "encoder", "checkpoint")
LOADED = "never loaded"
GIGA = 10**9


class Runs:
    """What a pickle may hold: a command that is run when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


def unharmed(mark: Path) -> None:
    assert not mark.exists(), "the pickle ran its command"


def narrow(width: int = 4) -> dict[str, torch.Tensor]:
    return build("resnet-narrow", width=width, stem_stride=2).state_dict()


def scanned(folder: Path, name: str, **more: Any) -> Deed:
    """``bench scan`` of an encoder file, on three images."""
    images = folder / "images"
    images.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    return command(
        "scan", name, "--images", "images", "--device", "cpu", "--defenses", "mahalanobis", **more
    )


def archive(path: Path, content: bytes, records: dict[str, bytes], *, deflated: bool) -> None:
    """A file as ``torch.save`` lays it out, with a pickle of our own."""
    kind = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", b"3\n")
        file.writestr("archive/byteorder", b"little")
        for name, data in records.items():
            file.writestr(f"archive/data/{name}", data)


def zip_bomb(path: Path, records: dict[str, bytes], zeros: int) -> None:
    """A zip file whose last record goes on with ``zeros`` zeros, packed to a thousandth.

    Written by hand: packing gigabytes would take longer than refusing them. Its checksum is not
    that of its content, which nobody knows who has not unpacked it.
    """
    one = zlib.compressobj(9, zlib.DEFLATED, -15)
    million = one.compress(bytes(10**6)) + one.flush(zlib.Z_FULL_FLUSH)
    body, directory = b"", b""
    for number, (name, data) in enumerate(records.items(), 1):
        more = zeros // 10**6 if number == len(records) else 0
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH) + million * more
        packed += b"\x03\x00"  # an empty block, the last
        about = (0, 8, 0, 0, zlib.crc32(data), len(packed), len(data) + more * 10**6, len(name), 0)
        place = len(body)
        body += b"PK\3\4" + struct.pack("<HHHHHIIIHH", 20, *about) + name.encode() + packed
        directory += b"PK\1\2" + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, *about, 0, 0, 0, 0, place)
        directory += name.encode()
    count = len(records)
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(body), 0)
    path.write_bytes(body + directory + b"PK\5\6" + end)


class _Storage:
    """A float storage that claims a number of elements, for :func:`tensor_pickle`."""

    def __init__(self, elements: int) -> None:
        self.elements = elements


class _Claimed:
    def __init__(self, storage: _Storage, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.arguments = (storage, 0, shape, stride, False, {})

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments


def tensor_pickle(elements: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A state dict of one tensor on a storage that claims ``elements`` floats."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, _Storage):
                return ("storage", torch.FloatStorage, "0", "cpu", value.elements)
            return None

    stream = io.BytesIO()
    storage = _Storage(elements)
    Pickler(stream, protocol=2).dump({"f.0.weight": _Claimed(storage, shape, stride)})
    return stream.getvalue()


@case("checkpoint", "pickle that runs a command, scanned")
def pickle_scanned(folder: Path) -> Deed:
    torch.save({"state_dict": narrow(), "hook": Runs(folder / "ran")}, folder / "x.pth")
    return scanned(folder, "x.pth", says=LOADED, after=lambda: unharmed(folder / "ran"))


@case("checkpoint", "bare pickle that runs a command, as the clean encoder")
def pickle_configured(folder: Path) -> Deed:
    (folder / "x.pt").write_bytes(pickle.dumps(Runs(folder / "ran"), protocol=2))
    experiment(folder, (ENCODER, "x.pt"))
    return command("run", says=LOADED, after=lambda: unharmed(folder / "ran"))


@case("checkpoint", "pickle that runs a command, as a victim")
def pickle_victim(folder: Path) -> Deed:
    torch.save([Runs(folder / "ran")], folder / "x.ckpt")
    entry = {"from": "x.ckpt", "label": "x", "architecture": "resnet18-cifar", "target": 0}
    experiment(folder, (("matrix", "attacks", 1), entry))
    return command("run", says=LOADED, after=lambda: unharmed(folder / "ran"))


@case("checkpoint", "pickle that runs a command, as DeDe's decoder")
def pickle_decoder(folder: Path) -> Deed:
    torch.save({"state_dict": Runs(folder / "ran")}, folder / "x.pth")
    experiment(folder, (("matrix", "defenses", 0, "parameters"), {"checkpoint": "x.pth"}))
    return command("run", says=LOADED, after=lambda: unharmed(folder / "ran"))


@case("checkpoint", "pickle nested 100,000 deep")
def pickle_nested(folder: Path) -> Deed:
    (folder / "x.pth").write_bytes(b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".")
    return scanned(folder, "x.pth", says="x.pth")


@case("checkpoint", "pickle bomb: a text of 2 GB announced")
def pickle_announced(folder: Path) -> Deed:
    (folder / "x.pth").write_bytes(b"\x80\x02X" + struct.pack("<i", 2**31 - 1) + b"abc.")
    return scanned(folder, "x.pth", says="x.pth")


@case("checkpoint", "zip bomb: 2 GB of zeros deflated to 2 MB")
def deflated(folder: Path) -> Deed:
    content = tensor_pickle(2 * GIGA // 4, (2 * GIGA // 4,), (1,))
    records = {"x/data.pkl": content, "x/version": b"3\n", "x/byteorder": b"little"}
    zip_bomb(folder / "x.pth", {**records, "x/data/0": b""}, zeros=2 * GIGA)
    return scanned(folder, "x.pth", says="x.pth")


@case("checkpoint", "storage that claims more elements than the file has")
def claimed(folder: Path) -> Deed:
    archive(folder / "x.pth", tensor_pickle(GIGA, (GIGA,), (1,)), {"0": b"1234"}, deflated=False)
    return scanned(folder, "x.pth", says="x.pth")


@case("checkpoint", "four bytes stretched to a tensor of 4 TB by strides of 0")
def stretched(folder: Path) -> Deed:
    shape = (10**6, 10**6, 1, 1)
    content = tensor_pickle(1, shape, (0, 0, 0, 0))
    archive(folder / "x.pth", content, {"0": b"1234"}, deflated=False)
    return scanned(folder, "x.pth", says="x.pth")


@case("checkpoint", "sparse tensor of 10^12 elements")
def sparse(folder: Path) -> Deed:
    found = torch.sparse_coo_tensor(torch.zeros(4, 1), torch.ones(1), (10**3, 10**3, 10**3, 10**3))
    torch.save({**narrow(), "f.0.weight": found}, folder / "x.pth")
    return scanned(folder, "x.pth", says="x.pth")


@case("checkpoint", "tensor without storage")
def meta(folder: Path) -> Deed:
    state = narrow()
    state["f.0.weight"] = torch.empty(4, 3, 3, 3, device="meta")
    torch.save(state, folder / "x.pth")
    return scanned(folder, "x.pth", says="x.pth")


@case("checkpoint", "narrow stem that asks for a network of 40 GB")
def wide(folder: Path) -> Deed:
    state = narrow()
    state["f.0.weight"] = torch.zeros(4000, 3, 3, 3)
    torch.save(state, folder / "x.pth")
    return scanned(folder, "x.pth", says="x.pth")


@case("checkpoint", "own file whose settings ask for a network of 40 GB")
def wide_own(folder: Path) -> Deed:
    write_own(folder / "x.safetensors", settings={"width": 4000, "stem_stride": 2})
    return scanned(folder, "x.safetensors", says="x.safetensors")


@case("checkpoint", "own file for images of 10^9 pixels a side")
def vast_own(folder: Path) -> Deed:
    write_own(folder / "x.safetensors", image_size=10**9)
    return scanned(folder, "x.safetensors", says="image_size")


@case("checkpoint", "own file with a deviation that is no number")
def nan_own(folder: Path) -> Deed:
    write_own(folder / "x.safetensors", std=[float("nan")] * 3)
    return scanned(folder, "x.safetensors", says="x.safetensors")


@case("checkpoint", "own file whose settings are a list")
def list_own(folder: Path) -> Deed:
    write_own(folder / "x.safetensors", settings=[1, 2])
    return scanned(folder, "x.safetensors", says="x.safetensors")


def write_own(path: Path, **claims: Any) -> None:
    about = {
        "architecture": "resnet-narrow",
        "settings": {"width": 4, "stem_stride": 2},
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "image_size": 32,
    }
    save_file(narrow(), path, metadata={"bench": json.dumps({**about, **claims})})


@case("checkpoint", "own file whose description is nested 100,000 deep")
def nested_own(folder: Path) -> Deed:
    save_file(narrow(), folder / "x.safetensors", metadata={"bench": "[" * 100_000})
    return scanned(folder, "x.safetensors", says="x.safetensors")


@case("checkpoint", "own file whose description is a list")
def listed_own(folder: Path) -> Deed:
    save_file(narrow(), folder / "x.safetensors", metadata={"bench": "[1]"})
    experiment(folder, (("matrix", "attacks", 1), {"from": "x.safetensors", "target": 0}))
    return command("run", says="x.safetensors")


def write_header(path: Path, header: bytes, length: int | None = None, body: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)


@case("checkpoint", "safetensors whose header is said to be 2^63 bytes")
def header_length(folder: Path) -> Deed:
    write_header(folder / "x.safetensors", b"{}", length=2**63)
    return scanned(folder, "x.safetensors", says="x.safetensors")


@case("checkpoint", "safetensors with a shape of 10^18 elements on 4 bytes")
def header_shape(folder: Path) -> Deed:
    entry = {"dtype": "F32", "shape": [GIGA, GIGA], "data_offsets": [0, 4]}
    write_header(folder / "x.safetensors", json.dumps({"f.0.weight": entry}).encode(), body=b"1234")
    return scanned(folder, "x.safetensors", says="x.safetensors")


@case("checkpoint", "safetensors whose tensors overlap")
def header_overlap(folder: Path) -> Deed:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"f.0.weight": entry, "f.1.weight": entry}).encode()
    write_header(folder / "x.safetensors", header, body=b"1234")
    return scanned(folder, "x.safetensors", says="x.safetensors")


@case("checkpoint", "safetensors with offsets past the end")
def header_offsets(folder: Path) -> Deed:
    entry = {"dtype": "F32", "shape": [GIGA], "data_offsets": [0, 4 * GIGA]}
    write_header(folder / "x.safetensors", json.dumps({"f.0.weight": entry}).encode(), body=b"1234")
    return scanned(folder, "x.safetensors", says="x.safetensors")


@case("checkpoint", "safetensors whose header is nested 1,000,000 deep")
def header_nested(folder: Path) -> Deed:
    write_header(folder / "x.safetensors", b'{"a":' * 10**6)
    return scanned(folder, "x.safetensors", says="x.safetensors")


@case("checkpoint", "safetensors whose header is 200 MB")
def header_huge(folder: Path) -> Deed:
    write_header(folder / "x.safetensors", b"{", length=200 * 10**6)
    os.truncate(folder / "x.safetensors", 8 + 200 * 10**6)
    return scanned(folder, "x.safetensors", says="x.safetensors")


@case("checkpoint", "truncated safetensors, as the clean encoder")
def truncated(folder: Path) -> Deed:
    save_file(narrow(), folder / "x.safetensors")
    content = (folder / "x.safetensors").read_bytes()
    (folder / "x.safetensors").write_bytes(content[: len(content) // 2])
    experiment(folder, (ENCODER, "x.safetensors"))
    return command("run", says="x.safetensors")


@case("checkpoint", "empty file")
def empty(folder: Path) -> Deed:
    (folder / "x.safetensors").write_bytes(b"")
    return scanned(folder, "x.safetensors", says="x.safetensors")


@case("checkpoint", "weights that are no numbers, scanned")
def nan_weights(folder: Path) -> Deed:
    state = {name: value * float("nan") for name, value in narrow().items()}
    save_file(state, folder / "x.safetensors")
    return scanned(folder, "x.safetensors", says="not finite")


@case("checkpoint", "weights that are no numbers, as the clean encoder")
def nan_configured(folder: Path) -> Deed:
    state = {name: value.clone() for name, value in narrow().items()}
    state["f.0.weight"][:] = float("nan")
    torch.save(state, folder / "x.pth")
    experiment(folder, (ENCODER, "x.pth"), (("matrix", "defenses"), ["mahalanobis"]))
    return command("run", "--attacks", "none", says="not finite", outcome="failed cell")


@case("checkpoint", "weights that are integers")
def integers(folder: Path) -> Deed:
    torch.save({name: value.long() for name, value in narrow().items()}, folder / "x.pth")
    return scanned(folder, "x.pth", says="x.pth")


@case("checkpoint", "weights that are complex")
def complex_weights(folder: Path) -> Deed:
    torch.save({name: value + 0j for name, value in narrow().items()}, folder / "x.pth")
    return scanned(folder, "x.pth", says="x.pth")


@case("checkpoint", "key with a line break and a terminal's escape")
def escapes(folder: Path) -> Deed:
    torch.save({**narrow(), "a\n\x1b[2Jb": torch.zeros(1)}, folder / "x.pth")
    return scanned(folder, "x.pth", says="x.pth")


@case("checkpoint", "named pipe")
def pipe(folder: Path) -> Deed:
    os.mkfifo(folder / "x.safetensors")
    return scanned(folder, "x.safetensors", says="x.safetensors")


@case("checkpoint", "link to /dev/zero")
def zeros(folder: Path) -> Deed:
    (folder / "x.safetensors").symlink_to("/dev/zero")
    return scanned(folder, "x.safetensors", says="x.safetensors")


def own_victim(folder: Path, **says: Any) -> Deed:
    """A victim of the matrix whose file says strange things of its encoder."""
    said = {"architecture": "resnet-narrow", "settings": {"width": 4, "stem_stride": 2}}
    said |= {"mean": [0.5] * 3, "std": [0.5] * 3, "image_size": 32, **says}
    save_file(narrow(), folder / "x.safetensors", metadata={"bench": json.dumps(said)})
    entry = {"from": "x.safetensors", "label": "x", "target": 0}
    entry["trigger"] = {"kind": "patch", "size": 3}
    experiment(folder, (("matrix", "attacks", 1), entry))
    return command("run", says=f"what it says of its {next(iter(says))} is none")


@case("checkpoint", "victim that says a number in the place of its settings")
def own_settings(folder: Path) -> Deed:
    return own_victim(folder, settings=5)


@case("checkpoint", "victim that says a list in the place of its architecture")
def own_architecture(folder: Path) -> Deed:
    return own_victim(folder, architecture=["resnet-narrow"])


@case("checkpoint", "victim whose images have a true size")
def own_size(folder: Path) -> Deed:
    return own_victim(folder, image_size=True)


@case("checkpoint", "clean encoder of 20 GB of nothing")
def hole(folder: Path) -> Deed:
    with (folder / "x.pth").open("wb") as stream:
        stream.truncate(20 * GIGA)
    experiment(folder, (ENCODER, "x.pth"))
    return command("run", says="neither an archive nor a pickle")


@case("checkpoint", "link to itself")
def itself(folder: Path) -> Deed:
    (folder / "x.pth").symlink_to("x.pth")
    return scanned(folder, "x.pth", says="x.pth")


@case("checkpoint", "torchvision's copy of CIFAR-10 as a pickle that runs a command", long=True)
def batches(folder: Path) -> Deed:
    place = folder / "data" / "cifar-10-batches-py"
    place.mkdir(parents=True)
    for name in ("batches.meta", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (place / name).write_bytes(pickle.dumps(Runs(folder / "ran")))
    experiment(
        folder,
        (("datasets", "cifar10"), {"source": "torchvision"}),
        (("profiles", "tiny", "dataset"), "cifar10"),
        (("matrix", "defenses"), ["mahalanobis"]),
    )
    return command(
        "run",
        "--attacks",
        "none",
        says="corrupted",
        outcome="failed cell",
        after=lambda: unharmed(folder / "ran"),
    )
