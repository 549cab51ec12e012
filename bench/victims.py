"""Bring your own victim: what the ``from`` entries of the matrix name, resolved and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench import registry
from bench.config import Family, VictimEntry
from bench.configfile import ConfigFile
from bench.limits import MOST_JSON_BYTES, read_bytes
from bench.lineage import ImportedVictim
from bench.store import damage, file_digest
from bench.yamlfile import Location

if TYPE_CHECKING:
    from bench.encoders.encoder import Encoder

ENCODER, TRIGGERS, VICTIM = "encoder.safetensors", "triggers.json", "victim.json"
_FILE_SAYS: dict[str, Any] = {"architecture": None, "settings": {}, "mean": None, "std": None}
"""The network of a file that describes itself."""


class VictimFiles:
    """Reads victims of other origin once; every error has file, line and key.

    Attributes
    ----------
    files
        SHA-256 -> path of every encoder file of the matrix.
    """

    def __init__(
        self, file: ConfigFile, profile_name: str, image_size: Callable[[str], int]
    ) -> None:
        self._file = file
        self._profile = file.config.profiles[profile_name]
        self._matrix, self._where = file.config.matrix_of(profile_name)
        self._image_size = image_size
        self._resolved: dict[str, ImportedVictim] = {}
        self._paths: dict[str, Path] = {}

    @property
    def files(self) -> dict[str, Path]:
        for entry in self._matrix.attacks:
            if isinstance(entry, VictimEntry):
                self.resolve(entry)
        return self._paths

    def resolve(self, entry: VictimEntry) -> ImportedVictim:
        """What an entry and the files it names say together.

        Raises
        ------
        InputError
            When a file is missing or does not fit, or something needed stands nowhere.
        """
        if entry.label not in self._resolved:
            self._resolved[entry.label] = self._resolve(entry)
        return self._resolved[entry.label]

    def _resolve(self, entry: VictimEntry) -> ImportedVictim:
        here: Location = (*self._where, "attacks", self._matrix.attacks.index(entry))
        with self._file.located((*here, "from")):
            path, stored = self._open(entry.source)
            own = _own_description(path)
        network = self._network(entry, path.name, own, here)
        family, dataset = self._judged_on(entry, own or network, here)
        size = self._image_size(dataset)
        with self._file.located((*here, "from")):
            spec, encoder = self._load(path, network, size)
        target = entry.target if entry.target is not None else stored.get("target")
        if target is None:
            raise self._file.yaml.error(here, "target: this key is required: no file says it")
        trigger = self._trigger(entry, stored, size, here)
        twin = None
        if entry.clean_twin is not None:
            with self._file.located((*here, "clean_twin")):
                twin = self._twin(entry.clean_twin, spec["checkpoint"], encoder)
        return ImportedVictim(
            encoder=spec,
            trigger=trigger,
            target=int(target),
            family=family.name,
            architecture=encoder.architecture,
            text=encoder.text is not None,
            twin=twin,
        )

    def _open(self, named: str) -> tuple[Path, dict[str, Any]]:
        """The encoder file behind a path, and what a victim's folder says beside it."""
        path = self._file.root / named
        if not path.exists():
            raise ValueError(f"no such file or folder: {named}")
        if not path.is_dir():
            return path, {}
        if not (path / ENCODER).is_file():
            raise ValueError(f"{named} holds no {ENCODER}; a victim's folder does")
        problem = damage(path)
        if problem is not None:
            raise ValueError(f"{named} is damaged: {problem}")
        stored: dict[str, Any] = {}
        for name in (TRIGGERS, VICTIM):
            if (path / name).is_file():
                stored |= _read(path / name)
        return path / ENCODER, stored

    def _network(
        self, entry: VictimEntry, name: str, own: Mapping[str, Any] | None, here: Location
    ) -> dict[str, Any]:
        """How to build the network around a victim's file."""
        from bench.encoders.architectures import find

        given = {key: getattr(entry, key) for key in _FILE_SAYS}
        if own is not None:
            for key, value in given.items():
                said = tuple(own[key]) if isinstance(own[key], list) else own[key]
                meant = {**said, **value} if isinstance(value, Mapping) else value
                if value and meant != said:
                    raise self._file.yaml.error(
                        (*here, key), f"{name} says its own, {said}; leave it out"
                    )
            return _FILE_SAYS
        if entry.architecture is None:
            raise self._file.yaml.error(
                (*here, "from"), f"{name} does not say its architecture; name it: `architecture`"
            )
        with self._file.located((*here, "architecture")):
            architecture = find(entry.architecture)
        with self._file.located((*here, "settings")):
            architecture.check(entry.settings)
        return given

    def _judged_on(
        self, entry: VictimEntry, described: Mapping[str, Any], here: Location
    ) -> tuple[Family, str]:
        """The family whose data sets a victim meets, and its downstream set.

        The family of its kind (with or without text tower), or the other one where only that has
        images of the right size.
        """
        from bench.encoders.architectures import find

        with self._file.located((*here, "from")):
            architecture = find(described["architecture"])
        kind = "clip" if architecture.text else "ssl"
        families = sorted(self._profile.families().values(), key=lambda f: f.name != kind)
        size = architecture.image_size if architecture.fixed_size else described.get("image_size")
        if entry.downstream is not None:
            size = self._image_size(entry.downstream)
        fitting = [f for f in families if size in (None, self._image_size(f.dataset))]
        if entry.downstream is not None and not fitting:
            sizes = sorted({self._image_size(family.dataset) for family in families})
            raise self._file.yaml.error(
                (*here, "downstream"),
                f"{entry.downstream!r} has images of {size} pixels, the profile's defenders own "
                f"images of {' or '.join(map(str, sizes))}",
            )
        family = (fitting or families)[0]
        return family, entry.downstream or family.downstreams[0].dataset

    def _load(
        self, path: Path, network: Mapping[str, Any], image_size: int
    ) -> tuple[dict[str, Any], Encoder]:
        """What a stage must know to load a file, checked by loading it."""
        from bench.stages.importing import load_encoder

        spec = {**network, "image_size": image_size}
        encoder = load_encoder(path, spec)
        digest = file_digest(path)
        self._paths[digest] = path
        return {"checkpoint": digest, **spec}, encoder

    def _twin(self, named: str, victim: str, encoder: Encoder) -> dict[str, Any]:
        """The clean twin of ``encoder``, whose file has the SHA-256 ``victim``."""
        path, stored = self._open(named)
        if stored.get("trigger") is not None:
            raise ValueError(f"{named} is a victim itself: it has a trigger")
        network = _FILE_SAYS
        if _own_description(path) is None:
            network = {key: getattr(encoder, key) for key in _FILE_SAYS}
        spec, twin = self._load(path, network, encoder.image_size)
        if spec["checkpoint"] == victim:
            raise ValueError(f"{named} is the victim's own file")
        if (twin.architecture, twin.settings) != (encoder.architecture, encoder.settings):
            raise ValueError(
                f"{named} is {_in_words(twin)}, the victim {_in_words(encoder)}: a clean twin has "
                "the same network"
            )
        return spec

    def _trigger(
        self,
        entry: VictimEntry,
        stored: Mapping[str, Any],
        image_size: int,
        here: Location,
    ) -> Mapping[str, Any]:
        from bench.workspace import restore_trigger, trigger_record

        given = entry.trigger is not None
        if not given and stored.get("trigger") is None:
            raise self._file.yaml.error(here, "trigger: this key is required: no file says it")
        with self._file.located((*here, "trigger" if given else "from")):
            if given:
                trigger = registry.parse_trigger(entry.trigger, image_size, self._file.root)
            else:
                trigger = restore_trigger(stored["trigger"])
            trigger.support(image_size)  # raises where it is made for another size
            return trigger_record(trigger)


class _Record(BaseModel):
    """A trigger as a victim's folder records it."""

    kind: str
    parameters: dict[str, Any]
    description: str = ""


class _Stored(BaseModel):
    """What this module reads of ``triggers.json`` and ``victim.json``."""

    model_config = ConfigDict(extra="ignore")
    trigger: _Record | None = None
    target: int | None = Field(None, ge=0)


def _read(path: Path) -> dict[str, Any]:
    """A file of a victim's folder, checked.

    Raises
    ------
    ValueError
        One line that names the file and the key.
    """
    try:
        content = read_bytes(path, MOST_JSON_BYTES)
        return _Stored.model_validate_json(content).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"{path.name}{f', {where}' if where else ''}: {first['msg'][0].lower()}"
            f"{first['msg'][1:]}"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from None


def _own_description(path: Path) -> dict[str, Any] | None:
    """What a file says about its network; None for one that is not ours."""
    from bench.encoders.encoder import check_description
    from bench.encoders.weights import read_metadata

    found = read_metadata(path) if path.suffix == ".safetensors" else {}
    if not isinstance(found, Mapping) or not found.keys() >= {*_FILE_SAYS, "image_size"}:
        return None
    check_description(found, path.name)
    return found


def _in_words(encoder: Encoder) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in encoder.settings.items())
    return f"a {encoder.architecture}" + (f" ({settings})" if settings else "")
