"""A folder with a git repository of its own in it: its commit, its changes, fetch and checkout."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType

from bench.errors import InputError

_OFFLINE = {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0"}
_STALLED = ("-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60")
_LOCAL_SERVER = "git -c uploadpack.allowFilter=true upload-pack"
"""Lets a mirror on this machine leave files out, one that it lacks among them."""
_CACHES = ("__pycache__", ".ipynb_checkpoints", ".DS_Store")
_LEFT_OUT = ("!/*.pdf", "!/*.png", "!__pycache__/")


class GitError(Exception):
    """A git command failed; the message is the line of its output that says why."""

    def __init__(self, output: str) -> None:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith(("fatal:", "remote: fatal:"))]
        super().__init__((telling or lines[-1:] or ["git failed"])[0])
        self.output = output


class Worktree:
    """What git says of ``folder`` itself, never of a repository around it.

    Unless a method says otherwise it asks no server, not even for objects left out of a fetch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    @property
    def git_folder(self) -> Path | None:
        """The repository's metadata; None where there is none or what is there is no repository."""
        found = self.folder / ".git"
        if found.is_file():
            found = self.folder / _text(found).removeprefix("gitdir:").strip()
        complete = (found / "HEAD").is_file() and (found / "objects").is_dir()
        return found if complete and (found / "refs").is_dir() else None

    def head(self) -> str | None:
        """The commit checked out, 40 digits; None where there is none that can be read."""
        if self.git_folder is None:
            return None
        try:
            return self._git("rev-parse", "--verify", "--quiet", "HEAD^{commit}").strip()
        except GitError:
            return None

    def has(self, commit: str) -> bool:
        """Whether ``commit`` has been fetched."""
        try:
            self._git("cat-file", "-e", f"{commit}^{{commit}}")
        except GitError:
            return False
        return True

    def changes(self) -> tuple[list[str], list[str]]:
        """Paths that are modified, staged or untracked; and paths that are missing.

        What git ignores, what Python caches and what a sparse checkout leaves out is neither.

        Raises
        ------
        GitError
            When the index or an object cannot be read.
        """
        if not self._index().is_file():
            raise GitError("there is no index")
        listing = self._git(
            "status",
            "--porcelain",
            "-z",
            "--no-renames",
            "--untracked-files=all",
            "--ignore-submodules=none",
        )
        edited, missing = [], []
        for record in filter(None, listing.split("\0")):
            code, path = record[:2], record[3:]
            if any(part in _CACHES for part in PurePosixPath(path).parts):
                continue
            (missing if code == " D" else edited).append(path)
        return edited, missing

    def holds(self, folders: Sequence[str]) -> bool:
        """Whether the checkout is of everything, or of exactly these folders."""
        try:
            sparse = self._git("config", "--type=bool", "--get", "core.sparseCheckout").strip()
        except GitError:
            return True
        return sparse != "true" or self._patterns() == _sparse_patterns(folders)

    def begins(self, path: str, commit: str) -> bool:
        """Whether the file at ``path`` is the committed one, or a beginning of it.

        So is every file that an interrupted checkout was writing. Fetches what it compares.
        """
        file = self.folder / path
        if file.is_symlink() or not file.is_file():
            return False
        try:
            committed = self._run(["cat-file", "blob", f"{commit}:{path}"], online=True)
        except GitError:
            return False
        return committed.startswith(file.read_bytes())

    def start(self) -> None:
        """An empty repository in the folder; the files stay. A damaged one makes room.

        Raises
        ------
        InputError
            When the damaged one has branches, tags, a stash or new commits: somebody's work.
        """
        found = self.folder / ".git"
        if found.is_dir() and _has_work(found):
            raise InputError(
                f"{self.folder}/.git is damaged and holds work of yours; "
                "move it away, then sync again"
            )
        if found.is_dir() and not found.is_symlink():
            shutil.rmtree(found)
        else:
            found.unlink(missing_ok=True)
        self._git("init", "--quiet")

    def withdraw(self) -> None:
        """Leave an empty folder where nothing but an empty repository was made."""
        found = self.folder / ".git"
        alone = [path.name for path in self.folder.iterdir()] == [".git"]
        if alone and found.is_dir() and self.head() is None and not _has_work(found):
            shutil.rmtree(found)

    def unlock(self) -> None:
        """Remove the lock files of a git that was killed."""
        found = self.git_folder
        if found is None:
            return
        for pattern in ("*.lock", "info/*.lock", "refs/**/*.lock"):
            for lock in found.glob(pattern):
                lock.unlink(missing_ok=True)

    def fetch(self, url: str, commit: str) -> None:
        """Fetch one commit from the server, or all branches where it gives no single commit.

        Raises
        ------
        GitError
        """
        remote = self._remote(url)
        what = ["fetch", "--quiet", "--no-tags"]
        # A clone of somebody's own keeps its history.
        small = ["--depth=1", "--filter=blob:none"] if self._is_small() else []
        try:
            self._git(*what, *small, remote, commit, online=True)
        except GitError as refusal:
            if not any(words in refusal.output for words in _REFUSALS):
                raise
            # Who gives no single commit gives no single file later.
            branches = "+refs/heads/*:refs/remotes/origin/*"
            self._git(*what, "--no-filter", remote, branches, online=True)

    def adopt(self, commit: str) -> None:
        """Make ``commit`` the one checked out and touch no file: what differs is a change."""
        self._index().unlink(missing_ok=True)
        self._git("read-tree", commit)
        self._git("update-ref", "--no-deref", "HEAD", commit)

    def checkout(self, commit: str, folders: Sequence[str]) -> None:
        """Check out ``commit``, the root's files and ``folders`` only. Overwrites changes.

        Fetches the files.

        Raises
        ------
        GitError
        """
        found = self.git_folder
        assert found is not None
        info = found / "info"
        info.mkdir(exist_ok=True)
        with (info / "exclude").open("a+", encoding="utf-8") as excluded:
            excluded.seek(0)
            known = excluded.read().splitlines()
            excluded.writelines(f"{name}\n" for name in _CACHES if name not in known)
        (info / "sparse-checkout").write_text(_sparse_patterns(folders), encoding="utf-8")
        self._git("config", "core.sparseCheckout", "true")
        self._git("config", "core.sparseCheckoutCone", "false")
        self._git("checkout", "--quiet", "--force", "--detach", commit, online=True)

    def server(self, url: str) -> str:
        """Where git goes for ``url``: the user's configuration may name a mirror."""
        return self._git("ls-remote", "--get-url", url).strip()

    def _remote(self, url: str) -> str:
        """What to fetch ``url`` from. A remote that is somebody's own is left alone."""
        try:
            known = self._git("config", "--get", "remote.origin.url").strip()
        except GitError:
            self._git("remote", "add", "origin", url)
            return "origin"
        return "origin" if known == url else url

    def _is_small(self) -> bool:
        found = self.git_folder
        return found is not None and (self.head() is None or (found / "shallow").is_file())

    def _patterns(self) -> str:
        return _text((self.git_folder or self.folder) / "info" / "sparse-checkout")

    def _index(self) -> Path:
        return (self.git_folder or self.folder) / "index"

    def _git(self, *arguments: str, online: bool = False) -> str:
        return self._run(arguments, online=online).decode("utf-8", errors="surrogateescape")

    def _run(self, arguments: Sequence[str], *, online: bool = False) -> bytes:
        git = client()
        place = {
            "GIT_DIR": str(self.folder.absolute() / ".git"),
            "GIT_WORK_TREE": str(self.folder.absolute()),
            "GIT_INDEX_FILE": str(self._index().absolute()),
            "GIT_TERMINAL_PROMPT": "0",
            **({} if online else _OFFLINE),
        }
        server: tuple[str, ...] = ()
        if online and self._is_local():
            server = ("-c", f"remote.origin.uploadpack={_LOCAL_SERVER}")
        status, output, complaint = git.Git(self.folder).execute(
            [git.Git.GIT_PYTHON_GIT_EXECUTABLE, *_STALLED, *server, *arguments],
            env=place,
            with_extended_output=True,
            with_exceptions=False,
            stdout_as_string=False,
            strip_newline_in_stdout=False,
        )
        if status:
            raise GitError(complaint)
        return output

    def _is_local(self) -> bool:
        try:
            server = self._git("ls-remote", "--get-url", "origin").strip()
        except GitError:
            return False
        return server.startswith("file://") or os.path.isabs(server)


_REFUSALS = ("not our ref", "unadvertised object", "find remote ref", "shallow")
"""What servers say that give branches only, or no shallow ones."""


def _sparse_patterns(folders: Sequence[str]) -> str:
    wanted = ["/*", "!/*/", *(f"/{folder}/" for folder in folders), *_LEFT_OUT]
    return "".join(f"{line}\n" for line in wanted)


def _has_work(git_folder: Path) -> bool:
    """Whether there are commits or names that no fetch of ours makes."""
    references = git_folder / "refs"
    names = {
        file.relative_to(references).parts[0]
        for file in references.rglob("*")
        if file.is_file() and file.suffix != ".lock"
    }
    names |= set(re.findall(r" refs/([^/\s]+)", _text(git_folder / "packed-refs")))
    return bool(names - {"remotes"}) or "\tcommit" in _text(git_folder / "logs" / "HEAD")


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def client() -> ModuleType:
    """GitPython, which needs git itself."""
    try:
        import git
    except ImportError as error:
        raise InputError("git is not installed, and published code is fetched with it") from error
    return git
