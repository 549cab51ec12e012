"""What moved between two runs beyond its interval, and what else differs between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.report.columns import CONTEXT
from bench.report.presentation import ABSENT, decimals
from bench.report.schema import Results, StoredCell, load_results, read_manifest_document

__all__ = ["Comparison", "Move", "compare", "comparison_text"]

METRICS = (
    *("auroc", "auroc_placebo", "auroc_delta", "auroc_decoy", "auroc_vs_decoy"),
    *("tpr_at_1fpr", "tpr_at_5fpr", "clean_accuracy", "attack_success_rate"),
)
"""What is compared; the last two are judged by the intervals of the cell's own probe."""

WORDS = ("status", "encoder_verdict", "encoder_verdict_twin")
_EMPTY = (None, "", {}, [])
_IDENTITY = ("attack", "defense", *CONTEXT, "seed")


@dataclass(frozen=True)
class Move:
    """One figure of one cell that is not what it was.

    Attributes
    ----------
    cell
        Attack, defense, the context fields and the seed.
    metric
        A column of the leaderboard.
    before, after
        Values in the two runs.
    intervals
        ``[low, high]`` of each, None where there is none.
    causes
        What else differs in this cell, in words; see :func:`compare`.
    """

    cell: dict[str, Any]
    metric: str
    before: Any
    after: Any
    intervals: tuple[Any, Any] = (None, None)
    causes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes
    ----------
    runs
        The two folders.
    compared
        How many cells both have.
    moves
        Figures beyond their intervals, words that changed.
    differences
        What differs between the runs as wholes, in words.
    missing
        Cells that only one run has, by run.
    """

    runs: tuple[str, str]
    compared: int
    moves: list[Move] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    missing: tuple[list[dict[str, Any]], ...] = ()

    def document(self) -> dict[str, Any]:
        """The comparison as plain values, for JSON."""
        return {"schema": 1, **asdict(self)}


def compare(first: Path, second: Path) -> Comparison:
    """Compare two results folders cell by cell.

    A figure has moved when each value lies outside the other's 95 % interval; a figure without an
    interval, and a word, when it differs at all. A cell is known by attack, defense, data set,
    encoder, downstream, target and seed. Its causes: parameters that differ, data whose content
    differs, the first stage that is no longer the same, code, libraries, environment, hardware.

    Raises
    ------
    ReportError
        When a folder is missing or damaged.
    """
    runs = (load_results(Path(first)), load_results(Path(second)))
    cells = [{_identity(cell): cell for cell in run.cells} for run in runs]
    shared = [key for key in cells[0] if key in cells[1]]
    documents = [read_manifest_document(Path(folder)) for folder in (first, second)]
    moves = [
        move
        for key in shared
        for move in _moves(cells[0][key], cells[1][key], dict(zip(_IDENTITY, key, strict=True)))
    ]
    missing = tuple(
        [dict(zip(_IDENTITY, key, strict=True)) for key in own if key not in other]
        for own, other in (cells, reversed(cells))
    )
    return Comparison(
        (str(first), str(second)),
        len(shared),
        moves,
        [*_manifest_differences(*documents), *_unfinished(runs)],
        missing,
    )


def comparison_text(found: Comparison) -> str:
    """The comparison for a terminal."""
    lines = [f"A: {found.runs[0]}", f"B: {found.runs[1]}", ""]
    lines.append("1 cell in both" if found.compared == 1 else f"{found.compared} cells in both")
    for name, cells in zip("AB", found.missing, strict=True):
        if cells:
            lines.append(f"only in {name}: {len(cells)} ({_listed(cells)})")
    lines += ["", "Between the runs:"]
    lines += [f"  {text}" for text in found.differences] or ["  nothing differs"]
    moved = {tuple(move.cell.values()) for move in found.moves}
    figures = "1 figure" if len(found.moves) == 1 else f"{len(found.moves)} figures"
    cells = "1 cell" if len(moved) == 1 else f"{len(moved)} cells"
    lines += ["", f"Moved: {figures} in {cells}"]
    lines += [_move_line(move) for move in found.moves]
    causes: dict[tuple[str, ...], set[str]] = {}
    for move in found.moves:
        causes.setdefault(move.causes, set()).add(f"{move.cell['attack']} x {move.cell['defense']}")
    if causes:
        lines += ["", "Why they may have:"]
        for texts, names in causes.items():
            lines.append(f"  {', '.join(sorted(names))}:")
            lines += [f"    {text}" for text in texts]
    return "\n".join(lines) + "\n"


def _moves(before: StoredCell, after: StoredCell, identity: dict[str, Any]) -> Iterator[Move]:
    causes: tuple[str, ...] | None = None
    for metric in (*WORDS, *METRICS):
        pair = (before.row[metric], after.row[metric])
        intervals = (None, None)
        if metric in METRICS:
            intervals = (_interval(before, metric), _interval(after, metric))
            if not _moved(*pair, *intervals):
                continue
        elif pair[0] == pair[1]:
            continue
        causes = _causes(before, after) if causes is None else causes
        yield Move(identity, metric, *pair, intervals, causes)


def _moved(before: float | None, after: float | None, first: Any, second: Any) -> bool:
    if before == after:
        return False
    if None in (before, after, first, second):
        return True
    return not (first[0] <= after <= first[1] or second[0] <= before <= second[1])


def _interval(cell: StoredCell, metric: str) -> list[float] | None:
    bounds = cell.intervals.get(metric)
    if metric in ("clean_accuracy", "attack_success_rate"):
        wanted = ("victim", cell.row["probe"], metric)
        bounds = next(
            (
                [entry.get("low"), entry.get("high")]
                for entry in cell.downstream
                if (entry.get("encoder"), entry.get("probe"), entry.get("metric")) == wanted
            ),
            None,
        )
    return None if bounds is None or None in bounds else list(bounds)


def _causes(before: StoredCell, after: StoredCell) -> tuple[str, ...]:
    """What differs in two cells besides their numbers, most telling first."""
    if before.key == after.key:
        if before.encoder_weights != after.encoder_weights:
            return (
                "the encoder's weights: trained twice under one key, on machines that round"
                " otherwise",
            )
        return ("the same key: nothing that the key covers differs, yet the numbers do",)
    causes = list(_changed(before.config, after.config))
    stages = [cell.provenance.get("stages", ()) for cell in (before, after)]
    keys = {stage["key"] for stage in stages[0]}
    new = [stage for stage in stages[1] if stage["key"] not in keys]
    known = {stage["label"] for stage in stages[0] if stage["kind"] == "data"}
    causes += [
        f"data: {stage['label']} has other content or another preparation"
        for stage in new
        if stage["kind"] == "data" and stage["label"] in known
    ]
    if new:
        causes.append(f"first stage that is not the same: {new[0]['kind']} ({new[0]['label']})")
    elif len(stages[0]) != len(stages[1]):
        kept = {stage["key"] for stage in stages[1]}
        gone = [stage["label"] for stage in stages[0] if stage["key"] not in kept]
        causes.append(f"stages that are gone: {', '.join(gone)}")
    for name in ("code_version", "environment", "versions", "hardware"):
        pair = [cell.provenance.get(name) or {} for cell in (before, after)]
        causes += _changed(*({name: value} for value in pair))
    return tuple(causes) or ("nothing that is recorded differs",)


def _manifest_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    names = ("profile", "seeds", "config", "environment", "versions", "hardware")
    return list(_changed(*({name: d.get(name) for name in names} for d in (first, second))))


def _changed(first: Any, second: Any, place: str = "") -> Iterator[str]:
    """``place: a -> b`` for every leaf that differs."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in dict.fromkeys([*first, *second]):
            inner = f"{place}.{name}" if place else str(name)
            yield from _changed(first.get(name), second.get(name), inner)
    elif first != second and not (first in _EMPTY and second in _EMPTY):
        yield f"{place}: {_short(first)} -> {_short(second)}"


def _short(value: Any) -> str:
    text = ABSENT if value in _EMPTY else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _unfinished(runs: tuple[Results, Results]) -> Iterator[str]:
    for name, run in zip("AB", runs, strict=True):
        if run.manifest.smoke:
            yield f"{name} is a smoke run: its cells are not compared"
        elif run.unfinished:
            yield f"{name} is not finished: {run.unfinished} cells are not stored"


def _identity(cell: StoredCell) -> tuple[Any, ...]:
    return tuple(cell.row[name] for name in _IDENTITY)


def _listed(cells: list[dict[str, Any]]) -> str:
    names = [f"{c['attack']} x {c['defense']}, seed {c['seed']}" for c in cells]
    return "; ".join(names[:5]) + ("; ..." if len(names) > 5 else "")


def _move_line(move: Move) -> str:
    cell = move.cell
    who = f"  {cell['attack']} x {cell['defense']}, seed {cell['seed']}: {move.metric}"
    values = [
        _value(value, interval)
        for value, interval in zip((move.before, move.after), move.intervals, strict=True)
    ]
    change = ""
    if isinstance(move.before, float) and isinstance(move.after, float):
        change = f" ({decimals(move.after - move.before, 3, '+')})"
    return f"{who} {values[0]} -> {values[1]}{change}"


def _value(value: Any, interval: Any) -> str:
    if not isinstance(value, float):
        return str(value) if value not in (None, "") else ABSENT
    text = decimals(value, 3)
    if interval is None:
        return text
    return f"{text} [{decimals(interval[0], 3)}, {decimals(interval[1], 3)}]"
