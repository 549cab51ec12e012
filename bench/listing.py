"""What `bench list` shows."""

from __future__ import annotations

import contextlib
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli_options import open_file
from bench.errors import InputError

if TYPE_CHECKING:
    from bench.configfile import ConfigFile


class Kind(str, Enum):
    attacks = "attacks"
    defenses = "defenses"
    datasets = "datasets"
    profiles = "profiles"
    tables = "tables"


def listing(kind: Kind, config: Path) -> list[dict[str, str]]:
    """A name and a description each; components also say where they come from."""
    if kind in (Kind.attacks, Kind.defenses):
        from bench import registry

        by_authors = registry.upstream_entries(kind.value)
        return [
            {
                "name": entry.name,
                "description": registry.summary(entry),
                "origin": entry.origin,
                "backends": "native, upstream"
                if f"{entry.name}{registry.UPSTREAM}" in by_authors
                else "native",
            }
            for entry in registry.entries(kind.value).values()
        ]
    file = open_file(config)
    loaded = file.config
    if kind is Kind.tables:
        from bench.report.export import described_tables

        return [
            {"name": name, "description": description}
            for name, description in described_tables(loaded.tables).items()
        ]
    if kind is Kind.profiles:
        return [
            {"name": name, "description": profile.description}
            for name, profile in loaded.profiles.items()
        ]
    return [{"name": name, "description": _contents(file, name)} for name in loaded.datasets]


def _contents(file: ConfigFile, name: str) -> str:
    """How many images of which size a data set has here, or how to get it."""
    from bench.data.source import NoSplitError
    from bench.data.sources import open_source, remedy
    from bench.session import data_roots

    config = file.config.datasets[name]
    try:
        source = open_source(name, config, data_roots(file), file.root)
    except (InputError, OSError):
        return f"{config.image_size} px, absent{remedy(config.stored_as or name)}"
    counts = []
    try:
        for split, word in (("train", "training"), ("test", "test")):
            with contextlib.suppress(NoSplitError):
                total = source.count(split)
                if total is not None:
                    counts.append(f"{len(source.chosen(total)):,} {word} images")
    except (InputError, OSError) as error:
        return f"{config.image_size} px, cannot be read: {error}"
    return ", ".join((f"{config.image_size} px", *counts, type(source).__name__.lower()))
