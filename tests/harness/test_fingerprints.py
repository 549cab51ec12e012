"""Changed code needs a changed version: results in a cache must not outlive what made them.

When this fails, either raise the ``version`` of what you changed (its results differ) and accept
the new fingerprints, or accept them as they are (same results):

    python tests/harness/test_fingerprints.py --accept
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

from bench import registry
from bench.graph import STAGE_VERSIONS
from bench.recipes import FAMILIES, recipe_type

REPOSITORY = Path(__file__).resolve().parents[2]
RECORD = REPOSITORY / "tests" / "golden" / "fingerprints.json"
EVERY_STAGE = (
    "stage import",
    "stage poison",
    "stage pretrain",
    "stage implant",
    "stage probe",
    "stage audit",
    "stage score",
)
TRAINED = ("ssl", "clip")
STAMPED = ("stage poison", "stage implant", "stage audit", "stage score")
DRUPE_UPSTREAM = ("attacks badencoder@upstream", "attacks drupe@upstream")
CLIP_UPSTREAM = ("attacks badclip@upstream", "attacks clip-backdoor@upstream")
SHARED: dict[str, tuple[str, ...]] = {
    "attacks/_overlays.py": STAMPED,
    "attacks/_patches.py": STAMPED,
    "attacks/_pictures.py": STAMPED,
    "attacks/_reference_tuning.py": ("attacks badencoder", "attacks drupe"),
    "attacks/_sized.py": STAMPED,
    "attacks/_trigger_files.py": STAMPED,
    "attacks/triggers.py": STAMPED,
    "attacks/upstream/_badclip_driver.py": ("attacks badclip@upstream",),
    "attacks/upstream/_clip_backdoor_driver.py": ("attacks clip-backdoor@upstream",),
    "attacks/upstream/_clip_child.py": CLIP_UPSTREAM,
    "attacks/upstream/_clip_training.py": CLIP_UPSTREAM,
    "attacks/upstream/_ctrl_driver.py": ("attacks ctrl@upstream",),
    "attacks/upstream/_ctrl_shims.py": ("attacks ctrl@upstream",),
    "attacks/upstream/_drupe_driver.py": DRUPE_UPSTREAM,
    "attacks/upstream/_reference_tuning.py": DRUPE_UPSTREAM,
    "bench/api.py": EVERY_STAGE,
    "bench/component.py": EVERY_STAGE,
    "bench/data/augmentation.py": (
        *TRAINED,
        "attacks badclip",
        "attacks badencoder",
        "attacks drupe",
    ),
    "bench/data/captioned.py": ("stage data",),
    "bench/data/captions.py": ("stage poison", "stage pretrain", "stage probe"),
    "bench/data/embedded.py": ("stage data",),
    "bench/data/folder.py": ("stage data",),
    "bench/data/imageset.py": EVERY_STAGE,
    "bench/data/parquet.py": ("stage data",),
    "bench/data/source.py": ("stage data",),
    "bench/data/pictures.py": ("stage data", *STAMPED),
    "bench/data/sources.py": ("stage data",),
    "bench/data/splits.py": (*EVERY_STAGE, "stage fit"),
    "bench/data/torchvision_copies.py": ("stage data",),
    "bench/data/transport.py": STAMPED,
    "bench/determinism.py": (*EVERY_STAGE, "stage fit"),
    "bench/encoders/architectures.py": (*TRAINED, *EVERY_STAGE, "stage fit"),
    "bench/encoders/checkpoints.py": ("stage import",),
    "bench/encoders/clip.py": ("clip", *EVERY_STAGE, "stage fit"),
    "bench/encoders/contrastive.py": ("clip", "attacks badclip"),
    "bench/encoders/defender.py": ("stage fit", "stage score"),
    "bench/encoders/encoder.py": (*EVERY_STAGE, "stage fit"),
    "bench/encoders/objectives.py": ("ssl",),
    "bench/encoders/randomness.py": TRAINED,
    "bench/encoders/ssl.py": ("ssl",),
    "bench/encoders/weights.py": ("stage import", "stage pretrain", "stage implant"),
    "bench/evaluation/bootstrap.py": ("stage evaluate",),
    "bench/evaluation/comparisons.py": ("stage evaluate",),
    "bench/evaluation/detection.py": ("stage evaluate",),
    "bench/evaluation/downstream.py": (
        "stage probe",
        "stage pixels",
        "stage audit",
        "stage evaluate",
    ),
    "bench/evaluation/measurement.py": ("stage evaluate",),
    "bench/evaluation/nearest.py": ("stage import", "stage probe", "stage pixels", "stage audit"),
    "bench/evaluation/similarity.py": ("stage audit",),
    "bench/evaluation/smoke.py": ("stage import",),
    "bench/evaluation/zero_shot.py": ("stage probe", "stage audit"),
    "bench/stages/auditing.py": ("stage audit",),
    "bench/stages/bundle.py": ("stage score",),
    "bench/stages/detecting.py": ("stage fit", "stage score"),
    "bench/stages/evaluating.py": ("stage evaluate",),
    "bench/stages/rows.py": ("stage evaluate",),
    "bench/stages/picturing.py": ("stage audit", "stage evaluate"),
    "bench/stages/importing.py": ("stage import",),
    "bench/stages/poisoning.py": ("stage poison", "stage pretrain"),
    "bench/stages/probing.py": ("stage probe", "stage pixels", "stage audit"),
    "bench/stages/training.py": ("stage data", "stage pretrain", "stage implant"),
    "bench/workspace.py": EVERY_STAGE,
    "defenses/_asset_labels.py": ("defenses asset", "defenses asset@upstream"),
    "defenses/_asset_networks.py": ("defenses asset", "defenses asset@upstream"),
    "defenses/_asset_separation.py": ("defenses asset",),
    "defenses/_decree_inversion.py": ("defenses decree", "defenses decree@upstream"),
    "defenses/_dede_model.py": ("defenses dede",),
    "defenses/_kmeans.py": ("defenses activation-clustering", "defenses patch-search"),
    "defenses/upstream/_asset_driver.py": ("defenses asset@upstream",),
    "defenses/upstream/_decree_driver.py": ("defenses decree@upstream",),
    "defenses/upstream/_lending.py": ("defenses asset@upstream", "defenses decree@upstream"),
}
"""Files that decide results beside the components' own -> whose versions speak for them: raise
those whose results the change alters."""

COMPUTING = ("attacks", "defenses", "bench/data", "bench/encoders", "bench/evaluation")
"""Folders whose modules decide results, these aside:"""
DECIDES_NOTHING = {
    "bench/encoders/pretrained.py",  # a download
    "bench/encoders/recognition.py",  # `bench scan`
    "bench/evaluation/ranking.py",  # reports
    "bench/evaluation/statistics.py",
}


def fingerprint(path: Path) -> str:
    """SHA-256 of a module's lines without blank ones and comment lines.

    Not of its syntax tree: that prints differently from one Python to the next.
    """
    lines = (line.rstrip() for line in path.read_text(encoding="utf-8").splitlines())
    kept = [line for line in lines if line and not line.lstrip().startswith("#")]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


def upstream() -> list[str]:
    """Every component that runs its authors' code."""
    return [
        f"{group} {name}" for group in registry.GROUPS for name in registry.upstream_entries(group)
    ]


def versions() -> dict[str, int]:
    found = {f"stage {kind}": version for kind, version in STAGE_VERSIONS.items()}
    found |= {family: recipe_type(family).version for family in FAMILIES}
    for group in registry.GROUPS:
        for name in (*registry.entries(group), *registry.upstream_entries(group)):
            found[f"{group} {name}"] = registry.load(group, name).version
    return found


def current() -> dict[str, dict[str, object]]:
    """File -> the versions that speak for it, and its fingerprint."""
    owners = dict(SHARED)
    for group in registry.GROUPS:
        for name in registry.entries(group):
            both = {name, *({f"{name}{registry.UPSTREAM}"} & {*registry.upstream_entries(group)})}
            speaking = tuple(f"{group} {each}" for each in sorted(both))
            owners[f"{group}/{name.replace('-', '_')}.py"] = speaking
        for name, entry in registry.upstream_entries(group).items():
            owners[f"{entry.module.replace('.', '/')}.py"] = (f"{group} {name}",)
    for name in ("child", "component", "formats", "job", "shims", "worktree"):
        owners[f"bench/upstream/{name}.py"] = tuple(upstream())
    known = versions()
    return {
        file: {
            "versions": {owner: known[owner] for owner in named},
            "fingerprint": fingerprint(REPOSITORY / file),
        }
        for file, named in sorted(owners.items())
    }


def test_changed_code_has_a_changed_version_or_an_accepted_fingerprint():
    recorded, found = json.loads(RECORD.read_text()), current()
    assert set(recorded) == set(found), "a component came or went: accept the fingerprints"
    changed = [file for file in found if found[file] != recorded[file]]
    assert not changed, f"changed since the record: {changed}\n\n{__doc__}"


def test_no_module_that_decides_results_is_without_a_fingerprint():
    """A probe of the authors' code (``*_probes*``, and its stand-ins) feeds ``parity`` alone."""
    there = {
        path.relative_to(REPOSITORY).as_posix()
        for folder in (*COMPUTING, "bench/stages")
        for path in (REPOSITORY / folder).rglob("*.py")
        if path.name != "__init__.py" and not re.search("_probes|_decree_stand_ins", path.name)
    }
    assert there - set(current()) == DECIDES_NOTHING


def test_fingerprint_ignores_comments_and_blank_lines_and_sees_code(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def f():\n    return 1\n")
    first = fingerprint(path)
    path.write_text("# why\n\n\ndef f():\n    # because\n    return 1\n")
    assert fingerprint(path) == first
    path.write_text("def f():\n    return 2\n")
    assert fingerprint(path) != first


if __name__ == "__main__":
    if sys.argv[1:] != ["--accept"]:
        sys.exit(__doc__)
    RECORD.write_text(json.dumps(current(), indent=1) + "\n")
