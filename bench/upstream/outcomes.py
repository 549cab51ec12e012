"""Native against upstream by outcome: what short trainings and inversions came to, over seeds.

Read from the stored cells of a run that has both backends of a component in its matrix.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import registry
from bench.evaluation.statistics import FEWEST_SEEDS, seed_interval
from bench.registry import UPSTREAM
from bench.report.schema import StoredCell, load_cells
from bench.upstream.parity import DIFFERS, FAILED, OUTCOME, SKIPPED, Result

ATTACK_OUTCOMES = {"attack_success_rate": 0.1, "clean_accuracy": 0.05}
"""Column -> how far two means may lie apart and count as the same outcome."""
DEFENSE_OUTCOMES = {"auroc": 0.02, "auroc_placebo": 0.02}
RELATIVE = {"encoder_score": 0.2}
"""Column -> the same as a share of the native value (PL1 within 20 %)."""
UNDECIDED, NEITHER = "undecided", "neither takes"
INVALID = "attack-invalid"


@dataclass(frozen=True)
class Outcome:
    """One figure of one pair of entries, over the seeds that both have.

    Attributes
    ----------
    group, component, context
        ``attacks`` and ``drupe``, and the entry of the other kind it was measured with.
    native, upstream
        Means over ``seeds``.
    low, high
        95 % t interval of the mean paired difference, upstream minus native; nan below three
        seeds.
    verdict
        ``agrees`` where the whole interval lies within the tolerance, ``differs`` where the mean is
        beyond it and the interval has no zero, else ``undecided``; ``too few seeds``; ``neither
        takes`` for the success of an attack that fails the validity gate in both backends and every
        seed, of which nothing is learned.
    """

    group: str
    component: str
    context: str
    figure: str
    native: float
    upstream: float
    low: float
    high: float
    seeds: int
    tolerance: float
    verdict: str

    @property
    def difference(self) -> float:
        return self.upstream - self.native


def outcomes(results: Path) -> list[Outcome]:
    """Every pair of native and upstream cells that were both measured under ``results``."""
    cells = [cell for cell in load_cells(results) if cell.measured]
    return [
        *_compared(cells, "attack", "defense", ATTACK_OUTCOMES, once=True),
        *_compared(cells, "defense", "attack", {**DEFENSE_OUTCOMES, **RELATIVE}, once=False),
    ]


def _compared(
    cells: Sequence[StoredCell],
    kind: str,
    other: str,
    figures: dict[str, float],
    *,
    once: bool,
) -> Iterator[Outcome]:
    """Pairs of cells that differ in the backend of their ``kind`` alone.

    ``once``: the figures say nothing about the ``other`` entry, so any one of them will do.
    """
    native, upstream = {}, {}
    for cell in cells:
        name = cell.config[kind]["name"]
        place = (name.removesuffix(UPSTREAM), "" if once else cell.row[other], cell.row["seed"])
        side = upstream if name.endswith(UPSTREAM) else native
        # Of several variants of a component, the one that bears its name.
        if place not in side or cell.row[kind] == place[0]:
            side[place] = cell
    shared = [place for place in upstream if place in native]
    for component, context in dict.fromkeys((name, label) for name, label, _ in shared):
        seeds = sorted({s for name, label, s in shared if (name, label) == (component, context)})
        for figure, tolerance in figures.items():
            both = [(native[component, context, s], upstream[component, context, s]) for s in seeds]
            pairs = [(ours.row[figure], theirs.row[figure]) for ours, theirs in both]
            pairs = [(ours, theirs) for ours, theirs in pairs if None not in (ours, theirs)]
            if not pairs:
                continue
            found = _outcome(f"{kind}s", component, context, figure, pairs, tolerance)
            taken = {cell.row["status"] != INVALID for pair in both for cell in pair}
            if figure == "attack_success_rate" and taken == {False}:
                found = replace(found, verdict=NEITHER)
            yield found


def _outcome(
    group: str,
    component: str,
    context: str,
    figure: str,
    pairs: Sequence[tuple[float, float]],
    tolerance: float,
) -> Outcome:
    ours, theirs = (statistics.fmean(values) for values in zip(*pairs, strict=True))
    allowed = tolerance * abs(ours) if figure in RELATIVE else tolerance
    between = seed_interval([b - a for a, b in pairs])
    low, high = (math.nan if end is None else end for end in (between.low, between.high))
    verdict = "too few seeds"
    if len(pairs) >= FEWEST_SEEDS:
        verdict = UNDECIDED
        if -allowed <= low and high <= allowed:
            verdict = "agrees"
        elif abs(theirs - ours) > allowed and not low <= 0 <= high:
            verdict = DIFFERS
    return Outcome(
        group, component, context, figure, ours, theirs, low, high, len(pairs), allowed, verdict
    )


def unmeasured(results: Path) -> list[Result]:
    """A row for every cell under ``results`` that failed or was skipped, of a component that has
    both backends."""
    return [
        Result(
            "all",
            repository,
            f"{cell.row['attack']} and {cell.row['defense']}, seed {cell.row['seed']}",
            verdict=f"{cell.row['status']}: {' '.join(cell.row['reason'].split())}",
            kind=OUTCOME,
        )
        for cell in load_cells(results)
        if cell.row["status"] in (FAILED, SKIPPED) and (repository := _repository(cell))
    ]


def _repository(cell: StoredCell) -> str:
    """Whose code a cell is compared with: the attack's, else the defense's; empty: nobody's."""
    for kind in ("attack", "defense"):
        name = cell.config[kind]["name"].removesuffix(UPSTREAM) + UPSTREAM
        if name in registry.upstream_entries(f"{kind}s"):
            return registry.load(f"{kind}s", name).repository
    return ""


def rows(found: Iterable[Outcome]) -> list[Result]:
    """Outcomes as rows of the parity table, beside the probes."""
    return [_row(outcome) for outcome in found]


def _row(outcome: Outcome) -> Result:
    component = registry.load(outcome.group, outcome.component + UPSTREAM)
    difference = f"{outcome.difference:+.3f}"
    if not math.isnan(outcome.low):
        difference += f" [{outcome.low:+.3f}, {outcome.high:+.3f}]"
    on = f" on {outcome.context}" if outcome.context else ""
    apart = outcome.verdict in (DIFFERS, UNDECIDED)
    return Result(
        probe=outcome.figure,
        repository=component.repository,
        what=f"{outcome.component}{on}, mean over {outcome.seeds} seeds",
        upstream=f"{outcome.upstream:.3f}",
        native=f"{outcome.native:.3f}",
        difference=difference,
        tolerance=f"{outcome.tolerance:.3f}",
        verdict=outcome.verdict,
        audit=component.departs.get(outcome.figure, "") if apart else "",
        kind=OUTCOME,
    )
