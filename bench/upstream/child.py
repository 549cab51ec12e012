"""The process in which an author's code runs: paths, shims, then the driver. Started by
:mod:`bench.upstream.job`, never imported by the harness.

Its module search path holds the one repository, the interpreter's packages and, last, the harness,
whose top-level names no repository uses; ``third_party`` is blocked, so that one repository cannot
import another by accident.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

PR_SET_PDEATHSIG = 1
LONGEST_ALARM = 10**8


@dataclass(frozen=True)
class Job:
    """What a driver is given.

    Attributes
    ----------
    repository
        The author's checkout; also the first entry of the module search path.
    inputs, outputs
        Folders: what the harness wrote, and where it will read.
    work
        The current folder, empty: relative paths of the author's code lead here.
    device
        ``cpu`` or ``cuda``; CUDA calls go there.
    parameters
        As the adapter gave them.
    """

    repository: Path
    inputs: Path
    outputs: Path
    work: Path
    device: str
    threads: int
    parameters: dict[str, Any]

    def module(self, path: str, name: str) -> ModuleType:
        """A file of the repository, imported under a name of our choice.

        For scripts whose own name says nothing (``main.py``), or would run as ``__main__``.
        """
        spec = importlib.util.spec_from_file_location(name, self.repository / path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    def leave(self, name: str, module: Any) -> None:
        """Write the state of a ``torch.nn.Module`` to ``NAME.safetensors`` among the outputs."""
        from bench.encoders.weights import write_safetensors

        write_safetensors(self.outputs / f"{name}.safetensors", module.state_dict(), {})

    def link(self, *names: str) -> None:
        """Show folders of the repository under the current one, where relative paths look."""
        for name in names:
            (self.work / name).symlink_to(self.repository / name)


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(order["folder"])
    sys.path[0] = order["repository"]  # in the place of this file's folder
    sys.path.append(os.environ["BENCH_PACKAGE_ROOT"])
    sys.modules["third_party"] = None
    _end_with_the_harness(order["time_limit"])
    job = Job(
        Path(order["repository"]),
        folder / "in",
        folder / "out",
        folder / "work",
        order["device"],
        order["threads"],
        order["parameters"],
    )
    import torch

    from bench.determinism import be_deterministic
    from bench.upstream.shims import installed

    torch.set_num_threads(job.threads)
    be_deterministic(job.device)
    spec = importlib.util.spec_from_file_location("upstream_driver", order["driver"])
    driver = importlib.util.module_from_spec(spec)
    with installed(job.device):
        try:
            spec.loader.exec_module(driver)
            driver.run(job)
        except Exception:
            # The harness shows the last lines: only where it happened, not how we got there.
            traceback.print_exc(limit=-2)
            sys.exit(1)


def _end_with_the_harness(limit: float) -> None:
    """Not to outlive a harness that was killed: by signal on Linux, by the clock elsewhere."""
    if hasattr(signal, "alarm"):
        signal.alarm(int(min(limit, LONGEST_ALARM)) + 60)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
