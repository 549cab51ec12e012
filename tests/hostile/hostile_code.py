"""Plug-ins, repositories and archives."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaign import Deed, case, command, experiment


def plugged(folder: Path, name: str, target: str, module: str | None, *more: str) -> Deed:
    """A command with an installed package that offers a defense."""
    site = folder / "site"
    info = site / "stranger-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[bench.defenses]\n{name} = {target}\n")
    if module is not None:
        (site / "stranger.py").write_text(module)
    experiment(folder, (("matrix", "defenses"), [name]))
    return command(*(more or ("run",)), environment={"PYTHONPATH": str(site)})


def saying(deed: Deed, text: str) -> Deed:
    return Deed(deed.arguments, environment=deed.environment, says=text)


@case("plug-in", "that takes the name of a built-in defense")
def shadowing(folder: Path) -> Deed:
    deed = plugged(folder, "mahalanobis", "stranger:Mine", "class Mine: ...\n")
    return saying(deed, "two defenses are called 'mahalanobis'")


@case("plug-in", "whose module is not there, in the list of defenses")
def absent(folder: Path) -> Deed:
    deed = plugged(folder, "mine", "absent.module:Mine", None, "list", "defenses")
    return Deed(
        deed.arguments, environment=deed.environment, says="does not import", outcome="set aside"
    )


@case("plug-in", "whose module ends the process with status 0")
def leaving(folder: Path) -> Deed:
    deed = plugged(folder, "mine", "stranger:Mine", "raise SystemExit(0)\n")
    return saying(deed, "does not import")


@case("plug-in", "whose module is no Python")
def broken(folder: Path) -> Deed:
    deed = plugged(folder, "mine", "stranger:Mine", "def (\n\x00")
    return saying(deed, "does not import")


@case("plug-in", "that offers no defense")
def wrong(folder: Path) -> Deed:
    deed = plugged(folder, "mine", "stranger:Mine", "class Mine: ...\n")
    return saying(deed, "subclass of bench.api.Defense")


def synced(folder: Path, url: str, commit: str = "0" * 40) -> Deed:
    def call() -> None:
        from bench.upstream.checkout import sync
        from bench.upstream.repositories import Repository

        sync(["x"], folder / "third_party", known={"x": Repository("x", url, commit, ())})

    def after() -> None:
        assert not (folder / "ran").exists(), "a command ran"

    return Deed(call=call, says="https", after=after)


@case("repository", "fetched through a command: ext::")
def external(folder: Path) -> Deed:
    return synced(folder, f"ext::sh -c touch% {folder}/ran")


@case("repository", "fetched from the disk: file://")
def local(folder: Path) -> Deed:
    return synced(folder, "file:///etc")


@case("repository", "whose URL is an option: --upload-pack")
def option(folder: Path) -> Deed:
    return synced(folder, f"--upload-pack=touch {folder}/ran")


@case("repository", "fetched without encryption: http://")
def plain(folder: Path) -> Deed:
    return synced(folder, "http://example.invalid/x")


@case("repository", "whose commit is an option")
def commit_option(folder: Path) -> Deed:
    url = "https://example.invalid/x"
    deed = synced(folder, url, f"--upload-pack=touch {folder}/ran")
    return Deed(call=deed.call, says="commit", after=deed.after)


@case("repository", "that the list does not know")
def unknown(folder: Path) -> Deed:
    return command("third-party", "sync", "--", "../../x", says="unknown repository")


def extracted(
    folder: Path, fill: Callable[[tarfile.TarFile], None], *, inside: bool = False
) -> Deed:
    """``bench download`` where the archive is there and its checksum is right; ``inside``: whether
    the member may be written below the target."""
    (folder / "data").mkdir()
    with tarfile.open(folder / "data" / "cifar-10-python.tar.gz", "w:gz") as archive:
        fill(archive)
    experiment(folder)

    def call() -> None:
        from torchvision.datasets import cifar, utils

        from bench.config import DatasetConfig
        from bench.data.torchvision_copies import Torchvision

        utils.check_integrity = lambda *_: True
        cifar.check_integrity = lambda path, *_: False
        with contextlib.redirect_stdout(io.StringIO()):
            Torchvision("cifar10", DatasetConfig(), folder / "data").download()

    def after() -> None:
        assert not (folder / "out").exists(), "something was written outside"
        assert inside or not list((folder / "data").rglob("out*")), "the member was written"

    return Deed(call=call, says="cifar10", after=after)


def member(name: str, **about: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    for key, value in about.items():
        setattr(found, key, value)
    return found


@case("archive", "member outside the target")
def outside(folder: Path) -> Deed:
    return extracted(folder, lambda archive: archive.addfile(member("../out")))


@case("archive", "member with an absolute path")
def absolute(folder: Path) -> Deed:
    """Its first slash is taken away, so that it lies in the target."""
    return extracted(folder, lambda archive: archive.addfile(member(f"{folder}/out")), inside=True)


@case("archive", "member with an absolute path through ..")
def absolute_up(folder: Path) -> Deed:
    return extracted(folder, lambda archive: archive.addfile(member(f"{folder}/data/../out")))


@case("archive", "link to a place outside")
def link(folder: Path) -> Deed:
    about = {"type": tarfile.SYMTYPE, "linkname": "../../out"}
    return extracted(folder, lambda archive: archive.addfile(member("out-link", **about)))


@case("archive", "device")
def device(folder: Path) -> Deed:
    about = {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}
    return extracted(folder, lambda archive: archive.addfile(member("out-zero", **about)))


@case("archive", "bytes that are no archive")
def noise(folder: Path) -> Deed:
    deed = extracted(folder, lambda archive: None)
    (folder / "data" / "cifar-10-python.tar.gz").write_bytes(b"no archive")
    return deed
