"""Changed code needs a changed version: results in a cache must not outlive what made them.

When this fails, either raise the ``version`` of what you changed (its results differ) and accept
the new fingerprints, or accept them as they are (same results):

    python tests/harness/test_fingerprints.py --accept
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path

from bench import registry
from bench.encoders.simclr import SimCLRRecipe
from bench.graph import STAGE_VERSIONS

REPOSITORY = Path(__file__).resolve().parents[2]
RECORD = REPOSITORY / "tests" / "golden" / "fingerprints.json"
SHARED = {
    "attacks/triggers.py": "stage audit",
    "bench/data/augmentation.py": "simclr",
    "bench/data/embedded.py": "stage data",
    "bench/data/source.py": "stage data",
    "bench/data/sources.py": "stage data",
    "bench/data/splits.py": "stage fit",
    "bench/encoders/architectures.py": "simclr",
    "bench/encoders/encoder.py": "simclr",
    "bench/encoders/simclr.py": "simclr",
    "bench/evaluation/bootstrap.py": "stage evaluate",
    "bench/evaluation/comparisons.py": "stage evaluate",
    "bench/evaluation/detection.py": "stage evaluate",
    "bench/evaluation/downstream.py": "stage audit",
    "bench/stages/auditing.py": "stage audit",
    "bench/stages/detecting.py": "stage score",
    "bench/stages/evaluating.py": "stage evaluate",
    "bench/stages/training.py": "stage implant",
    "defenses/_dede_model.py": "defenses dede",
}
"""Files that decide results beside the components' own -> whose version speaks for them."""


def fingerprint(path: Path) -> str:
    """SHA-256 of a module's syntax tree without docstrings: layout and comments do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body.pop(0)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def versions() -> dict[str, int]:
    found = {f"stage {kind}": version for kind, version in STAGE_VERSIONS.items()}
    found["simclr"] = SimCLRRecipe.version
    for group in registry.GROUPS:
        for name in registry.entries(group):
            found[f"{group} {name}"] = registry.load(group, name).version
    return found


def current() -> dict[str, dict[str, object]]:
    """File -> whose version, which version, fingerprint."""
    owners = dict(SHARED)
    for group in registry.GROUPS:
        for name in registry.entries(group):
            owners[f"{group}/{name.replace('-', '_')}.py"] = f"{group} {name}"
    known = versions()
    return {
        file: {
            "owner": owner,
            "version": known[owner],
            "fingerprint": fingerprint(REPOSITORY / file),
        }
        for file, owner in sorted(owners.items())
    }


def test_changed_code_has_a_changed_version_or_an_accepted_fingerprint():
    recorded, found = json.loads(RECORD.read_text()), current()
    assert set(recorded) == set(found), "a component came or went: accept the fingerprints"
    changed = [file for file in found if found[file] != recorded[file]]
    assert not changed, f"changed since the record: {changed}\n\n{__doc__}"


def test_fingerprint_ignores_comments_and_docstrings_and_sees_code(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('"""One."""\ndef f():\n    """Doc."""\n    return 1\n')
    first = fingerprint(path)
    path.write_text('"""Two."""\n\n\ndef f():\n    # why\n    return 1\n')
    assert fingerprint(path) == first
    path.write_text("def f():\n    return 2\n")
    assert fingerprint(path) != first


if __name__ == "__main__":
    if sys.argv[1:] != ["--accept"]:
        sys.exit(__doc__)
    RECORD.write_text(json.dumps(current(), indent=1) + "\n")
