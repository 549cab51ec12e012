"""The authors' code may crash, hang, shout or cheat: one message, and nothing else is touched."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import bench
from bench.upstream.checkout import UpstreamAbsent, UpstreamChanged
from bench.upstream.job import LOG_LIMIT, UpstreamError, UpstreamJob


@pytest.fixture
def job(repository, tmp_path):
    """Makes a job out of the body of a driver's ``run``."""

    def make(body: str, **options) -> UpstreamJob:
        driver = tmp_path / "driver.py"
        lines = "\n    ".join(body.strip().splitlines())
        driver.write_text(f"def run(job):\n    {lines}\n")
        return UpstreamJob("DRUPE", driver, allowed=("DRUPE",), **options)

    return make


def test_a_driver_sees_its_repository_its_files_and_nothing_of_the_caller(job, monkeypatch):
    monkeypatch.setenv("SECRET", "of the caller")
    with job(
        """
import os, sys, greeting
from pathlib import Path
assert "SECRET" not in os.environ and Path.cwd() == job.work and not list(job.work.iterdir())
assert Path(os.environ["HOME"]).parent == job.inputs.parent
assert sys.path[0] == str(job.repository) and sys.flags.hash_randomization == 0
assert not any(folder.endswith("upstream") for folder in sys.path)
text = (job.inputs / "given.txt").read_text() + greeting.WORD + job.parameters["end"]
(job.outputs / "answer.txt").write_text(text)
"""
    ) as run:
        (run.inputs / "given.txt").write_text("first, ")
        run.run({"end": "!"})
        assert run.output("answer.txt").read_text() == "first, hello from upstream!"
    assert not run.folder.exists()
    assert not list(run.path.rglob("__pycache__"))


def test_a_crash_ends_with_the_last_lines(job):
    crash = pytest.raises(UpstreamError, match="ended with exit status 1")
    with job("print('epoch 1')\nraise RuntimeError('out of ideas')") as run, crash as raised:
        run.run({})
    lines = str(raised.value).splitlines()
    assert lines[-1] == "  | RuntimeError: out of ideas"
    assert len(lines) <= 11
    assert "  | epoch 1" in lines


def test_a_hang_is_stopped_with_everything_it_started(job, tmp_path):
    with job(
        """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(job.outputs / "child").write_text(str(child.pid))
print("epoch 7", flush=True)
time.sleep(600)
""",
        time_limit=8,
    ) as run:
        start = time.monotonic()
        with pytest.raises(UpstreamError, match=r"stopped at its limit of 8 s\n  \| epoch 7"):
            run.run({})
        assert time.monotonic() - start < 20
        child = int((run.outputs / "child").read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(child)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells children on Linux alone")
def test_a_killed_harness_takes_its_child_with_it(repository, tmp_path):
    driver, note = tmp_path / "driver.py", tmp_path / "pid"
    driver.write_text(
        "import os, time\n"
        "def run(job):\n"
        f"    open({str(note)!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )
    code = (
        "from pathlib import Path\n"
        "from bench.upstream.job import UpstreamJob\n"
        f"with UpstreamJob('DRUPE', Path({str(driver)!r}), allowed=('DRUPE',)) as job:\n"
        "    job.run({})\n"
    )
    root = Path(bench.__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(tmp_path)}
    harness = subprocess.Popen([sys.executable, "-c", code], env=environment)
    deadline = time.monotonic() + 120
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    child = int(note.read_text())
    harness.kill()
    harness.wait()
    deadline = time.monotonic() + 5
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_megabytes_of_garbage_are_drained_and_only_printable_words_are_shown(job):
    with job(
        r"""
import os, sys
block = bytes(range(256)) * 4096
for _ in range(24):
    os.write(1, block)
os.write(1, b"\n\x1b[31mred\x07 alert\xff\n")
os.abort()
"""
    ) as run:
        with pytest.raises(UpstreamError, match="ended by signal SIGABRT") as raised:
            run.run({})
        assert (run.folder / "log.txt").stat().st_size <= LOG_LIMIT
    message = str(raised.value)
    assert "red? alert" in message
    assert all(line.isprintable() and len(line) < 400 for line in message.splitlines())


def test_a_missing_result_and_a_link_for_a_result_are_failures(job):
    with job(
        """
(job.outputs / 'passwords').symlink_to('/etc/passwd')
(job.outputs / 'cut.npz').write_bytes(b'PK broken')
print('no gpu found')
"""
    ) as run:
        run.run({})
        for name in ("encoder.pth", "passwords"):
            with pytest.raises(UpstreamError, match=rf"without leaving {name}\n  \| no gpu found"):
                run.output(name)
        with pytest.raises(UpstreamError, match=r"(?s)cut\.npz: not an .*no gpu found"):
            run.arrays("cut.npz")


def test_pickles_among_the_results_are_never_loaded(job, tmp_path):
    mark = tmp_path / "ran"
    with job(
        f"""
import os, pickle, numpy as np
class Bomb:
    def __reduce__(self):
        return os.system, ("touch {mark}",)
(job.outputs / "encoder.pth").write_bytes(pickle.dumps(Bomb()))
np.savez(job.outputs / "figures.npz", loss=np.array([Bomb()], dtype=object))
"""
    ) as run:
        run.run({})
        with pytest.raises(UpstreamError, match=r"encoder\.pth: damaged, or a pickle of more"):
            run.tensors("encoder.pth")
        with pytest.raises(UpstreamError, match=r"figures\.npz: not an \.npz of plain arrays"):
            run.arrays("figures.npz")
    assert not mark.exists()


def test_cuda_calls_old_names_and_loader_workers_are_taken_care_of(job):
    with job(
        """
import numpy as np, torch
from torch.utils.data import DataLoader, TensorDataset
from numpy import Inf
assert np.quantile([1.0, 2.0, 4.0], 0.5, interpolation="lower") == 2.0
model = torch.nn.Linear(2, 1).cuda(0).to(torch.device("cuda:1"))
x = torch.rand(4, 2, device="cuda").cuda(non_blocking=True)
torch.cuda.set_device(3)
loader = DataLoader(TensorDataset(x), batch_size=2, num_workers=2, pin_memory=True)
y = torch.cat([model(batch.to("cuda:0")) for (batch,) in loader])
torch.save({"state_dict": model.state_dict()}, job.outputs / "m.pth")
again = torch.load(job.outputs / "m.pth", map_location=torch.device("cuda:0"))["state_dict"]
np.savez(job.outputs / "y.npz", y=y.detach().numpy(), w=again["weight"].numpy(),
         device=str(y.device), workers=loader.num_workers)
"""
    ) as run:
        run.run({})
        figures = run.arrays("y.npz")
    assert figures["y"].shape == (4, 1)
    assert np.isfinite(figures["w"]).all()
    assert (str(figures["device"]), int(figures["workers"])) == ("cpu", 0)


def test_absent_and_changed_submodules_are_refused_unless_allowed(repository, tmp_path):
    driver = tmp_path / "driver.py"
    with pytest.raises(UpstreamChanged, match=r"DRUPE"):
        UpstreamJob("DRUPE", driver)
    with pytest.raises(UpstreamAbsent, match=r"^bench third-party sync CTRL$"):
        UpstreamJob("CTRL", driver, allowed=("CTRL",))
    assert UpstreamJob("DRUPE", driver, allowed=("DRUPE",)).path == repository
    assert os.environ["BENCH_THIRD_PARTY"] == str(repository.parent)
