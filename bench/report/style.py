"""One look for every plot: fonts, colours that survive colour blindness and grey print, files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

__all__ = [
    "DOTS_PER_INCH",
    "INK",
    "MARKERS",
    "SERIES",
    "encoded",
    "heat_colors",
    "new_figure",
    "palette",
    "plot_style",
]

DOTS_PER_INCH = 110
INK = "#222222"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
"""A second code beside colour, for readers without colour."""

SERIES = {
    "clean": {"color": "#9a9a9a", "linestyle": "-"},
    "triggered": {"color": "#b8400e", "linestyle": "-"},
    "decoy": {"color": "#0173b2", "linestyle": "--"},
    "placebo": {"color": "#222222", "linestyle": ":"},
}
"""Score histograms: what each condition looks like, by colour, lightness and dash."""

_SETTINGS = {
    "figure.dpi": DOTS_PER_INCH,
    "savefig.dpi": DOTS_PER_INCH,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs on every machine
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.8,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "text.parse_math": False,  # labels are the user's: a dollar sign is a dollar sign
    "text.usetex": False,
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,
    "pdf.compression": 6,
}


@contextmanager
def plot_style() -> Iterator[None]:
    """The style for figures made inside; settings of the caller come back afterwards."""
    with mpl.rc_context(), sns.axes_style("whitegrid"):
        mpl.rcParams.update(_SETTINGS)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` x ``height`` inches, without pyplot or a display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def palette(count: int) -> list[tuple[float, float, float]]:
    """``count`` colours: seaborn's colour-blind set up to ten, evenly spaced hues beyond."""
    base = sns.color_palette("colorblind", min(count, 10))
    if count <= len(base):
        return list(base)
    return list(sns.color_palette("husl", count))


def heat_colors() -> Colormap:
    """Sequential, monotone in lightness (the order survives in grey); missing is near white."""
    return sns.color_palette("crest", as_cmap=True).with_extremes(bad="#f3f3f3")


def encoded(figure: Figure) -> dict[str, bytes]:
    """``figure`` as ``png`` and ``pdf`` bytes that carry no date and no software version."""
    metadata = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
    }
    files = {}
    for suffix, entries in metadata.items():
        stream = io.BytesIO()
        # Tight: a long label at the edge widens the picture and is not cut.
        figure.savefig(
            stream, format=suffix, metadata=entries, bbox_inches="tight", pad_inches=0.06
        )
        figure.set_layout_engine("none")  # laid out by the first: twice would double the time
        files[suffix] = stream.getvalue()
    return files
