"""The contract of a defense, tried on a tiny victim: every promise of ``bench.api.Defense``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.api import Defense
from bench.contract import describing
from bench.contract.comparing import other_values, spread_of, unlike
from bench.contract.findings import AbsentError, ContractError, DoubtError, Finding, look
from bench.contract.trial import PEEKS, Trial, in_words
from bench.contract.world import (
    LEAST_STEPS,
    MOST_STEPS,
    PATIENCE_SECONDS,
    EmptyTrigger,
    World,
)
from bench.figures import figure_fault
from bench.stages.bundle import build_bundle, stamp_images
from bench.stages.detecting import Fitted, Scorer, checked_scores
from bench.workspace import write_tensors

IMAGES = 48
"""Source images; each is scored clean and triggered."""
CHUNK = 7
SLOW_SECONDS = 20.0


class DefenseSuite:
    """All checks of one defense, in order.

    Parameters
    ----------
    make
        Gives a new, unfitted instance.
    """

    def __init__(self, make: Callable[[], Defense], world: World) -> None:
        self._make, self._world = make, world
        self._component = type(make())
        self._requires = frozenset(make().requires)
        self._trial: Trial
        self._images: Tensor
        self._scores: np.ndarray
        self._seconds, self._steps = 0.0, LEAST_STEPS

    def findings(self) -> Iterator[Finding]:
        """One finding per check; what needs an earlier check that failed is left out."""
        yield from describing.findings(self._component)
        fitted = look("fits on the CPU", self._fit)
        yield fitted
        if fitted.status == "FAIL":
            yield Finding("skip", "all other checks", "it could not be fitted")
            return
        answer = look("one float per image", self._one_float_per_image)
        yield answer
        if answer.status != "FAIL":
            answer = look("finite scores", self._finite)
            yield answer
        if answer.status != "FAIL":
            yield look("deterministic under a seed", self._deterministic)
            yield look("independent of order and batch", self._batching)
            yield look("independent of what was scored before", self._history)
            yield look("equal scores under an empty trigger", self._empty_trigger)
            yield look("state survives a file", self._state)
            yield look("scoring parameters", self._scoring_parameters)
        else:
            yield Finding("skip", "comparisons of scores", "there are none to compare")
        yield look("score and threshold of the encoder", self._encoder_score)
        yield look("figures", self._figures)
        yield look("leaves encoder and images as they are", self._untouched)
        yield look("sees no ground truth", self._hidden_truth)
        yield look("uses what it requires", self._requirements)
        yield look("marked as a reference if it is one", self._reference)
        yield look("time", self._time)

    def _scoring_parameters(self) -> str:
        """What fit learns under another value of a parameter that it is said not to read."""
        named = self._component.scoring_parameters
        if not named:
            raise AbsentError("none declared")
        unknown = sorted(set(named) - set(self._component.model_fields))
        if unknown:
            raise ContractError(
                f"scoring_parameters names {unknown[0]!r}, which is no parameter of it"
            )
        learnt = self._trial.defense.state()
        if learnt is None:
            return f"{', '.join(sorted(named))}; without a state nothing is shared"
        tried = []
        for name in sorted(named):
            other = self._fit_with_another(name)
            if other is None:
                continue
            tried.append(name)
            if _differ(learnt, other.defense.state()):
                raise ContractError(
                    f"fit learns something else with {name} {getattr(other.defense, name)!r}, "
                    "though scoring_parameters says that it never reads it"
                )
        return f"tried another {', '.join(tried)}" if tried else "no other value to try"

    def _fit_with_another(self, name: str) -> Trial | None:
        """A trial under another value of one parameter; None when none that is tried is valid."""
        defense = self._make()
        field, value = self._component.model_fields[name], getattr(defense, name)
        for other in other_values(field.annotation, value):
            try:
                changed = self._component.model_validate({**dict(defense), name: other})
                trial = Trial(changed, self._world, self._steps, 1)
                trial.fit()
            except ValueError:
                continue  # out of its range
            return trial
        return None

    def _fit(self) -> None:
        text = "text" in self._requires
        source = self._world.test_images(IMAGES)
        trigger = self._world.trigger(text)
        parts = [stamp_images(source, stamp) for stamp in (None, trigger)]
        self._images = torch.cat(parts).float() / 255
        self._fit_once()
        if self._seconds < PATIENCE_SECONDS:
            self._steps = MOST_STEPS
            self._fit_once()

    def _fit_once(self) -> None:
        self._trial = self._new_trial(1)
        start = time.perf_counter()
        try:
            self._trial.fit()
        except Exception as error:
            raise ContractError(in_words(error, self._trial.lent.used, self._requires)) from error
        self._seconds = time.perf_counter() - start

    def _new_trial(self, seed: int) -> Trial:
        return Trial(self._make(), self._world, self._steps, seed)

    def _one_float_per_image(self) -> None:
        try:
            result = self._trial.score(self._images)
        except Exception as error:
            raise ContractError(
                in_words(error, self._trial.lent.used, self._requires, "score")
            ) from error
        self._scores = _as_array(result)
        filled = np.nan_to_num(self._scores) if _floating(self._scores) else self._scores
        checked_scores(filled, len(self._images), self._component.__name__)

    def _finite(self) -> str:
        checked_scores(self._scores, len(self._images), self._component.__name__)
        if spread_of(self._scores) == 0:
            raise DoubtError("all images score the same on the tiny victim")
        return f"{self._scores.min():.4g} to {self._scores.max():.4g}"

    def _deterministic(self) -> None:
        again = self._new_trial(2)
        again.fit()
        problem = unlike(self._scores, again.scores(self._images), 1e-5)
        if problem:
            raise ContractError(
                f"two fits from one generator give different scores: {problem}; draw every random "
                "number from view.generator or view.seed"
            )
        if again.opinion() != self._trial.opinion():
            raise ContractError("two fits from one generator give different score_encoder")

    def _batching(self) -> None:
        order = torch.randperm(len(self._images), generator=torch.Generator().manual_seed(3))
        problem = unlike(self._scores, self._trial.in_chunks(self._images, order, CHUNK))
        if problem is None:
            few = torch.arange(0, len(self._images), 16)
            alone = self._trial.in_chunks(self._images[few], torch.arange(len(few)), 1)
            problem = unlike(self._scores[few.numpy()], alone, scale=spread_of(self._scores))
        if problem:
            raise ContractError(
                f"scores depend on the order or the batch of the images: {problem}; draw what is "
                "random once in fit, and keep statistics of a batch out of score"
            )

    def _history(self) -> None:
        """The same images later, after others, and many times over in one batch."""
        clean = self._images[:IMAGES]
        self._trial.scores(self._images[IMAGES:])
        backwards = torch.arange(IMAGES - 1, -1, -1)
        problem = unlike(
            self._scores[:IMAGES],
            self._trial.in_chunks(clean, backwards, 16),
            scale=spread_of(self._scores),
        )
        if problem is None:
            copies = torch.arange(IMAGES) // 4
            repeated = self._trial.scores(clean[copies])
            expected = self._scores[copies.numpy()]
            problem = unlike(expected, repeated, scale=spread_of(self._scores))
        if problem:
            raise ContractError(
                f"an image scores differently when it comes again: {problem}; where an image "
                "stands and what was scored before must not matter (a transductive method needs "
                "the images in fit, as view.suspicious)"
            )

    def _empty_trigger(self) -> None:
        """The images of a score stage whose trigger stamps nothing, in the harness's order."""
        source, calibration = self._world.test_images(60), self._world.calibration_images(20)
        stamps = {"clean": None, "triggered": EmptyTrigger()}
        bundle = build_bundle(source, calibration, stamps, 1)
        fitted = Fitted(self._trial.defense, self._trial.lent.encoder, calibration)
        scorer = Scorer(fitted, self._component.__name__)
        with torch.random.fork_rng(devices=[]):
            scores = np.concatenate([scorer.score(bundle.images[c]) for c in bundle.chunks(16)])
        of = {
            condition: scores[chosen[np.argsort(bundle.image[chosen])]]
            for condition in stamps
            for chosen in [
                np.flatnonzero((bundle.condition == condition) & (bundle.split == "test"))
            ]
        }
        problem = unlike(of["clean"], of["triggered"])
        if problem:
            raise ContractError(
                f"a trigger that stamps nothing changes scores: {problem}; the score goes by the "
                "place of an image or by copies of it, not by the image"
            )

    def _state(self) -> str | None:
        state = self._trial.defense.state()
        if state is None:
            if self._component.scoring_parameters:
                return "there is none: the fit is repeated, once per set of scoring_parameters"
            return "there is none: the fit is repeated where it is needed"
        if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            raise ContractError("state must return a dict of tensors by name, or None")
        with tempfile.TemporaryDirectory(prefix="bench-check-") as folder:
            path = Path(folder) / "state.safetensors"
            write_tensors(path, state)
            stored = load_file(path)
        restored = self._new_trial(3)
        restored.load_state(stored)
        problem = unlike(self._scores, restored.scores(self._images), 1e-5)
        if problem:
            raise ContractError(f"load_state does not restore what state gave: {problem}")
        if restored.opinion() != self._trial.opinion():
            raise ContractError("load_state does not restore score_encoder")
        self._trial.changed += [c for c in restored.changed if c not in self._trial.changed]
        return None

    def _encoder_score(self) -> str:
        defense = self._trial.defense
        opinion = self._trial.opinion()
        for name in ("score_encoder", "encoder_threshold"):
            value = getattr(defense, name)()
            if value is not None and not isinstance(value, int | float | np.floating):
                raise ContractError(
                    f"{name} must return a float or None, not {type(value).__name__}"
                )
        if opinion["encoder_score"] is None:
            if defense.encoder_threshold() is not None:
                raise ContractError("encoder_threshold is a number and score_encoder is None")
            raise AbsentError("it has no opinion on encoders")
        if opinion != self._trial.opinion():
            raise ContractError("score_encoder gives another number when it is asked again")
        verdict = opinion["encoder_verdict"] or "no threshold, no verdict"
        return f"{opinion['encoder_score']:.4g}, {verdict}"

    def _figures(self) -> str:
        if self._component.figures is Defense.figures:
            raise AbsentError("it has none")
        count = 4
        figures = self._trial.figures(self._images[:count])
        if not isinstance(figures, dict) or not all(isinstance(name, str) for name in figures):
            raise ContractError("figures must return a dict of arrays by name")
        for name, array in figures.items():
            fault = figure_fault(name, array, count)
            if fault:
                raise ContractError(fault)
        return ", ".join(figures) or "none for this victim"

    def _untouched(self) -> None:
        if self._trial.changed:
            raise ContractError(
                f"{'; '.join(self._trial.changed)}: work on copies (`.clone()`), whatever the "
                "defense is given is used by others after it"
            )

    def _hidden_truth(self) -> None:
        if "auxiliary_labels" in self._trial.lent.used - self._requires:
            raise ContractError(f"it {PEEKS}; hiding the error does not help")

    def _requirements(self) -> str:
        unused = sorted(self._requires - self._trial.lent.used)
        if unused:
            raise DoubtError(
                f"it declares {', '.join(map(repr, unused))} in `requires` and did not use it "
                "here: drop it, or victims that lack it are skipped for nothing"
            )
        return ", ".join(sorted(self._requires)) or "nothing but embeddings"

    def _reference(self) -> str | None:
        embeds = "embed" in self._trial.lent.used
        if self._component.reference and embeds:
            raise ContractError(
                "it is marked `reference = True` and calls the encoder: drop the mark"
            )
        if not self._component.reference and not embeds:
            raise DoubtError(
                "it never calls the encoder: mark it `reference = True`, so that tables say so"
            )
        return "it never calls the encoder" if self._component.reference else None

    def _time(self) -> str:
        said = f"fitted in {self._seconds:.1f} s, training loops cut to {self._steps} steps"
        if self._seconds > SLOW_SECONDS:
            raise DoubtError(f"{said}: do all of them go through view.progress.track?")
        return said


def _as_array(result: object) -> Any:
    return result.detach().cpu().numpy() if isinstance(result, Tensor) else result


def _differ(first: dict[str, Tensor], second: dict[str, Tensor] | None) -> bool:
    if second is None or first.keys() != second.keys():
        return True
    return any(not torch.equal(first[name], second[name]) for name in first)


def _floating(result: object) -> bool:
    return isinstance(result, np.ndarray) and np.issubdtype(result.dtype, np.floating)
