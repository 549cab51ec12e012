"""Tables for people: which columns are shown, how numbers are rounded, what the notes say."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.report.formats import TextTable, number_text
from bench.report.leaderboard import over_seeds, summary, valid_in_part, varying_context
from bench.report.schema import Manifest, Results, StoredCell

__all__ = [
    "ABSENT",
    "FURTHER_TITLES",
    "MARKS",
    "decimals",
    "further_text",
    "further_title",
    "leaderboard_table",
    "mark_notes",
    "marks_of",
    "plain_table",
    "readable_row",
    "state_notes",
    "summary_table",
    "threshold_note",
]

ABSENT = "–"
REASON_LENGTH = 160
"""Characters of a reason that the notes show; the CSV has all of it."""

MARKS = {
    "transductive": ("†", "transductive: the defense looks at the test batch as a whole."),
    "reference": (
        "‡",
        "reference: never calls the encoder, so what it detects was never about the backdoor.",
    ),
    "analysis": (
        "§",
        "analysis: a control, or told where the trigger lies, which no defender knows; outside "
        "averages.",
    ),
    "reduced": (
        "¶",
        "reduced: the authors' code at a smaller scale than theirs; outside averages.",
    ),
}
"""Flag of a row -> the mark behind its defense, and what the notes say about it."""

FURTHER_TITLES = {"decoy": "decoy used"}
"""Of columns whose own name is the title of another."""

Row = dict[str, Any]


def leaderboard_table(results: Results) -> TextTable:
    """The readable subset of the leaderboard, seeds averaged, with the notes a reader needs."""
    frame = over_seeds(results)
    context = varying_context(frame) if len(frame) else []
    repeated = len(frame) > 0 and len(results.manifest.seeds) > 1
    headers, rows = [], []
    settings = results.manifest.declared.leaderboard
    for row in frame.to_dict("records"):
        shown = readable_row(row, context, repeated)
        shown |= further_columns(row, settings.columns, list(shown))
        headers = list(shown)
        rows.append(tuple(shown.values()))
    texts = {"attack", "defense", "auxiliary", "status", "verdict/twin", *context}
    return TextTable(
        name="leaderboard",
        title=f"Leaderboard, profile {results.manifest.profile}",
        notes=(
            *state_notes(results),
            *([settings.caption] if settings.caption else []),
            *(_leaderboard_notes(frame, results) if rows else ()),
        ),
        headers=tuple(headers),
        rows=tuple(rows),
        numeric=_positions(headers, set(headers) - texts),
        rules_before=_group_starts([row["attack"] for row in frame.to_dict("records")]),
    )


def summary_table(results: Results) -> TextTable:
    """Averages over complete columns, or what is missing for them."""
    frame = summary(results)
    headers = tuple(name.replace("_", " ") for name in frame.columns)
    marks = marks_of(results.cells)
    rows = tuple(
        tuple(
            _summary_text(name, value)
            + (marks.get(("defense", value), "") if name == "defense" else "")
            for name, value in row.items()
        )
        for row in frame.to_dict("records")
    )
    gaps = [row for row in frame.to_dict("records") if row["missing"]]
    if not len(frame):
        note = "No defense was run."
    elif gaps:
        note = (
            "No averages where the last column names something missing: they are given only when "
            "every defense has an ok row on every valid attack on that encoder."
        )
    else:
        note = (
            "Means over the attacks that pass the validity gate, per encoder, controls left out; "
            "every defense has an ok row on each of them. Seeds are averaged first."
        )
    shown = frame["defense"]
    partly = valid_in_part(results)
    left = f" Left out, valid in some seeds or sets only: {', '.join(partly)}." if partly else ""
    return TextTable(
        name="summary",
        title=f"Averages over attacks, profile {results.manifest.profile}",
        notes=(
            *state_notes(results),
            note + left,
            *mark_notes({("defense", name): marks.get(("defense", name), "") for name in shown}),
        ),
        headers=headers,
        rows=rows,
        numeric=_positions(headers, set(headers) - {"encoder", "defense", "missing"}),
        rules_before=_group_starts(list(frame["encoder"])),
    )


def plain_table(name: str, frame: pd.DataFrame, results: Results) -> TextTable:
    """``frame`` with all its columns, keys cut to 12 characters."""
    rows = tuple(
        tuple(
            value[:12] if column == "key" else number_text(value) for column, value in row.items()
        )
        for row in frame.to_dict("records")
    )
    numeric = {c for c in frame.columns if pd.api.types.is_numeric_dtype(frame[c].dtype)}
    return TextTable(
        name=name,
        title=f"{name.capitalize()}, profile {results.manifest.profile}",
        notes=state_notes(results),
        headers=tuple(frame.columns),
        rows=rows,
        numeric=_positions(tuple(frame.columns), numeric),
    )


def readable_row(row: Row, context: list[str], repeated: bool) -> dict[str, str]:
    """What people read of a leaderboard row: header -> text.

    ``context`` names the columns from :func:`~bench.report.leaderboard.varying_context`,
    ``repeated`` says whether the run has several seeds.
    """
    shown = {"attack": row["attack"] + (" (control)" if row["control"] else "")}
    shown |= {name: number_text(row[name]) for name in context}
    shown["defense"] = row["defense"] + "".join(
        f" {mark}" for flag, (mark, _) in MARKS.items() if row[flag]
    )
    shown |= {"auxiliary": row["auxiliary"], "status": row["status"]}
    if repeated:
        shown["n"] = str(row["n_seeds"])
    return shown | {
        "AUROC": _with_interval(row, "auroc"),
        "placebo": _rate(row["auroc_placebo"]),
        "delta": _with_interval(row, "auroc_delta", sign="+"),
        "decoy": _rate(row["auroc_decoy"]),
        "vs decoy": _with_interval(row, "auroc_vs_decoy"),
        "on twin": _rate(row["auroc_vs_decoy_placebo"]),
        "beyond twin": _rate(row["auroc_vs_decoy_excess"]),
        "TPR@1%": _rate(row["tpr_at_1fpr"]),
        "TPR@5%": _rate(row["tpr_at_5fpr"]),
        "TPR/FPR cal.": _pair(row["tpr_calibrated"], row["fpr_calibrated"]),
        "TPR placebo": _rate(row["tpr_calibrated_placebo"]),
        "CA/twin": _pair(row["clean_accuracy"], row["clean_accuracy_twin"]),
        "ASR/twin": _pair(row["attack_success_rate"], row["attack_success_rate_twin"]),
        "verdict/twin": _verdicts(row["encoder_verdict"], row["encoder_verdict_twin"]),
        "fit s": decimals(row["fit_seconds"], 1),
        "ms/img": decimals(row["score_ms_per_image"], 2),
    }


def further_text(value: Any) -> str:
    """A value of a column that is shown beside the readable ones: three decimals."""
    return decimals(value, 3) if isinstance(value, float) else number_text(value)


def further_columns(row: Row, names: Iterable[str], shown: Collection[str]) -> dict[str, str]:
    """Columns that are asked for beside the readable ones, under titles of their own."""
    titles = {name: further_title(name, shown) for name in names}
    return {title: further_text(row.get(name)) for name, title in titles.items() if title}


def further_title(name: str, shown: Collection[str]) -> str | None:
    """The title of a further column; None for what the readable ones ``shown`` hold already."""
    title = FURTHER_TITLES.get(name, name.replace("_", " "))
    return None if title in shown else title


def state_notes(results: Results) -> tuple[str, ...]:
    """What keeps cells out of the tables and what intervals leave out, if anything."""
    if results.manifest.smoke:
        return ("This was a smoke run (--limit-steps): its cells enter no table.",)
    notes = []
    if results.unfinished:
        are = "is" if results.unfinished == 1 else "are"
        notes.append(
            f"{results.unfinished} of {len(results.manifest.cells)} cells {are} not stored yet: "
            "the run goes on or was interrupted."
        )
    return (*notes, *_other_encoders(results.cells), *_shared_pretrainings(results.manifest))


def _other_encoders(cells: Iterable[StoredCell]) -> Iterable[str]:
    """Keys under which cells speak of more than one encoder."""
    contents: dict[str, set[str]] = {}
    for cell in cells:
        for role, key in cell.encoders.items():
            if content := cell.encoder_weights.get(role):
                contents.setdefault(key, set()).add(content)
    several = sum(len(found) > 1 for found in contents.values())
    if several:
        yield (
            f"Of {several} encoder{'s' if several > 1 else ''} there are several versions, trained "
            "on machines that round otherwise: rows about them do not speak of one encoder."
        )


def _shared_pretrainings(manifest: Manifest) -> Iterable[str]:
    """Which seeds rest on the same encoders trained from scratch."""
    groups: dict[int, list[int]] = {}
    for seed in manifest.seeds:
        groups.setdefault(manifest.pretrained_with(seed), []).append(seed)
    for pretraining, seeds in groups.items():
        if len(seeds) > 1:
            which = "All seeds" if len(groups) == 1 else f"Seeds {', '.join(map(str, seeds))}"
            yield (
                f"{which} share the encoders pretrained with seed {pretraining}, poisoned ones "
                "too: they vary implants, fine-tunings and the defense, and are one draw of a "
                "pretraining."
            )


def marks_of(cells: Iterable[StoredCell]) -> dict[tuple[str, str], str]:
    """(``attack`` or ``defense``, label) -> the marks behind the label: of a defense what holds for
    all its cells, of an attack that all its cells are reduced."""
    groups: dict[tuple[str, str], list[StoredCell]] = {}
    for cell in cells:
        for name in ("attack", "defense"):
            groups.setdefault((name, cell.row[name]), []).append(cell)
    marks = {}
    for (name, label), members in groups.items():
        flags = MARKS if name == "defense" else ("reduced",)
        said = [MARKS[flag][0] for flag in flags if all(getattr(c, flag) for c in members)]
        marks[name, label] = "".join(f" {mark}" for mark in said)
    return marks


def mark_notes(marks: Mapping[tuple[str, str], str]) -> Iterable[str]:
    """What the marks of :func:`marks_of` mean, those that are there."""
    for mark, text in MARKS.values():
        if any(mark in behind for behind in marks.values()):
            yield f"{mark} {text}"


def threshold_note(
    cells: Iterable[StoredCell], rule: str | None = None, fpr: float | None = None
) -> str:
    """How the thresholds of ``cells`` were chosen: by the protocol, or by a table's own rule."""
    measured = [cell for cell in cells if cell.measured]
    if not measured:
        return "No threshold: nothing was measured."
    rules = {rule} if rule else {cell.row["threshold_source"] for cell in measured} - {""}
    if "median-test" in rules:
        return (
            "Thresholds: the median of all test scores, clean and triggered, the published rule; "
            "it looks at the test set and assumes that half of it is triggered."
        )
    nominal = {(cell.calibrated or {}).get("nominal_fpr") for cell in measured} - {None}
    rates = " or ".join(f"{rate:.3g}" for rate in sorted({fpr} if fpr else nominal)) or "stated"
    return (
        f"Thresholds were chosen on clean data at a nominal false positive rate of {rates}, never "
        f"on test scores (rule: {', '.join(sorted(rules)) or 'none'}); each defense has one "
        f"setting for all attacks.{_poisoned_tenth(measured) if 'own-auxiliary' in rules else ''}"
    )


def _poisoned_tenth(cells: Iterable[StoredCell]) -> str:
    """Whose own images, of which a tenth sets the threshold, are in part triggered."""
    owners = dict.fromkeys(
        cell.row["defense"] for cell in cells if "triggered" in cell.row["auxiliary"]
    )
    if not owners:
        return ""
    return f" Not clean: the images that {', '.join(owners)} owns, some of them triggered."


def _leaderboard_notes(frame: pd.DataFrame, results: Results) -> tuple[str, ...]:
    repeated = len(results.manifest.seeds) > 1
    notes = [
        "Sorted within each attack by vs decoy, then delta; rows that are not ok come last.",
        "AUROC: triggered non-target images against clean test images. Placebo: the same defense "
        "and images on the clean twin, an encoder without the backdoor; delta = AUROC - placebo, "
        "which a placebo below 0.5 makes larger than the detection is. "
        "Decoy: images stamped with a look-alike of the trigger that does not activate the "
        "backdoor, against clean ones (0.5 is ideal). Vs decoy: triggered against decoy-stamped. "
        "On twin: the same without the backdoor; 0.5 where the decoy is as conspicuous as the "
        "trigger, below it where it is more so and vs decoy is hard to win, above it where the "
        "trigger stands out without any backdoor and vs decoy is won by seeing it. Beyond twin: "
        "vs decoy minus that, each counted as 0.5 where it is lower.",
        f"TPR/FPR cal.: {threshold_note(results.cells)} TPR placebo: the same on the clean twin, "
        "at the threshold of its own clean images. TPR@1% and TPR@5% are read off the ROC curve.",
        "Validity gate (not for controls): ASR >= 0.8, at least 0.5 above the twin's, clean "
        "accuracy within 0.05 of the twin's. 0.3 <= ASR < 0.8 is attack-weak; below that, or from "
        "0.8 on where another condition fails, it is attack-invalid. Both stay outside averages.",
        "Brackets: "
        + (
            "n seeds are averaged; over three or more seeds of which no two share an encoder or "
            "a pretraining a 95 % interval of the mean, the t interval between seeds and the "
            "mean test-sampling interval added in quadrature; otherwise from the lowest to the "
            "highest end of their test-sampling intervals: a range, and no interval of the mean."
            if repeated
            else "test-sampling interval, a bootstrap over source images."
        ),
    ]
    if (frame["status"] == "uncontrolled").any():
        notes.append(
            "Uncontrolled: an imported victim that came without a clean twin. Its ASR passes, but "
            "nothing can stand beside it: placebo, delta and on twin are empty, and the row stays "
            "outside averages."
        )
    if (frame["encoder_verdict"] != "").any():
        notes.append(
            "Verdict: what an encoder detector says of the victim, and after the stroke of its "
            "clean twin, of which `backdoored` is a false alarm."
        )
    notes += [f"{mark} {text}" for flag, (mark, text) in MARKS.items() if frame[flag].any()]
    return (*notes, *_reasons(frame))


def _reasons(frame: pd.DataFrame) -> list[str]:
    """One sentence per reason for a failed or skipped cell, with the cells it holds for."""
    cells: dict[tuple[str, str], list[str]] = {}
    for row in frame.to_dict("records"):
        if row["status"] in ("failed", "skipped"):
            reason = textwrap.shorten(row["reason"], REASON_LENGTH, placeholder=" …")
            found = cells.setdefault((row["status"], reason or "no reason given"), [])
            found.append(f"{row['defense']} on {row['attack']}")
    return [
        f"{status.capitalize()} ({reason}): {', '.join(names)}."
        for (status, reason), names in cells.items()
    ]


def _positions(headers: Sequence[str], names: Collection[str]) -> frozenset[int]:
    return frozenset(i for i, name in enumerate(headers) if name in names)


def _group_starts(labels: list[str]) -> frozenset[int]:
    return frozenset(i for i in range(1, len(labels)) if labels[i] != labels[i - 1])


def _summary_text(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return number_text(value)
    return decimals(value, {"fit_seconds": 1, "score_ms_per_image": 2}.get(name, 3))


def _with_interval(row: Row, metric: str, sign: str = "") -> str:
    value, low, high = (row[name] for name in (metric, f"{metric}_low", f"{metric}_high"))
    text = decimals(value, 3, sign)
    if any(math.isnan(bound) for bound in (value, low, high)):
        return text
    return f"{text} [{decimals(low, 3, sign)}, {decimals(high, 3, sign)}]"


def _rate(value: float) -> str:
    return decimals(value, 3)


def _pair(first: float, second: float) -> str:
    return ABSENT if math.isnan(first) and math.isnan(second) else f"{_rate(first)}/{_rate(second)}"


def _verdicts(victim: str, twin: str) -> str:
    return f"{victim or ABSENT}/{twin or ABSENT}" if victim or twin else ABSENT


def decimals(value: float, digits: int, sign: str = "") -> str:
    """``value`` with a fixed number of digits; a dash for nan."""
    return ABSENT if math.isnan(value) else f"{value:{sign}.{digits}f}"
