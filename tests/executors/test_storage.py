"""A full disk or a cache that goes away ends a run, and is no cell's failure."""

from __future__ import annotations

import errno
import shutil

import pytest

from bench.cells import CellStore
from bench.executors import computing, inline
from bench.executors.computing import StorageError
from bench.stages import COMPUTE


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_in_other_words(*_: object) -> None:
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def chained(*_: object) -> None:
    try:
        full()
    except OSError as error:
        raise ValueError("could not save") from error


@pytest.mark.parametrize("fault", [full, full_in_other_words, chained])
def test_a_full_disk_ends_the_run_and_fails_no_cell(session_of, tiny, monkeypatch, fault):
    session = session_of(tiny)
    monkeypatch.setitem(COMPUTE, "fit", fault)
    with pytest.raises(StorageError, match=r"no space left .*run again when it is mended"):
        session.run()
    cells = CellStore(session.results)
    assert {cells.status(cell.key) for cell in session.cells} == {None}
    assert not list((session.store.root / "tmp").iterdir())


def test_a_scratch_file_is_called_the_cache(session_of, tiny, monkeypatch):
    session = session_of(tiny)

    def gone(stage, workspace, folder):
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(folder / "file"))

    monkeypatch.setitem(COMPUTE, "fit", gone)
    with pytest.raises(StorageError) as raised:
        session.run()
    assert f"file system not connected ({session.store.root}); " in str(raised.value)


def test_a_cache_that_goes_away_ends_the_run_and_the_next_one_finishes(
    session_of, tiny, monkeypatch
):
    tiny["matrix"] = {"attacks": ["none"], "defenses": ["mahalanobis"]}
    session = session_of(tiny)
    score = COMPUTE["score"]

    def vanish(stage, workspace, folder):
        shutil.rmtree(workspace.store.root)
        return score(stage, workspace, folder)

    with monkeypatch.context() as patch:
        patch.setitem(COMPUTE, "score", vanish)
        with pytest.raises(StorageError, match=r"lost .*, which was there"):
            session.run()
    again = type(session)(session.file, session.selection)
    assert again.run().failed == {}


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/its/own/file"),
        RuntimeError("the codec says: Input/output error in the stream"),
    ],
)
def test_a_stage_that_is_to_blame_is_a_failed_cell(session_of, tiny, monkeypatch, error):
    tiny["matrix"] = {"attacks": ["none"], "defenses": ["mahalanobis"]}
    session = session_of(tiny)

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setitem(COMPUTE, "fit", broken)
    outcome = session.run()
    assert len(outcome.failed) == 1
    assert inline.storage_problem is computing.storage_problem
