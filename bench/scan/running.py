"""Fits detectors on one encoder and scores images with them, as a run would, without an attack."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.api import DefenderView, Defense
from bench.config import Profile, Protocol, SplitCounts
from bench.data.imageset import ImageSet
from bench.encoders.defender import DefenderEncoder
from bench.encoders.encoder import Encoder
from bench.errors import InputError
from bench.evaluation.detection import calibrated_threshold
from bench.figures import figure_fault
from bench.progress import Silent
from bench.scan.chance import Count, count_above, rank_at
from bench.scan.selection import Chosen
from bench.stages.detecting import Fitted, Scorer, encoder_verdict
from bench.stages.probing import BATCH
from bench.workspace import Reporter, StepCounter, generator_for

HELD_OUT = Protocol.model_fields["held_out_auxiliary"].default
BASE_IMAGES = SplitCounts.model_fields["base"].default
SCORE_BATCH = Profile.model_fields["score_batch"].default
MOST_PICTURES = 8


@dataclass
class Result:
    """What one detector says.

    Attributes
    ----------
    scores
        float32 (N,) in the order of the images; None when it was skipped or failed.
    threshold
        Images above it are flagged; None: nothing vouches for one, the scores are a ranking.
    flags, beyond
        Images above ``threshold``, and above every held-out clean image; None without a threshold
        and without held-out images.
    encoder_score, encoder_threshold, verdict
        Of the encoder; ``backdoored``, ``clean``, ``no rule`` or, without an opinion, empty.
    encoder_in_words
        Score and rule as the detector says them; may be empty.
    pictures
        Name -> uint8 (k, H, W, 3) for the k most suspicious images.
    skip, error
        Why it did not run; what it raised.
    transductive
        Whether it was fitted on the scanned images.
    """

    name: str
    parameters: dict[str, Any]
    source: str = ""
    reference: bool = False
    scores: np.ndarray | None = None
    threshold: float | None = None
    flags: Count | None = None
    beyond: Count | None = None
    encoder_score: float | None = None
    encoder_threshold: float | None = None
    verdict: str = ""
    encoder_in_words: str = ""
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0
    skip: str | None = None
    error: str | None = None
    transductive: bool = False

    @property
    def status(self) -> str:
        """``ok``, ``skipped`` or ``failed``."""
        if self.skip is not None:
            return "skipped"
        return "ok" if self.error is None else "failed"

    @property
    def reason(self) -> str:
        """Why it was skipped or failed; empty when it did neither."""
        return self.skip or self.error or ""

    @property
    def flagged(self) -> np.ndarray | None:
        """bool (N,), or None without a threshold."""
        if self.scores is None or self.threshold is None:
            return None
        return self.scores > self.threshold

    def order(self) -> np.ndarray:
        """int64 (N,): images from the most to the least suspicious, ties in their order."""
        return np.argsort(-self.scores, kind="stable")


class Scan:
    """One encoder, the images to scan, the clean images if there are any.

    Detectors are shown what :mod:`bench.stages.detecting` shows them: no file name, no path, no
    order that means anything; labels, gradients and the like only where they are required.

    Parameters
    ----------
    encoder
        On the device to use.
    images
        To be scanned.
    auxiliary
        Clean images of the same kind: nine tenths to fit on, one tenth for thresholds. None: the
        scanned images are fitted on, and there are no thresholds.
    fpr
        Nominal share of clean images that a threshold flags, in (0, 1).
    """

    _held_out: ImageSet | None = None

    def __init__(
        self,
        encoder: Encoder,
        images: ImageSet,
        auxiliary: ImageSet | None,
        *,
        fpr: float,
        seed: int,
        precision: str,
        reporter: Reporter,
    ) -> None:
        self._encoder = encoder
        self._seed, self._fpr, self._precision = seed, fpr, precision
        self._reporter = reporter
        # Files may lie by class, and the triggered ones behind the others.
        self._order = torch.randperm(len(images), generator=generator_for(seed, "pool", ""))
        self._pool = ImageSet(images.uint8(self._order), name="suspicious pool")
        self._fitting = self._pool
        if auxiliary is not None:
            order = torch.randperm(len(auxiliary), generator=generator_for(seed, "owned", ""))
            count = max(1, round(len(auxiliary) * HELD_OUT))
            if len(auxiliary) <= count:
                raise InputError("--auxiliary needs at least two images")
            self._held_out = auxiliary.select(order[:count])
            self._fitting = auxiliary.select(order[count:])
        self._embedded: dict[str, Tensor] = {}

    @property
    def fitted_on(self) -> ImageSet:
        """The images that detectors learn from."""
        return self._fitting

    @property
    def held_out(self) -> int:
        """Clean images kept back for thresholds."""
        return 0 if self._held_out is None else len(self._held_out)

    def run(self, chosen: Chosen) -> Result:
        """Fit and score one detector; what it raises is in the result."""
        result = Result(
            chosen.name,
            chosen.defense.parameters(),
            source=_first_sentence(chosen.defense),
            reference=bool(chosen.defense.reference),
            transductive=self._held_out is None or "suspicious" in chosen.defense.requires,
            skip=chosen.skip,
        )
        if chosen.skip is not None:
            return result
        start = time.perf_counter()
        try:
            self._fill(result, chosen.defense)
        except Exception as error:  # a plug-in raises what it likes, and the others go on
            message = " ".join(str(error).split()) or "no message"
            result.error = f"{type(error).__name__}: {message}"
        result.seconds = time.perf_counter() - start
        return result

    def _fill(self, result: Result, defense: Defense) -> None:
        view = self._view(result.name, defense)
        defense.fit(view)
        fitted = Fitted(defense, view.encoder, threshold_images=self._held_out or self._pool)
        scorer = Scorer(fitted, type(defense).__name__)
        scores = np.empty(len(self._pool), dtype=np.float32)
        scores[self._order.numpy()] = self._scored(scorer, self._pool, self._pool_embeddings())
        if self._held_out is not None:
            clean = self._scored(scorer, self._held_out)
            result.beyond = count_above(scores, clean, rank=1)
            threshold = calibrated_threshold(clean, self._fpr)
            if np.isfinite(threshold):
                result.threshold = threshold
                result.flags = count_above(scores, clean, rank_at(self._fpr, len(clean)))
        said = encoder_verdict(defense)
        result.scores = scores
        result.encoder_score = said["encoder_score"]
        if result.encoder_score is not None:
            result.encoder_threshold = defense.encoder_threshold()
            result.verdict = said["encoder_verdict"] or "no rule"
            result.encoder_in_words = defense.encoder_in_words()
        result.pictures = self._pictures(result, defense)

    def _view(self, name: str, defense: Defense) -> DefenderView:
        requires = frozenset(defense.requires)
        labelled = "auxiliary_labels" in requires and self._held_out is not None
        auxiliary = self._copy(self._fitting, "auxiliary", labelled)
        suspicious = base = None
        if "suspicious" in requires:
            suspicious = self._copy(self._pool, "suspicious pool", False)
            first = torch.arange(min(BASE_IMAGES, len(self._fitting)))
            base = self._copy(self._fitting.select(first), "base", labelled)
        drawn = generator_for(self._seed, "fit", name, "seed")
        return DefenderView(
            encoder=DefenderEncoder(self._encoder, requires),
            auxiliary=auxiliary,
            embed_auxiliary=lambda: self._fitting_embeddings().clone(),
            suspicious=suspicious,
            base=base,
            seed=int(torch.randint(2**31, (), generator=drawn)),
            generator=generator_for(self._seed, "fit", name),
            progress=StepCounter(self._reporter, None),
            precision=self._precision,
        )

    def _copy(self, images: ImageSet, name: str, labelled: bool) -> ImageSet:
        """A set of its own: nothing of the others hangs on it, nor anything of where it is from."""
        return ImageSet(
            images.uint8().clone().to(self._encoder.device),
            labels=images.labels if labelled else None,
            class_names=images.class_names if labelled else (),
            name=name,
        )

    def _pool_embeddings(self) -> Tensor:
        return self._embeddings("pool", self._pool)

    def _fitting_embeddings(self) -> Tensor:
        if self._held_out is None:
            return self._pool_embeddings()
        return self._embeddings("auxiliary", self._fitting)

    def _embeddings(self, what: str, images: ImageSet) -> Tensor:
        if what not in self._embedded:
            parts = [self._encoder.embed(batch) for batch in images.batches(BATCH)]
            self._embedded[what] = torch.cat(parts)
        return self._embedded[what]

    def _scored(
        self, scorer: Scorer, images: ImageSet, embeddings: Tensor | None = None
    ) -> np.ndarray:
        parts = []
        for start in range(0, len(images), SCORE_BATCH):
            batch = slice(start, start + SCORE_BATCH)
            known = None if embeddings is None else embeddings[batch]
            parts.append(scorer.score(images.uint8(batch).to(self._encoder.device), known))
        return np.concatenate(parts)

    def _pictures(self, result: Result, defense: Defense) -> dict[str, np.ndarray]:
        """The detector's figures for the most suspicious images."""
        if type(defense).figures is Defense.figures:
            return {}
        places = torch.argsort(self._order)[result.order()[:MOST_PICTURES].copy()]
        shown = self._pool.float(places).to(self._encoder.device)
        figures = defense.figures(shown)
        for name, array in figures.items():
            fault = figure_fault(name, array, len(shown))
            if fault:
                raise ValueError(f"{type(defense).__name__}.figures: {fault}")
        return figures


def run_all(scan: Scan, chosen: Sequence[Chosen], reporter: Silent) -> list[Result]:
    """Every detector in turn, reported as it ends."""
    results = []
    for one in chosen:
        reporter.start(one.name)
        result = scan.run(one)
        reporter.note(f"{one.name}: {result.status}, {result.seconds:.1f} s")
        results.append(result)
    return results


def _first_sentence(defense: Defense) -> str:
    """What a detector says of itself: the first paragraph of its docstring."""
    return " ".join((type(defense).__doc__ or "").split("\n\n", 1)[0].split())
