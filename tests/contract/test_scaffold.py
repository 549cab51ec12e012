"""`bench new` writes what passes `bench check` and its own test, and refuses the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import registry, scaffold
from bench.errors import InputError

COMMANDS = """
import sys
import pytest
from bench import registry
from bench.cli import main
for arguments in {commands!r}:
    sys.argv = ["bench", *arguments]
    registry.entries.cache_clear()
    try:
        main()
    except SystemExit as stop:
        assert stop.code == 0, (arguments, stop.code)
sys.exit(pytest.main(["tests", "-q", "-p", "no:cacheprovider"]))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the built-in attacks and no defense."""
    (tmp_path / "pyproject.toml").write_text("")
    for group in registry.GROUPS:
        (tmp_path / group).mkdir()
        (tmp_path / group / "__init__.py").touch()
    for path in registry.folder("attacks").glob("*.py"):
        (tmp_path / "attacks" / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_untouched_scaffold_passes_its_check_and_its_test(
    checkout: Path, in_another_process: Callable
):
    names = {"defense": "my-first-idea", "attack": "sly-patch"}
    commands = [[verb, *what] for what in names.items() for verb in ("new", "check")]
    done = in_another_process(COMMANDS.format(commands=commands), checkout, checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    assert "FAIL" not in done.stdout
    for kind, name in names.items():
        module = name.replace("-", "_")
        written = checkout / f"{kind}s" / f"{module}.py"
        test = checkout / "tests" / f"{kind}s" / f"test_{module}.py"
        assert len(written.read_text().splitlines()) <= 80
        assert len(test.read_text().splitlines()) <= 80
        assert f"bench check {kind} {name}" in done.stdout
        assert f"matrix.{kind}s in bench.yaml" in done.stdout
        assert "$" not in written.read_text() + test.read_text()


@pytest.fixture
def here(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that this process takes for its own."""
    monkeypatch.setattr(registry, "folder", lambda group: checkout / group)
    registry.entries.cache_clear()
    yield checkout
    registry.entries.cache_clear()


@pytest.mark.parametrize(
    ("kind", "name", "sentence"),
    [
        ("defense", "My_Idea", "'My_Idea' cannot name a defense: use lower-case words with dashes"),
        ("attack", "2-far", "'2-far' cannot name an attack: use lower-case words with dashes"),
        ("attack", "a--b", "'a--b' cannot name an attack"),
        ("defense", "../outside", "cannot name a defense"),
        ("defense", "x" * 50, "at most 40 letters"),
        ("defense", "badencoder", "there is an attack called 'badencoder' already"),
        ("attack", "badencoder", "there is an attack called 'badencoder' already"),
        ("attack", "triggers", "triggers.py is there already; choose another name"),
        ("defense", "class", "'class' means something else in Python or here"),
        ("defense", "encoder", "'encoder' means something else in Python or here"),
    ],
)
def test_name_that_cannot_be_is_refused_and_nothing_is_written(here, kind, name, sentence):
    before = sorted(here.rglob("*"))
    with pytest.raises(InputError) as refused:
        scaffold.start(kind, name)
    assert sentence in str(refused.value)
    assert sorted(here.rglob("*")) == before


def test_name_of_a_folder_is_refused(here):
    (here / "attacks" / "upstream").mkdir()
    with pytest.raises(InputError, match="attacks/upstream is a folder"):
        scaffold.start("attack", "upstream")


def test_test_that_is_there_already_is_not_overwritten(here):
    test = here / "tests" / "defenses" / "test_my_idea.py"
    test.parent.mkdir(parents=True)
    test.write_text("mine")
    with pytest.raises(InputError, match=r"test_my_idea\.py is there already"):
        scaffold.start("defense", "my-idea")
    assert test.read_text() == "mine"
    assert not (here / "defenses" / "my_idea.py").exists()


def test_installed_package_is_no_place_to_write_into(here):
    (here / "pyproject.toml").unlink()
    with pytest.raises(InputError, match=r"entry-point group bench\.defenses"):
        scaffold.start("defense", "my-idea")


@pytest.mark.parametrize("template", ["defense", "test_defense", "attack", "test_attack"])
def test_template_is_formatted_like_the_project(template):
    text = scaffold._template(f"{template}.py.txt").substitute(
        name="my-idea", module="my_idea", class_name="MyIdea", title="My idea"
    )
    compile(text, template, "exec")
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) <= 80
