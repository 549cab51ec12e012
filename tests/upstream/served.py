"""A published repository of our own making, its server and the folder it is fetched into."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.upstream import checkout
from bench.upstream.repositories import Repository

URL = "https://published.invalid/authors/"
MIT = "Permission is hereby granted, free of charge ... The above copyright notice ..."


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


class World:
    """An author's server with three commits, the second of them pinned, and our third_party/."""

    def __init__(self, folder: Path) -> None:
        self.server = folder / "served" / "FAKE"
        self.root = folder / "project" / "third_party"
        self.path = self.root / "FAKE"
        self.said: list[str] = []
        self.server.mkdir(parents=True)
        git(self.server, "init", "--quiet")
        files = {
            "main.py": "first = 1\n",
            "LICENSE": MIT,
            "figure.png": "pixels",
            "Supplementary Material.pdf": "pages",
            "models/net.py": "class Net: ...\n" * 100,
            "models/__pycache__/net.pyc": "bytes",
            "data/heavy.bin": "x" * 1000,
        }
        for name, text in files.items():
            (self.server / name).parent.mkdir(exist_ok=True)
            (self.server / name).write_text(text)
        self.old = self.commit()
        (self.server / "main.py").write_text("second = 2\n")
        (self.server / "models" / "other.py").write_text("other = 2\n")
        self.pinned = self.commit()
        (self.server / "main.py").write_text("third = 3\n")
        self.commit()
        self.repository = Repository("FAKE", f"{URL}FAKE", self.pinned, ("models",))

    def commit(self) -> str:
        """A commit of all that the author has, its 40 digits."""
        git(self.server, "add", "--all")
        git(self.server, "commit", "--quiet", "--message", "a commit")
        return git(self.server, "rev-parse", "HEAD")

    @property
    def known(self) -> dict[str, Repository]:
        return {"FAKE": self.repository}

    def sync(self) -> list[str]:
        """What was reported."""
        self.said = []
        checkout.sync(None, self.root, self.said.append, self.known)
        return self.said

    def status(self) -> checkout.Checkout:
        return checkout.status(self.root, self.known)[0]

    def files(self) -> set[str]:
        found = (path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file())
        return {path.as_posix() for path in found if path.parts[0] != ".git"}
