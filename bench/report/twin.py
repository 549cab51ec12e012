"""What a cell's scores on the clean twin say beyond its row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.evaluation.detection import SPLIT_OF_RULE, auroc, calibrated_threshold
from bench.report.arrays import ReportError
from bench.report.columns import CONTEXT

if TYPE_CHECKING:
    from bench.report.schema import StoredCell

__all__ = ["excess", "gathered", "twin_figures"]


def twin_figures(cell: StoredCell) -> dict[str, float | None]:
    """Two columns of the leaderboard; None where the cell has no twin, no decoy or no scores.

    ``tpr_calibrated_placebo``: triggered non-target images above the threshold that the row's rule
    chooses on the *twin's* clean images at the same nominal rate, what ``tpr_calibrated`` would be
    without a backdoor. ``auroc_decoy_placebo``: decoy-stamped against clean on the twin.

    Raises
    ------
    ReportError
        When ``scores.parquet`` is damaged.
    """
    found: dict[str, float | None]
    found = {"tpr_calibrated_placebo": None, "auroc_decoy_placebo": None}
    chosen = cell.calibrated
    if not cell.measured or chosen is None or not (cell.path / "scores.parquet").is_file():
        return found
    frame = cell.scores()
    frame = frame[(frame["encoder"] == "twin").to_numpy()]
    split, condition = frame["split"].to_numpy(), frame["condition"].to_numpy()
    score, test = frame["score"].to_numpy(), split == "test"
    if not np.isfinite(score).all():
        raise ReportError(f"{cell.path / 'scores.parquet'}: damaged, not all scores are finite")
    other = test & (frame["label"].to_numpy() != cell.row["target"])
    triggered = score[other & (condition == "triggered")]
    decoy = score[other & (condition == "decoy")]
    calibration = score[split == SPLIT_OF_RULE.get(chosen["rule"], "")]
    if len(triggered) and len(calibration) and chosen["nominal_fpr"] is not None:
        threshold = calibrated_threshold(calibration, chosen["nominal_fpr"])
        found["tpr_calibrated_placebo"] = float(np.mean(triggered > threshold))
    if len(decoy):
        found["auroc_decoy_placebo"] = auroc(score[test & (condition == "clean")], decoy)
    return found


def excess(row: Mapping[str, Any]) -> float | None:
    """What ``auroc_vs_decoy`` has beyond the twin, each counted from chance on: 0 on a control, and
    a decoy that is odder than the trigger earns nothing. Of a mean over seeds it is that of the
    means: noise around chance would only subtract."""
    victim, twin = row["auroc_vs_decoy"], row["auroc_vs_decoy_placebo"]
    return None if victim is None or twin is None else max(victim, 0.5) - max(twin, 0.5)


def _excess_of(
    cells: list[StoredCell], gather: Callable[[list[float | None]], float | None]
) -> float | None:
    sides = ("auroc_vs_decoy", "auroc_vs_decoy_placebo")
    return excess({side: gather([cell.row[side] for cell in cells]) for side in sides})


def gathered(
    cells: Iterable[StoredCell], metric: str, gather: Callable[[list[float | None]], float | None]
) -> float | None:
    """``gather`` (a mean, a median) of a metric over cells.

    An excess over chance is one of means over *seeds*: it is taken before attacks, encoders and
    sets come together, or one below chance would take from another.
    """
    cells = list(cells)
    if metric == "auroc_vs_decoy_excess":
        settings: dict[tuple[str, ...], list[StoredCell]] = {}
        for cell in cells:
            setting = tuple(str(cell.row[name]) for name in ("attack", "defense", *CONTEXT))
            settings.setdefault(setting, []).append(cell)
        return gather([_excess_of(members, gather) for members in settings.values()])
    return gather(
        [cell.row[metric] if metric in cell.row else cell.derived[metric] for cell in cells]
    )
