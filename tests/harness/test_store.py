"""Artifacts are atomic, verified and safe to share between processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.store import COST, Store, canonical_json, check_writable, content_key, write_atomically

KEY = "ab" * 32


def write(store: Store, text: str = "content") -> Path:
    with store.writing("fit", KEY) as folder:
        (folder / "value.txt").write_text(text)
        (folder / COST).write_text('{"seconds": 1}')
    return store.folder("fit", KEY)


def test_written_artifact_is_found_by_another_store(tmp_path):
    write(Store(tmp_path))
    assert Store(tmp_path).has("fit", KEY)
    assert not Store(tmp_path).has("fit", "cd" * 32)


def test_interrupted_writer_leaves_no_artifact(tmp_path):
    store = Store(tmp_path)

    def fail_half_way() -> None:
        with store.writing("fit", KEY) as folder:
            (folder / "value.txt").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert not store.has("fit", KEY)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "remove", "manifest"])
def test_damaged_artifact_is_dropped_with_a_warning(tmp_path, damage):
    folder = write(Store(tmp_path))
    if damage == "flip":
        (folder / "value.txt").write_text("cOntent")
    elif damage == "remove":
        (folder / "value.txt").unlink()
    else:
        (folder / "manifest.json").write_text("{")
    with pytest.warns(UserWarning, match="is damaged .* computed again"):
        assert not Store(tmp_path).has("fit", KEY)
    assert not folder.exists()


def test_measured_cost_is_not_part_of_the_content(tmp_path):
    folder = write(Store(tmp_path))
    (folder / COST).write_text('{"seconds": 99}')
    assert Store(tmp_path).has("fit", KEY)


def test_second_writer_of_one_key_keeps_the_first_artifact(tmp_path):
    write(Store(tmp_path), "first")
    folder = write(Store(tmp_path), "second")
    assert (folder / "value.txt").read_text() == "first"


def _compute_once(root: str) -> int:
    store = Store(Path(root))
    with store.lock(KEY):
        if store.has("fit", KEY):
            return 0
        write(store, str(os.getpid()))
        return 1


def test_processes_that_want_one_key_compute_it_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        computed = pool.map(_compute_once, [str(tmp_path)] * 8)
    assert sum(computed) == 1
    assert Store(tmp_path).has("fit", KEY)


def test_sweep_removes_scratch_of_dead_processes_only(tmp_path):
    store = Store(tmp_path)
    with store.scratch() as alive:
        host, _, tail = alive.name.rsplit("-", 2)
        dead = alive.with_name(f"{host}-999999999-{tail}")
        dead.mkdir()
        assert store.sweep() == 1
        assert alive.exists()
        assert not dead.exists()


def test_sweep_leaves_machines_whose_names_begin_alike_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.store.machine_name", lambda: "node")
    others = [tmp_path / "tmp" / f"node-{number}-4711-abcdef12" for number in (12, 999999999)]
    dead = tmp_path / "tmp" / "node-999999999-abcdef12"
    for folder in (*others, dead):
        folder.mkdir(parents=True)
    assert Store(tmp_path).sweep() == 1
    assert all(folder.exists() for folder in others)
    assert not dead.exists()


def test_containers_of_one_host_name_do_not_sweep_each_others_scratch(tmp_path, monkeypatch):
    """Each counts its processes from one: a number of the other's means nothing here."""
    store, stat = Store(tmp_path), os.stat

    def inside(number):
        def look(path, *rest, **others):
            asked = path == "/proc/self/ns/pid"
            return SimpleNamespace(st_ino=number) if asked else stat(path, *rest, **others)

        monkeypatch.setattr("bench.store.os.stat", look)

    monkeypatch.setattr("bench.store.process_alive", lambda pid: False)
    inside(4026532201)
    with store.scratch() as scratch:
        inside(4026532202)
        assert store.sweep() == 0
        assert scratch.is_dir()
        inside(4026532201)
        assert store.sweep() == 1


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_file_system_that_does_not_answer_damages_nothing(tmp_path, monkeypatch, number):
    """Hours of work are not thrown away because a manifest cannot be read just now."""
    write(Store(tmp_path), "value")

    def refuse(path):
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("bench.store.read_json", refuse)
        with pytest.raises(OSError, match=re.escape(os.strerror(number))):
            Store(tmp_path).has("fit", KEY)
    assert Store(tmp_path).has("fit", KEY)


def test_canonical_json_ignores_order_and_refuses_nan():
    assert canonical_json({"b": 1, "a": [2.5]}) == canonical_json({"a": [2.5], "b": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})
    with pytest.raises(ValueError):
        canonical_json({"a": float("nan")})


def test_atomic_write_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, "one")
    write_atomically(path, b"two")
    assert path.read_text() == "two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_what_cannot_be_written_is_named_as_the_user_knows_it(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EROFS, "Read-only file system", str(source))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="Read-only") as raised:
        write_atomically(tmp_path / "file.txt", "one")
    assert raised.value.filename == str(tmp_path / "file.txt")
    assert raised.value.errno == errno.EROFS
    assert not list(tmp_path.iterdir())


def test_a_folder_is_tried_before_it_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "deep" / "folder")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    with pytest.raises(NotADirectoryError) as raised:
        check_writable(tmp_path / "file" / "folder")
    assert raised.value.filename == str(tmp_path / "file" / "folder")
