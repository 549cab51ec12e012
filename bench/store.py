"""Content-addressed artifacts: one folder per stage key, atomic, verified, pickle-free.

Layout: ``<root>/<kind>/<key[:2]>/<key>/`` holds the files of a stage and ``manifest.json`` with
their SHA-256. A folder appears under its final name only when complete (a rename), so that a
reader never sees half an artifact and a killed writer leaves only a folder under ``tmp/``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from bench.limits import check_inside, check_regular, read_json

MANIFEST = "manifest.json"
COST = "cost.json"
"""Measured seconds and memory: beside the artifact, not part of its content."""


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


class Shared(dict[str, Any]):
    """A mapping of many descriptions, written as canonical JSON once; nobody may change it."""

    @cached_property
    def parts(self) -> dict[str, str]:
        """Key -> the entry as JSON."""
        return {key: f"{_encode(key)}:{_encode(value)}" for key, value in self.items()}

    @cached_property
    def canonical(self) -> str:
        return _joined(self.parts)


class Extended(dict[str, Any]):
    """A shared mapping with entries of its own; only these are written anew."""

    __slots__ = ("_own", "_shared")

    def __init__(self, shared: Shared, **own: Any) -> None:
        super().__init__(shared, **own)
        self._shared, self._own = shared, tuple(own)

    @property
    def canonical(self) -> str:
        own = {key: f"{_encode(key)}:{_encode(self[key])}" for key in self._own}
        return _joined({**self._shared.parts, **own})


def _joined(parts: Mapping[str, str]) -> str:
    return f"{{{','.join(parts[key] for key in sorted(parts))}}}"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no whitespace: equal values give equal text.

    Raises
    ------
    TypeError, ValueError
        For what JSON cannot hold (NaN and infinities included).
    """
    return value.canonical if isinstance(value, Shared | Extended) else _encode(value)


def content_key(description: Mapping[str, Any]) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of a description."""
    return text_key(canonical_json(description))


def text_key(canonical: str) -> str:
    """:func:`content_key` of a description whose canonical JSON is at hand."""
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises
    ------
    InputError
        When it is no regular file: a named pipe would be waited for.
    """
    check_regular(path)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a small file so that a reader sees the old or the new one, never a part.

    Raises
    ------
    OSError
        Names ``path``, not the file beside it that is written first.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                temporary.write_text(content, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an :class:`OSError` of the block name ``path``: scratch files mean nothing to a user."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def check_writable(folder: Path) -> None:
    """Raise the :class:`OSError` that writing into ``folder`` would, without making it."""
    with naming(folder), tempfile.TemporaryFile(dir=nearest_there(folder)):
        pass


def nearest_there(folder: Path) -> Path:
    """The folder itself, or what there is of the way to it; a link that leads nowhere is there."""
    way = (folder, *folder.absolute().parents)
    return next(path for path in way if os.path.lexists(path))


def seal(folder: Path) -> None:
    """Write the manifest of checksums over every file in ``folder``."""
    files = {
        path.relative_to(folder).as_posix(): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, COST)
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1, sort_keys=True) + "\n")


_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder in a few words; None when it is whole.

    Raises
    ------
    OSError
        When the file system does not answer: that says nothing of the folder, and whoever took it
        for damage would throw hours of work away.
    """
    try:
        files = read_json(folder / MANIFEST)["files"]
    except (ValueError, KeyError, TypeError):
        return "its manifest cannot be read"
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        return "its manifest cannot be read"
    if not isinstance(files, dict):
        return "its manifest cannot be read"
    for name, digest in files.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return f"its manifest names {name!r}, which is not in it"
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if file_digest(path) != digest:
            return f"{name} does not match its checksum"
    return None


class Store:
    """The cache of stage artifacts under ``root``; safe for several processes at once.

    ``root`` may be a link, but nothing in it may lead out of it: what lies elsewhere is neither
    read nor written, and an :class:`bench.errors.InputError` names the link.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._verified: set[str] = set()

    def folder(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / key

    def has(self, kind: str, key: str) -> bool:
        """Whether the artifact is there and whole. A damaged one is removed with a warning."""
        folder = self.folder(kind, key)
        if not folder.is_dir():
            return False
        if key in self._verified:
            return True
        for path in (folder, *folder.rglob("*")):
            check_inside(path, self.root)
        problem = damage(folder)
        if problem is None:
            self._verified.add(key)
            return True
        warnings.warn(
            f"cached {kind} {key[:12]} is damaged ({problem}); it is computed again", stacklevel=2
        )
        self._discard(folder)
        return False

    def peek(self, kind: str, key: str) -> bool:
        """Whether a folder of that key exists, unverified (for plans and status)."""
        return self.folder(kind, key).is_dir()

    def beside(self, *names: str) -> Path:
        """The path of what is no artifact (logs, traces of failures, times), by its names."""
        path = self.root.joinpath(*names)
        check_inside(path, self.root)
        return path

    def check_links(self) -> None:
        """Refuse a cache whose folders for notes lead out of it, before anything is begun."""
        for name in ("failures", "locks", "logs", "seconds", "tmp"):
            self.beside(name)

    def keys(self, kind: str) -> set[str]:
        """The keys of all folders of a kind, unverified: :meth:`peek` for many at once."""
        return {path.name for path in (self.root / kind).glob("??/*")}

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Exclusive right to compute ``key``; another process waits here until it is done."""
        path = self.beside("locks", f"{key}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path):
            yield

    @contextlib.contextmanager
    def writing(self, kind: str, key: str) -> Iterator[Path]:
        """A scratch folder that becomes the artifact when the block ends without an error."""
        target = self.folder(kind, key)
        check_inside(target, self.root)
        with self.scratch() as scratch:
            yield scratch
            seal(scratch)
            publish(scratch, target)
        self._verified.add(key)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder under ``tmp/``, removed at the end unless it was renamed away."""
        scratch = self.beside("tmp", scratch_name())
        with naming(self.root):
            scratch.mkdir(parents=True)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def sweep(self) -> int:
        """Remove scratch folders of processes of this machine that no longer live."""
        return sweep_scratch(self.beside("tmp"))

    def _discard(self, folder: Path) -> None:
        doomed = self.beside("tmp", scratch_name())
        doomed.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def publish(scratch: Path, target: Path) -> None:
    """Rename a finished folder to its final name; whoever came first wins."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(scratch, target)
    except OSError:
        if not target.is_dir():
            raise
        if damage(target) is not None:
            shutil.rmtree(target)
            os.rename(scratch, target)


def scratch_name() -> str:
    """A new name that tells machine and process: whoever finds it can tell whether it is in use."""
    return f"{machine_name()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def sweep_scratch(folder: Path) -> int:
    """Remove what processes of this machine left in ``folder`` when they died; how many."""
    removed = 0
    for scratch in folder.glob("*-*-*"):
        # From the right: machines are called node and node-12.
        host, pid, _ = scratch.name.rsplit("-", 2)
        if host == machine_name() and pid.isdecimal() and not process_alive(int(pid)):
            shutil.rmtree(scratch, ignore_errors=True)
            removed += 1
    return removed


FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""The kernel's own number for the processes outside all containers."""


def machine_name() -> str:
    """Among which processes a process number says anything: the host, or a container on it.

    Containers may share a host's name and a cache, and still count their processes from one.
    """
    host = socket.gethostname()
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # not Linux
        return host
    return host if namespace == FIRST_PID_NAMESPACE else f"{host}.{namespace}"


def process_alive(pid: int) -> bool:
    """Whether a process of this machine lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
