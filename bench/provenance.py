"""What made a number: code version, library versions, hardware."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench

if TYPE_CHECKING:
    from git import Repo

LIBRARIES = (
    *("torch", "torchvision", "timm", "open_clip_torch", "numpy", "scipy", "scikit-learn"),
    *("statsmodels", "pandas", "pyarrow", "pillow"),
)
UPSTREAM_LIBRARIES = ("kornia", "opencv-python-headless", "POT", "warmup_scheduler", "natsort")
"""What the authors' code computes with beside these: extra ``[upstream]``."""
SOURCES = ("bench", "attacks", "defenses", "pyproject.toml")


@cache
def code_version() -> str:
    """The package version, from a git checkout with its commit; where that was edited, ``dirty``
    and a digest of what differs, which tells two such states apart."""
    try:
        from git import InvalidGitRepositoryError, Repo
        from git.exc import GitError
    except ImportError:  # GitPython refuses to load where there is no git
        return bench.__version__
    root = Path(bench.__file__).resolve().parents[1]
    try:
        repository = Repo(root)
        commit = repository.head.commit.hexsha[:10]
        changed = repository.git.status("--porcelain", "--untracked-files=all", "--", *SOURCES)
        state = f".dirty.{_edits(repository)}" if changed else ""
    except (InvalidGitRepositoryError, GitError, ValueError, OSError):
        return bench.__version__
    return f"{bench.__version__}+g{commit}{state}"


def _edits(repository: Repo) -> str:
    """A digest of what differs from the commit in :data:`SOURCES`, new files included."""
    difference = repository.git.diff("HEAD", "--binary", "--", *SOURCES)
    digest = hashlib.sha256(difference.encode(errors="surrogateescape"))
    new = repository.git.ls_files("--others", "--exclude-standard", "-z", "--", *SOURCES)
    for name in sorted(filter(None, new.split("\0"))):
        path = Path(repository.working_tree_dir or "") / name
        digest.update(name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()[:8]


@cache
def library_versions() -> dict[str, str]:
    """Version of Python and of every library that numbers depend on; of what only the authors' code
    needs, as far as it is installed."""
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, *UPSTREAM_LIBRARIES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            if name in LIBRARIES:
                found[name] = "not installed"
    return found


@cache
def hardware(device: str) -> dict[str, Any]:
    """The machine in words: processor, cores, and the accelerator when one is used."""
    described: dict[str, Any] = {
        "device": device,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
    }
    if device == "cuda":
        import torch

        described["accelerator"] = torch.cuda.get_device_name()
    return described


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
