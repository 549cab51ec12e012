"""Live bars on a terminal, plain lines elsewhere and in a log file. Progress goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import TaskID

    from bench.cells import RunState

SECONDS_BETWEEN_LINES = 15.0


class Silent:
    """Shows nothing: for library use."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def plan(self, stages: int, cells: int, done: int) -> None:
        """How much there is to do."""

    def start(self, label: str) -> None:
        """A stage begins."""

    def step(self, what: str, done: int, total: int | None) -> None:
        """A step of a training loop inside the current stage."""

    def finish(self, label: str, seconds: float, outcome: str) -> None:
        """A stage ended: computed, cached or failed."""

    def note(self, message: str) -> None:
        """One line for the reader."""

    def view(self, state: RunState) -> None:
        """Where a run is whose stages do not come one after the other."""

    def log_to(self, path: Path) -> None:
        """Keep plain lines in a file as well."""


class PlainLines(Silent):
    """One line per finished stage and, for long ones, one every few seconds."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._label, self._total, self._count = "", 0, 0
        self._last = self._started = time.monotonic()

    def close(self) -> None:
        """Close the stream that was given."""
        self._stream.close()

    def plan(self, stages: int, cells: int, done: int) -> None:
        self._total = stages
        self._print(f"{cells} cells, {done} already stored; {stages} stages to check or compute")

    def start(self, label: str) -> None:
        self._label, self._started = label, time.monotonic()
        self._last = self._started

    def step(self, what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            of = f"/{total}" if total else ""
            self._print(f"    {self._label}: {what} {done}{of}, {now - self._started:.0f} s")

    def finish(self, label: str, seconds: float, outcome: str) -> None:
        self._count += 1
        self._total = max(self._total, self._count)  # lost stages are computed once more
        if outcome != "cached":
            self._print(f"[{self._count}/{self._total}] {label}: {outcome}, {seconds:.1f} s")

    def note(self, message: str) -> None:
        self._print(message)

    def view(self, state: RunState) -> None:
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            self._print("    " + "; ".join((state.in_words(), *_at_work(state))))

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class LiveBars(Silent):
    """A bar for the whole run and one for the stage at work."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._all = self._bars.add_task("stages", total=None)
        self._one = self._bars.add_task("", total=None, visible=False)
        self._at_work: list[TaskID] = []
        self._total, self._count = 0, 0

    def __enter__(self) -> LiveBars:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for bar in (self._one, *self._at_work):
            self._bars.update(bar, visible=False)
        self._bars.stop()

    def plan(self, stages: int, cells: int, done: int) -> None:
        self._total = stages
        self._bars.update(self._all, total=stages, description=f"{cells} cells, {done} stored")

    def start(self, label: str) -> None:
        # A new bar: resetting the old one would keep its total.
        self._bars.remove_task(self._one)
        self._one = self._bars.add_task(label, total=None)

    def step(self, what: str, done: int, total: int | None) -> None:
        self._bars.update(self._one, completed=done, total=total)

    def finish(self, label: str, seconds: float, outcome: str) -> None:
        self._count += 1
        self._total = max(self._total, self._count)
        self._bars.update(self._all, completed=self._count, total=self._total)
        if outcome != "cached":
            self.note(f"{label}: {outcome}, {seconds:.1f} s")

    def note(self, message: str) -> None:
        self._bars.console.print(message, markup=False, highlight=False)

    def view(self, state: RunState) -> None:
        self._bars.update(self._all, description=_escaped(state.in_words()))
        for bar in self._at_work:
            self._bars.remove_task(bar)
        self._at_work = [
            self._bars.add_task(_escaped(line), total=None) for line in _at_work(state)
        ]


class Logged(Silent):
    """Tells a display and, once there is one, a log file the same."""

    def __init__(self, display: Silent) -> None:
        self._display = display
        self._log: PlainLines | None = None

    def __enter__(self) -> Logged:
        self._display.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.__exit__(*error)
        if self._log is not None:
            self._log.close()

    def log_to(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._log = PlainLines(path.open("a", encoding="utf-8"))

    def plan(self, stages: int, cells: int, done: int) -> None:
        for to in self._all():
            to.plan(stages, cells, done)

    def start(self, label: str) -> None:
        for to in self._all():
            to.start(label)

    def step(self, what: str, done: int, total: int | None) -> None:
        for to in self._all():
            to.step(what, done, total)

    def finish(self, label: str, seconds: float, outcome: str) -> None:
        for to in self._all():
            to.finish(label, seconds, outcome)

    def note(self, message: str) -> None:
        for to in self._all():
            to.note(message)

    def view(self, state: RunState) -> None:
        for to in self._all():
            to.view(state)

    def _all(self) -> Iterable[Silent]:
        return (self._display,) if self._log is None else (self._display, self._log)


def reporter() -> Logged:
    """Live bars when stderr is a terminal, plain lines otherwise."""
    return Logged(LiveBars() if sys.stderr.isatty() else PlainLines())


def _at_work(state: RunState) -> list[str]:
    """A line for each stage that is being computed."""
    return [
        f"{stage.label}: {stage.progress}" if stage.progress else stage.label
        for stage in state.running
    ]


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
