"""What a run is made of, from the configuration file to the cells."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.building import once, without_collector
from bench.cells import CellStore
from bench.config import AttackEntry, DefenseEntry
from bench.config.file import SMOKE_SUFFIX
from bench.configfile import ConfigFile
from bench.determinism import be_deterministic
from bench.errors import InputError, nearest
from bench.graph import Cell, Component, Environment
from bench.limits import MOST_SEED, check_text, read_json
from bench.lineage import Lineage
from bench.matrix import Planner
from bench.progress import Silent
from bench.provenance import code_version
from bench.recipes import describe_recipe, recipe_type
from bench.resolving import resolve_component
from bench.store import Store, file_digest
from bench.victims import VictimFiles

if TYPE_CHECKING:
    from torch import Tensor

    from bench.data.source import Source
    from bench.executors.computing import Outcome
    from bench.workspace import Workspace

MOST_RECORDED_SEEDS = 100
"""Of an earlier run, that a new one keeps on its leaderboard."""


@dataclass(frozen=True)
class Selection:
    """Which part of the matrix to run, and how.

    Attributes
    ----------
    attacks, defenses
        Labels; None for all.
    seeds
        None for the profile's.
    limit_steps
        Cap on the steps of every training loop; results are marked smoke and kept apart.
    executor, address
        ``inline``, or ``ray`` on a running cluster or on this machine.
    """

    profile: str | None = None
    attacks: tuple[str, ...] | None = None
    defenses: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    device: str | None = None
    results: Path | None = None
    cache: Path | None = None
    retry_failed: bool = False
    limit_steps: int | None = None
    executor: str = "inline"
    address: str | None = None


@dataclass
class Session:
    """A configuration file and a selection, resolved step by step; cheap until it is run."""

    file: ConfigFile
    selection: Selection = field(default_factory=Selection)
    reporter: Silent = field(default_factory=Silent)
    _data_specs: dict[tuple[str, str], Mapping[str, Any]] = field(
        default_factory=dict, init=False, repr=False
    )
    _components: dict[tuple[str, str, str], Component] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        config = self.file.config
        self.profile_name, self.profile = config.profile(self.selection.profile)
        self.matrix, self.matrix_location = config.matrix_of(self.profile_name)
        self.attacks = _selected(self.matrix.attacks, self.selection.attacks, "attack")
        self.defenses = _selected(self.matrix.defenses, self.selection.defenses, "defense")
        self.seeds = self.selection.seeds or self.profile.seeds

    @property
    def results(self) -> Path:
        """``<results>/<profile>/``; smoke runs have a folder of their own."""
        smoke = SMOKE_SUFFIX if self.selection.limit_steps is not None else ""
        return results_folder(self.file, self.selection.results, self.profile_name + smoke)

    @cached_property
    def store(self) -> Store:
        chosen = self.selection.cache or os.environ.get("BENCH_CACHE")
        return Store(check_text(Path(chosen) if chosen else self.file.root / ".bench"))

    @cached_property
    def environment(self) -> Environment:
        """Device, precision and threads; ``auto`` takes the accelerator when there is one."""
        import torch

        wanted = self.selection.device or self.profile.device
        if wanted == "cuda" and not torch.cuda.is_available():
            raise InputError("device 'cuda' was asked for and none is available; use --device cpu")
        found = "cuda" if wanted == "auto" and torch.cuda.is_available() else wanted
        device = "cpu" if found == "auto" else found
        return Environment(
            device, self.profile.precision, self.profile.threads, self.selection.limit_steps
        )

    @cached_property
    def sources(self) -> dict[str, Source]:
        """Every data set that the profile names, opened but not decoded."""
        from bench.data.sources import open_source

        config, roots = self.file.config, data_roots(self.file)
        opened = {}
        for name, location in self.file.datasets_of(self.profile_name).items():
            try:
                opened[name] = open_source(name, config.datasets[name], roots, self.file.root)
            except InputError as error:
                where = ("datasets", name) if config.datasets[name].path else location
                raise self.file.yaml.error(where, str(error)) from None
        return opened

    @property
    def checkpoints(self) -> dict[str, Path]:
        """The files of imported clean encoders, by family."""
        return {
            name: self.file.root / family.encoder.checkpoint
            for name, family in self.profile.families().items()
            if family.encoder.checkpoint is not None
        }

    @cached_property
    def checkpoint_digests(self) -> dict[str, str]:
        """SHA-256 of :attr:`checkpoints`.

        Raises
        ------
        InputError
            When a file is missing.
        """
        from bench.encoders.weights import CheckpointError, check_header

        digests = {}
        for name, path in self.checkpoints.items():
            section = ("clip",) if name == "clip" else ()
            location = ("profiles", self.profile_name, *section, "encoder", "checkpoint")
            if not path.is_file():
                hint = "; `bench download clip-rn50` fetches it" if "clip-rn50" in path.stem else ""
                raise self.file.yaml.error(location, f"no such file: {path.name}{hint}")
            try:
                check_header(path)
            except CheckpointError as error:
                raise self.file.yaml.error(location, str(error)) from None
            digests[name] = file_digest(path)
        return digests

    @cached_property
    def victims(self) -> VictimFiles:
        """Everything that ``from`` entries of the matrix name, read once."""
        return VictimFiles(self.file, self.profile_name, self._image_size)

    @cached_property
    def planner(self) -> Planner:
        from bench.encoders.architectures import find

        families = self.profile.families()
        lineage = Lineage(
            profile=self.profile,
            protocol=self.file.config.protocol,
            environment=self.environment,
            data_specs=self.data_spec,
            recipes={
                name: describe_recipe(recipe_type(name).model_validate(family.pretraining))
                for name, family in families.items()
            },
            checkpoints=self.checkpoint_digests,
        )
        return Planner(
            config=self.file.config,
            matrix=self.matrix,
            profile_name=self.profile_name,
            profile=self.profile,
            lineage=lineage,
            component=self._component,
            victim=self.victims.resolve,
            text_towers=frozenset(
                name for name, family in families.items() if find(family.encoder.architecture).text
            ),
            labelled=self._labelled,
            published=lambda architecture: find(architecture).published,
        )

    def _component(self, group: str, name: str, parameters: Mapping[str, Any]) -> Component:
        """Resolved once, not once per cell: for the authors' code that asks git for its state."""
        key = (group, name, repr(sorted(parameters.items())))
        if key not in self._components:
            images = self.profile.splits.model_dump()
            self._components[key] = resolve_component(
                self.file.root, group, name, parameters, images
            )
        return self._components[key]

    @once
    def classes(self, dataset: str, split: str) -> int | None:
        """:meth:`bench.data.source.Source.classes`; the files are read once."""
        return self.sources[dataset].classes(split)

    @once
    def training_labels(self, dataset: str) -> Tensor | None:
        """:meth:`bench.data.source.Source.labels` of the training images, read once."""
        return self.sources[dataset].labels("train")

    def _labelled(self, dataset: str) -> bool:
        """Whether training images have labels, as far as that is known without decoding them."""
        return self.classes(dataset, "train") != 0

    def _image_size(self, dataset: str) -> int:
        return self.file.config.datasets[dataset].image_size

    @cached_property
    def all_cells(self) -> list[Cell]:
        """The whole matrix of the profile, whatever was selected, with the selected seeds and every
        seed of which a cell is stored, be it a failure: a run of other seeds takes nothing off the
        leaderboard, and averages do not wait for seeds that nobody began."""
        seeds = tuple(dict.fromkeys((*self.profile.seeds, *self.seeds, *self._seeds_on_record())))
        with without_collector():
            cells = self.planner.cells(seeds)
        kept = set(self.seeds)
        if kept == set(seeds):
            return cells
        known = CellStore(self.results)
        for cell in cells:
            if cell.identity["seed"] not in kept and known.status(cell.key) is not None:
                kept.add(cell.identity["seed"])
        return [cell for cell in cells if cell.identity["seed"] in kept]

    def _seeds_on_record(self) -> tuple[int, ...]:
        """Of the manifest that an earlier run left; none where it cannot be read."""
        try:
            seeds = list(read_json(self.results / "manifest.json")["seeds"])[:MOST_RECORDED_SEEDS]
        except (OSError, ValueError, KeyError, TypeError):
            return ()
        return tuple(seed for seed in seeds if type(seed) is int and 0 <= seed <= MOST_SEED)

    @cached_property
    def cells(self) -> list[Cell]:
        """The selected cells."""
        attacks = {entry.label for entry in self.attacks}
        defenses = {entry.label for entry in self.defenses}
        return [
            cell
            for cell in self.all_cells
            if cell.identity["attack"] in attacks
            and cell.identity["defense"] in defenses
            and cell.identity["seed"] in self.seeds
        ]

    def check(self) -> None:
        """Every check that needs no computing; raises :class:`InputError` and writes nothing."""
        from bench.preflight import check

        check(self)

    def run(self) -> Outcome:
        """Run the selected cells, then rebuild the tables.

        Raises
        ------
        InputError
            Before anything is written.
        """
        from bench.running import run

        return run(self)

    def workspace(
        self, kind: type[Workspace] | None = None, store: Store | None = None
    ) -> Workspace:
        """What the stages of this session share while they run."""
        from bench.workspace import Workspace

        return (kind or Workspace)(
            store or self.store,
            self.environment,
            self.sources,
            self.reporter,
            root=self.file.root,
            files={
                **{self.checkpoint_digests[name]: at for name, at in self.checkpoints.items()},
                **self.victims.files,
            },
            code_version=code_version(),
        )

    def render(self) -> None:
        """Rebuild tables and plots unless they are current."""
        from bench.report.rendering import is_current, render

        if not is_current(self.results):
            self.reporter.note("rendering tables and plots")
            render(self.results)

    def to_do(self, status: str | None) -> bool:
        """Whether a cell of that stored status is to be run."""
        return status in (None, "skipped") or (status == "failed" and self.selection.retry_failed)

    def data_spec(self, dataset: str, split: str) -> Mapping[str, Any]:
        """What decides a data stage: the files' fingerprint, and how they are decoded."""
        known = self._data_specs
        if (dataset, split) not in known:
            source = self.sources[dataset]
            try:
                fingerprint = source.fingerprint(split)
            except InputError as error:
                raise self.file.yaml.error(("datasets", dataset), str(error)) from None
            known[dataset, split] = {
                "dataset": dataset,
                "split": split,
                "fingerprint": fingerprint,
                **source.describe(),
            }
        return known[dataset, split]

    def set_up_torch(self) -> None:
        """Threads and determinism as the profile and the cache keys say them; memory is reused."""
        from bench.memory import keep_freed_memory

        keep_freed_memory()
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(self.environment.threads)
        # scikit-learn's and numpy's libraries too: the number of threads is part of every key.
        threadpool_limits(self.environment.threads)
        be_deterministic(self.environment.device)


def data_roots(file: ConfigFile) -> list[Path]:
    """Folders searched for named data sets: ``BENCH_DATA`` first, then the configured ones."""
    named = os.environ.get("BENCH_DATA", "")
    extra = [Path(part) for part in named.split(os.pathsep) if part]
    return extra + [file.root / root for root in file.config.data_roots]


def results_folder(file: ConfigFile, results: Path | None, profile: str) -> Path:
    """Where the results of a profile lie."""
    return check_text(Path(results) if results else file.root / "results") / profile


def _selected(
    entries: Sequence[AttackEntry] | Sequence[DefenseEntry],
    labels: tuple[str, ...] | None,
    kind: str,
) -> list[Any]:
    if labels is None:
        return list(entries)
    known = {entry.label: entry for entry in entries}
    for label in labels:
        if label not in known:
            raise InputError(f"unknown {kind} {label!r}{nearest(label, known)}")
    if not labels:
        raise InputError(f"no {kind} selected; the matrix would be empty")
    return [known[label] for label in dict.fromkeys(labels)]
