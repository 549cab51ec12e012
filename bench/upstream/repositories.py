"""Which published repositories there are, and where they are pinned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from bench.errors import InputError, nearest

SHORT = 7
"""Digits of a commit that are shown."""


@dataclass(frozen=True)
class Repository:
    """A published repository.

    Attributes
    ----------
    name
        Of the folder under ``third_party/``.
    url
        Where it is published, https.
    commit
        The pin, 40 hexadecimal digits.
    folders
        What is checked out beside the files at the root.
    """

    name: str
    url: str
    commit: str
    folders: tuple[str, ...]

    @property
    def short(self) -> str:
        return self.commit[:SHORT]


def repositories() -> dict[str, Repository]:
    """Every published repository by name."""
    return dict(_repositories())


def find(name: str) -> Repository:
    """The repository called ``name``.

    Raises
    ------
    InputError
        For an unknown name, with the nearest valid one.
    """
    known = _repositories()
    if name not in known:
        raise InputError(f"unknown repository {name!r}{nearest(name, known)}")
    return known[name]


@cache
def _repositories() -> dict[str, Repository]:
    file = Path(__file__).with_name("repositories.yaml")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {
        name: Repository(name, entry["url"], entry["commit"], tuple(entry["folders"]))
        for name, entry in content.items()
    }
