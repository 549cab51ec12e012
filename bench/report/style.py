"""One look for every plot: fonts, colours that survive colour blindness and grey print, files."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image

__all__ = [
    "DOTS_PER_INCH",
    "INK",
    "MARKERS",
    "SERIES",
    "TARGET",
    "Code",
    "annotate_above",
    "encoded",
    "heat_colors",
    "log_axis",
    "new_figure",
    "palette",
    "plot_style",
    "shortened",
]

DOTS_PER_INCH = 110
INK = "#222222"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "d", "h")
"""A second code beside colour, for readers without colour; every one can be drawn hollow."""

SERIES = {
    "clean": {"color": "#9a9a9a", "linestyle": "-"},
    "triggered": {"color": "#b8400e", "linestyle": "-"},
    "decoy": {"color": "#0173b2", "linestyle": "--"},
    "placebo": {"color": "#222222", "linestyle": ":"},
}
"""What each condition looks like in every plot, by colour, lightness and dash."""

TARGET = "#56b4e9"
"""Colour of clean images of the target class, where they are a group of their own."""

Code = tuple[tuple[float, float, float], str]
"""Colour and marker of one label."""

_DISTINCT = (0, 1, 2, 3, 4, 5, 7, 9)
"""Of seaborn's ten colour-blind colours, those that stand out on white."""

_SETTINGS = {
    "figure.dpi": DOTS_PER_INCH,
    "savefig.dpi": DOTS_PER_INCH,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs on every machine
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titley": 1.0,  # no title has ticks below it; finding that out takes long
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


def annotate_above(axis: Axes, text: str) -> None:
    """A small second line between ``axis`` and its title, which needs a pad of 13 points."""
    axis.annotate(
        text,
        (0.5, 1),
        (0, 3.5),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="center",
        size=7,
    )


def log_axis(axis: Axes, low: float, high: float) -> None:
    """A logarithmic x axis from ``low`` to ``high`` with plain numbers, at most about seven."""
    axis.set(xscale="log", xlim=(low, high))
    decades = math.log10(high / low)
    parts = (1, 2, 5) if decades < 2 else (1,)
    axis.xaxis.set_major_locator(LogLocator(subs=parts, numticks=6 if decades > 5 else 8))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())


def palette(labels: Iterable[str]) -> dict[str, Code]:
    """Label -> colour and marker; no two of the first hundred share both."""
    colors = sns.color_palette("colorblind", 10)
    return {
        label: (colors[_DISTINCT[place % len(_DISTINCT)]], MARKERS[place % len(MARKERS)])
        for place, label in enumerate(labels)
    }


def shortened(label: str, length: int) -> str:
    """``label`` with its middle left out when it is longer than ``length`` characters."""
    if len(label) <= length:
        return label
    head = (length - 1) * 2 // 3
    return f"{label[:head]}…{label[len(label) - (length - 1 - head) :]}"


def heat_colors() -> Colormap:
    """Sequential, monotone in lightness (the order survives in grey); missing is near white."""
    return sns.color_palette("crest", as_cmap=True).with_extremes(bad="#f3f3f3")


def encoded(figure: Figure) -> dict[str, bytes]:
    """``figure`` as ``png`` and ``pdf`` bytes that carry no date and no software version."""
    metadata = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
    }
    # Laid out and measured once: each file would otherwise do both again, and they cost more than
    # drawing. The box is tight: a long label at the edge widens the picture and is not cut.
    figure.draw_without_rendering()
    figure.set_layout_engine(None)
    box = figure.get_tightbbox().padded(0.06)
    files = {}
    for suffix, entries in metadata.items():
        stream = io.BytesIO()
        figure.savefig(stream, format=suffix, metadata=entries, bbox_inches=box)
        files[suffix] = stream.getvalue()
    files["png"] = _on_a_palette(files["png"])
    return files


def _on_a_palette(content: bytes) -> bytes:
    """The same picture in at most 256 colours: a third of the bytes, and none is seen to miss."""
    with Image.open(io.BytesIO(content)) as picture:
        few = picture.convert("RGB").quantize(
            256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
        )
    stream = io.BytesIO()
    few.save(stream, format="png", optimize=True, dpi=(DOTS_PER_INCH, DOTS_PER_INCH))
    return stream.getvalue()
