"""Triggers that encoder detectors inverted, beside the true one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report.plots.pictures import SCALE, show_strip
from bench.report.plots.reconstructions import INVERTED, digest, picture_names
from bench.report.plots.selection import AttackColumn
from bench.report.style import new_figure, shortened

__all__ = ["Inversion", "inversions", "inverted_triggers_figure"]

_MOST_ROWS = 9
"""More inversions than this go into two columns."""


@dataclass(frozen=True)
class Inversion:
    """What one or more defenses found in the encoders of one attack.

    Attributes
    ----------
    true
        uint8 (2, H, W, 3): a triggered image, and what the trigger changes at most per pixel; None
        where no triggered image is stored.
    names
        What the pictures of ``victim`` and ``twin`` are.
    victim, twin
        uint8 (n, H, W, 3), one per inverted figure, and the verdicts in words beside them.
    """

    attack: str
    defenses: tuple[str, ...]
    true: np.ndarray | None
    names: tuple[str, ...]
    victim: np.ndarray
    twin: np.ndarray | None
    verdicts: tuple[str, str]


def inversions(attacks: Sequence[AttackColumn]) -> list[Inversion]:
    """One entry per attack and distinct inversion; defenses that share one are named together."""
    found: dict[tuple[str, ...], Inversion] = {}
    for attack in attacks:
        for cell in attack.in_display_order:
            figures = cell.figures() or {}
            names = picture_names(figures, inverted=True)
            victim = [name for name in names if name.startswith(INVERTED)]
            if not victim or not len(figures["input"]):
                continue
            verdicts = (_verdict(cell.row, ""), _verdict(cell.row, "_twin"))
            place = (attack.name, digest(figures, names), *verdicts)
            known = found.get(place)
            twin = [name for name in names if name not in victim]
            found[place] = Inversion(
                attack=attack.title,
                defenses=(*(known.defenses if known else ()), cell.row["defense"]),
                true=_true_trigger(attack, figures),
                names=tuple(name.replace("_", " ") for name in victim),
                victim=np.stack([figures[name][0] for name in victim]),
                twin=np.stack([figures[name][0] for name in twin]) if twin else None,
                verdicts=verdicts,
            )
    return list(found.values())


def inverted_triggers_figure(attacks: Sequence[AttackColumn]) -> Figure | None:
    """A row per attack and inversion: true trigger, inverted on the victim and on the clean twin.

    None where no defense inverted a trigger.
    """
    entries = inversions(attacks)
    if not entries:
        return None
    across = 1 if len(entries) <= _MOST_ROWS else 2
    down = -(-len(entries) // across)
    tiles = max(len(entry.victim) for entry in entries)
    widths = [2, tiles, tiles] * across
    figure = new_figure(sum(widths) * SCALE + 2.0 * across, down * (SCALE + 0.46) + 0.6)
    panels = figure.subplots(down, 3 * across, squeeze=False, width_ratios=widths)
    for axis in panels.ravel():
        axis.set_axis_off()
    for place, entry in enumerate(entries):
        block = 3 * (place // down)
        _draw(panels[place % down, block : block + 3], entry)
    figure.suptitle("inverted triggers", weight="bold", size=10)
    names = " and ".join(dict.fromkeys(name for entry in entries for name in entry.names))
    figure.supxlabel(f"a triggered image and what the trigger changes; then {names}", size=7.5)
    return figure


def _draw(panels: Sequence[Axes], entry: Inversion) -> None:
    titles = ("true trigger", f"victim: {entry.verdicts[0]}", f"twin: {entry.verdicts[1]}")
    for axis, pictures, title in zip(
        panels, (entry.true, entry.victim, entry.twin), titles, strict=True
    ):
        if pictures is None:
            continue
        axis.set_axis_on()
        show_strip(axis, pictures)
        axis.set_title(title, size=7, weight="normal", pad=2)
    lines = [shortened(part, 30) for part in entry.attack.replace(" (", "\n(", 1).split("\n")]
    lines += [shortened(", ".join(entry.defenses), 30)]
    panels[0].text(
        -0.04,
        0.5,
        "\n".join(lines),
        transform=panels[0].transAxes,
        ha="right",
        va="center",
        size=7.5,
    )


def _verdict(row: dict, of: str) -> str:
    """``backdoored`` and, below, ``score −0.060``; either may be missing."""
    score = row[f"encoder_score{of}"]
    number = "no score" if score is None else f"score {score:.3f}".replace("-", "−")
    return f"{row[f'encoder_verdict{of}'] or 'no verdict'}\n{number}"


def _true_trigger(attack: AttackColumn, figures: dict[str, np.ndarray]) -> np.ndarray | None:
    pictures = attack.pictures
    if pictures is not None:
        clean, triggered = pictures["clean"], pictures["triggered"]
    else:
        conditions, images = figures["condition"], figures["image"]
        pairs = [
            (np.flatnonzero((conditions == "clean") & (images == image)), place)
            for place, image in enumerate(images)
            if conditions[place] == "triggered"
        ]
        pairs = [(clean[0], place) for clean, place in pairs if len(clean)]
        if not pairs:
            return None
        clean, triggered = (figures["input"][list(places)] for places in zip(*pairs, strict=True))
    change = np.abs(triggered.astype(int) - clean.astype(int)).max(axis=(0, 3))
    change = (change * 255 // max(int(change.max()), 1)).astype(np.uint8)
    return np.stack([triggered[0], np.repeat(change[..., None], 3, axis=-1)])
