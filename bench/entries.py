"""The entries of a matrix with what they resolve to: its rows and columns."""

from __future__ import annotations

from dataclasses import dataclass

from bench.config import AttackEntry, DefenseEntry, Downstream, Family, VictimEntry
from bench.graph import Component
from bench.lineage import ImportedVictim


@dataclass(frozen=True, eq=False)
class Row:
    """An entry of ``matrix.attacks``, resolved.

    Attributes
    ----------
    skip
        Why nothing of this row can run here; None when it can.
    """

    entry: AttackEntry | VictimEntry
    attack: Component
    family: Family
    downstreams: tuple[Downstream, ...]
    architecture: str
    text: bool
    skip: str | None = None
    victim: ImportedVictim | None = None

    def skip_on(self, downstream: Downstream) -> str | None:
        """Why the row cannot be judged on one downstream set."""
        poisons_labels = self.attack.kind == "data-poisoning" and self.attack.family == "ssl"
        if self.skip is None and poisons_labels and downstream.dataset != self.family.dataset:
            return (
                f"{self.attack.name} takes its target class from the pretraining set "
                f"{self.family.dataset}, not from {downstream.dataset}"
            )
        return self.skip


@dataclass(frozen=True, eq=False)
class Column:
    """An entry of ``matrix.defenses``, resolved."""

    entry: DefenseEntry
    defender: Component
