"""The tiny real victims that components are tried on, and what they are lent there."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.api import (
    Attack,
    AttackerWorld,
    DataPoisoning,
    DefenderView,
    Defense,
    ModelPoisoning,
    PoisonedSet,
    PoisonerWorld,
    Trigger,
    Victim,
)
from bench.config import DefenseEntry
from bench.configfile import ConfigFile
from bench.contract.findings import ContractError
from bench.contract.watching import Belongings, WatchedEncoder, WatchedImages, WatchedView
from bench.data.imageset import ImageSet
from bench.data.splits import permuted_rows
from bench.encoders.encoder import Encoder
from bench.entries import Column, Row
from bench.graph import Component, Stage, topological
from bench.progress import Silent
from bench.recipes import describe_recipe
from bench.session import Selection, Session
from bench.stages import COMPUTE
from bench.stages.detecting import fit
from bench.stages.poisoning import poison
from bench.stages.training import implant
from bench.workspace import StepCounter, Workspace

EXPERIMENT = Path(__file__).with_name("tiny.yaml")
LEAST_STEPS, MOST_STEPS = 1, 10
"""Training loops of a component under trial are cut to so many steps, as what is checked does not
depend on how much it learns: to the least, and where that is quick, to the most."""
PATIENCE_SECONDS = 1.0
"""What the least may take for the most to be worth while."""
SEED = 0


class EmptyTrigger(Trigger):
    """Stamps nothing and supports nothing (invariant 1)."""

    name: ClassVar[str] = "empty"

    def stamp(self, images: Tensor) -> Tensor:
        return images.clone()

    def support(self, image_size: int) -> Tensor:
        return torch.zeros(image_size, image_size, dtype=torch.bool)

    def decoys(self) -> list[Trigger]:
        return []

    def describe(self) -> str:
        return "nothing"


@dataclass(frozen=True)
class Lent:
    """What a defense is shown of a victim, watched.

    Attributes
    ----------
    view
        As the harness's fit stage makes it, except that nothing of the harness hangs on it.
    used
        Filled while the defense runs: requirements it made use of, and ``embed``.
    belongings
        What must be the same afterwards.
    """

    view: DefenderView
    encoder: WatchedEncoder
    used: set[str]
    belongings: Belongings


@dataclass(frozen=True)
class Made:
    """What an attack made in the harness's own stage.

    Attributes
    ----------
    result
        A :class:`Victim` or a :class:`PoisonedSet`.
    given
        The world that the attack was given.
    train
        The training set, for a poisoner.
    changed
        Sentences about what it changed and may not change.
    """

    result: Any
    given: AttackerWorld | PoisonerWorld
    train: ImageSet | None
    changed: list[str]


class World:
    """The victims of ``tiny.yaml``: trained by the harness's own stages on first use (seconds),
    kept in the store under ``cache``.

    Parameters
    ----------
    cache
        By default :meth:`default_cache`.
    note
        Told in one line what takes a while.
    """

    def __init__(
        self, cache: Path | None = None, note: Callable[[str], None] = lambda message: None
    ) -> None:
        selection = Selection(cache=cache or self.default_cache())
        self._session = Session(ConfigFile(EXPERIMENT), selection)
        self._note = note
        self._session.set_up_torch()

    @staticmethod
    def default_cache(root: Path = Path()) -> Path:
        """``BENCH_CACHE``, or ``.bench`` in ``root``, as for a run."""
        return Path(os.environ.get("BENCH_CACHE") or root / ".bench")

    def show(self, defense: Defense, steps: int) -> Lent:
        """A victim as a defense of these requirements sees it; every call loads it anew.

        Training loops of the defense are cut to so many ``steps``, here and below.
        """
        row, victim, audit = self._victim("clip" if "text" in defense.requires else "ssl")
        planner = self._session.planner
        described = Component(
            "under-trial",
            defense.version,
            {},
            requires=frozenset(defense.requires),
        )
        entry = DefenseEntry(defense="under-trial", label="under-trial")
        stage = planner.fit(
            Column(entry, described), row.family, victim, audit, SEED, "the tiny victim"
        )
        guest = _Guest(frozenset(defense.requires))
        workspace = self._workspace(guest, steps)
        with _scratch() as folder:
            fit(stage, workspace, Path(folder))
        return self._watched(guest, workspace.encoder(victim), workspace.trigger(audit))

    def _watched(self, guest: _Guest, encoder: Encoder, trigger: Trigger) -> Lent:
        view, used = guest.view, set()
        shown = WatchedEncoder(encoder, guest.requires, used)
        embeddings = view.embed_auxiliary()

        def embed_auxiliary() -> Tensor:
            used.add("embed")
            return embeddings.clone()

        told = "trigger_support" in guest.requires
        images = {
            name: None if value is None else WatchedImages.of(value, used)
            for name in ("auxiliary", "suspicious", "base")
            for value in [getattr(view, name)]
        }
        watched = WatchedView.of(
            view,
            used,
            encoder=shown,
            embed_auxiliary=embed_auxiliary,
            trigger_support=trigger.support(encoder.image_size) if told else None,
            **images,
        )
        lent = {f"the {name} images": value for name, value in images.items()}
        return Lent(watched, shown, used, Belongings(encoder, lent))

    def test_images(self, count: int) -> ImageSet:
        """Labelled test images."""
        return self._images("test").select(torch.arange(count))

    def calibration_images(self, count: int) -> ImageSet:
        """Clean images that no component is lent."""
        train = self._images("train")
        rows = permuted_rows(len(train), self._session.planner.lineage.rows("calibration"), "")
        return train.select(rows[:count])

    def trigger(self, text: bool) -> Trigger:
        """The trigger of the victim that :meth:`show` gives for (or without) ``text``."""
        _, _, audit = self._victim("clip" if text else "ssl")
        return self._workspace().trigger(audit)

    @property
    def image_size(self) -> int:
        return self._images("train").image_size

    def clean_encoder(self, family: str) -> Encoder:
        """The encoder that attacks of a family start from."""
        lineage = self._session.planner.lineage
        stage = lineage.clean(self._session.profile.families()[family], SEED)
        self._compute(stage)
        return self._loaded.encoder(stage)

    def poisonable(self, attack: DataPoisoning) -> float:
        """The largest share of the training set that an attack may poison here."""
        train, lineage = self._images("train"), self._session.planner.lineage
        owned = permuted_rows(len(train), lineage.rows("shadow"), train.name)
        target = self._session.profile.downstreams[0].target
        held_out = lineage.rows("calibration", "validation")
        available = int(attack.eligible(train.labels[owned], target).sum())
        return available / (len(train) - (held_out["stop"] - held_out["start"]))

    def implanted(self, attack: ModelPoisoning, steps: int) -> Made:
        """A model-poisoning attack in the harness's implant stage, cut short."""
        planner = self._session.planner
        family = self._session.profile.families()[attack.family]
        clean = planner.lineage.clean(family, SEED)
        stage = planner.lineage.implant(
            _described(attack), family, family.downstreams[0], clean, SEED
        )
        self._compute(*stage.inputs.values())
        host = _host(attack)
        with _scratch() as folder:
            implant(stage, self._workspace(host, steps), Path(folder))
        return host.made

    def poisoned(self, attack: DataPoisoning, steps: int) -> Made:
        """A data-poisoning attack in the harness's poison stage, cut short."""
        planner = self._session.planner
        family = self._session.profile.families()[attack.family]
        start = planner.lineage.clean(family, SEED) if attack.family == "clip" else None
        stage = planner.lineage.poison(
            _described(attack), family, family.downstreams[0], start, SEED
        )
        self._compute(*stage.inputs.values())
        host = _host(attack)
        with _scratch() as folder:
            poison(stage, self._workspace(host, steps), Path(folder))
        return host.made

    def _victim(self, family: str) -> tuple[Row, Stage, Stage]:
        """The row of a family, its victim's stage and the audit that knows the trigger."""
        planner = self._session.planner
        rows = [planner.row(entry) for entry in self._session.attacks]
        row = next(row for row in rows if row.family.name == family)
        pair = planner.pair(row, row.downstreams[0], SEED)
        audit = planner.audit(row, row.downstreams[0], pair, SEED)
        self._compute(audit)
        return row, pair.victim, audit

    def _images(self, split: str) -> ImageSet:
        stage = self._session.planner.lineage.data(self._session.profile.dataset, split)
        self._compute(stage)
        return self._loaded.images(stage)

    @cached_property
    def _loaded(self) -> Workspace:
        return self._workspace()

    def _compute(self, *stages: Stage) -> None:
        """Compute what the store has not got yet."""
        store, workspace = self._session.store, None
        for stage in topological(stages):
            if store.has(stage.kind, stage.key):
                continue
            if stage.kind in ("pretrain", "implant"):
                self._note(f"making the tiny victim, once: {stage.label}")
            workspace = workspace or self._workspace()
            with store.lock(stage.key):
                if not store.has(stage.kind, stage.key):
                    with store.writing(stage.kind, stage.key) as folder:
                        COMPUTE[stage.kind](stage, workspace, folder)

    def _workspace(self, component: Any = None, steps: int | None = None) -> Workspace:
        """A workspace with nothing loaded, so that no trial meets what another one left."""
        return _TrialWorkspace(self._session, component, steps)


class _TrialWorkspace(Workspace):
    """Runs one given component in the place of the one that a stage names."""

    def __init__(self, session: Session, component: Any, steps: int | None) -> None:
        super().__init__(session.store, session.environment, session.sources, Silent())
        self.progress = StepCounter(Silent(), steps)
        self._component = component

    def component(self, group: str, stage: Stage) -> Any:
        return self._component or super().component(group, stage)


class _Guest:
    """Stands in for a defense in the fit stage and keeps the view that the stage makes for it."""

    def __init__(self, requires: frozenset[str]) -> None:
        self.requires = requires
        self.view: DefenderView | None = None

    def parameters(self) -> dict[str, Any]:
        return {}

    def fit(self, view: DefenderView) -> None:
        self.view = view

    def state(self) -> None:
        return None


class _Host:
    """Stands in for an attack in its stage, lets it run and keeps what came of it."""

    def __init__(self, attack: Any) -> None:
        self._attack = attack
        self.made: Made | None = None

    def implant(self, world: AttackerWorld) -> Victim:
        changed: list[str] = []
        images = {"the shadow images": world.shadow, "the references": world.references}
        with Belongings(None, images).during("implant", changed):
            victim = self._attack.implant(world)
        if not isinstance(victim, Victim) or not isinstance(victim.encoder, Encoder):
            raise ContractError(
                "implant must return a bench.api.Victim with the encoder it was given, trained"
            )
        self.made = Made(victim, world, None, changed)
        return victim

    def poison(self, train: ImageSet, world: PoisonerWorld) -> PoisonedSet:
        changed: list[str] = []
        images = {"the training images": train}
        with Belongings(world.encoder, images).during("poison", changed):
            result = self._attack.poison(train, world)
        if not isinstance(result, PoisonedSet):
            raise ContractError("poison must return a bench.api.PoisonedSet")
        self.made = Made(result, world, train, changed)
        return result


def _host(attack: Attack) -> _Host:
    # Under the attack's own name, which the stage's messages tell.
    return type(type(attack).__name__, (_Host,), {})(copy.deepcopy(attack))


def _described(attack: Attack) -> Component:
    recipe = getattr(attack, "recipe", None)
    return Component(
        "under-trial",
        attack.version,
        {},
        kind="data-poisoning" if isinstance(attack, DataPoisoning) else "model-poisoning",
        family=attack.family,
        recipe=None if recipe is None else describe_recipe(recipe),
        references=getattr(attack, "references", 0),
    )


def _scratch() -> AbstractContextManager[str]:
    return tempfile.TemporaryDirectory(prefix="bench-check-")
