"""A run: the selected cells that are not stored yet, then the tables of all."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from bench.cells import FINISHED, CellStore, RunningMark
from bench.errors import InputError
from bench.executors.computing import Outcome
from bench.graph import Cell, topological
from bench.provenance import hardware, library_versions
from bench.store import check_writable, write_atomically

if TYPE_CHECKING:
    from bench.executors.inline import InlineExecutor
    from bench.executors.ray_cluster import Cluster
    from bench.executors.ray_driver import RayExecutor
    from bench.executors.ray_worker import Origin
    from bench.session import Session


def run(session: Session) -> Outcome:
    """Run the selected cells of a session, then rebuild its tables.

    Raises
    ------
    InputError
        Before anything is written.
    """
    cells = CellStore(session.results)
    try:
        stored = {cell.key: cells.status(cell.key) for cell in session.cells}
    except (ValueError, OSError):
        session.check()  # says it with file and line
        raise
    # With every cell stored under the key that the file asks for now, the file is sound as far
    # as this run goes, and checking the rest of it would take longer than the run.
    if not FINISHED.issuperset(stored.values()):
        session.check()
    pending = [c for c in session.cells if not c.skip and session.to_do(stored[c.key])]
    if pending:
        check_writable(session.store.root)
        session.store.check_links()
        if session.selection.executor == "ray":
            _ray()[0].check_address(session.selection.address)
    mark = RunningMark(session.results)
    _prepare_results(session, cells)
    failed = {}
    for cell in session.cells:
        status = stored[cell.key]
        if cell.skip and status != "skipped":
            _store_skip(session, cells, cell)
        elif not cell.skip and status == "failed" and not session.to_do(status):
            failed[cell.key] = "failed before; --retry-failed tries again"
    outcome = _computed(session, cells, mark, pending) if pending else Outcome()
    outcome.failed |= failed
    session.render()
    return outcome


def _computed(
    session: Session, cells: CellStore, mark: RunningMark, pending: list[Cell]
) -> Outcome:
    session.store.sweep()
    begun = time.strftime("%Y%m%d-%H%M%S")
    reporter = session.reporter
    reporter.log_to(session.store.beside("logs", f"{begun}-{os.getpid()}.txt"))
    stages = topological([cell.stage for cell in pending])
    reporter.plan(len(stages), len(session.cells), len(session.cells) - len(pending))
    with mark:
        return _executor(session, cells, mark).run(pending)


def _executor(
    session: Session, cells: CellStore, mark: RunningMark
) -> InlineExecutor | RayExecutor:
    """What runs the stages of a session."""
    if session.selection.executor == "inline":
        from bench.executors.inline import InlineExecutor

        session.set_up_torch()
        return InlineExecutor(session.workspace(), cells, session.reporter, mark)
    cluster_of, executor_of, origin_of = _ray()
    origin, environment = origin_of.of(session), session.environment
    cluster = cluster_of(
        origin,
        session.profile.resources,
        environment.threads,
        environment.device,
        session.selection.address,
        experiment=session.file.yaml.content,
    )
    smoke = environment.limit_steps is not None
    store, reporter = session.store, session.reporter
    return executor_of(cluster, origin, store, cells, reporter, mark, smoke=smoke)


def _ray() -> tuple[type[Cluster], type[RayExecutor], type[Origin]]:
    """What needs Ray."""
    try:
        from bench.executors.ray_cluster import Cluster
        from bench.executors.ray_driver import RayExecutor
        from bench.executors.ray_worker import Origin
    except ImportError as error:
        if error.name != "ray":
            raise
        raise InputError(
            "--executor ray needs Ray: pip install 'ssl-backdoor-bench[ray]'"
        ) from None
    return Cluster, RayExecutor, Origin


def _prepare_results(session: Session, cells: CellStore) -> None:
    cells.folder.mkdir(parents=True, exist_ok=True)
    cells.sweep()
    manifest = session.results / "manifest.json"
    content = (json.dumps(_manifest(session), indent=1, sort_keys=True) + "\n").encode()
    if not manifest.is_file() or manifest.read_bytes() != content:
        write_atomically(manifest, content)


def _manifest(session: Session) -> dict[str, Any]:
    config = session.file.config
    return {
        "schema": 1,
        "profile": session.profile_name,
        "attacks": [entry.label for entry in session.matrix.attacks],
        "defenses": [entry.label for entry in session.matrix.defenses],
        "seeds": sorted({cell.identity["seed"] for cell in session.all_cells}),
        "cells": [cell.key for cell in session.all_cells],
        "smoke": session.selection.limit_steps is not None,
        "config": {
            "profile": session.profile.model_dump(mode="json", exclude={"resources"}),
            "protocol": config.protocol.model_dump(mode="json"),
            "matrix": session.matrix.model_dump(mode="json"),
        },
        "tables": config.tables.model_dump(mode="json", exclude_unset=True),
        "environment": session.environment.describe(),
        "hardware": hardware(session.environment.device),
        "versions": library_versions(),
    }


def _store_skip(session: Session, cells: CellStore, cell: Cell) -> None:
    extra = {
        **cell.flags,
        "smoke": session.selection.limit_steps is not None,
        "config": cell.stage.spec["config"],
    }
    cells.write_unfinished(cell.key, cell.identity, "skipped", str(cell.skip), extra)
