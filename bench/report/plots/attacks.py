"""What an attack looks like: its images, and where their embeddings lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from bench.report.plots.pictures import SCALE, show_strip
from bench.report.plots.selection import AttackColumn
from bench.report.style import SERIES, TARGET, new_figure, shortened

__all__ = ["embedding_figure", "triggers_figure"]

GROUPS = {
    "clean": ("clean", "o", SERIES["clean"]["color"]),
    "target": ("clean, target class", "s", TARGET),
    "decoy": ("decoy", "+", SERIES["decoy"]["color"]),
    "triggered": ("triggered", "^", SERIES["triggered"]["color"]),
}
"""Group of embeddings -> legend, marker and colour, drawn in this order."""

_ENCODERS = {"victim": "victim", "twin": "clean twin"}


def embedding_figure(attack: AttackColumn, pictures: dict[str, np.ndarray]) -> Figure:
    """The plane of the first two principal components of embeddings, a panel per encoder.

    Parameters
    ----------
    pictures
        See :meth:`bench.report.stored_cell.StoredCell.attack_pictures`. Each encoder has a plane
        of its own: coordinates of the two panels cannot be compared.
    """
    encoders = [name for name in _ENCODERS if f"{name}_points" in pictures]
    figure = new_figure(3.6 * len(encoders) + 0.4, 4.0)
    panels = figure.subplots(1, len(encoders), squeeze=False).ravel()
    for axis, encoder in zip(panels, encoders, strict=True):
        points, groups = pictures[f"{encoder}_points"], pictures[f"{encoder}_groups"]
        for name, (label, marker, color) in GROUPS.items():
            chosen = points[groups == name]
            if not len(chosen):
                continue
            hollow = marker in "os"  # the many clean points below; what lies on them stays visible
            axis.scatter(
                *chosen.T,
                marker=marker,
                s=20,
                facecolors="none" if hollow else color,
                edgecolors=None if marker == "+" else color if hollow else "white",
                linewidths=0.4 if marker == "^" else 1.0,
                label=label,
            )
        share = [f"{100 * value:.0f} % of variance" for value in pictures[f"{encoder}_variance"]]
        axis.set(xlabel=f"first component ({share[0]})", ylabel=f"second ({share[1]})")
        axis.set_title(_ENCODERS[encoder])
        axis.tick_params(labelsize=7)
    figure.suptitle(f"embeddings: {attack.title}", weight="bold", size=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def triggers_figure(attacks: Sequence[AttackColumn]) -> Figure | None:
    """A row per attack, controls last: clean, triggered, what the trigger changes, decoy.

    None where no attack carries pictures.
    """
    shown = [attack for attack in attacks if attack.pictures is not None]
    if not shown:
        return None
    names = ("clean", "triggered", "difference", "decoy")
    figure = new_figure(2 * len(names) * SCALE + 2.4, len(shown) * (SCALE + 0.22) + 0.5)
    panels = figure.subplots(len(shown), len(names), squeeze=False)
    for line, attack in enumerate(shown):
        pictures = attack.pictures or {}
        for axis, name in zip(panels[line], names, strict=True):
            if name in pictures:
                # Neighbours in a sorted set are often of one class.
                ends = sorted({0, len(pictures[name]) - 1})
                show_strip(axis, pictures[name][ends])
            else:
                axis.text(0.5, 0.5, f"no {name}", ha="center", va="center", size=7.5)
                axis.set_axis_off()
        label = attack.title.replace(" (", "\n(", 1)
        panels[line, 0].set_ylabel(
            "\n".join(shortened(part, 34) for part in label.split("\n")),
            rotation=0,
            ha="right",
            va="center",
            size=8,
        )
        panels[line, 2].set_title(
            f"difference × {float(pictures['gain']):.3g}", size=7.5, weight="normal", pad=2
        )
    for axis, name in zip(panels[0], names, strict=True):
        if name != "difference":
            axis.set_title(name, size=9, pad=3)
    figure.suptitle("triggers; in the difference, grey is no change", weight="bold", size=10)
    return figure
