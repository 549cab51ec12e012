"""Where the time of a matrix went: ``bench times``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from bench.cells import CellStore
from bench.graph import STAGE_VERSIONS, topological
from bench.limits import read_json
from bench.session import Session
from bench.store import COST

COLUMNS = ("stage", "stages", "stored", "cells", "seconds", "share", "mean", "longest", "spared")


def stage_times(session: Session) -> pd.DataFrame:
    """What the stages of the selected cells took, by kind.

    Returns
    -------
    DataFrame
        ``stage`` (kind), ``stages`` (that the cells need), ``stored`` (of these), ``cells`` (uses:
        how many there would be if every cell computed what it needs for itself), ``seconds`` that
        the stored ones took, their ``share`` of all seconds in [0, 1], the ``mean`` and the
        ``longest`` in seconds, and ``spared``: seconds that sharing saved, uses beyond the first.
        Seconds are those of the computation that is stored, whenever and beside whatever else it
        ran.
    """
    cells = [cell for cell in session.cells if not cell.skip]
    uses: Counter[str] = Counter()
    for cell in cells:
        uses.update(stage.key for stage in topological([cell.stage]))
    known = CellStore(session.results)
    rows = []
    for stage in topological([cell.stage for cell in cells]):
        folder = (
            known.folder / stage.key
            if stage.kind == "evaluate"
            else session.store.folder(stage.kind, stage.key)
        )
        rows.append((stage.kind, uses[stage.key], _seconds(folder)))
    frame = pd.DataFrame(rows, columns=["stage", "cells", "seconds"])
    frame["spared"] = (frame.cells - 1) * frame.seconds
    kinds = [kind for kind in STAGE_VERSIONS if kind in set(frame.stage)]
    table = (
        frame.groupby("stage")
        .agg(
            stages=("cells", "size"),
            stored=("seconds", "count"),
            cells=("cells", "sum"),
            seconds=("seconds", "sum"),
            mean=("seconds", "mean"),
            longest=("seconds", "max"),
            spared=("spared", "sum"),
        )
        .loc[kinds]
        .reset_index()
    )
    table["share"] = table.seconds / max(table.seconds.sum(), 1e-9)
    return table[list(COLUMNS)]


def describe_times(table: pd.DataFrame) -> str:
    """The table in words and columns, with its sums."""
    head = f"  {'stage':<10}{'stages':>8}{'stored':>8}{'seconds':>10}{'share':>7}{'mean':>9}"
    lines = [head + f"{'longest':>9}{'uses':>9}{'spared':>12}"]
    for row in table.itertuples():
        timed = row.stored > 0
        lines.append(
            f"  {row.stage:<10}{row.stages:>8}{row.stored:>8}{row.seconds:>10.0f}{row.share:>7.1%}"
            + (f"{row.mean:>9.1f}{row.longest:>9.1f}" if timed else f"{'-':>9}{'-':>9}")
            + f"{row.cells:>9}{row.spared:>10.0f} s"
        )
    stages, stored, uses = (int(table[name].sum()) for name in ("stages", "stored", "cells"))
    lines += [
        "",
        f"{stored} of {stages} stages are stored; they took {table.seconds.sum():.0f} s. If every "
        f"cell computed its own there would be {uses}: sharing spared {table.spared.sum():.0f} s.",
    ]
    return "\n".join(lines)


def _seconds(folder: Path) -> float | None:
    """What a stored stage took; None when it is not there."""
    try:
        return float(read_json(folder / COST)["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
