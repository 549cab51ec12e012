"""Caches that somebody else wrote."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaign import Deed, case, command, experiment

from bench.store import machine_name

KEY = "ab" * 32


def sealed(folder: Path, **files: str) -> Path:
    """An artifact's folder with the checksums of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    (folder / "manifest.json").write_text(json.dumps({"files": digests}))
    return folder


def looked_up(folder: Path, says: str = "leads out of", **more: Any) -> Deed:
    """Ask the cache of the case whether it has an artifact, and for the right to compute it."""

    def call() -> None:
        from bench.store import Store

        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
        store = Store(folder / "cache")
        if store.has("fit", KEY):
            return
        with store.lock(KEY), store.writing("fit", KEY) as place:
            (place / "value").write_text("mine")

    return Deed(call=call, says=says, **more)


def still_there(path: Path, text: str) -> Callable[[], None]:
    def check() -> None:
        assert path.is_file(), f"{path.name} is gone"
        assert path.read_text() == text, f"{path.name} was written to"

    return check


@case("cache", "artifact that is a link to a folder outside")
def linked_artifact(folder: Path) -> Deed:
    outside = sealed(folder / "outside", value="theirs")
    place = folder / "cache" / "fit" / "ab"
    place.mkdir(parents=True)
    (place / KEY).symlink_to(outside)
    return looked_up(folder, after=still_there(outside / "value", "theirs"))


@case("cache", "kind's folder that is a link to a folder outside, with a damaged artifact")
def linked_kind(folder: Path) -> Deed:
    outside = sealed(folder / "outside" / "ab" / KEY, value="theirs")
    (outside / "value").write_text("changed")
    (folder / "cache").mkdir()
    (folder / "cache" / "fit").symlink_to(folder / "outside")
    return looked_up(folder, after=still_there(outside / "value", "changed"))


@case("cache", "file of an artifact that is a link to a file outside")
def linked_file(folder: Path) -> Deed:
    (folder / "secret").write_text("theirs")
    place = sealed(folder / "cache" / "fit" / "ab" / KEY, value="theirs")
    (place / "value").unlink()
    (place / "value").symlink_to(folder / "secret")
    return looked_up(folder, after=still_there(folder / "secret", "theirs"))


@case("cache", "lock that is a link to a file outside")
def linked_lock(folder: Path) -> Deed:
    (folder / "secret").write_text("theirs")
    (folder / "cache" / "locks").mkdir(parents=True)
    (folder / "cache" / "locks" / f"{KEY}.lock").symlink_to(folder / "secret")
    return looked_up(folder, after=still_there(folder / "secret", "theirs"))


@case("cache", "folder of locks that is a link to a folder outside")
def linked_locks(folder: Path) -> Deed:
    (folder / "outside").mkdir()
    (folder / "cache").mkdir()
    (folder / "cache" / "locks").symlink_to(folder / "outside")

    def untouched() -> None:
        assert not list((folder / "outside").iterdir()), "something was written outside"

    return looked_up(folder, after=untouched)


@case("cache", "scratch folder that is a link to a folder outside")
def linked_scratch(folder: Path) -> Deed:
    (folder / "outside").mkdir()
    (folder / "cache").mkdir()
    (folder / "cache" / "tmp").symlink_to(folder / "outside")
    return looked_up(folder)


def leading_outside(place: str) -> Callable[[Path], Deed]:
    """A run where a folder that it writes notes into is a link to a folder outside."""

    def prepare(folder: Path) -> Deed:
        outside = folder / "outside"
        outside.mkdir()
        # What a sweep would remove: a process of that number never lives.
        (outside / f"{machine_name()}-999999999-0").mkdir()
        (folder / place).parent.mkdir(parents=True)
        (folder / place).symlink_to(outside)
        experiment(folder, (("matrix", "defenses"), ["mahalanobis"]))

        def untouched() -> None:
            assert len(list(outside.iterdir())) == 1, "something happened outside"

        return command("run", "--attacks", "none", says="leads out of", after=untouched)

    return prepare


for place in (".bench/logs", ".bench/seconds", "results/tiny/.part", "results/tiny/.running"):
    case("cache", f"run where {place} leads outside", long=True)(leading_outside(place))


@case("cache", "run on a cache whose folder of data leads outside", long=True)
def linked_run(folder: Path) -> Deed:
    (folder / "outside").mkdir()
    (folder / ".bench").mkdir()
    (folder / ".bench" / "data").symlink_to(folder / "outside")
    experiment(folder, (("matrix", "defenses"), ["mahalanobis"]))
    return command("run", "--attacks", "none", says="leads out of", outcome="failed cell")


@case("cache", "artifact whose manifest names ../../../secret")
def traversal(folder: Path) -> Deed:
    return named_in_manifest(folder, "../../../../secret")


@case("cache", "artifact whose manifest names an absolute path")
def absolute(folder: Path) -> Deed:
    return named_in_manifest(folder, str(folder / "secret"))


@case("cache", "artifact whose manifest names a device")
def device(folder: Path) -> Deed:
    return named_in_manifest(folder, "/dev/zero")


def named_in_manifest(folder: Path, name: str) -> Deed:
    (folder / "secret").write_text("theirs")
    place = sealed(folder / "cache" / "fit" / "ab" / KEY, value="theirs")
    digest = hashlib.sha256(b"theirs").hexdigest()
    (place / "manifest.json").write_text(json.dumps({"files": {name: digest}}))
    return again(folder, after=still_there(folder / "secret", "theirs"))


def again(folder: Path, **more: Any) -> Deed:
    """The artifact is damaged: it is computed again, with a warning."""
    return looked_up(folder, says="is damaged", outcome="set aside", **more)


@case("cache", "artifact whose manifest is nested 100,000 deep")
def deep_manifest(folder: Path) -> Deed:
    place = sealed(folder / "cache" / "fit" / "ab" / KEY, value="theirs")
    (place / "manifest.json").write_text("[" * 100_000)
    return again(folder)


@case("cache", "artifact whose manifest is 20 GB (with a hole)")
def huge_manifest(folder: Path) -> Deed:
    place = sealed(folder / "cache" / "fit" / "ab" / KEY, value="theirs")
    os.truncate(place / "manifest.json", 20 * 10**9)
    return again(folder)


@case("cache", "artifact whose manifest is a named pipe")
def pipe_manifest(folder: Path) -> Deed:
    place = sealed(folder / "cache" / "fit" / "ab" / KEY, value="theirs")
    (place / "manifest.json").unlink()
    os.mkfifo(place / "manifest.json")
    return again(folder)


@case("cache", "artifact whose manifest lists a number in the place of names")
def numbered_manifest(folder: Path) -> Deed:
    place = sealed(folder / "cache" / "fit" / "ab" / KEY, value="theirs")
    (place / "manifest.json").write_text('{"files": {"value": 3, "": 1}}')
    return again(folder)


@case("cache", "seconds of a stage that are a list, a pipe, a huge number")
def strange_seconds(folder: Path) -> Deed:
    experiment(folder)
    place = folder / ".bench" / "seconds"
    place.mkdir(parents=True)

    def call() -> None:
        from bench.configfile import ConfigFile
        from bench.graph import cost_name
        from bench.history import History
        from bench.session import Session

        session = Session(ConfigFile(folder / "bench.yaml"))
        stages = [stage for cell in session.cells for stage in cell.stage.inputs.values()]
        names = list(dict.fromkeys(cost_name(stage) for stage in stages))[:4]
        os.mkfifo(place / f"{names[0]}.json")
        strange = ("[1]", '{"seconds": %s}' % ("9" * 400), "[" * 10**5)
        for name, text in zip(names[1:], strange, strict=True):
            (place / f"{name}.json").write_text(text)
        history = History(session.store)
        assert {history.seconds(stage) for stage in stages} == {None}
        print("all of them count as unknown")

    return Deed(call=call, says="all of them count as unknown", outcome="set aside")
