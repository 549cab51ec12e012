"""Which stages of a run somebody still waits for, as stages fail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.graph import Cell, Stage


class Demand:
    """A stage is wanted while a cell that needs it can still come to its end.

    Bookkeeping takes as long as the graph has edges, however many stages fail.

    Parameters
    ----------
    stages
        All stages of the run, each once.
    cells
        What the run is for.
    """

    def __init__(self, stages: Sequence[Stage], cells: Iterable[Cell]) -> None:
        self._stages = {stage.key: stage for stage in stages}
        self._users: dict[str, list[str]] = {key: [] for key in self._stages}
        for stage in stages:
            for key in _inputs(stage):
                self._users[key].append(stage.key)
        ends = {cell.key for cell in cells}
        self._waiting = {key: len(users) + (key in ends) for key, users in self._users.items()}
        self._unwanted: set[str] = set()

    def __contains__(self, key: str) -> bool:
        """Whether the stage of that key is still wanted."""
        return key not in self._unwanted

    def fail(self, key: str) -> None:
        """The stage cannot be had: nor can what uses it, and what only that needed is in vain."""
        lost = [key]
        while lost:
            key = lost.pop()
            if key not in self._unwanted:
                lost += self._users[key]
                self._give_up(key)

    def _give_up(self, key: str) -> None:
        in_vain = [key]
        while in_vain:
            key = in_vain.pop()
            if key in self._unwanted:
                continue
            self._unwanted.add(key)
            for needed in _inputs(self._stages[key]):
                self._waiting[needed] -= 1
                if self._waiting[needed] == 0:
                    in_vain.append(needed)


def _inputs(stage: Stage) -> set[str]:
    """The keys of a stage's inputs: one stage may have several roles."""
    return {child.key for child in stage.inputs.values()}
