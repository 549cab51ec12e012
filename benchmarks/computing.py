"""Stages computed outside a run: what a benchmark needs before it measures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.cells import CellStore, RunningMark
from bench.executors.inline import InlineExecutor, Outcome
from bench.graph import Stage, topological
from bench.session import Session
from bench.workspace import Workspace


def compute(session: Session, workspace: Workspace, needed: Sequence[Stage], results: Path) -> None:
    """Compute ``needed`` and all below that the cache lacks; the first failure ends the program."""
    executor = InlineExecutor(workspace, CellStore(results), session.reporter, RunningMark(results))
    outcome = Outcome()
    for stage in topological(needed):
        failure = executor._attempt(stage, outcome)
        if failure is not None:
            raise SystemExit(failure)
