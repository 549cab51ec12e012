"""One run of an author's code: a scratch folder, a process of its own, a time limit, a log."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

import bench
from bench.encoders.weights import CheckpointError, read_state_dict
from bench.upstream.checkout import located
from bench.upstream.formats import read_arrays

LOG_LIMIT = 16 * 2**20
"""Bytes of output that are kept on disk; what comes after is read and dropped."""
SHOWN_LINES = 10
LINE_LIMIT = 300
CHILD = Path(__file__).with_name("child.py")
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


class UpstreamError(RuntimeError):
    """The authors' code crashed, ran past its limit or left no result; ends with its last words."""


class UpstreamJob:
    """A scratch folder in which one repository's code runs once.

    Use it as a context manager: write what the code reads under :attr:`inputs`, call :meth:`run`,
    read :attr:`outputs`. Leaving it ends the process and removes the folder.

    Parameters
    ----------
    repository
        Name of a submodule under ``third_party/``.
    driver
        A Python file with ``run(job)``; it is executed in the child process, see
        :mod:`bench.upstream.child`.
    device
        Where CUDA calls go: ``cpu`` or ``cuda``.
    threads
        Threads that the child may use.
    time_limit
        Seconds.
    allowed
        Repositories that may be at another commit or modified.

    Raises
    ------
    UpstreamAbsent, UpstreamChanged
        See :func:`bench.upstream.checkout.located`.
    """

    def __init__(
        self,
        repository: str,
        driver: Path,
        *,
        device: str = "cpu",
        threads: int = 1,
        time_limit: float = 600.0,
        allowed: Collection[str] = (),
    ) -> None:
        self.repository = repository
        self.path = located(repository, allowed)
        self._driver = driver
        self._device = device
        self._threads = threads
        self._limit = time_limit
        self._log: _Log | None = None

    def __enter__(self) -> UpstreamJob:
        self.folder = Path(tempfile.mkdtemp(prefix=f"bench-{self.repository.lower()}-"))
        self.inputs, self.outputs = self.folder / "in", self.folder / "out"
        for folder in (self.inputs, self.outputs, self.folder / "work", self.folder / "home"):
            folder.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, parameters: Mapping[str, Any]) -> None:
        """Run the driver with JSON-ready ``parameters``.

        Raises
        ------
        UpstreamError
            When it crashed or was stopped at the time limit.
        """
        order = {
            "repository": str(self.path),
            "driver": str(self._driver),
            "folder": str(self.folder),
            "device": self._device,
            "threads": self._threads,
            "time_limit": self._limit,
            "parameters": dict(parameters),
        }
        (self.folder / "job.json").write_text(json.dumps(order), encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-s", "-B", "-u", str(CHILD), str(self.folder / "job.json")],
            cwd=self.folder / "work",
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log = self._log = _Log(process.stdout, self.folder / "log.txt")
        try:
            code = process.wait(timeout=self._limit)
        except subprocess.TimeoutExpired:
            raise UpstreamError(
                f"{self.repository}'s code was stopped at its limit of {self._limit:g} s"
                f"{log.last_words()}"
            ) from None
        finally:
            _end(process)
            log.close()
        if code != 0:
            reason = f"ended with exit status {code}"
            if code < 0:
                reason = f"was ended by signal {signal.Signals(-code).name}"
            raise UpstreamError(f"{self.repository}'s code {reason}{log.last_words()}")

    def output(self, name: str) -> Path:
        """A file that the driver had to leave.

        Raises
        ------
        UpstreamError
            When it is not there.
        """
        path = self.outputs / name
        if not path.is_file() or path.is_symlink():
            raise self._disappointed(f"ended without leaving {name}")
        return path

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of an ``.npz`` among the outputs.

        Raises
        ------
        UpstreamError
            When it is not there, damaged, or holds objects.
        """
        try:
            return read_arrays(self.output(name))
        except ValueError as error:
            raise self._disappointed(f"left something else: {error}") from None

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a checkpoint or of safetensors among the outputs.

        Raises
        ------
        UpstreamError
            When it is not there, damaged, or a pickle of more than tensors.
        """
        try:
            return read_state_dict(self.output(name))
        except CheckpointError as error:
            said = str(error).replace(f"{self.outputs}/", "")
            raise self._disappointed(f"left something else: {said}") from None

    def _disappointed(self, what: str) -> UpstreamError:
        words = "" if self._log is None else self._log.last_words()
        return UpstreamError(f"{self.repository}'s code {what}{words}")

    def _environment(self) -> dict[str, str]:
        """Nothing of the caller's but what a process needs to start."""
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        return {
            **kept,
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "home"),
            "BENCH_PACKAGE_ROOT": str(Path(bench.__file__).resolve().parents[1]),
            "OMP_NUM_THREADS": str(self._threads),
            "PYTHONHASHSEED": "0",
            # Compiled files in the checkout are neither read nor written.
            "PYTHONPYCACHEPREFIX": str(self.folder / "home"),
        }


class _Log:
    """Drains a process's output into a file of bounded size and remembers the last lines."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._last: deque[str] = deque(maxlen=SHOWN_LINES)
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def last_words(self) -> str:
        """The last lines, as the end of an error message."""
        self._thread.join(timeout=2)
        return "".join(f"\n  | {line}" for line in self._last)

    def close(self) -> None:
        self._thread.join(timeout=2)

    def _drain(self) -> None:
        left, rest = LOG_LIMIT, b""
        with self._path.open("wb") as file:
            while part := self._stream.read1(65536):
                file.write(part[:left])
                left -= len(part[:left])
                *lines, rest = (rest + part).replace(b"\r", b"\n").split(b"\n")
                rest = rest[-LINE_LIMIT:]
                self._keep(lines)
        self._keep([rest])

    def _keep(self, lines: list[bytes]) -> None:
        for line in lines[-4 * SHOWN_LINES :]:
            text = line[-LINE_LIMIT:].decode("utf-8", "replace").rstrip()
            printable = "".join(c if c.isprintable() else "?" for c in text)
            if printable:
                self._last.append(printable)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the child and the process group that it leads."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()
