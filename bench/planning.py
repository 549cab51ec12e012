"""What a run would do, in words: ``bench plan``."""

from __future__ import annotations

import json
from collections import Counter

from bench.cells import CellStore
from bench.executors.inline import cost_name
from bench.graph import Stage, topological
from bench.session import Session
from bench.store import Store


def describe_plan(session: Session) -> str:
    """Cells with their state, stages per kind with what is cached, and the estimated time."""
    cells = CellStore(session.results)
    states: Counter[str] = Counter()
    lines = [f"profile {session.profile_name}: {len(session.cells)} cells", ""]
    for cell in session.cells:
        state = f"skipped: {cell.skip}" if cell.skip else cells.status(cell.key) or "to do"
        states[state.split(":")[0]] += 1
        identity = cell.identity
        lines.append(
            f"  {identity['attack']} x {identity['defense']} on {identity['downstream']} "
            f"(target {identity['target']}, seed {identity['seed']}): {state}"
        )
    pending = [cell for cell in session.cells if not cell.skip and not cells.done(cell.key)]
    lines += ["", f"  {'stage':<10}{'needed':>8}{'cached':>8}{'to run':>8}{'estimate':>12}"]
    needed: Counter[str] = Counter()
    cached: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for stage in topological([cell.stage for cell in pending]):
        needed[stage.kind] += 1
        if stage.kind != "evaluate" and session.store.peek(stage.kind, stage.key):
            cached[stage.kind] += 1
            continue
        known = _seconds_known(session.store, stage)
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
    return "\n".join(lines)


def _seconds_known(store: Store, stage: Stage) -> float | None:
    """How long a stage of this kind and specification took last time in this cache."""
    path = store.root / "seconds" / f"{cost_name(stage)}.json"
    try:
        return float(json.loads(path.read_text())["seconds"])
    except (OSError, ValueError, KeyError):
        return None
