"""``report.html``: one page that needs no network; every text in it is escaped."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from jinja2 import Environment
from PIL import Image

from bench.scan.chance import CONFIDENCE
from bench.scan.findings import (
    CAVEATS,
    EXCHANGEABLE,
    Findings,
    encoder_sentence,
    network_sentence,
    normalisation_sentence,
    pictures_sentence,
)
from bench.scan.running import Result

LARGEST_PICTURE = 112
"""Pixels; larger images are shown smaller, or a page of them would be many megabytes."""


def render(findings: Findings, pixels: Callable[[int], np.ndarray], top: int) -> str:
    """The page.

    Parameters
    ----------
    pixels
        Position of an image -> uint8 (H, W, 3), as the encoder sees it.
    top
        Images shown per detector.
    """

    @cache
    def picture(position: int) -> str:
        return data_url(pixels(position))

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    auxiliary = findings.auxiliary
    return template.render(
        encoder=findings.encoder,
        network=network_sentence(findings.encoder),
        normalisation=normalisation_sentence(findings.encoder),
        images=pictures_sentence(findings.images),
        auxiliary=None if auxiliary is None else pictures_sentence(auxiliary),
        held_out=0 if auxiliary is None else auxiliary["held_out"],
        fitted_on=0 if auxiliary is None else auxiliary["fitted_on"],
        fpr=f"{findings.fpr:.3g}",
        warnings=findings.warnings,
        exchangeable=EXCHANGEABLE,
        confidence=f"{CONFIDENCE:.0%}",
        count=len(findings.names),
        verdicts=[
            {"name": one.name, "text": encoder_sentence(one), "caveat": CAVEATS[one.verdict]}
            for one in findings.results
            if one.encoder_score is not None
        ],
        detectors=[_detector(one, findings, picture, top) for one in findings.scored],
        left_out=[
            (one.name, one.status, one.reason) for one in findings.results if one.status != "ok"
        ],
        votes=_votes(findings),
        unreadable=findings.images["skipped"],
        provenance=findings.provenance,
    )


def data_url(pixels: np.ndarray) -> str:
    """uint8 (H, W, 3) as an embedded PNG."""
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    stream = BytesIO()
    image.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _detector(
    result: Result, findings: Findings, picture: Callable[[int], str], top: int
) -> dict[str, Any]:
    flagged = result.flagged
    order = result.order()[:top].tolist()
    return {
        "name": result.name,
        "source": result.source,
        "reference": result.reference,
        "transductive": result.transductive and findings.auxiliary is not None,
        "seconds": f"{result.seconds:.1f}",
        "threshold": None if result.threshold is None else f"{result.threshold:.5g}",
        "counts": [
            None if count is None else {**asdict(count), "more": count.more_than_chance}
            for count in (result.flags, result.beyond)
        ],
        "images": [
            {
                "url": picture(position),
                "name": findings.names[position],
                "score": f"{result.scores[position]:.5g}",
                "flagged": flagged is not None and bool(flagged[position]),
            }
            for position in order
        ],
        "pictures": [
            (name.replace("_", " "), [data_url(array) for array in _distinct(arrays)])
            for name, arrays in result.pictures.items()
        ],
    }


def _distinct(arrays: np.ndarray) -> np.ndarray:
    """One picture where all are the same: an inverted trigger does not depend on the image."""
    same = len(arrays) > 1 and (arrays == arrays[:1]).all()
    return arrays[:1] if same else arrays


def _votes(findings: Findings) -> list[tuple[int, int]]:
    """(detectors, images that exactly so many flag), most detectors first."""
    if findings.votes is None:
        return []
    counts = np.bincount(findings.votes)
    return [(number, int(counts[number])) for number in range(len(counts) - 1, 0, -1)]


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Scan of {{ encoder.file }}</title>
<style>
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem; color: #222; max-width: 76rem; }
table { border-collapse: collapse; }
th, td { padding: .3em .7em; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #444; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
.warning { border-left: 4px solid #b8400e; padding: .1em .8em; margin: .6em 0; }
.verdict { border-left: 4px solid #444; padding: .1em .8em; margin: .6em 0; }
.more { font-weight: bold; color: #b8400e; }
.quiet { color: #666; }
.grid { display: flex; flex-wrap: wrap; gap: .6em; }
figure { margin: 0; width: 96px; font-size: 11px; }
figure img, .strip img { width: 96px; height: 96px; image-rendering: pixelated; display: block; }
figure.flagged img { outline: 3px solid #b8400e; outline-offset: -3px; }
figcaption { overflow-wrap: anywhere; }
.strip { display: flex; flex-wrap: wrap; gap: .6em; }
</style>
</head>
<body>
<h1>Scan of {{ encoder.file }}</h1>
<p>{{ network }}<br>
Normalisation: {{ normalisation }}<br>
Images: {{ images }}<br>
{% if auxiliary %}
Clean images: {{ auxiliary }}; {{ fitted_on }} to fit on, {{ held_out }} for thresholds at
{{ fpr }} false positives<br>
{% endif %}
SHA-256 <code>{{ encoder.sha256 }}</code></p>
{% for warning in warnings %}
<p class="warning">{{ warning }}</p>
{% endfor %}

<h2>The encoder</h2>
{% for verdict in verdicts %}
<p class="verdict"><b>{{ verdict.name }}</b>: {{ verdict.text }}.<br>
<span class="quiet">{{ verdict.caveat }}</span></p>
{% else %}
<p>No detector that ran has an opinion on the encoder itself.</p>
{% endfor %}

<h2>The images</h2>
{% if detectors %}
{% macro cells(count) %}
{% if count is none %}
<td class="n">-</td><td class="n">-</td><td class="n">-</td>
{% else %}
<td class="n{{ " more" if count.more }}">{{ count.observed }}</td>
<td class="n">{{ "%.0f" | format(count.expected) }}</td><td class="n">{{ count.highest }}</td>
{% endif %}
{% endmacro %}
<table>
<thead>
<tr><th rowspan="2">detector</th><th colspan="3">flagged, of {{ count }}</th>
<th colspan="3">above every held-out clean image</th><th rowspan="2"></th></tr>
<tr><th class="n">images</th><th class="n">by chance</th><th class="n">at most</th>
<th class="n">images</th><th class="n">by chance</th><th class="n">at most</th></tr>
</thead>
<tbody>
{% for one in detectors %}
<tr><td><a href="#d{{ loop.index }}">{{ one.name }}</a></td>
{{ cells(one.counts[0]) }}{{ cells(one.counts[1]) }}
<td>{% if one.reference %}never looks at the encoder. {% endif %}
{% if one.transductive %}Fitted on the scanned images, so nothing vouches for its rates.
{% elif one.threshold is none %}A ranking, no threshold.{% endif %}</td></tr>
{% endfor %}
</tbody>
</table>
{% if auxiliary %}
<p class="quiet">Bold: more than in {{ confidence }} of the scans of clean images ("at most").
{{ exchangeable }} An image that a detector flags is odd to that detector; that is
not yet a trigger.</p>
{% endif %}
{% else %}
<p>No detector scored the images.</p>
{% endif %}
{% if votes %}
<p>{% for number, images in votes %}{{ images }} flagged by {{ number }}{{ ", " if not loop.last }}
{% endfor %} of {{ detectors | length }} detectors.</p>
{% endif %}
{% for name, what, why in left_out %}
<p class="warning"><b>{{ name }}</b> {{ what }}: {{ why }}</p>
{% endfor %}

{% for one in detectors %}
<h3 id="d{{ loop.index }}">{{ one.name }}</h3>
<p class="quiet">{{ one.source }} {{ one.seconds }} s.
{% if one.threshold is not none %}Flagged above {{ one.threshold }} (framed).{% endif %}</p>
<div class="grid">
{% for image in one.images %}
<figure{% if image.flagged %} class="flagged"{% endif %}><img src="{{ image.url }}" alt="">
<figcaption>{{ image.score }}<br>{{ image.name }}</figcaption></figure>
{% endfor %}
</div>
{% for name, urls in one.pictures %}
<p>{{ name }}{% if urls | length > 1 %}, of the first images above{% endif %}:</p>
<div class="strip">{% for url in urls %}<img src="{{ url }}" alt="">{% endfor %}</div>
{% endfor %}
{% endfor %}

{% if unreadable %}
<h2>Images left out</h2>
<table>
{% for entry in unreadable %}
<tr><td>{{ entry.file }}</td><td>{{ entry.reason }}</td></tr>
{% endfor %}
</table>
{% endif %}

<h2>Provenance</h2>
<table>
{% for name, value in provenance | dictsort %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table>
</body>
</html>
"""
