"""Tries settings of one attack on validation images, never on test images.

    python benchmarks/tune_attack.py --profile quick --attack drupe \
        --try '{"very_alike_weight": 0.3}' --try '{"learning_rate": 0.01}'

Each line printed is one setting: attack success rate and clean accuracy of victim and twin on the
validation rows, which no encoder was trained on. What stands in bench.yaml is the last one tried;
say how many there were under `settings_tried`.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from computing import compute

from bench.configfile import ConfigFile
from bench.data.splits import permuted_rows
from bench.evaluation import downstream
from bench.session import Selection, Session
from bench.stages.probing import Reader


def session_with(profile: str, attack: str, changes: dict[str, Any], cache: Path) -> Session:
    """The experiment with ``changes`` over an attack's overrides (recipes key by key)."""
    file = ConfigFile(Path("bench.yaml"))
    chosen = file.config.profiles[profile]
    below = chosen.overrides.get(attack, {})
    merged = file.config.component_parameters(
        chosen.model_copy(update={"overrides": {attack: below}}), attack, changes
    )
    overrides = {**chosen.overrides, attack: merged}
    profiles = {
        **file.config.profiles,
        profile: chosen.model_copy(update={"overrides": overrides}),
    }
    file.config = file.config.model_copy(update={"profiles": profiles})
    return Session(file, Selection(profile=profile, attacks=(attack,), cache=cache))


def measure(session: Session, results: Path) -> dict[str, float]:
    """ASR (non-target) and clean accuracy on the validation rows, victim and twin."""
    session.set_up_torch()
    workspace = session.workspace()
    audit = session.cells[0].stage.inputs["audit"]
    compute(session, workspace, [audit.inputs["victim"], audit.inputs["twin"]], results)
    train = workspace.images(audit.inputs["train"])
    images = train.select(permuted_rows(len(train), audit.spec["validation"], train.name))
    trigger = workspace.trigger(audit.inputs["attack"])
    figures: dict[str, float] = {}
    for role in ("victim", "twin"):
        reader = Reader(audit, role, workspace)
        head = reader.heads[0]
        clean = reader.predict(head, reader.features(images, None))
        stamped = reader.predict(head, reader.features(images, trigger))
        figures[f"accuracy_{role}"] = downstream.clean_accuracy(clean, images.labels)
        figures[f"success_{role}"] = downstream.attack_success_rate(
            stamped, images.labels, audit.spec["target"]
        ).non_target
    return {name: round(float(value), 3) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--attack", required=True)
    parser.add_argument("--try", dest="changes", action="append", default=[], metavar="JSON")
    parser.add_argument("--cache", type=Path, default=Path(".bench"))
    arguments = parser.parse_args()
    for text in arguments.changes or ["{}"]:
        session = session_with(
            arguments.profile, arguments.attack, json.loads(text), arguments.cache
        )
        figures = measure(session, arguments.cache / "tuning")
        print(json.dumps({"attack": arguments.attack, "changes": json.loads(text), **figures}))


if __name__ == "__main__":
    main()
