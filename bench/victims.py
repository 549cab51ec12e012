"""Bring your own victim: what the ``from`` entries of the matrix name, resolved and checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import registry
from bench.config import Profile, VictimEntry
from bench.configfile import ConfigFile
from bench.lineage import ImportedVictim
from bench.store import damage, file_digest
from bench.yamlfile import Location

ENCODER, TRIGGERS, VICTIM = "encoder.safetensors", "triggers.json", "victim.json"


class VictimFiles:
    """Reads victims of other origin once; every error has file, line and key.

    Attributes
    ----------
    files
        SHA-256 -> path of every encoder file of the matrix.
    """

    def __init__(
        self, file: ConfigFile, profile: Profile, image_size: Callable[[str], int]
    ) -> None:
        self._file = file
        self._profile = profile
        self._image_size = image_size
        self._resolved: dict[str, ImportedVictim] = {}
        self._paths: dict[str, Path] = {}

    @property
    def files(self) -> dict[str, Path]:
        for entry in self._file.config.matrix.attacks:
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
        here: Location = ("matrix", "attacks", self._file.config.matrix.attacks.index(entry))
        with self._file.located((*here, "from")):
            path, stored = self._open(entry.source)
        encoder, architecture = self._encoder(entry, path, (*here, "from"))
        dataset = entry.downstream or self._profile.downstreams[0].dataset
        target = entry.target if entry.target is not None else stored.get("target")
        if target is None:
            raise self._file.yaml.error(here, "target: this key is required: no file says it")
        twin = None
        if entry.clean_twin is not None:
            with self._file.located((*here, "clean_twin")):
                twin_path, _ = self._open(entry.clean_twin)
            twin, _ = self._encoder(entry, twin_path, (*here, "clean_twin"))
        from bench.encoders.architectures import find

        text = find(architecture).text
        return ImportedVictim(
            encoder=encoder,
            trigger=self._trigger(entry, stored, self._image_size(dataset), here),
            target=int(target),
            family="clip" if text else "ssl",
            architecture=architecture,
            text=text,
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
                stored |= json.loads((path / name).read_text(encoding="utf-8"))
        return path / ENCODER, stored

    def _encoder(
        self, entry: VictimEntry, path: Path, location: Location
    ) -> tuple[dict[str, Any], str]:
        """How to build the network around a file, checked by doing so; its architecture."""
        from bench.stages.importing import load_encoder

        dataset = entry.downstream or self._profile.downstreams[0].dataset
        spec = {
            "architecture": entry.architecture,
            "settings": entry.settings,
            "mean": entry.mean,
            "std": entry.std,
            "image_size": self._image_size(dataset),
        }
        with self._file.located(location):
            if entry.architecture is None and path.suffix != ".safetensors":
                raise ValueError(
                    f"{path.name} does not say its architecture; name it under `architecture`"
                )
            encoder = load_encoder(path, spec)
        digest = file_digest(path)
        self._paths[digest] = path
        return {"checkpoint": digest, **spec}, encoder.architecture

    def _trigger(
        self,
        entry: VictimEntry,
        stored: Mapping[str, Any],
        image_size: int,
        here: Location,
    ) -> Mapping[str, Any]:
        from bench.workspace import restore_trigger, trigger_record

        if entry.trigger is None and stored.get("trigger") is None:
            raise self._file.yaml.error(here, "trigger: this key is required: no file says it")
        with self._file.located((*here, "trigger") if entry.trigger else (*here, "from")):
            if entry.trigger is None:
                trigger = restore_trigger(stored["trigger"])
            else:
                trigger = registry.parse_trigger(entry.trigger, image_size, self._file.root)
            trigger.support(image_size)  # raises where it is made for another size
            return trigger_record(trigger)
