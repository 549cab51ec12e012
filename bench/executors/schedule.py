"""Which stage comes next: a graph, what is known of it, and what that makes ready."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Container, Sequence
from enum import Enum

from bench.graph import Cell, Stage, topological


class State(Enum):
    """Of a stage in a run."""

    waiting = "waiting"
    out = "running"
    done = "done"
    failed = "failed"
    dropped = "not needed any more"


class Schedule:
    """Hands out stages whose inputs are there: what ends a cell, then the longest way to an end.

    A cell that only has to be evaluated waits for nobody: seconds that store what was computed for
    hours, and that would pile up at the end of a large run.

    Nothing here knows how or where a stage is computed, and nothing waits.

    Parameters
    ----------
    cells
        What is wanted.
    seconds
        Of a stage as it was timed before; None where it never was.
    guess
        Seconds of a stage that was never timed.

    Attributes
    ----------
    counts
        Stages by state.
    seconds_left, untimed_left
        Of the stages that are not settled: what those take that were timed, and how many were not.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        seconds: Callable[[Stage], float | None],
        guess: Callable[[Stage], float] = lambda stage: 1.0,
    ) -> None:
        self._cells = {cell.key for cell in cells}
        self._stages = {stage.key: stage for stage in topological([cell.stage for cell in cells])}
        self._users: dict[str, list[str]] = {key: [] for key in self._stages}
        for key in self._stages:
            for needed in self._inputs(key):
                self._users[needed].append(key)
        timed = {key: seconds(stage) for key, stage in self._stages.items()}
        self._timed = {key: value or 0.0 for key, value in timed.items()}
        self._seconds = {
            key: guess(self._stages[key]) if value is None else value
            for key, value in timed.items()
        }
        self._way = self._longest_ways()
        self._position = {key: number for number, key in enumerate(self._stages)}
        self._missing = {key: len(self._inputs(key)) for key in self._stages}
        # How many users of a stage can still become results: at none, computing it is wasted.
        self._wanted = {key: len(self._users[key]) + (key in self._cells) for key in self._stages}
        self._state = dict.fromkeys(self._stages, State.waiting)
        self.counts: Counter[State] = Counter({State.waiting: len(self._stages)})
        # Only what was timed before: a guess orders stages, but tells nobody when.
        self.seconds_left = sum(self._timed.values())
        self._untimed = {key for key, value in timed.items() if value is None}
        self.untimed_left = len(self._untimed)
        self._reasons: dict[str, str] = {}
        # Of each kind: what a stage takes of a machine is a matter of its kind.
        self._ready: dict[str, list[tuple[float, int, str]]] = {}
        for key, missing in self._missing.items():
            if not missing:
                self._offer(key)

    def __len__(self) -> int:
        """Stages in all."""
        return len(self._stages)

    @property
    def open(self) -> bool:
        """Whether anything is left to do or to wait for."""
        return bool(self.counts[State.waiting] or self.counts[State.out])

    def stage(self, key: str) -> Stage:
        """The stage of that key."""
        return self._stages[key]

    def seconds(self, key: str) -> float:
        """What a stage takes, timed before or guessed."""
        return self._seconds[key]

    def peek(self, without: Container[str] = ()) -> Stage | None:
        """The next stage to hand out whose kind is none of ``without``; None when there is none:
        what else is left waits for what is out."""
        first: tuple[float, int, str] | None = None
        for kind, ready in self._ready.items():
            while ready and not self._can_start(ready[0][2]):
                heapq.heappop(ready)
            if ready and kind not in without and (first is None or ready[0] < first):
                first = ready[0]
        return None if first is None else self._stages[first[2]]

    def take(self, without: Container[str] = ()) -> Stage:
        """Hand out the stage of :meth:`peek`.

        Raises
        ------
        LookupError
            When none is ready.
        """
        stage = self.peek(without)
        if stage is None:
            raise LookupError("no stage is ready")
        heapq.heappop(self._ready[stage.kind])
        self._move(stage.key, State.out)
        return stage

    def _can_start(self, key: str) -> bool:
        return self._state[key] is State.waiting and not self._missing[key]

    def awaited(self, key: str) -> bool:
        """Whether the stage is handed out, and did not fail meanwhile with what it needs."""
        return self._state[key] is State.out

    def finish(self, key: str) -> None:
        """What was handed out is stored."""
        if not self.awaited(key):
            return
        self._move(key, State.done)
        for user in self._users[key]:
            self._missing[user] -= 1
            if not self._missing[user]:
                self._offer(user)

    def give_back(self, key: str) -> None:
        """What was handed out has to be computed once more, as soon as its inputs are there."""
        if not self.awaited(key):
            return
        self._move(key, State.waiting)
        if not self._missing[key]:
            self._offer(key)

    def lose(self, key: str) -> dict[str, str]:
        """What was stored is gone: whoever still needs it waits again.

        Cell key -> reason, where it cannot be made again since what it is made of has failed.
        """
        if self._state[key] is not State.done:
            return {}
        self._move(key, State.waiting)
        for user in self._users[key]:
            self._missing[user] += 1
        if not self._missing[key]:
            self._offer(key)
        reasons = (self._reasons[needed] for needed in self._inputs(key) if needed in self._reasons)
        reason = next(reasons, None)
        return {} if reason is None else self.fail(key, reason)

    def fail(self, key: str, reason: str) -> dict[str, str]:
        """No stage that needs this one can be computed; cell key -> reason of those it was."""
        failed: dict[str, str] = {}
        pending = [key]
        while pending:
            at = pending.pop()
            if self._state[at] in (State.failed, State.done, State.dropped):
                continue
            self._move(at, State.failed)
            self._reasons[at] = reason
            if at in self._cells:
                failed[at] = reason
            pending += self._users[at]
            for needed in self._inputs(at):
                self._want_less(needed)
        return failed

    def _want_less(self, key: str) -> None:
        """One user less; a stage without any is never computed, nor what it alone needs."""
        pending = [key]
        while pending:
            at = pending.pop()
            self._wanted[at] -= 1
            if not self._wanted[at] and self._state[at] is State.waiting:
                self._move(at, State.dropped)
                pending += self._inputs(at)

    def _move(self, key: str, state: State) -> None:
        before = self._state[key]
        self.counts[before] -= 1
        self.counts[state] += 1
        was, now = (which in (State.waiting, State.out) for which in (before, state))
        self.seconds_left += self._timed[key] * (now - was)
        self.untimed_left += (key in self._untimed) * (now - was)
        self._state[key] = state

    def _offer(self, key: str) -> None:
        if self._state[key] is State.waiting:
            ready = self._ready.setdefault(self._stages[key].kind, [])
            way = math.inf if key in self._cells else self._way[key]
            heapq.heappush(ready, (-way, self._position[key], key))

    def _inputs(self, key: str) -> list[str]:
        return list(dict.fromkeys(stage.key for stage in self._stages[key].inputs.values()))

    def _longest_ways(self) -> dict[str, float]:
        """Seconds from the start of a stage to the end of the longest chain that needs it."""
        ways: dict[str, float] = {}
        for key in reversed(self._stages):
            after = max((ways[user] for user in self._users[key]), default=0.0)
            ways[key] = self._seconds[key] + after
        return ways
