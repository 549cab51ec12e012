"""Commands for who writes a component: ``bench new`` and ``bench check``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.errors import InputError

if TYPE_CHECKING:
    from bench.configfile import ConfigFile

CONFIG = Path("bench.yaml")
PROFILE = "quick"


class ComponentKind(str, Enum):
    attack = "attack"
    defense = "defense"


KindArgument = Annotated[ComponentKind, typer.Argument(help="attack or defense")]


def check(
    kind: KindArgument,
    name: Annotated[str, typer.Argument(help="see `bench list`")],
    config: Annotated[
        Path | None, typer.Option("--config", help="whose parameters to use; default: bench.yaml")
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", help=f"whose overrides to use; default: {PROFILE}")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="folder for the tiny victim (or BENCH_CACHE)")
    ] = None,
) -> None:
    """Try a component on a tiny victim and say which promises of its contract it breaks."""
    from bench import registry

    registry.find(f"{kind.value}s", name)  # before anything slow
    parameters, root = _parameters(kind.value, name, config, profile)

    from bench.contract import World
    from bench.contract import check as findings_of
    from bench.contract.findings import failed

    world = World(cache or World.default_cache(root), lambda line: typer.echo(line, err=True))
    found = []
    for finding in findings_of(kind.value, name, world, parameters):
        typer.echo(finding.line())
        found.append(finding)
    if failed(found):
        raise typer.Exit(1)


def new(
    kind: KindArgument,
    name: Annotated[str, typer.Argument(help="lower-case words with dashes")],
) -> None:
    """Write a working attack or defense, and its test, to start from."""
    from bench.scaffold import start

    started = start(kind.value, name)
    for path in started.written():
        typer.echo(f"wrote {path}")
    typer.echo("\nNext:")
    for line in started.next_steps():
        typer.echo(f"  {line}")


def _parameters(
    kind: str, name: str, config: Path | None, profile: str | None
) -> tuple[dict[str, Any], Path]:
    """What a configuration file sets for a component, files resolved; and the file's folder.

    Without a file, nothing: the component's defaults.
    """
    from bench import registry
    from bench.configfile import ConfigFile, file_parameters

    without = config is None and profile is None and not CONFIG.is_file()
    file = None if without else ConfigFile(config or CONFIG)
    root = Path() if file is None else file.root
    try:
        component = registry.load(f"{kind}s", name)
    except InputError:
        return {}, root  # the first of the findings
    label, overrides = PROFILE, {}
    if file is not None:
        chosen = profile or (PROFILE if PROFILE in file.config.profiles else None)
        label, settings = file.config.profile(chosen)
        overrides = settings.overrides.get(name, {})
    if file is None or not overrides:
        needed = [field for field, info in component.model_fields.items() if info.is_required()]
        if needed:
            raise InputError(
                f"{kind} {name!r} needs {', '.join(needed)}: give a value under "
                f"profiles.{label}.overrides.{name} of {file.path if file else CONFIG}"
            )
        return {}, root
    with file.located(("profiles", label, "overrides", name)):
        paths = file_parameters(component.model_validate(overrides))
    return {**overrides, **_resolved(paths, file)}, root


def _resolved(paths: dict[str, Path], file: ConfigFile) -> dict[str, Path]:
    return {field: file.root / path for field, path in paths.items()}
