"""The options that commands share, and what they mean: a file, a session, a results folder."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.errors import InputError, nearest
from bench.limits import MOST_SEED

if TYPE_CHECKING:
    from bench.configfile import ConfigFile
    from bench.progress import Silent
    from bench.session import Session

ConfigOption = Annotated[Path, typer.Option("--config", help="the experiment file")]
ProfileOption = Annotated[str | None, typer.Option("--profile", help="scale; default: the file's")]
ListOption = Annotated[str | None, typer.Option(help="comma-separated labels")]
SeedsOption = Annotated[str | None, typer.Option("--seeds", help="comma-separated integers")]
ResultsOption = Annotated[Path | None, typer.Option("--results", help="folder for results")]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="folder for artifacts (or BENCH_CACHE)")
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit-steps", min=1, help="cap every training loop; rows are marked smoke"),
]
DEFAULT_CONFIG = Path("bench.yaml")


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Executor(str, Enum):
    inline = "inline"
    ray = "ray"


class Format(str, Enum):
    csv = "csv"
    latex = "latex"
    markdown = "markdown"
    html = "html"
    json = "json"


def open_file(config: Path) -> ConfigFile:
    """The experiment file, read and checked."""
    from bench.configfile import ConfigFile

    return ConfigFile(config)


def session_of(
    config: Path,
    reporter: Silent,
    *,
    attacks: str | None,
    defenses: str | None,
    seeds: str | None,
    device: Device | None,
    **selection: Any,
) -> Session:
    """A session of what the options select, as they were typed."""
    from bench.session import Selection, Session

    chosen = Selection(
        attacks=_labels(attacks),
        defenses=_labels(defenses),
        seeds=_integers(seeds),
        device=device.value if device else None,
        **selection,
    )
    return Session(open_file(config), chosen, reporter)


def results_of(config: Path, profile: str | None, results: Path | None) -> Path:
    """The results folder of a profile that the file knows; ``results`` is the folder above it."""
    from bench.config.file import SMOKE_SUFFIX
    from bench.session import results_folder

    file = open_file(config)
    name = profile or file.config.default_profile
    if name.removesuffix(SMOKE_SUFFIX) not in file.config.profiles:
        raise InputError(f"unknown profile {name!r}{nearest(name, file.config.profiles)}")
    return results_folder(file, results, name)


def refuse_folder(path: Path) -> None:
    """``-o`` names a file.

    Raises
    ------
    InputError
        For a folder, before anything is computed.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; -o names a file")


def _labels(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _integers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        values = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"--seeds wants integers such as 0,1,2, got {text!r}") from None
    if not values or min(values) < 0 or max(values) > MOST_SEED:
        raise InputError(f"--seeds wants integers from 0 to {MOST_SEED}, got {text!r}")
    return values
