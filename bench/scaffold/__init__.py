"""Starts a component: a working file beside the built-in ones, and its test."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal

from bench import registry
from bench.errors import InputError
from bench.store import write_atomically

Kind = Literal["attack", "defense"]
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
MOST_LETTERS = 40


@dataclass(frozen=True)
class Started:
    """What :func:`start` wrote."""

    kind: Kind
    name: str
    component: Path
    test: Path

    def written(self) -> list[str]:
        """The two files, from the current folder where they lie below it."""
        return [_shown(path) for path in (self.component, self.test)]

    def next_steps(self) -> list[str]:
        """What the author does next, one line each."""
        return [
            f"Put your method into {self.component.name}; the contract is bench/api.py.",
            f"bench check {self.kind} {self.name}",
            f"python -m pytest {_shown(self.test)}",
            f"Add `- {self.name}` to matrix.{self.kind}s in bench.yaml, then: bench run",
            "Record its version: python tests/harness/test_fingerprints.py --accept",
        ]


def start(kind: Kind, name: str) -> Started:
    """Write ``<kind>s/<name>.py`` and ``tests/<kind>s/test_<name>.py``.

    Raises
    ------
    InputError
        When the name is no name of a component or taken, a file is there already, or the harness
        is installed as a package, whose folder is no place to write into. Nothing is written.
    """
    module, class_name = _names(kind, name)
    folder = registry.folder(f"{kind}s")
    root = folder.parent
    if not (root / "pyproject.toml").is_file():
        raise InputError(
            f"{folder.name} is installed as a package, not checked out: put your {kind} into a "
            f"package of its own that offers it in the entry-point group bench.{kind}s"
        )
    started = Started(
        kind, name, folder / f"{module}.py", root / "tests" / f"{kind}s" / f"test_{module}.py"
    )
    for path in (started.component, started.test):
        if path.exists():
            raise InputError(f"{_shown(path)} is there already; choose another name")
    words = {
        "name": name,
        "module": module,
        "class_name": class_name,
        "title": name.replace("-", " ").capitalize(),
    }
    write_atomically(started.component, _template(f"{kind}.py.txt").substitute(words))
    write_atomically(started.test, _template(f"test_{kind}.py.txt").substitute(words))
    return started


def _names(kind: Kind, name: str) -> tuple[str, str]:
    """Module and class of a component.

    Raises
    ------
    InputError
        When the name cannot be one, or is taken by an attack or a defense.
    """
    if not NAME.fullmatch(name) or len(name) > MOST_LETTERS:
        raise InputError(
            f"{name!r} cannot name {_article(kind)}: use lower-case words with dashes, such as "
            f"my-{kind}, at most {MOST_LETTERS} letters"
        )
    for group in registry.GROUPS:
        if name in registry.entries(group):
            raise InputError(f"there is {_article(group[:-1])} called {name!r} already")
    module = name.replace("-", "_")
    if (registry.folder(f"{kind}s") / module).is_dir():
        raise InputError(f"{kind}s/{module} is a folder; take another name")
    class_name = "".join(word.capitalize() for word in name.split("-"))
    used = set(re.findall(r"\w+", _template(f"{kind}.py.txt").template))
    if keyword.iskeyword(module) or keyword.iskeyword(class_name) or class_name in used:
        raise InputError(f"{name!r} means something else in Python or here; add a word to it")
    return module, class_name


def _article(kind: str) -> str:
    return f"an {kind}" if kind == "attack" else f"a {kind}"


def _template(name: str) -> Template:
    return Template(files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
