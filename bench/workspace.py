"""What stages share while they run: store, sources, loaded images, encoders, embeddings."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench import registry
from bench.api import Trigger
from bench.data.imageset import ImageSet
from bench.data.source import Source
from bench.encoders.encoder import Encoder
from bench.errors import InputError
from bench.graph import Environment, Stage, topological
from bench.limits import read_json
from bench.memory import clock
from bench.provenance import hardware, library_versions
from bench.store import COST, MANIFEST, Store, file_digest

if TYPE_CHECKING:
    import pandas as pd

Value = TypeVar("Value")
Item = TypeVar("Item")


class Reporter(Protocol):
    """Where progress goes: a live display, a log, or nowhere."""

    def step(self, what: str, done: int, total: int | None) -> None: ...


class StepCounter:
    """The :class:`bench.api.Progress` that components see; enforces ``--limit-steps``."""

    def __init__(self, reporter: Reporter, limit: int | None) -> None:
        self._reporter = reporter
        self._limit = limit

    def track(self, items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
        if total is None and hasattr(items, "__len__"):
            total = len(items)
        if self._limit is not None and total is not None:
            total = min(total, self._limit)
        for done, item in enumerate(items):
            if self._limit is not None and done >= self._limit:
                return
            yield item
            self._reporter.step(what, done + 1, total)


class Recent(Generic[Value]):
    """The last few values by key: spares reloading what the next stage needs again."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        if key not in self._values:
            self._values[key] = make()
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]


class Workspace:
    """Loads the outputs of finished stages for the stages that follow.

    Parameters
    ----------
    sources
        Dataset name -> opened source.
    reporter
        Where the steps of training loops are shown.
    root
        The folder that paths in component parameters refer to.
    files
        SHA-256 -> where the file of that content lies (imported encoders).
    """

    def __init__(
        self,
        store: Store,
        environment: Environment,
        sources: Mapping[str, Source],
        reporter: Reporter,
        *,
        root: Path = Path(),
        files: Mapping[str, Path] | None = None,
        code_version: str = "unknown",
    ) -> None:
        self.store = store
        self._files = dict(files or {})
        self._root = root
        self.environment = environment
        self.sources = sources
        self.code_version = code_version
        self.progress = StepCounter(reporter, environment.limit_steps)
        self.device = torch.device(environment.device)
        self.fitted: Recent[Any] = Recent(4)
        self.bundles: Recent[Any] = Recent(2)
        self._images: Recent[ImageSet] = Recent(6)
        self._encoders: Recent[Encoder] = Recent(4)
        self._embeddings: Recent[tuple[Tensor, float]] = Recent(10)

    def folder(self, stage: Stage) -> Path:
        """Where the finished artifact of ``stage`` lies."""
        return self.store.folder(stage.kind, stage.key)

    def weights(self, stage: Stage) -> str:
        """SHA-256 of the weights of an encoder: one key promises one, but other processors round
        otherwise, and a training repeated there ends elsewhere."""
        return self.json(stage, MANIFEST)["files"]["encoder.safetensors"]

    def file(self, digest: str) -> Path:
        """Where the file of that content lies.

        Raises
        ------
        InputError
            When it has another by now.
        """
        return _checked(self._files[digest], digest)

    def json(self, stage: Stage, name: str) -> Any:
        return json.loads((self.folder(stage) / name).read_text())

    def tensors(self, stage: Stage, name: str) -> dict[str, Tensor]:
        return load_file(self.folder(stage) / name)

    def cost(self, stage: Stage) -> dict[str, float]:
        """Measured seconds (and memory) of a finished stage; empty when they are not known."""
        try:
            cost = read_json(self.folder(stage) / COST)
            return cost if isinstance(cost, dict) else {}
        except (OSError, ValueError):  # beside the checksummed content, hence not worth a failure
            return {}

    def provenance(self, stage: Stage) -> dict[str, Any]:
        """Where the numbers of a cell come from: code, machine, and every stage behind it."""
        return {
            "code_version": self.code_version,
            "versions": library_versions(),
            "hardware": hardware(self.environment.device),
            "environment": self.environment.describe(),
            "stages": [
                {
                    "kind": behind.kind,
                    "label": behind.label,
                    "key": behind.key,
                    "seconds": self.cost(behind).get("seconds"),
                }
                for behind in topological([stage])
                if behind is not stage
            ],
        }

    def images(self, stage: Stage) -> ImageSet:
        """The image set of a data stage."""

        def load() -> ImageSet:
            tensors = self.tensors(stage, "images.safetensors")
            about = self.json(stage, "about.json")
            return ImageSet(
                tensors["images"],
                labels=tensors.get("labels"),
                class_names=tuple(about["class_names"]),
                captions=about["captions"],
                name=about["name"],
            )

        return self._images.get(stage.key, load)

    def encoder(self, stage: Stage) -> Encoder:
        """The encoder that a pretrain, implant or import stage left; shared, hence never to be
        trained."""
        return self._encoders.get(
            stage.key,
            lambda: Encoder.load(self.folder(stage) / "encoder.safetensors").to(self.device),
        )

    def trigger(self, stage: Stage, name: str = "trigger") -> Trigger | None:
        """The trigger (or the decoy) that an implant or audit stage recorded."""
        return restore_trigger(self.json(stage, "triggers.json").get(name))

    def embeddings(
        self, stage: Stage, what: Hashable, images: Callable[[], Iterable[Tensor]]
    ) -> tuple[Tensor, float]:
        """float32 (N, D) embeddings by the encoder of ``stage`` and the seconds they took.

        ``what`` names the images: equal names mean equal images.
        """

        def compute() -> tuple[Tensor, float]:
            encoder = self.encoder(stage)
            start = clock(self.device)
            parts = [encoder.embed(batch) for batch in images()]
            return torch.cat(parts), clock(self.device) - start

        return self._embeddings.get((stage.key, what), compute)

    def component(self, group: str, stage: Stage) -> Any:
        """The attack or defense of a stage with its parameters, paths resolved."""
        described = stage.spec["component"]
        parameters = dict(described["parameters"])
        for field, digest in described.get("files", {}).items():
            parameters[field] = _checked(self._root / parameters[field], digest)
        return registry.load(group, described["name"]).model_validate(parameters)

    def generator(self, stage: Stage, role: str = "") -> torch.Generator:
        """Common random numbers (invariant 13): from seed, stage kind, component and role alone."""
        return generator_for(stage.spec["seed"], stage.kind, stage.component, role)


def another(what: str) -> InputError:
    """The error for content that is not what a key stands for."""
    return InputError(f"{what} changed since the run was planned, or this machine has another copy")


def _checked(path: Path, digest: str) -> Path:
    if not path.is_file():
        raise InputError(f"{path.name} is gone since the run was planned, or not on this machine")
    if file_digest(path) != digest:
        raise another(path.name)
    return path


def generator_for(seed: int, kind: str, component: str, role: str = "") -> torch.Generator:
    """A CPU generator that follows from the four names alone, never from input keys."""
    text = json.dumps([seed, kind, component, role])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def trigger_record(trigger: Trigger | None) -> dict[str, Any] | None:
    """A trigger as JSON: its kind, parameters and description.

    Raises
    ------
    ValueError
        When its kind's name is that of another kind, which would be restored in its place.
    """
    if trigger is None:
        return None
    known, mine = registry.trigger_class(trigger.name), type(trigger)
    if (known.__module__, known.__qualname__) != (mine.__module__, mine.__qualname__):
        raise ValueError(
            f"{mine.__name__} needs a `name` of its own: {trigger.name!r} is that of "
            f"{known.__name__}"
        )
    return {
        "kind": trigger.name,
        "parameters": trigger.parameters(),
        "description": trigger.describe(),
    }


def restore_trigger(record: Mapping[str, Any] | None) -> Trigger | None:
    """The trigger of :func:`trigger_record`."""
    if record is None:
        return None
    return registry.trigger_class(record["kind"]).model_validate(record["parameters"])


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path)


def write_scores(path: Path, frame: pd.DataFrame) -> None:
    """Scores as parquet, in half the space of the default encodings.

    Positions are runs of consecutive numbers, and the bytes of float32 scores compress better one
    significance after the other; every value stays as it is.
    """
    names = [name for name in frame.columns if name not in ("image", "score")]
    frame.to_parquet(
        path,
        index=False,
        compression="zstd",
        use_dictionary=names,
        column_encoding={"image": "DELTA_BINARY_PACKED", "score": "BYTE_STREAM_SPLIT"},
    )
