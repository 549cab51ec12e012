"""What a scan found: as lines for a terminal, as ``scan.json`` and as ``scores.csv``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from bench.report.formats import to_csv
from bench.scan.chance import CONFIDENCE, Count
from bench.scan.running import Result

SHOWN_NAMES = 5

NO_THRESHOLDS = (
    "No clean images were given (--auxiliary): every detector was fitted on the scanned images, "
    "which may hold triggered ones. There are no thresholds; scores are a ranking and no more."
)
EXCHANGEABLE = (
    "What chance gives holds if the clean images are of the same kind as the scanned ones (source, "
    "size, compression); a detector that finds far more may have noticed that they are not."
)
CAVEATS = {
    "backdoored": (
        "The rule fired. Its threshold was set by the method's authors on other encoders, and a "
        "clean encoder can trip it."
    ),
    "clean": (
        "The rule did not fire, which does not show that there is no backdoor: attacks that evade "
        "such rules are published."
    ),
    "no rule": "The method gives a score and no rule; compare it with that of encoders you trust.",
}


@dataclass
class Findings:
    """All that is written and shown.

    Attributes
    ----------
    encoder, images, auxiliary
        Descriptions, JSON-ready; ``auxiliary`` is None without clean images.
    names
        File names, in the order of the scores.
    warnings
        Sentences a reader must see first.
    provenance
        Versions, seed and options, JSON-ready.
    """

    encoder: dict[str, Any]
    images: dict[str, Any]
    auxiliary: dict[str, Any] | None
    names: tuple[str, ...]
    fpr: float
    embeddings: dict[str, float]
    warnings: list[str]
    provenance: dict[str, Any]
    results: list[Result] = field(default_factory=list)

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.results if result.error is not None]

    @property
    def scored(self) -> list[Result]:
        return [result for result in self.results if result.scores is not None]

    @property
    def votes(self) -> np.ndarray | None:
        """int (N,): how many detectors flag each image; None when none has a threshold."""
        flags = [result.flagged for result in self.scored if result.flagged is not None]
        return np.sum(flags, axis=0) if flags else None


def encoder_sentence(result: Result) -> str:
    """What a detector says of the encoder, in its own words where it has some.

    ``inverted a trigger covering 5.1 % of the image (rule: below 10 %): backdoored``
    """
    if result.encoder_in_words:
        return f"{result.encoder_in_words}: {result.verdict}"
    value, threshold = result.encoder_score, result.encoder_threshold
    if threshold is None:
        return f"encoder score {value:.4g} (no rule)"
    return f"encoder score {value:.4g} (rule: backdoored above {threshold:.4g}): {result.verdict}"


def flag_sentence(result: Result, images: int) -> str:
    """How many images a detector flags beside how many chance does."""
    parts = []
    if result.flags is not None:
        parts.append(f"{result.flags.observed} of {images} flagged, {_by_chance(result.flags)}")
    if result.beyond is not None:
        parts.append(
            f"{result.beyond.observed} above every held-out clean image, "
            f"{_by_chance(result.beyond)}"
        )
    if parts and result.transductive:
        parts.append("fitted on these very images, so nothing vouches for the figures of chance")
    return "; ".join(parts) or "a ranking, no threshold"


def _by_chance(count: Count) -> str:
    more = "more than chance: " if count.more_than_chance else "by chance "
    return f"{more}{count.expected:.0f}, at most {count.highest} in {CONFIDENCE:.0%} of clean sets"


def normalisation_sentence(encoder: dict[str, Any]) -> str:
    """The normalisation in numbers, and where it comes from."""
    mean, std = (", ".join(f"{value:g}" for value in encoder[name]) for name in ("mean", "std"))
    return f"mean {mean}, std {std} ({encoder['normalisation_from']})"


def network_sentence(encoder: dict[str, Any]) -> str:
    """The network in words, and where that comes from."""
    settings = "".join(f", {name} {value}" for name, value in encoder["settings"].items())
    return (
        f"{encoder['architecture']}{settings}; {encoder['image_size']} px, "
        f"{encoder['embedding_dim']} dimensions ({encoder['network_from']})"
    )


def pictures_sentence(described: dict[str, Any]) -> str:
    """How many images were read, resized and left out."""
    parts = [f"{described['count']} from {described['path']}"]
    if described["resized"]:
        parts.append(f"{described['resized']} resized to {described['image_size']} px (bicubic)")
    if described["skipped"]:
        names = [entry["file"] for entry in described["skipped"]]
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        shown = ", ".join(map(printable, names[:SHOWN_NAMES]))
        parts.append(f"{len(names)} unreadable and left out: {shown}{more}")
    if described["others"]:
        parts.append(f"{described['others']} files of other kinds not read")
    return "; ".join(parts)


def printable(text: str) -> str:
    """``text`` without what could steer a terminal."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def summary(findings: Findings) -> list[str]:
    """The scan in a few lines."""
    lines = [
        f"encoder: {findings.encoder['file']}: {network_sentence(findings.encoder)}",
        f"normalisation: {normalisation_sentence(findings.encoder)}",
        f"images: {pictures_sentence(findings.images)}",
    ]
    if findings.auxiliary is not None:
        lines.append(
            f"clean images: {pictures_sentence(findings.auxiliary)}; "
            f"{findings.auxiliary['fitted_on']} to fit on, {findings.auxiliary['held_out']} for "
            f"thresholds at {findings.fpr:.3g} false positives"
        )
    lines += [f"warning: {warning}" for warning in findings.warnings]
    for result in findings.results:
        if result.encoder_score is not None:
            lines.append(f"{result.name}: {encoder_sentence(result)}")
    for result in findings.scored:
        lines.append(f"{result.name}: {flag_sentence(result, len(findings.names))}")
    for result in findings.results:
        if result.status != "ok":
            lines.append(f"{result.name}: {result.status}: {result.reason}")
    return lines


def scores_table(findings: Findings) -> str:
    """CSV: one row per image by name, one column per detector, flags where there are thresholds."""
    columns: dict[str, Any] = {"file": list(findings.names)}
    for result in findings.scored:
        columns[result.name] = result.scores.astype(float)
        if result.flagged is not None:
            columns[f"{result.name}_flagged"] = result.flagged
    if findings.votes is not None:
        columns["flagged_by"] = findings.votes
    return to_csv(pd.DataFrame(columns))


def described(findings: Findings) -> dict[str, Any]:
    """``scan.json``."""
    return {
        "schema": 1,
        "encoder": findings.encoder,
        "images": findings.images,
        "auxiliary": findings.auxiliary,
        "fpr": findings.fpr if findings.auxiliary is not None else None,
        "embeddings": findings.embeddings,
        "warnings": findings.warnings,
        "defenses": [_described(result) for result in findings.results],
        "provenance": findings.provenance,
    }


def _described(result: Result) -> dict[str, Any]:
    return {
        "name": result.name,
        "parameters": result.parameters,
        "status": result.status,
        "reason": result.reason,
        "seconds": round(result.seconds, 3),
        "encoder_score": result.encoder_score,
        "encoder_threshold": result.encoder_threshold,
        "encoder_verdict": result.verdict,
        "threshold": result.threshold,
        "flagged": _counted(result.flags),
        "above_every_held_out_image": _counted(result.beyond),
        "fitted_on_scanned_images": result.transductive,
        "looks_at_the_encoder": not result.reference,
    }


def _counted(count: Count | None) -> dict[str, Any] | None:
    if count is None:
        return None
    return {**asdict(count), "more_than_chance": count.more_than_chance}


def warnings_of(
    encoder: dict[str, Any], auxiliary: dict[str, Any] | None, fpr: float, shared: int
) -> Sequence[str]:
    """What a reader must know before any number."""
    found = []
    if encoder["guessed_settings"]:
        guesses = ", ".join(
            f"{name} {encoder['settings'][name]}" for name in encoder["guessed_settings"]
        )
        found.append(
            f"no shape tells {guesses}: the default is a guess; say it with --settings if you know"
        )
    if auxiliary is None:
        return [*found, NO_THRESHOLDS]
    if shared:
        found.append(
            f"{shared} of the {auxiliary['count']} clean images have the pixels of a scanned one: "
            "if that one is triggered, the clean set is not clean"
        )
    needed = int(np.ceil(1 / fpr - 1 - 1e-9))
    if auxiliary["held_out"] < needed:
        found.append(
            f"{auxiliary['held_out']} held-out clean images cannot vouch for {fpr:.3g} false "
            f"positives, so there are no thresholds: {10 * needed} clean images can, or a higher "
            "--fpr"
        )
    return found
