"""One scan from request to findings; writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import registry
from bench.determinism import be_deterministic
from bench.errors import InputError
from bench.evaluation.smoke import first_look
from bench.progress import Silent
from bench.provenance import code_version, hardware, library_versions
from bench.scan.findings import Findings, warnings_of
from bench.scan.opening import Opened, Wishes, open_encoder
from bench.scan.page import render
from bench.scan.pictures import Pictures, read_pictures
from bench.scan.running import Scan, run_all
from bench.scan.selection import Chosen, Offered, choose


@dataclass(frozen=True)
class Request:
    """What is to be scanned, with what.

    Attributes
    ----------
    encoder, images, auxiliary
        Paths; ``auxiliary`` is None without clean images.
    defenses
        Names; None for the default ones.
    parameters
        Defense -> parameter -> value.
    fpr
        Nominal share of clean images that a threshold flags, in (0, 1).
    device
        ``auto``, ``cpu`` or ``cuda``.
    top
        Images shown per detector.
    """

    encoder: Path
    images: Path
    auxiliary: Path | None = None
    wishes: Wishes = field(default_factory=Wishes)
    defenses: tuple[str, ...] | None = None
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fpr: float = 0.05
    device: str = "auto"
    seed: int = 0
    precision: str = "float32"
    top: int = 24


def examine(request: Request, reporter: Silent) -> tuple[Findings, str]:
    """Scan; what was found and the page about it.

    Raises
    ------
    InputError
        For bad input, before anything expensive is computed.
    """
    for name in request.defenses or ():
        registry.find("defenses", name)
    _check_apart(request.images, request.auxiliary)
    opened = open_encoder(request.encoder, request.wishes)
    size = opened.encoder.image_size
    images = read_pictures(request.images, size)
    clean = None if request.auxiliary is None else read_pictures(request.auxiliary, size)
    chosen = _chosen(request, opened, clean)
    opened.encoder.to(set_up_torch(request.device))
    scan = Scan(
        opened.encoder,
        images.images,
        None if clean is None else clean.images,
        fpr=request.fpr,
        seed=request.seed,
        precision=request.precision,
        reporter=reporter,
    )
    look = first_look(opened.encoder, scan.fitted_on)
    if look.fatal:
        raise InputError("; ".join(look.problems))
    encoder, auxiliary, shared = opened.describe(), None, 0
    if clean is not None:
        auxiliary = {
            **_about(request.auxiliary, clean),
            "fitted_on": len(scan.fitted_on),
            "held_out": scan.held_out,
            "labels_from": clean.labelled_by,
        }
        shared = len(set(clean.digests) & set(images.digests))
    findings = Findings(
        encoder=encoder,
        images=_about(request.images, images),
        auxiliary=auxiliary,
        names=images.names,
        fpr=request.fpr,
        embeddings=look.figures,
        warnings=[*look.problems, *warnings_of(encoder, auxiliary, request.fpr, shared)],
        provenance=_provenance(opened, request.seed, request.precision),
    )
    findings.results = run_all(scan, chosen, reporter)
    return findings, render(findings, _pixels(images), request.top)


def _chosen(request: Request, opened: Opened, clean: Pictures | None) -> list[Chosen]:
    offered = Offered(
        architecture=opened.encoder.architecture,
        image_size=opened.encoder.image_size,
        text=opened.encoder.text is not None,
        auxiliary=clean is not None,
        labels=clean is not None and clean.images.labelled,
    )
    return choose(request.defenses, request.parameters, offered)


def set_up_torch(wanted: str) -> str:
    """The device to use, with the same determinism as a run.

    Raises
    ------
    InputError
        When an accelerator was asked for and there is none.
    """
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise InputError("device 'cuda' was asked for and none is available; use --device cpu")
    device = "cpu" if wanted == "cpu" or not found else "cuda"
    be_deterministic(device)
    return device


def _check_apart(images: Path, auxiliary: Path | None) -> None:
    if auxiliary is not None and images.resolve() == auxiliary.resolve():
        raise InputError(
            "--images and --auxiliary are the same: what is under suspicion cannot vouch for itself"
        )


def _about(path: Path, pictures: Pictures) -> dict[str, Any]:
    return {
        "path": str(path),
        "count": len(pictures),
        "image_size": pictures.images.image_size,
        "resized": pictures.resized,
        "skipped": [{"file": name, "reason": why} for name, why in pictures.skipped],
        "others": pictures.others,
    }


def _pixels(pictures: Pictures) -> Callable[[int], np.ndarray]:
    def pixels(position: int) -> np.ndarray:
        return pictures.images.uint8(slice(position, position + 1))[0].permute(1, 2, 0).numpy()

    return pixels


def _provenance(opened: Opened, seed: int, precision: str) -> dict[str, Any]:
    return {
        "code_version": code_version(),
        "versions": library_versions(),
        "hardware": hardware(opened.encoder.device.type),
        "seed": seed,
        "precision": precision,
    }
