"""The submodules under ``third_party/``: fetching them, and what is there.

Each is a repository of its own, of which only the pinned commit and the folders that adapters use
are checked out; in a git checkout of this project it is the submodule as well. Nothing but
:func:`sync` asks a server.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import bench
from bench.errors import InputError, nearest
from bench.upstream.repositories import SHORT, Repository, repositories
from bench.upstream.worktree import GitError, Worktree, client

NO_LICENCE = "no licence: run only, do not redistribute"
State = Literal["absent", "present", "other commit", "modified", "broken"]
_SHOWN_PATHS = 3


class UpstreamAbsent(InputError):  # noqa: N818
    """A repository is not there, or not completely; the message is the command that fetches it."""


class UpstreamChanged(InputError):  # noqa: N818
    """A repository is not what is pinned: another commit, or files that somebody changed."""


class SyncError(InputError):
    """A repository could not be fetched or checked out."""


@dataclass(frozen=True)
class Checkout:
    """What lies in the folder of a repository.

    Attributes
    ----------
    state
        ``broken`` where an interrupted sync, or a damaged repository, waits for the next sync.
    commit
        What is checked out, 40 digits; empty where that cannot be read.
    changes
        Modified, staged or untracked paths, sorted; not what is ignored or left out by a sync.
    licence
        Its name or its file's; what follows from having none; empty where it cannot be told.
    """

    repository: Repository
    path: Path
    state: State
    commit: str
    changes: tuple[str, ...]
    licence: str


def third_party_root() -> Path:
    """The folder of all checkouts: ``BENCH_THIRD_PARTY``, or ``third_party/`` of the project."""
    given = os.environ.get("BENCH_THIRD_PARTY")
    project = Path(bench.__file__).resolve().parents[1]
    return Path(given).resolve() if given else project / "third_party"


def status(
    root: Path | None = None, known: Mapping[str, Repository] | None = None
) -> list[Checkout]:
    """What is there of every repository, without asking a server."""
    chosen = repositories() if known is None else known
    return [_look(repository, root or third_party_root()) for repository in chosen.values()]


def located(
    name: str,
    allowed: Collection[str] = (),
    root: Path | None = None,
    known: Mapping[str, Repository] | None = None,
) -> Path:
    """The folder of a repository, ready to run.

    Raises
    ------
    UpstreamAbsent
        With the command that fetches it.
    UpstreamChanged
        When it is at another commit or modified and ``allowed`` does not name it.
    """
    found = _look(_find(name, known), root or third_party_root())
    if found.state in ("absent", "broken"):
        raise UpstreamAbsent(f"bench third-party sync {name}")
    if found.state != "present" and name not in allowed:
        raise UpstreamChanged(_difference(found))
    return found.path


def revision(
    name: str, root: Path | None = None, known: Mapping[str, Repository] | None = None
) -> str:
    """The commit found, with a digest of the files that differ from it; or ``absent``.

    Equal revisions are equal code.
    """
    found = _look(_find(name, known), root or third_party_root())
    if not found.commit:
        return "absent"
    if found.state not in ("modified", "broken"):
        return found.commit
    digest = hashlib.sha256()
    for change in found.changes:
        path = found.path / change
        digest.update(f"{change}\0".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return f"{found.commit}+{digest.hexdigest()[:16]}"


def sync(
    names: Sequence[str] | None = None,
    root: Path | None = None,
    report: Callable[[str], None] = print,
    known: Mapping[str, Repository] | None = None,
) -> None:
    """Fetch and check out the pinned commit of the repositories called ``names``, or of all.

    What is there already stays and what was interrupted is mended. One that fails does not stop
    the others.

    Raises
    ------
    UpstreamChanged
        When somebody's files would be lost; nothing of them was touched.
    SyncError
        When there is no network, no such commit, or a URL that is not https.
    """
    chosen = [_find(name, known) for name in dict.fromkeys(names or known or repositories())]
    root = root or third_party_root()
    failures: list[InputError] = []
    for repository in chosen:
        try:
            _sync(repository, root, report)
        except InputError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        for failure in failures:
            report(str(failure))
        raise SyncError(f"{len(failures)} of {len(chosen)} repositories are not synced, see above")


def _sync(repository: Repository, root: Path, report: Callable[[str], None]) -> None:
    name = repository.name
    if not repository.url.startswith("https://"):
        raise SyncError(f"{name}: {repository.url!r} is not an https URL; only these are fetched")
    if not re.fullmatch("[0-9a-f]{40}", repository.commit):
        raise SyncError(f"{name}: the pin {repository.commit!r} is no commit of 40 digits")
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if _look(repository, root).state == "present":
            report(f"{name}: already at {repository.short}")
        else:
            tree = Worktree(folder)
            _tell_of_commits(repository, tree, report)
            try:
                _check_out(repository, tree, report)
            except GitError as failure:
                raise SyncError(
                    f"{name}: {folder}: {failure}; sync again, or remove {folder}/.git first"
                ) from failure
            found = _look(repository, root)
            if found.state != "present":
                raise SyncError(_difference(found))
            report(f"{name}: at {repository.short}")
    _register(folder)


def _tell_of_commits(repository: Repository, tree: Worktree, report: Callable[[str], None]) -> None:
    """Name a commit that is about to be left: git keeps it, but no branch may lead to it."""
    head = tree.head()
    if head is not None and head != repository.commit:
        report(f"{repository.name}: leaving {head[:SHORT]} (git -C {tree.folder} reflog has it)")


def _check_out(repository: Repository, tree: Worktree, report: Callable[[str], None]) -> None:
    """From any state to the pinned commit, unless somebody's files stand in the way."""
    commit = repository.commit
    _mend(tree)
    if not tree.has(commit):
        if tree.head() is not None:
            _refuse_changes(repository, tree)
        try:
            _fetch(repository, tree, report)
        except SyncError:
            tree.withdraw()
            raise
    if tree.head() is None:
        tree.adopt(commit)
    _refuse_changes(repository, tree)
    tree.checkout(commit, repository.folders)


def _mend(tree: Worktree) -> None:
    """A repository whose commit and index can be read, or an empty one."""
    tree.unlock()
    head = tree.head()
    if head is not None:
        try:
            tree.changes()
            return
        except GitError:
            pass
        try:
            tree.adopt(head)
            tree.changes()
            return
        except GitError:
            pass
    tree.start()


def _fetch(repository: Repository, tree: Worktree, report: Callable[[str], None]) -> None:
    name, url = repository.name, repository.url
    server = tree.server(url)
    source = url if server == url else f"{url} (from {server})"
    report(f"{name}: fetching {repository.short} of {source}")
    try:
        tree.fetch(url, repository.commit)
    except GitError as failure:
        raise SyncError(
            f"{name}: cannot fetch {source}: {failure}; where there is a mirror: "
            f"git config --global url.MIRROR.insteadOf {url}"
        ) from failure
    if not tree.has(repository.commit):
        raise SyncError(f"{name}: {source} has no commit {repository.commit}, which is pinned")


def _refuse_changes(repository: Repository, tree: Worktree) -> None:
    """Stop where files are neither of the commit found nor what a killed checkout was writing."""
    edited, _ = tree.changes()
    if edited and tree.has(repository.commit):
        edited = [path for path in edited if not tree.begins(path, repository.commit)]
    if edited:
        raise UpstreamChanged(
            f"{tree.folder} has files of yours, and is left alone: {_some(sorted(edited))}; move "
            f"them away (git -C {tree.folder} stash -u), then bench third-party sync "
            f"{repository.name}"
        )


def _look(repository: Repository, root: Path) -> Checkout:
    path = root / repository.name
    if not path.is_dir() or not any(path.iterdir()):
        return Checkout(repository, path, "absent", "", (), "")
    tree = Worktree(path)
    commit = tree.head() or ""
    changes: list[str] = []
    state: State = "broken"
    if commit:
        try:
            changes, missing = tree.changes()
            complete = not missing and tree.holds(repository.folders)
        except GitError:
            complete = False
        if changes:
            state = "modified"
        elif commit != repository.commit:
            state = "other commit"
        elif complete:
            state = "present"
    return Checkout(repository, path, state, commit, tuple(sorted(changes)), _licence(path))


def _difference(found: Checkout) -> str:
    """How a checkout differs from what is pinned, in one line."""
    pinned = found.repository.short
    parts = []
    if found.commit != found.repository.commit:
        parts.append(f"at {found.commit[:SHORT] or 'no commit'}, pinned is {pinned}")
    if found.changes:
        parts.append(f"changed: {_some(found.changes)}")
    return (
        f"{found.path} is {found.state}: {'; '.join(parts) or 'files are missing'}; mend it (git "
        f"stash, bench third-party sync {found.repository.name}) or set allow_changed: true"
    )


def _some(paths: Sequence[str]) -> str:
    rest = len(paths) - _SHOWN_PATHS
    return ", ".join(paths[:_SHOWN_PATHS]) + (f" and {rest} more" if rest > 0 else "")


def _licence(folder: Path) -> str:
    files = sorted(
        path
        for path in folder.iterdir()
        if re.match(r"(licen[cs]e|copying)", path.name, re.IGNORECASE) and path.is_file()
    )
    if not files:
        return NO_LICENCE
    text = " ".join(files[0].read_text(encoding="utf-8", errors="replace").split()).lower()
    for licence, words in _LICENCES.items():
        if all(word in text for word in words):
            return licence
    return f"see {files[0].name}"


_LICENCES = {
    "MIT": ("permission is hereby granted, free of charge", "the above copyright notice"),
    "Apache-2.0": ("apache license", "version 2.0"),
    "AGPL-3.0": ("gnu affero general public license", "version 3"),
    "LGPL-3.0": ("gnu lesser general public license version 3",),
    "GPL-3.0": ("gnu general public license version 3",),
    "GPL-2.0": ("gnu general public license version 2",),
    "BSD-3-Clause": ("redistribution and use in source and binary forms", "neither the name"),
    "BSD-2-Clause": ("redistribution and use in source and binary forms",),
    "CC-BY-NC-4.0": ("attribution-noncommercial 4.0 international",),
}
"""Words that all stand in a licence's text, the more particular licence first."""


def _find(name: str, known: Mapping[str, Repository] | None) -> Repository:
    chosen = repositories() if known is None else known
    if name not in chosen:
        raise InputError(f"unknown repository {name!r}{nearest(name, chosen)}")
    return chosen[name]


def _register(folder: Path) -> None:
    """Tell a git checkout of this project that its submodule is in use; elsewhere do nothing."""
    project = client().Git(folder.parent.parent)
    path = f"{folder.parent.name}/{folder.name}"
    quiet = {"with_exceptions": False, "with_extended_output": True}
    git = client().Git.GIT_PYTHON_GIT_EXECUTABLE
    _, listing, _ = project.execute([git, "ls-files", "--stage", "--", path], **quiet)
    if listing.startswith("160000 "):
        _, url, _ = project.execute([git, "config", "--get", f"submodule.{path}.url"], **quiet)
        if not url:
            project.execute([git, "submodule", "--quiet", "init", "--", path], **quiet)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for another sync of the same folder; the system forgets the lock of a killed one."""
    try:
        import fcntl
    except ImportError:  # a system without such locks
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
