"""Which stored cells the plots show, in which order, under which names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bench.report.leaderboard import attack_columns, leaderboard
from bench.report.schema import Results, StoredCell
from bench.report.style import shortened

__all__ = [
    "AttackColumn",
    "attack_cells",
    "defense_order",
    "seed_note",
    "shared_status",
    "slug",
]


@dataclass(frozen=True)
class AttackColumn:
    """One attack and its cells, one per defense: of the lowest seed that was measured.

    Attributes
    ----------
    name
        The attack's label, with its context where that is ambiguous.
    cells
        In leaderboard order: best first, references last.
    defenses
        Labels of the run's defenses in display order, the same for every attack.
    seeded
        The run has several seeds, so that a title has to say which one is shown.
    """

    name: str
    cells: tuple[StoredCell, ...]
    defenses: tuple[str, ...]
    seeded: bool

    @property
    def measured(self) -> list[StoredCell]:
        return [cell for cell in self.cells if cell.measured]

    @property
    def in_display_order(self) -> list[StoredCell]:
        """The measured cells, in the order that is the same for every attack."""
        return sorted(self.measured, key=lambda cell: self.defenses.index(cell.row["defense"]))

    @property
    def control(self) -> bool:
        return any(cell.control for cell in self.cells)

    @property
    def status(self) -> str:
        """What the gate says of the measured cells; empty where they differ or there are none."""
        return shared_status(self.measured)

    @property
    def title(self) -> str:
        """The name, with what is unusual about it: a control, a failed gate, one seed of many."""
        status = self.status
        details = ["control"] if self.control else []
        details += [status] if status not in ("", "ok") else []
        details += [seeds_of(self.measured)] if self.seeded and self.measured else []
        name = shortened(self.name, 48)
        return f"{name} ({', '.join(details)})" if details else name

    @cached_property
    def pictures(self) -> dict[str, np.ndarray] | None:
        """What the attack looks like: of the first cell that carries it, measured ones first."""
        for cell in sorted(self.cells, key=lambda cell: (not cell.measured, cell.seed)):
            arrays = cell.attack_pictures()
            if arrays is not None and len(arrays["clean"]):
                return arrays
        return None


def attack_cells(results: Results) -> list[AttackColumn]:
    """The attacks in leaderboard order, controls last."""
    cells = {cell.key: cell for cell in results.cells}
    frame = leaderboard(results)
    columns = attack_columns(frame.to_dict("records"))
    chosen: dict[tuple[str, str], StoredCell] = {}
    for key in frame["key"]:
        cell = cells[key]
        place = (columns[key], cell.row["defense"])
        other = chosen.get(place)
        if other is None or (other.measured, -other.seed) < (cell.measured, -cell.seed):
            chosen[place] = cell
    grouped: dict[str, list[StoredCell]] = {}
    for (column, _), cell in chosen.items():
        grouped.setdefault(column, []).append(cell)
    seeded = len({cell.seed for cell in results.cells}) > 1
    defenses = tuple(defense_order(results))
    return [AttackColumn(name, tuple(found), defenses, seeded) for name, found in grouped.items()]


def defense_order(results: Results) -> list[str]:
    """Labels of defenses that have a cell: the manifest's order, analyses and references last."""
    found = dict.fromkeys(cell.row["defense"] for cell in results.cells)
    order = {label: place for place, label in enumerate([*results.manifest.defenses, *found])}
    references = {cell.row["defense"] for cell in results.cells if cell.reference}
    analyses = {cell.row["defense"] for cell in results.cells if cell.analysis}
    places = {label: place for place, label in enumerate(dict.fromkeys(order))}
    return sorted(found, key=lambda name: (name in references, name in analyses, places[name]))


def shared_status(cells: Iterable[StoredCell]) -> str:
    """The status of all ``cells``, or nothing where they differ."""
    found = {cell.status for cell in cells}
    return found.pop() if len(found) == 1 else ""


def seeds_of(cells: Iterable[StoredCell]) -> str:
    """``seed 0``, or ``seeds 0, 1`` where a defense was not measured with the lowest."""
    seeds = sorted({cell.seed for cell in cells})
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def seed_note(results: Results) -> str:
    """``mean over seeds 0, 1, 2`` for a plot that averages; empty for one seed."""
    seeds = sorted({cell.seed for cell in results.cells})
    return f"mean over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else ""


def slug(label: str, taken: set[str]) -> str:
    """A file name for ``label`` that is not in ``taken``, and is added to it."""
    name = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "unnamed"
    if name in taken or len(name) > 60:  # two of them make one file name: at most 255 characters
        name = f"{name[:60]}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"
    taken.add(name)
    return name
