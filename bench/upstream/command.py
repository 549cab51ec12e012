"""``bench third-party``: fetch the published repositories and say what is there."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated

import typer

third_party_app = typer.Typer(
    name="third-party",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The authors' own code, in third_party/.",
)
_HEADER = ("name", "state", "commit", "licence", "needed by")


@third_party_app.command()
def sync(
    names: Annotated[list[str] | None, typer.Argument(help="repositories; default: all")] = None,
) -> None:
    """Fetch the pinned commits; run it again to mend or to go on after an interruption."""
    from bench.upstream import checkout

    checkout.sync(names, None, typer.echo)


@third_party_app.command()
def status() -> None:
    """Say what is there, at which commit, under which licence, and what needs it."""
    from bench.upstream import checkout
    from bench.upstream.repositories import SHORT

    rows = [_HEADER]
    for found in checkout.status():
        name = found.repository.name
        cells = (found.commit[:SHORT], found.licence, ", ".join(needed_by(name)))
        rows.append((name, found.state, *(cell or "-" for cell in cells)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())


def needed_by(name: str) -> list[str]:
    """The attacks and defenses whose ``backend: upstream`` runs the repository, sorted.

    Read from their source, without importing it: a class attribute ``repository``, its own or a
    base's in the same folder.
    """
    from bench import registry

    found = set()
    for group in registry.GROUPS:
        classes: dict[str, ast.ClassDef] = {}
        public: dict[str, list[str]] = {}
        for path in sorted((registry.folder(group) / "upstream").glob("*.py")):
            defined = _classes(path)
            classes.update(defined)
            public[path.stem] = list(defined)
        for component in registry.upstream_entries(group).values():
            own = public[component.module.rpartition(".")[2]]
            if any(_repository(each, classes) == name for each in own):
                found.add(component.name.removesuffix(registry.UPSTREAM))
    return sorted(found)


def _classes(path: Path) -> dict[str, ast.ClassDef]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return {}
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _repository(name: str, classes: dict[str, ast.ClassDef]) -> str | None:
    """The string that a class, or the first of its bases that has one, calls ``repository``."""
    waiting, seen = [name], set()
    while waiting:
        current = waiting.pop(0)
        if current not in classes or current in seen:
            continue
        seen.add(current)
        for statement in classes[current].body:
            if isinstance(statement, ast.AnnAssign):
                targets = [statement.target]
            elif isinstance(statement, ast.Assign):
                targets = statement.targets
            else:
                continue
            called = {target.id for target in targets if isinstance(target, ast.Name)}
            if "repository" in called and isinstance(statement.value, ast.Constant):
                return statement.value.value
        waiting += [base.id for base in classes[current].bases if isinstance(base, ast.Name)]
    return None
