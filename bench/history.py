"""What stages took here before: for plans, for the order of stages, for the time left."""

from __future__ import annotations

import json
from functools import cached_property

from bench.graph import Stage, cost_name
from bench.limits import read_json
from bench.store import Store, write_atomically


class History:
    """How long stages of a kind and specification took last time in a cache."""

    def __init__(self, store: Store) -> None:
        self._folder = store.beside("seconds")
        self._known: dict[str, float | None] = {}

    @cached_property
    def _names(self) -> set[str]:
        return {path.stem for path in self._folder.glob("*.json")}

    @cached_property
    def _kinds(self) -> set[str]:
        return {name.rpartition("-")[0] for name in self._names}

    def seconds(self, stage: Stage) -> float | None:
        """None when nothing of the kind was ever timed."""
        if stage.kind not in self._kinds:
            return None
        name = cost_name(stage)
        if name not in self._names:
            return None
        if name not in self._known:
            self._known[name] = self._read(name)
        return self._known[name]

    def _read(self, name: str) -> float | None:
        try:
            return float(read_json(self._folder / f"{name}.json")["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember(self, stage: Stage, seconds: float) -> None:
        """Note what such a stage took."""
        name = cost_name(stage)
        write_atomically(self._folder / f"{name}.json", json.dumps({"seconds": seconds}))
