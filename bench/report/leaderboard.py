"""The tables as data frames: leaderboard, mean over seeds, summary, thresholds, downstream."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.evaluation.statistics import interval_over_seeds
from bench.report.columns import COLUMNS, CONTEXT, LEADERBOARD_COLUMNS, MEASURED, STATUSES
from bench.report.schema import Manifest, Results, StoredCell
from bench.report.twin import excess

__all__ = [
    "attack_columns",
    "downstream",
    "independent_seeds",
    "leaderboard",
    "over_seeds",
    "per_seed",
    "plain_rows",
    "strict_mean",
    "summary",
    "thresholds",
    "valid_in_part",
    "varying_context",
    "worst_status",
]

INTERVAL_METRICS = ("auroc", "auroc_delta", "auroc_vs_decoy")
"""Metrics that people's tables show with an interval."""

SUMMARY_METRICS = (
    "auroc",
    "auroc_placebo",
    "auroc_delta",
    "auroc_decoy",
    "auroc_vs_decoy",
    "tpr_at_1fpr",
    "tpr_at_5fpr",
    "tpr_calibrated",
    "fpr_calibrated",
    "fit_seconds",
    "score_ms_per_image",
)

THRESHOLD_COLUMNS = (
    "rule",
    "nominal_fpr",
    "threshold",
    "tpr",
    "tpr_low",
    "tpr_high",
    "fpr",
    "fpr_low",
    "fpr_high",
    "fpr_target_class",
    "fpr_decoy",
)

_IDENTITY = ("attack", "defense", *CONTEXT, "profile", "seed", "status", "key")
_BOUNDED_COLUMNS = tuple(
    dict.fromkeys(
        (
            *LEADERBOARD_COLUMNS,
            *(f"{metric}_{end}" for metric in INTERVAL_METRICS for end in ("low", "high")),
            "n_seeds",
        )
    )
)


def leaderboard(results: Results) -> pd.DataFrame:
    """One row per cell, columns as in :data:`LEADERBOARD_COLUMNS`.

    Attacks come in the manifest's order, controls last. Within an attack: analyses and then
    references last; status, ``auroc_vs_decoy`` and ``auroc_delta``, both descending; ties in the
    manifest's order.
    """
    return _frame(plain_rows(results), LEADERBOARD_COLUMNS)


def plain_rows(results: Results) -> list[dict[str, Any]]:
    """The rows of :func:`leaderboard` in its order, missing values None."""
    return _sorted_rows(map(_row, results.cells), results.manifest)


def over_seeds(results: Results) -> pd.DataFrame:
    """The leaderboard with seeds averaged: one row per cell identity, seed aside, and status.

    Beside the leaderboard's columns it has ``n_seeds`` and ``<metric>_low``, ``<metric>_high`` of
    :data:`INTERVAL_METRICS`. Over three or more seeds of which no two share an encoder, a
    pretraining or an import: a 95 % interval of the mean, to either side the half-width of the t
    interval between seeds and that of the mean test-sampling interval, added in quadrature.
    Otherwise their stored test-sampling intervals put together, from the lowest end to the highest.
    A mean is given only where every seed has a value.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in map(_row, results.cells):
        identity = tuple(row[name] for name in ("attack", "defense", *CONTEXT, "status"))
        groups.setdefault(identity, []).append(row)
    rows = _sorted_rows(
        (_mean_row(rows, results.manifest) for rows in groups.values()), results.manifest
    )
    return _frame(rows, _BOUNDED_COLUMNS)


def per_seed(results: Results) -> pd.DataFrame:
    """The columns of :func:`over_seeds`, nothing averaged: one row per cell, ``n_seeds`` 1."""
    rows = [{**_row(cell), "n_seeds": 1} for cell in results.cells]
    return _frame(_sorted_rows(rows, results.manifest), _BOUNDED_COLUMNS)


def summary(results: Results) -> pd.DataFrame:
    """Each defense averaged over the valid attacks on one kind of encoder.

    Analyses and reduced rows stay outside, and encoders are never averaged with each other. An
    attack counts when it passes the gate in every seed and on every set and target that it was
    judged on (:func:`valid_in_part` names the others). Means are given only when every defense has
    an ok row on every such attack in every seed; otherwise they are empty for all defenses on that
    encoder and ``missing`` names what stands in the way. Seeds, downstream sets and targets are
    averaged first, then attacks.
    """
    everything = _sorted_rows(map(_row, results.cells), results.manifest)
    rows = [row for row in everything if not row["reduced"]]
    columns = attack_columns(rows)
    whole = {row["defense"] for row in rows}
    analyses = {row["defense"] for row in rows if row["analysis"]}
    analyses |= {row["defense"] for row in everything} - whole
    named = dict.fromkeys([*results.manifest.defenses, *(row["defense"] for row in rows)])
    defenses = [defense for defense in named if defense not in analyses]
    records: list[dict[str, Any]] = []
    for encoder in dict.fromkeys(row["encoder"] for row in rows) or [""]:
        mine = [row for row in rows if row["encoder"] == encoder]
        records += _summary_of(encoder, mine, columns, defenses, results.manifest.seeds)
    return _frame(records, ("encoder", "defense", "n_attacks", *SUMMARY_METRICS, "missing"))


def valid_in_part(results: Results) -> list[str]:
    """Columns of :func:`attack_columns` whose attack passes the validity gate there and not in
    every seed, on every set and for every target: to average it where it works is to choose by
    success."""
    rows = [row for row in plain_rows(results) if not row["reduced"]]
    columns = attack_columns(rows)
    whole = _whole(rows, columns)
    return [
        name
        for name, passed in _gates(rows, columns).items()
        if any(passed.values()) and name not in whole
    ]


def _whole(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> set[str]:
    """The columns of attacks that pass the gate wherever they were judged on one encoder."""
    rows = list(rows)
    attacks = {columns[row["key"]]: (row["attack"], row["encoder"]) for row in rows}
    gates = _gates(rows, columns)
    failing = {attacks[name] for name, passed in gates.items() if not all(passed.values())}
    return {name for name in gates if attacks[name] not in failing}


def _gates(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]
) -> dict[str, dict[int, bool]]:
    """Attack column -> seed -> whether the attack passed the gate, where that is known."""
    gates: dict[str, dict[int, bool]] = {}
    for row in rows:
        if row["status"] in MEASURED and not row["control"]:
            passed = gates.setdefault(columns[row["key"]], {})
            passed[row["seed"]] = passed.get(row["seed"], False) or row["status"] == "ok"
    return gates


def _summary_of(
    encoder: str,
    rows: list[dict[str, Any]],
    columns: Mapping[str, str],
    defenses: list[str],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """The records of :func:`summary` for one encoder, best first."""
    found = {(columns[row["key"]], row["seed"], row["defense"]): row for row in rows}
    attack_of = {columns[row["key"]]: row["attack"] for row in rows}
    whole = _whole(rows, columns)
    valid = [(name, s) for name in _gates(rows, columns) if name in whole for s in seeds]
    missing = {defense: _missing(defense, valid, found) for defense in defenses}
    complete = bool(valid) and not any(missing.values())
    records = []
    for defense in defenses:
        record: dict[str, Any] = {
            "encoder": encoder,
            "defense": defense,
            "n_attacks": len({attack_of[name] for name, _ in valid}),
        }
        cells = [
            (attack_of[name], found[name, seed, defense])
            for name, seed in (valid if complete else [])
        ]
        for metric in SUMMARY_METRICS:
            record[metric] = _mean_of_means([(name, row[metric]) for name, row in cells])
        record["missing"] = "; ".join(missing[defense]) if valid else "no valid attack"
        records.append(record)
    references = {row["defense"] for row in rows if row["reference"]}
    records.sort(
        key=lambda record: (
            record["defense"] in references,
            *_descending(record, "auroc_vs_decoy", "auroc_delta"),
        )
    )
    return records


def thresholds(results: Results) -> pd.DataFrame:
    """Long form: one row per cell and threshold rule, in leaderboard order."""
    return _long_form(
        results,
        "thresholds",
        {name: name for name in THRESHOLD_COLUMNS},
    )


def downstream(results: Results) -> pd.DataFrame:
    """Long form: one row per cell and downstream number, in leaderboard order.

    ``measured_on`` says victim or twin; ``encoder`` is the architecture, as in the leaderboard.
    """
    names = {
        "measured_on": "encoder",
        **{n: n for n in ("probe", "metric", "value", "low", "high")},
    }
    return _long_form(results, "downstream", names)


def attack_columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Cell key -> column name: the attack's label, with its context where that is ambiguous."""
    rows = list(rows)
    contexts: dict[str, list[tuple[Any, ...]]] = {}
    for row in rows:
        seen = contexts.setdefault(row["attack"], [])
        context = tuple(row[name] for name in CONTEXT)
        if context not in seen:
            seen.append(context)
    names = {}
    for row in rows:
        seen = contexts[row["attack"]]
        varying = [i for i in range(len(CONTEXT)) if len({context[i] for context in seen}) > 1]
        detail = ", ".join(f"{row[CONTEXT[i]]}" for i in varying)
        names[row["key"]] = f"{row['attack']} ({detail})" if detail else row["attack"]
    return names


def varying_context(frame: pd.DataFrame) -> list[str]:
    """The context columns, backends included, that take more than one value in ``frame``."""
    named = (*CONTEXT, "attack_backend", "defense_backend")
    return [name for name in named if frame[name].nunique(dropna=False) > 1]


def worst_status(statuses: Iterable[str]) -> str:
    """What several cells are together: the least favourable of their statuses."""
    return max(statuses, key=STATUSES.index)


def _row(cell: StoredCell) -> dict[str, Any]:
    flags = ("control", "transductive", "reference", "analysis", "reduced")
    row = {**cell.row, **{name: getattr(cell, name) for name in flags}, **cell.derived}
    for metric in INTERVAL_METRICS:
        low, high = cell.intervals.get(metric) or (None, None)
        for end, value in (("low", low), ("high", high)):
            if row.get(f"{metric}_{end}") is None:
                row[f"{metric}_{end}"] = value
    row["origins"] = cell.origins
    return row


def _mean_row(rows: list[dict[str, Any]], manifest: Manifest) -> dict[str, Any]:
    """One row for cells that differ in their seed only."""
    mean = {**min(rows, key=lambda row: -1 if row["seed"] is None else row["seed"])}
    mean["n_seeds"] = len(rows)
    if len(rows) == 1:
        return mean
    numbers = [name for name, column in COLUMNS.items() if column.kind == "number"]
    for name in numbers:
        mean[name] = strict_mean([row[name] for row in rows])
    mean["auroc_vs_decoy_excess"] = excess(mean)
    independent = independent_seeds(
        [row["seed"] for row in rows], [row["origins"] for row in rows], manifest
    )
    for metric in INTERVAL_METRICS:
        ends = _interval_over_seeds(rows, metric, independent)
        mean[f"{metric}_low"], mean[f"{metric}_high"] = ends
    for name in ("encoder_verdict", "encoder_verdict_twin"):
        mean[name] = _verdicts([row[name] for row in rows])
    for name in ("reason", "threshold_source", "probe", "decoy", "device", "code_version"):
        mean[name] = "; ".join(dict.fromkeys(row[name] for row in rows if row[name]))
    return mean


def independent_seeds(
    seeds: Iterable[int | None], origins: Iterable[Iterable[str]], manifest: Manifest
) -> bool:
    """Whether no two seeds share anything that was trained or imported: ``origins`` of each."""
    pretrainings = [manifest.pretrained_with(seed) for seed in seeds]
    trained = [part for parts in origins for part in parts]
    return all(len(set(found)) == len(found) for found in (pretrainings, trained))


def _interval_over_seeds(
    rows: list[dict[str, Any]], metric: str, independent: bool
) -> tuple[float | None, float | None]:
    """See :func:`over_seeds`."""
    values, lows, highs = ([row[f"{metric}{end}"] for row in rows] for end in ("", "_low", "_high"))
    if None in (*values, *lows, *highs):
        return None, None
    low, high = interval_over_seeds(values, lows, highs, independent)
    floor = -1.0 if COLUMNS[metric].unit.startswith("-1") else 0.0
    return max(low, floor), min(high, 1.0)


def _verdicts(verdicts: list[str]) -> str:
    """The verdict of all seeds, or how many said which: ``backdoored 2/3, clean 1/3``."""
    found = Counter(verdict for verdict in verdicts if verdict)
    if len(found) == 1 and found.total() == len(verdicts):
        return verdicts[0]
    return ", ".join(f"{name} {count}/{len(verdicts)}" for name, count in sorted(found.items()))


def _missing(
    defense: str,
    valid: list[tuple[str, int]],
    found: Mapping[tuple[str, int, str], Mapping[str, Any]],
) -> list[str]:
    seeds = {seed for _, seed in valid}
    gaps = []
    for name, seed in valid:
        row = found.get((name, seed, defense))
        status = "not run" if row is None else row["status"]
        if status != "ok":
            which = f"{name} seed {seed}" if len(seeds) > 1 else name
            gaps.append(f"{which} ({status})")
    return gaps


def _mean_of_means(values: list[tuple[str, float | None]]) -> float | None:
    by_attack: dict[str, list[float | None]] = {}
    for name, value in values:
        by_attack.setdefault(name, []).append(value)
    return strict_mean([strict_mean(group) for group in by_attack.values()])


def strict_mean(values: list[float | None]) -> float | None:
    """None as soon as one value is missing: a mean over fewer would not be comparable."""
    if not values or any(value is None for value in values):
        return None
    return math.fsum(values) / len(values)


def _long_form(results: Results, section: str, names: Mapping[str, str]) -> pd.DataFrame:
    cells = {cell.key: cell for cell in results.cells}
    records = []
    for row in _sorted_rows(map(_row, results.cells), results.manifest):
        identity = {name: row[name] for name in _IDENTITY}
        for entry in getattr(cells[row["key"]], section):
            records.append(identity | {name: entry.get(key) for name, key in names.items()})
    return _frame(records, (*_IDENTITY, *names))


def _sorted_rows(rows: Iterable[dict[str, Any]], manifest: Manifest) -> list[dict[str, Any]]:
    attacks = {label: place for place, label in enumerate(manifest.attacks)}
    defenses = {label: place for place, label in enumerate(manifest.defenses)}

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        return (
            row["control"],
            attacks.get(row["attack"], len(attacks)),
            row["attack"],
            tuple(str(row[name]) for name in CONTEXT),
            row["reference"],
            row["analysis"],
            STATUSES.index(row["status"]),
            *_descending(row, "auroc_vs_decoy", "auroc_delta"),
            defenses.get(row["defense"], len(defenses)),
            row["defense"],
            -1 if row["seed"] is None else row["seed"],
            row["key"],
        )

    return sorted(rows, key=place)


def _descending(row: Mapping[str, Any], *names: str) -> tuple[float, ...]:
    return tuple(math.inf if row[name] is None else -row[name] for name in names)


def _frame(rows: list[dict[str, Any]], names: tuple[str, ...]) -> pd.DataFrame:
    """``rows`` as a frame: numbers float64, integers Int64, flags bool, the rest objects."""
    frame = pd.DataFrame(rows, columns=list(names), dtype=object)
    for name in names:
        column = COLUMNS.get(name)
        if name in ("n_attacks", "n_seeds") or (column and column.kind == "integer"):
            frame[name] = frame[name].astype("Int64")
        elif column and column.kind == "flag":
            frame[name] = frame[name].astype(bool)
        elif (column and column.kind == "number") or name in _LONG_NUMBERS or _bound(name):
            frame[name] = frame[name].astype("float64")
    return frame


_LONG_NUMBERS = frozenset(
    ("nominal_fpr", "threshold", "tpr", "fpr", "fpr_decoy", "value", "low", "high")
)


def _bound(name: str) -> bool:
    return name.endswith(("_low", "_high"))
