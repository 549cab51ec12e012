"""What `bench list` shows."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from bench.cli_options import open_file


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
    loaded = open_file(config).config
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
    return [
        {"name": name, "description": f"{data.source}, {data.image_size} px"}
        for name, data in loaded.datasets.items()
    ]
