"""What a number says of the code that made it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from git import Repo

from bench import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit that stands in for this one."""
    repository = Repo.init(tmp_path)
    for folder in provenance.SOURCES[:3]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "code.py").write_text("A = 1\n")
    (tmp_path / "pyproject.toml").write_text("")
    repository.git.add("--all")
    repository.git.execute(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "first"]
    )
    monkeypatch.setattr(provenance.bench, "__file__", str(tmp_path / "bench" / "__init__.py"))
    return tmp_path


def version() -> str:
    return provenance.code_version.__wrapped__()


def test_edited_code_is_marked_and_two_edits_have_two_names(checkout):
    clean = version()
    assert re.fullmatch(r".*\+g[0-9a-f]{10}", clean)
    found = {clean}
    edits = (("bench/code.py", "A = 2\n"), ("bench/code.py", "A = 3\n"), ("attacks/new.py", ""))
    for name, text in edits:
        (checkout / name).write_text(text)
        found.add(version())
        assert re.fullmatch(re.escape(clean) + r"\.dirty\.[0-9a-f]{8}", version())
    (checkout / "attacks/new.py").write_text("B = 1\n")
    assert len(found | {version()}) == 5


def test_what_makes_no_number_marks_nothing(checkout):
    clean = version()
    (checkout / "README.md").write_text("x")
    assert version() == clean


def test_libraries_that_decode_images_and_write_captions_are_named():
    known = provenance.library_versions()
    assert {"pillow", "scipy", "open_clip_torch", "statsmodels"} <= set(known)
    assert "not installed" not in known.values()
