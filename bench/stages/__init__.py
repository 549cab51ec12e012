"""What each stage computes: kind -> function (stage, workspace, folder to write into)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.graph import Stage
from bench.stages.auditing import audit, pixels, probe
from bench.stages.detecting import fit, score
from bench.stages.evaluating import evaluate
from bench.stages.training import data, implant, pretrain
from bench.workspace import Workspace

COMPUTE: dict[str, Callable[[Stage, Workspace, Path], None]] = {
    "data": data,
    "pixels": pixels,
    "pretrain": pretrain,
    "implant": implant,
    "probe": probe,
    "audit": audit,
    "fit": fit,
    "score": score,
    "evaluate": evaluate,
}
