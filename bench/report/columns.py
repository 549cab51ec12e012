"""The columns of ``leaderboard.csv``: name, kind, range or unit, meaning; one line each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "integer", "number", "flag"]


@dataclass(frozen=True)
class Column:
    """One column: its ``kind``, its ``unit`` (range or unit, empty for text) and its meaning."""

    name: str
    kind: Kind
    unit: str
    meaning: str


CELL_SCHEMA = 1
"""Version of the ``cell.json`` layout that is written and read."""

STATUSES = ("ok", "attack-weak", "attack-invalid", "uncontrolled", "skipped", "failed")
"""What a row can be, in the order in which tables show them within one attack."""

MEASURED = STATUSES[:4]
"""The statuses of rows that have their numbers."""

_RATE = "0 to 1"

_ROW = (
    Column("attack", "text", "", "label of the attack entry"),
    Column("defense", "text", "", "label of the defense entry"),
    Column("dataset", "text", "", "images the profile pretrains on; imports may differ"),
    Column("encoder", "text", "", "architecture of the encoder, and whether it was imported"),
    Column("downstream", "text", "", "labelled set the attack is judged on"),
    Column("target", "integer", "class index", "class the trigger should lead to"),
    Column("profile", "text", "", "scale of the run"),
    Column("seed", "integer", "", "seed of the cell"),
    Column("attack_backend", "text", "", "native or upstream"),
    Column("defense_backend", "text", "", "native or upstream"),
    Column("auxiliary", "text", "", "images the defender owns"),
    Column("status", "text", "", "ok, or why not: attack-weak, skipped, ..."),
    Column("reason", "text", "", "why the status is not ok, and what else a reader should know"),
    Column("auroc", "number", _RATE, "triggered non-target images against clean, on the victim"),
    Column("auroc_low", "number", _RATE, "lower end of its interval over test images"),
    Column("auroc_high", "number", _RATE, "upper end of its interval over test images"),
    Column("auroc_placebo", "number", _RATE, "the same defense and images on the clean twin"),
    Column("auroc_delta", "number", "-1 to 1", "auroc minus auroc_placebo"),
    Column("auroc_delta_low", "number", "-1 to 1", "lower end of its paired interval"),
    Column("auroc_delta_high", "number", "-1 to 1", "upper end of its paired interval"),
    Column("auroc_decoy", "number", _RATE, "decoy-stamped against clean, on the victim"),
    Column("auroc_vs_decoy", "number", _RATE, "triggered against decoy-stamped, on the victim"),
    Column("auroc_vs_decoy_placebo", "number", _RATE, "the same on the twin; 0.5: a fair decoy"),
    Column("auroc_all", "number", _RATE, "as auroc, target class included"),
    Column("aupr", "number", _RATE, "area under precision and recall, triggered is positive"),
    Column("tpr_at_1fpr", "number", _RATE, "true positive rate at 1 % false positives"),
    Column("tpr_at_5fpr", "number", _RATE, "true positive rate at 5 % false positives"),
    Column("tpr_at_01fpr", "number", _RATE, "at 0.1 % false positives, from 1,000 clean images on"),
    Column("fpr_at_95tpr", "number", _RATE, "false positive rate at 95 % true positives"),
    Column("threshold_source", "text", "", "rule behind tpr_calibrated and fpr_calibrated"),
    Column("tpr_calibrated", "number", _RATE, "true positive rate at the calibrated threshold"),
    Column("fpr_calibrated", "number", _RATE, "realised false positive rate at that threshold"),
    Column("fpr_target_class", "number", _RATE, "the same on clean images of the target class"),
    Column("tpr_median_rule", "number", _RATE, "true positive rate at the pooled test median"),
    Column("fpr_median_rule", "number", _RATE, "false positive rate at the pooled test median"),
    Column("clean_accuracy", "number", _RATE, "probe on the victim, clean images"),
    Column("clean_accuracy_twin", "number", _RATE, "probe on the clean twin, clean images"),
    Column("attack_success_rate", "number", _RATE, "triggered non-target images that hit"),
    Column("attack_success_rate_twin", "number", _RATE, "the same on the clean twin"),
    Column("attack_success_rate_all", "number", _RATE, "the same, target class included"),
    Column("ca_filtered", "number", _RATE, "clean images that pass and are right, of all clean"),
    Column("asr_filtered", "number", _RATE, "triggered non-target images that pass and hit"),
    Column("encoder_score", "number", "", "score of the victim encoder, higher is more suspicious"),
    Column("encoder_score_twin", "number", "", "score of the clean twin"),
    Column("encoder_verdict", "text", "", "what the encoder score says, where a rule exists"),
    Column("encoder_verdict_twin", "text", "", "the same of the clean twin: backdoored is wrong"),
    Column("fit_seconds", "number", "s", "time to fit the defense"),
    Column("score_ms_per_image", "number", "ms", "time to score one image"),
    Column("peak_memory_mb", "number", "MB", "highest memory use of fit and score"),
    Column("n_clean", "integer", "images", "negatives behind auroc"),
    Column("n_triggered", "integer", "images", "positives behind auroc"),
    Column("device", "text", "", "cpu or cuda"),
    Column("key", "text", "", "SHA-256 that names the stored cell"),
    Column("code_version", "text", "", "version of the harness"),
    Column("probe", "text", "", "classifier behind accuracy and success rate"),
    Column("decoy", "text", "", "decoy that was used, empty when none qualified"),
)

_DERIVED = (
    Column("tpr_calibrated_placebo", "number", _RATE, "tpr_calibrated on the twin, its threshold"),
    Column("auroc_decoy_placebo", "number", _RATE, "decoy-stamped against clean, on the twin"),
    Column(
        "auroc_vs_decoy_excess",
        "number",
        "-0.5 to 0.5",
        "auroc_vs_decoy minus the same on the twin, each counted as 0.5 where it is lower",
    ),
    Column("control", "flag", "", "true: the attack is a control; no gate, outside averages"),
    Column("transductive", "flag", "", "true: the defense looks at the test batch as a whole"),
    Column("reference", "flag", "", "true: the defense never calls the encoder; shown last"),
    Column("analysis", "flag", "", "true: a control, or told where the trigger is; no average"),
    Column("reduced", "text", "", "authors' code at a smaller scale than theirs: outside averages"),
)

CONTEXT = ("dataset", "encoder", "downstream", "target")
"""What a cell is besides attack, defense and seed."""

ROW_COLUMNS: tuple[str, ...] = tuple(column.name for column in _ROW)
"""What ``row`` of a ``cell.json`` carries, in order."""

COLUMNS: dict[str, Column] = {column.name: column for column in (*_ROW, *_DERIVED)}
"""Description of every column by name."""

LEADERBOARD_COLUMNS: tuple[str, ...] = tuple(COLUMNS)
"""The columns of ``leaderboard.csv`` in order: the row's, then what the cell says beside it."""
