"""A stage that leaves an accelerator unusable takes no other stage with it.

What such a device does is feigned: every call raises, as after a failed assertion in a kernel.
"""

from __future__ import annotations

import pytest
import torch

from bench.cells import CellStore
from bench.executors import inline
from bench.executors.computing import DeviceLostError, device_lost
from bench.stages import COMPUTE

WORDS = "device-side assert triggered"


def test_a_device_that_answers_is_not_lost(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert device_lost("cuda") is None

    def assertion():
        raise RuntimeError(f"CUDA error: {WORDS}")

    monkeypatch.setattr(torch.cuda, "synchronize", assertion)
    assert WORDS in device_lost("cuda")
    assert device_lost("cpu") is None


def test_the_run_ends_and_only_cells_of_that_stage_have_failed(session_of, tiny, monkeypatch):
    tiny["matrix"] = {"attacks": ["none"], "defenses": ["mahalanobis", "knn-distance"]}
    session = session_of(tiny)
    fit, broken = COMPUTE["fit"], []

    def breaking(stage, workspace, folder):
        if broken or stage.label.startswith("fit mahalanobis"):
            broken.append(stage.label)
            raise RuntimeError(WORDS)
        return fit(stage, workspace, folder)

    with monkeypatch.context() as patch:
        patch.setitem(COMPUTE, "fit", breaking)
        patch.setattr(inline, "device_lost", lambda _: WORDS if broken else None)
        with pytest.raises(DeviceLostError, match=rf"left the device unusable .*{WORDS}"):
            session.run()
    assert len(broken) == 1
    cells = CellStore(session.results)
    found = {cell.identity["defense"]: cells.status(cell.key) for cell in session.cells}
    assert found == {"mahalanobis": "failed", "knn-distance": None}
    assert WORDS in cells.row(session.cells[0].key)["reason"]
    again = type(session)(session.file, session.selection)
    again.run()
    found = {cell.identity["defense"]: cells.status(cell.key) for cell in session.cells}
    assert found == {"mahalanobis": "failed", "knn-distance": "ok"}
