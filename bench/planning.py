"""What a run would do, in words: ``bench plan``."""

from __future__ import annotations

from collections import Counter

from bench.cells import CellStore
from bench.graph import STAGE_VERSIONS, topological
from bench.history import History
from bench.session import Session


def describe_plan(session: Session) -> str:
    """Cells with their state, stages per kind with what is cached, and the estimated time.

    What is stored is believed: a run checks it, a plan only tells of it.
    """
    cells = CellStore(session.results)
    states: Counter[str] = Counter()
    lines = [f"profile {session.profile_name}: {len(session.cells)} cells", ""]
    there, pending = cells.keys(), []
    for cell in session.cells:
        stored = cells.peek(cell.key) if cell.key in there else None
        state = f"skipped: {cell.skip}" if cell.skip else stored or "to do"
        states[state.split(":")[0]] += 1
        if not cell.skip and session.to_do(stored):
            pending.append(cell)
        identity = cell.identity
        lines.append(
            f"  {identity['attack']} x {identity['defense']} on {identity['downstream']} "
            f"(target {identity['target']}, seed {identity['seed']}): {state}"
        )
    lines += ["", f"  {'stage':<10}{'needed':>8}{'cached':>8}{'to run':>8}{'estimate':>12}"]
    needed: Counter[str] = Counter()
    cached: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    stored = {kind: session.store.keys(kind) for kind in STAGE_VERSIONS if kind != "evaluate"}
    history = History(session.store)
    for stage in topological([cell.stage for cell in pending]):
        needed[stage.kind] += 1
        if stage.key in stored.get(stage.kind, ()):
            cached[stage.kind] += 1
            continue
        known = history.seconds(stage)
        seconds[stage.kind] += known or 0.0
        unknown[stage.kind] += known is None
    for kind in needed:
        estimate = f"{seconds[kind]:.0f} s" if not unknown[kind] else "unknown"
        to_run = needed[kind] - cached[kind]
        lines.append(
            f"  {kind:<10}{needed[kind]:>8}{cached[kind]:>8}{to_run:>8}"
            f"{estimate if to_run else '-':>12}"
        )
    total, missing = sum(seconds.values()), sum(unknown.values())
    lines += [
        "",
        f"estimated {total:.0f} s" + (f" and {missing} stages never timed here" if missing else ""),
    ]
    lines.append(", ".join(f"{count} {state}" for state, count in sorted(states.items())))
    if states["failed"] and not session.selection.retry_failed:
        lines.append("`bench run` leaves failed cells as they are; --retry-failed tries them again")
    return "\n".join(lines)
