"""Inverts triggers again and again on the same encoders: how far does DECREE's verdict depend on
where its search starts?

    python benchmarks/decree_restarts.py --attack badclip --cache .bench [--profile cifar10-small]
        [--seed 0] [--restarts 10] [--set '{"stop_patience": 100}']
        [--record results/robustness/decree_restarts.csv]

Victim and twin of one cell, which is computed or found in the cache. Restart 0 is the fit of the
leaderboard; the others start from other masks and patterns and draw images in another order. A line
holds the size of the trigger found, the verdict, the steps, why the search ended, and the AUROC
of its sample scores, triggered against clean test images. ``--set`` changes parameters of DECREE.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from computing import compute
from pydantic import PrivateAttr
from recording import append, machine_of
from sklearn.metrics import roc_auc_score

from bench.configfile import ConfigFile
from bench.data.imageset import ImageSet
from bench.errors import InputError
from bench.graph import Stage
from bench.provenance import code_version
from bench.session import Selection, Session
from bench.stages import detecting
from bench.stages.bundle import stamp_images
from bench.workspace import Workspace
from defenses._decree_inversion import CostController, TriggerSearch
from defenses.decree import Decree

LABEL = "decree"


class Watched(Decree):
    """DECREE that says how its search went."""

    _steps: int = PrivateAttr(default=0)
    _ended: str = PrivateAttr(default="")

    def _searched(self, shadow: ImageSet, view: Any) -> TriggerSearch:
        self._steps, self._ended = 0, "the last epoch"
        search = super()._searched(shadow, view)
        if search.smallest is None:
            self._ended += ", nothing above the threshold"
        return search

    def _stops(self, controller: CostController, similarities: list[float], last: bool) -> bool:
        self._steps += 1
        stops = super()._stops(controller, similarities, last)
        if stops:
            self._ended = "no smaller trigger"
        return stops


def restarts(
    session: Session, workspace: Workspace, role: str, count: int, changes: dict[str, Any]
) -> Iterator[tuple[float, bool, int, str, float]]:
    """(PL1, whether flagged, steps, why it ended, AUROC) of ``count`` fits on one encoder."""
    score: Stage = session.cells[0].stage.inputs[role]
    needed = [*score.inputs["fit"].inputs.values(), score.inputs["audit"]]
    compute(session, workspace, needed, session.results)
    images = detecting.evaluation_images(score, workspace)
    shown = [stamp_images(images, by) for by in (None, workspace.trigger(score.inputs["audit"]))]
    truth = np.repeat([0, 1], len(images))
    for restart in range(count):
        chosen = workspace.component("defenses", score).parameters() | changes
        defense = Watched(**chosen)
        view, fitted, _ = detecting._prepare(score.inputs["fit"], defense, workspace)
        if restart:
            another = torch.Generator().manual_seed(view.seed + restart)
            view = dataclasses.replace(view, generator=another)
        defense.fit(view)
        scorer = detecting.Scorer(fitted, LABEL)
        scores = [scorer.score(part) for pixels in shown for part in pixels.split(1000)]
        auroc = float(roc_auc_score(truth, np.concatenate(scores)))
        size = -defense.score_encoder()
        flagged = defense.score_encoder() > defense.encoder_threshold()
        yield size, flagged, defense._steps, defense._ended, auroc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attack", required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--profile", default="cifar10-small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--set", dest="changes", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    try:
        selection = Selection(
            profile=arguments.profile,
            attacks=(arguments.attack,),
            defenses=(LABEL,),
            seeds=(arguments.seed,),
            cache=arguments.cache,
        )
        session = Session(ConfigFile(Path("bench.yaml")), selection)
    except InputError as error:
        parser.error(str(error))
    session.set_up_torch()
    machine = machine_of(session.environment.device)
    workspace = session.workspace()
    for role in ("victim", "twin"):
        for restart, (size, flagged, steps, ended, auroc) in enumerate(
            restarts(session, workspace, role, arguments.restarts, arguments.changes)
        ):
            row = {
                "code": code_version(),
                "profile": arguments.profile,
                "attack": arguments.attack,
                "seed": arguments.seed,
                "encoder": role,
                "changed": json.dumps(arguments.changes) if arguments.changes else "",
                "restart": restart,
                "pl1": f"{size:.4f}",
                "verdict": "backdoored" if flagged else "clean",
                "steps": steps,
                "ended": ended,
                "auroc": f"{auroc:.3f}",
                "machine": machine,
            }
            print(", ".join(f"{name}: {value}" for name, value in row.items()), flush=True)
            if arguments.record is not None:
                append(arguments.record, [row])


if __name__ == "__main__":
    main()
