"""What encoder detectors say: of every encoder, and counted over clean and backdoored ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import pandas as pd
from sklearn.metrics import roc_auc_score

from bench.report.declared import DeclaredTable
from bench.report.formats import TextTable
from bench.report.presentation import ABSENT, decimals, state_notes
from bench.report.schema import Results

__all__ = ["FEWEST_ENCODERS", "encoders_frame", "encoders_text"]

FEWEST_ENCODERS = 5
"""With fewer clean or fewer backdoored encoders there are counts and no AUROC."""

_COLUMNS = (
    *("defense", "encoder", "backdoored", "flagged", "clean", "false_alarms"),
    *("accuracy", "auroc", "not_counted"),
)


@dataclass(frozen=True)
class Judged:
    """One encoder under one detector, which may have examined it with several seeds.

    Attributes
    ----------
    encoder
        Its architecture.
    attack
        The first one whose victim or twin it is.
    said
        (Seed of the detector, its score) -> its verdict, empty where it has no rule. One seed says
        more than one thing where the detector was shown images of several attacks.
    roots
        Trainings from scratch and imports behind the cells that it is in: encoders that share one
        are near relatives.
    """

    defense: str
    encoder: str
    attack: str
    backdoored: bool
    said: dict[tuple[int, float], str] = field(default_factory=dict)
    roots: set[str] = field(default_factory=set)

    @property
    def score(self) -> float:
        """Mean over what the detector said."""
        return fmean(score for _, score in self.said)

    @property
    def ruled(self) -> bool:
        return all(self.said.values())

    @property
    def flagged(self) -> bool:
        """Whether at least half of the verdicts call it backdoored."""
        calls = [verdict == "backdoored" for verdict in self.said.values()]
        return 2 * sum(calls) >= len(calls)


def judged_encoders(
    table: DeclaredTable, results: Results
) -> tuple[list[Judged], dict[Any, set[str]]]:
    """Every encoder that a detector scored, once, and the victims that do not count.

    Victims of valid attacks are the backdoored ones, their clean twins and the control's encoder
    the clean ones. Victims of attacks that fail the gate are neither, nor are twins that stand
    beside no other, nor reduced runs.
    """
    found: dict[tuple[Any, ...], Judged] = {}
    passed_over: dict[Any, set[str]] = {}
    for cell in results.cells:
        row = cell.row
        if not (table.wants(row) and cell.measured and row["encoder_score"] is not None):
            continue
        if cell.analysis or cell.reduced:
            continue
        where = (row["defense"], row["encoder"])
        roles = [("victim", "", not cell.control), ("twin", "_twin", False)]
        for role, suffix, backdoored in roles:
            score = row[f"encoder_score{suffix}"]
            if score is None:
                continue
            # Cells of earlier versions do not name their encoders; equal scores then mean one.
            encoder = cell.encoders.get(role, f"{row['encoder']}/{row['seed']}/{score!r}")
            if backdoored and cell.status == "uncontrolled":
                continue  # it works, and has no twin to stand beside
            if cell.status != "ok":
                passed_over.setdefault(where, set()).add(encoder)
                continue
            one = found.setdefault((*where, encoder), Judged(*where, row["attack"], backdoored))
            one.said[row["seed"], score] = row[f"encoder_verdict{suffix}"]
            one.roots.update(cell.roots)
    for (*_, encoder), one in found.items():
        # What works in one seed and fails the gate in another was judged.
        passed_over.get((one.defense, one.encoder), set()).discard(encoder)
    return list(found.values()), passed_over


def encoders_frame(table: DeclaredTable, results: Results) -> pd.DataFrame:
    """One row per encoder detector and architecture: encoders flagged, of how many.

    ``accuracy`` is over both kinds; ``auroc`` is that of the score, empty below
    :data:`FEWEST_ENCODERS` of either kind. ``not_counted``: victims of attacks that do not work,
    and twins that stand beside no others.
    """
    judged, passed_over = judged_encoders(table, results)
    groups: dict[tuple[str, str], list[Judged]] = {}
    for one in judged:
        groups.setdefault((one.defense, one.encoder), []).append(one)
    for where, left in passed_over.items():
        if left:
            groups.setdefault(where, [])
    records = []
    for (defense, encoder), members in groups.items():
        bad = [one for one in members if one.backdoored]
        good = [one for one in members if not one.backdoored]
        ruled = all(one.ruled for one in members)
        flagged, alarms = (sum(one.flagged for one in kind) for kind in (bad, good))
        right = flagged + len(good) - alarms
        enough = min(len(bad), len(good)) >= FEWEST_ENCODERS
        records.append(
            {
                "defense": defense,
                "encoder": encoder,
                "backdoored": len(bad),
                "flagged": flagged if ruled else None,
                "clean": len(good),
                "false_alarms": alarms if ruled else None,
                "accuracy": right / len(members) if ruled and bad and good else None,
                "auroc": _auroc(bad, good) if enough else None,
                "not_counted": len(passed_over.get((defense, encoder), ())),
            }
        )
    frame = pd.DataFrame(records, columns=list(_COLUMNS), dtype=object)
    for name in ("backdoored", "flagged", "clean", "false_alarms", "not_counted"):
        frame[name] = frame[name].astype("Int64")
    return frame.astype({"accuracy": float, "auroc": float})


def encoders_text(name: str, table: DeclaredTable, results: Results) -> TextTable:
    """The counts for people, then every encoder with its score."""
    frame = encoders_frame(table, results)
    headers = ("defense", "encoder", "backdoored: flagged", "clean: flagged", "accuracy", "AUROC")
    rows = [
        (
            row["defense"],
            row["encoder"],
            _of(row["flagged"], row["backdoored"]),
            _of(row["false_alarms"], row["clean"]),
            ABSENT if pd.isna(row["accuracy"]) else decimals(row["accuracy"], 3),
            ABSENT if pd.isna(row["auroc"]) else decimals(row["auroc"], 3),
        )
        for row in frame.to_dict("records")
    ]
    return TextTable(
        name=name,
        title=f"Verdicts on encoders, profile {results.manifest.profile}",
        notes=tuple(_notes(table, frame, results)),
        headers=headers,
        rows=tuple(rows),
        numeric=frozenset(range(2, len(headers))),
    )


def _notes(table: DeclaredTable, frame: pd.DataFrame, results: Results) -> Iterable[str]:
    yield from state_notes(results)
    if table.caption:
        yield table.caption
    yield (
        "Thresholds are each method's own, published or fitted on clean images, and the same for "
        "all attacks. Every encoder counts once: victims of attacks that pass the validity gate, "
        "and the clean encoders beside them. Where a detector examined one with several seeds, "
        "their mean score counts, and the encoder is flagged if half of them or more flag it."
    )
    few = frame["auroc"].isna().any() if len(frame) else False
    if few:
        yield (
            f"No AUROC below {FEWEST_ENCODERS} clean and {FEWEST_ENCODERS} backdoored encoders: "
            "counts only."
        )
    judged, passed_over = judged_encoders(table, results)
    if any(passed_over.values()):
        count = len(set.union(*passed_over.values()))
        yield f"Not counted: victims of attacks that fail the gate, and their twins ({count})."
    alone = {
        cell.encoders.get("victim", cell.key)
        for cell in results.cells
        if cell.status == "uncontrolled"
        and table.wants(cell.row)
        and cell.row["encoder_score"] is not None
    }
    if alone:
        yield f"Not counted: imported victims without a clean twin ({len(alone)})."
    repeated = len(results.manifest.seeds) > 1
    for (defense, encoder), *_ in dict.fromkeys(((one.defense, one.encoder),) for one in judged):
        mine = [one for one in judged if (one.defense, one.encoder) == (defense, encoder)]
        said = ", ".join(_described(one, repeated) for one in mine)
        yield f"{defense} on {encoder}, score (higher is more suspicious): {said}."
    for encoder in dict.fromkeys(one.encoder for one in judged):
        mine = [one for one in judged if one.encoder == encoder]
        roots = len(set.union(*(one.roots for one in mine)))
        count = max(Counter(one.defense for one in mine).values())  # they judge the same encoders
        if roots < count:
            yield (
                f"The {count} encoders of {encoder} go back to {roots} trained from scratch or "
                "imported: near relatives, for which accuracy and AUROC have no interval."
            )


def _described(one: Judged, repeated: bool) -> str:
    who = one.attack if one.backdoored else f"clean encoder of {one.attack}"
    said = (
        f"{f'seed {seed} ' if repeated else ''}{score:.3f}{f' ({verdict})' if verdict else ''}"
        for (seed, score), verdict in sorted(one.said.items())
    )
    return f"{who}{', ' if repeated else ' '}{' and '.join(said)}"


def _of(count: Any, total: Any) -> str:
    return f"{ABSENT if pd.isna(count) else count} of {total}"


def _auroc(bad: list[Judged], good: list[Judged]) -> float:
    truth = [1] * len(bad) + [0] * len(good)
    return float(roc_auc_score(truth, [one.score for one in (*bad, *good)]))
