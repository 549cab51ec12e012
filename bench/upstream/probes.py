"""How a probe of published code is declared: its figures, its tolerance, ours beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.upstream.probing import plain


@dataclass(frozen=True)
class Tolerance:
    """|a - b| may be ``absolute`` + ``relative`` |b|; by default nothing."""

    absolute: float = 0.0
    relative: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.absolute:g}"] if self.absolute else []
        parts += [f"{self.relative:g} relative"] if self.relative else []
        return " + ".join(parts) or "exact"

    def holds(self, ours: np.ndarray, theirs: np.ndarray) -> bool:
        if ours.shape != theirs.shape:
            return False
        if "U" in (ours.dtype.kind, theirs.dtype.kind) or not (self.absolute or self.relative):
            return bool(np.array_equal(ours, theirs))
        return bool(
            np.allclose(
                ours.astype(float),
                theirs.astype(float),
                rtol=self.relative,
                atol=self.absolute,
                equal_nan=True,
            )
        )


EXACT = Tolerance()


@dataclass(frozen=True)
class Figure:
    """A number in ``tests/golden/`` and how it is read off an array of the probe.

    Attributes
    ----------
    address
        ``FILE.json/KEY/KEY``; a key of a list is its index.
    read
        From the array to the figure; the array itself by default.
    tolerance
        Where the figure is given to fewer digits than the probe is compared to.
    """

    address: str
    read: Callable[[np.ndarray], Any] | None = None
    tolerance: Tolerance | None = None

    def of(self, array: np.ndarray) -> np.ndarray:
        return plain(array if self.read is None else self.read(array))

    def stored(self, folder: Path) -> np.ndarray:
        """The figure.

        Raises
        ------
        KeyError
            When there is none at the address.
        """
        file, *keys = self.address.split("/")
        found = json.loads((folder / file).read_text(encoding="utf-8"))
        for key in keys:
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, IndexError, ValueError):
                raise KeyError(f"{folder.name}/{self.address} is not there") from None
        return np.asarray(found)


@dataclass(frozen=True)
class Probe:
    """One published function, on formula data.

    Attributes
    ----------
    id
        As in the specification: P*, D*, B*, A*. U* is a finding of docs/upstream-audit.md: only
        upstream's value and the figure.
    repository
        The submodule whose code is called.
    tolerance
        Between upstream and ours, and between upstream and the figures; ``tolerances`` for single
        arrays.
    golden
        Array name -> its figures.
    native
        From the checkout to ours of the same arrays; None where there is nothing of ours to
        compare with.
    imports
        Modules that upstream's function needs beyond the project's dependencies.
    files
        Paths in the repository that a sync may have left out.
    explained
        Entry of the audit that says where ours differs unless told otherwise.
    fixed
        Why upstream's function is not run: the row then only names the figures.
    """

    id: str
    repository: str
    what: str
    tolerance: Tolerance = EXACT
    golden: Mapping[str, tuple[Figure, ...]] | None = None
    native: Callable[[Path], Mapping[str, Any]] | None = None
    tolerances: Mapping[str, Tolerance] | None = None
    imports: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    explained: str = ""
    fixed: str = ""

    def tolerance_of(self, name: str) -> Tolerance:
        return (self.tolerances or {}).get(name, self.tolerance)

    def figures(self, name: str) -> tuple[Figure, ...]:
        return (self.golden or {}).get(name, ())


def finding(
    identity: str, repository: str, what: str, *names: str, tolerance: Tolerance = EXACT, **options
) -> Probe:
    """What an entry of the audit rests on: ``names`` stand in ``tests/golden/audit.json``."""
    figures = {name: (Figure(f"audit.json/{identity}/{name}"),) for name in names}
    return Probe(
        identity,
        repository,
        what,
        tolerance,
        golden=figures,
        explained=identity,
        **options,
    )
