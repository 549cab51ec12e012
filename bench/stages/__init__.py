"""What each stage computes: kind -> function (stage, workspace, folder to write into)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.graph import Stage
from bench.stages.auditing import audit
from bench.stages.detecting import fit, score
from bench.stages.evaluating import evaluate
from bench.stages.importing import import_encoder
from bench.stages.poisoning import poison
from bench.stages.probing import pixels, probe
from bench.stages.training import data, implant, pretrain
from bench.workspace import Workspace

COMPUTE: dict[str, Callable[[Stage, Workspace, Path], None]] = {
    "data": data,
    "pixels": pixels,
    "import": import_encoder,
    "poison": poison,
    "pretrain": pretrain,
    "implant": implant,
    "probe": probe,
    "audit": audit,
    "fit": fit,
    "score": score,
    "evaluate": evaluate,
}
