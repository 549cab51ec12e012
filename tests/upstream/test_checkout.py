"""Fetching published repositories, and what is said of what is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from served import MIT, URL, World, git
from typer.testing import CliRunner

from bench.errors import InputError
from bench.upstream import checkout
from bench.upstream.checkout import (
    NO_LICENCE,
    SyncError,
    UpstreamAbsent,
    UpstreamChanged,
    located,
    revision,
)
from bench.upstream.command import needed_by, third_party_app
from bench.upstream.repositories import Repository, find, repositories

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Git's configuration, and nothing of the user's."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")

    def write(*settings: tuple[str, str]) -> None:
        monkeypatch.setenv("GIT_CONFIG_COUNT", str(len(settings)))
        for i, (key, value) in enumerate(settings):
            monkeypatch.setenv(f"GIT_CONFIG_KEY_{i}", key)
            monkeypatch.setenv(f"GIT_CONFIG_VALUE_{i}", value)

    return write


@pytest.fixture
def world(tmp_path: Path, configure: Callable[..., None]) -> World:
    configure((f"url.file://{tmp_path}/served/.insteadOf", URL))
    return World(tmp_path)


COMPLETE = {"main.py", "LICENSE", "models/net.py", "models/other.py"}


def test_sync_checks_out_the_pinned_commit_and_only_the_folders_asked_for(world: World) -> None:
    said = world.sync()
    assert git(world.path, "rev-parse", "HEAD") == world.pinned
    assert world.files() == COMPLETE
    assert (world.path / "main.py").read_text() == "second = 2\n"
    assert said[-1] == f"FAKE: at {world.pinned[:7]}"
    assert world.status().state == "present"


def test_a_second_sync_asks_no_server(world: World) -> None:
    world.sync()
    shutil.rmtree(world.server)
    assert world.sync() == [f"FAKE: already at {world.pinned[:7]}"]


def test_a_file_that_the_mirror_lacks_and_nobody_wants_is_no_obstacle(world: World) -> None:
    blob = git(world.server, "rev-parse", f"{world.pinned}:Supplementary Material.pdf")
    (world.server / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    world.sync()
    assert world.files() == COMPLETE


def test_a_server_that_gives_no_single_commit_gives_its_branches(
    world: World, configure: Callable[..., None]
) -> None:
    configure(
        (f"url.file://{world.server.parent}/.insteadOf", URL),
        ("protocol.version", "0"),  # such a server refuses a commit that no branch names
    )
    world.sync()
    assert world.status().state == "present"
    assert git(world.path, "for-each-ref", "refs/remotes/origin") != ""


def test_a_folder_more_is_checked_out_at_the_next_sync(world: World) -> None:
    world.sync()
    world.repository = replace(world.repository, folders=("models", "data"))
    assert world.status().state == "broken"
    world.sync()
    assert world.files() == COMPLETE | {"data/heavy.bin"}


def test_status_of_what_is_absent(world: World) -> None:
    assert world.status().state == "absent"
    world.path.mkdir(parents=True)  # what a plain clone of the project has
    found = world.status()
    assert (found.state, found.commit, found.changes) == ("absent", "", ())
    assert revision("FAKE", world.root, world.known) == "absent"
    with pytest.raises(UpstreamAbsent) as raised:
        located("FAKE", (), world.root, world.known)
    assert str(raised.value) == "bench third-party sync FAKE"


def test_an_empty_folder_is_not_the_repository_around_it(world: World) -> None:
    git(world.root.parent.parent, "init", "--quiet", "project")
    world.path.mkdir(parents=True)
    (world.path / "notes.txt").write_text("mine")
    assert world.status().state == "broken"
    assert world.status().commit == ""


def test_located_is_the_folder_of_what_is_present(world: World) -> None:
    world.sync()
    assert located("FAKE", (), world.root, world.known) == world.path
    assert revision("FAKE", world.root, world.known) == world.pinned


def test_another_commit_is_refused_unless_allowed_and_moved_by_sync(world: World) -> None:
    pin = world.repository
    world.repository = replace(pin, commit=world.old)
    world.sync()
    world.repository = pin
    assert world.status().state == "other commit"
    with pytest.raises(UpstreamChanged) as raised:
        located("FAKE", ["OTHER"], world.root, world.known)
    assert f"at {world.old[:7]}, pinned is {world.pinned[:7]}" in str(raised.value)
    assert located("FAKE", ["FAKE"], world.root, world.known) == world.path
    assert revision("FAKE", world.root, world.known) == world.old
    world.sync()
    assert world.status().state == "present"


def test_a_clone_of_ones_own_keeps_its_history_branches_and_remote(world: World) -> None:
    world.root.mkdir(parents=True)
    git(world.root, "clone", "--quiet", str(world.server), "FAKE")
    git(world.path, "checkout", "--quiet", "-b", "mine")
    tip = git(world.path, "rev-parse", "HEAD")
    (world.server / "main.py").write_text("fourth = 4\n")
    world.repository = replace(world.repository, commit=world.commit())
    world.sync()
    assert world.status().state == "present"
    assert git(world.path, "rev-parse", "mine") == tip
    assert git(world.path, "rev-list", "--count", "HEAD") == "4"
    assert git(world.path, "config", "remote.origin.url") == str(world.server)


@pytest.mark.parametrize("name", ["main.py", "models/mine.py"], ids=["modified", "untracked"])
def test_somebodys_files_are_never_lost(world: World, name: str) -> None:
    world.sync()
    (world.path / name).write_text("mine\n")
    found = world.status()
    assert (found.state, found.changes) == ("modified", (name,))
    changed = revision("FAKE", world.root, world.known)
    assert changed.startswith(f"{world.pinned}+")
    assert len(changed) == len(world.pinned) + 17
    with pytest.raises(UpstreamChanged, match=f"changed: {name}"):
        located("FAKE", (), world.root, world.known)
    assert located("FAKE", ["FAKE"], world.root, world.known) == world.path
    for commit in (world.pinned, world.old, "0" * 40):
        world.repository = replace(world.repository, commit=commit)
        with pytest.raises(UpstreamChanged) as raised:
            world.sync()
        message = str(raised.value)
        assert str(world.path) in message
        assert name in message
        assert "\n" not in message
        assert (world.path / name).read_text() == "mine\n"


@pytest.mark.parametrize("damage", ["no .git", ".git file pointing nowhere", "no index"])
def test_somebodys_files_survive_a_damaged_repository(world: World, damage: str) -> None:
    world.sync()
    DAMAGE[damage](world)
    (world.path / "main.py").write_text("mine\n")
    with pytest.raises(UpstreamChanged, match=re.escape("main.py")):
        world.sync()
    assert (world.path / "main.py").read_text() == "mine\n"


def test_ignored_and_cached_files_are_no_changes(world: World) -> None:
    world.sync()
    (world.path / "models" / "__pycache__").mkdir()
    (world.path / "models" / "__pycache__" / "net.pyc").write_text("another Python's")
    (world.path / "models" / "__pycache__" / "other.pyc").write_text("another Python's")
    assert world.status().state == "present"
    assert located("FAKE", (), world.root, world.known) == world.path


def _no_git(world: World) -> None:
    shutil.rmtree(world.path / ".git")


def _nowhere(world: World) -> None:
    _no_git(world)
    (world.path / ".git").write_text("gitdir: ../../.git/modules/third_party/FAKE\n")


def _half_removed(world: World) -> None:
    (world.path / ".git" / "HEAD").unlink()


def _only_initialised(world: World) -> None:
    shutil.rmtree(world.path)
    world.path.mkdir()
    git(world.path, "init", "--quiet")


def _locked(world: World) -> None:
    (world.path / ".git" / "index.lock").write_text("")
    (world.path / "main.py").unlink()


def _no_index(world: World) -> None:
    (world.path / ".git" / "index").unlink()


def _broken_index(world: World) -> None:
    (world.path / ".git" / "index").write_bytes(b"DIRC")


def _lost_objects(world: World) -> None:
    for folder in (world.path / ".git" / "objects").iterdir():
        shutil.rmtree(folder)


def _half_written(world: World) -> None:
    file = world.path / "models" / "net.py"
    file.write_text(file.read_text()[:100])


def _missing_files(world: World) -> None:
    shutil.rmtree(world.path / "models")


DAMAGE: dict[str, Callable[[World], None]] = {
    "no .git": _no_git,
    ".git file pointing nowhere": _nowhere,
    ".git without HEAD": _half_removed,
    "only initialised": _only_initialised,
    "index.lock": _locked,
    "no index": _no_index,
    "broken index": _broken_index,
    "lost objects": _lost_objects,
    "half a file": _half_written,
    "missing files": _missing_files,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_next_sync_mends_what_a_killed_one_left(world: World, damage: str) -> None:
    world.sync()
    DAMAGE[damage](world)
    assert world.status().state in ("broken", "modified")
    world.sync()
    assert world.status().state == "present"
    assert world.files() == COMPLETE
    assert len((world.path / "models" / "net.py").read_text()) == 1500
    assert not (world.path / ".git" / "index.lock").exists()


def test_a_checkout_killed_between_two_pins_is_mended(world: World) -> None:
    pin = world.repository
    world.repository = replace(pin, commit=world.old)
    world.sync()
    git(world.path, "fetch", "--quiet", "origin", world.pinned)
    (world.path / "main.py").write_text("second = 2\n")
    (world.path / "models" / "other.py").write_text("oth")
    world.repository = pin
    assert world.status().state == "modified"
    world.sync()
    assert world.status().state == "present"


@pytest.mark.parametrize("work", ["branch mine", "tag mine", "commit --allow-empty -m mine"])
def test_a_damaged_repository_that_holds_work_is_left_alone(world: World, work: str) -> None:
    world.sync()
    git(world.path, *work.split())
    kept = {path: path.read_bytes() for path in (world.path / ".git").rglob("*") if path.is_file()}
    head = world.path / ".git" / "HEAD"
    head.unlink()
    with pytest.raises(InputError, match="damaged and holds work of yours"):
        world.sync()
    assert all(path.read_bytes() == content for path, content in kept.items() if path != head)


@pytest.mark.parametrize("damage", ["no index", "broken index", "index.lock", "missing files"])
def test_what_is_fetched_is_not_fetched_again(world: World, damage: str) -> None:
    world.sync()
    git(world.path, "branch", "mine")
    shutil.rmtree(world.server)
    DAMAGE[damage](world)
    world.sync()
    assert world.status().state == "present"


def test_a_commit_that_the_server_lacks(world: World) -> None:
    world.repository = replace(world.repository, commit="0123456789" * 4)
    with pytest.raises(SyncError, match=f"has no commit {'0123456789' * 4}"):
        world.sync()
    assert world.status().state == "absent"


@pytest.mark.parametrize(
    "url", ["http://published.invalid/a/b", "ssh://git@host/a", "git@host:a/b", "file:///a", "/a"]
)
def test_only_https_is_fetched(world: World, url: str) -> None:
    world.repository = replace(world.repository, url=url)
    with pytest.raises(SyncError, match="not an https URL") as raised:
        world.sync()
    assert "\n" not in str(raised.value)
    assert not world.path.exists()


def test_no_network_is_one_line_that_says_how_to_name_a_mirror(
    world: World, configure: Callable[..., None]
) -> None:
    configure((f"url.file://{world.server.parent}/gone/.insteadOf", URL))
    with pytest.raises(SyncError) as raised:
        world.sync()
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(f"FAKE: cannot fetch {URL}FAKE (from file://")
    assert f"git config --global url.MIRROR.insteadOf {URL}FAKE" in message


def test_one_that_fails_does_not_stop_the_others(world: World) -> None:
    gone = Repository("GONE", f"{URL}GONE", "0" * 40, ())
    known = {"GONE": gone, "FAKE": world.repository}
    with pytest.raises(SyncError, match="GONE: cannot fetch"):
        checkout.sync(None, world.root, world.said.append, known)
    assert world.status().state == "present"


def test_git_variables_of_a_hook_do_not_lead_astray(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.setenv(name, str(world.root / "elsewhere"))
    world.sync()
    assert world.status().state == "present"
    assert not (world.root / "elsewhere").exists()


def test_the_checkout_is_the_submodule_of_the_project(world: World) -> None:
    project = world.root.parent
    world.root.mkdir(parents=True)
    git(project, "init", "--quiet")
    (project / ".gitmodules").write_text(
        f'[submodule "third_party/FAKE"]\n\tpath = third_party/FAKE\n\turl = {URL}FAKE\n'
    )
    link = f"160000,{world.pinned},third_party/FAKE"
    git(project, "update-index", "--add", "--cacheinfo", link)
    git(project, "add", ".gitmodules")
    assert git(project, "submodule", "status").startswith("-")
    world.sync()
    assert git(project, "submodule", "status").startswith(world.pinned)
    assert git(project, "diff", "--stat") == ""


def test_a_submodule_with_its_metadata_in_the_project_is_understood(world: World) -> None:
    world.sync()
    metadata = world.root.parent / "modules"
    shutil.move(world.path / ".git", metadata)
    (world.path / ".git").write_text("gitdir: ../../modules\n")
    assert world.status().state == "present"
    (world.path / "main.py").unlink()
    world.sync()
    assert world.status().state == "present"
    assert (world.path / ".git").is_file()


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        (MIT, "MIT"),
        ("Apache License\n   Version 2.0, January 2004", "Apache-2.0"),
        ("GNU AFFERO GENERAL PUBLIC LICENSE\n Version 3", "AGPL-3.0"),
        ("Ask us.", "see LICENSE"),
        (None, NO_LICENCE),
    ],
)
def test_the_licence_is_read_from_the_checkout(
    world: World, text: str | None, licence: str
) -> None:
    world.sync()
    (world.path / "LICENSE").unlink()
    if text is not None:
        (world.path / "LICENSE").write_text(text)
    assert world.status().licence == licence


def test_unknown_names_are_answered_with_the_nearest(world: World) -> None:
    with pytest.raises(ValueError, match="did you mean 'DRUPE'"):
        find("DRUP")
    with pytest.raises(ValueError, match="did you mean 'FAKE'"):
        located("FAK", (), world.root, world.known)
    with pytest.raises(ValueError, match="did you mean 'FAKE'"):
        checkout.sync(["FAK"], world.root, print, world.known)


def test_the_command_prints_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_THIRD_PARTY", str(tmp_path))
    result = CliRunner().invoke(third_party_app, ["status"])
    lines = [re.split(r"  +", line) for line in result.output.splitlines()]
    assert lines[0] == ["name", "state", "commit", "licence", "needed by"]
    assert [line[0] for line in lines[1:]] == sorted(repositories())
    assert {line[1] for line in lines[1:]} == {"absent"}


def test_needed_by_follows_a_base_class_in_another_module() -> None:
    assert {"badencoder", "drupe"} <= set(needed_by("DRUPE"))
    assert needed_by("nothing") == []


def test_submodules_and_pins_agree() -> None:
    text = (PROJECT / ".gitmodules").read_text()
    urls = dict(re.findall(r"path = third_party/(\S+)\n\s*url = (\S+)", text))
    assert urls == {name: repository.url for name, repository in repositories().items()}
    assert all(re.fullmatch(r"[0-9a-f]{40}", each.commit) for each in repositories().values())
    try:
        listing = git(PROJECT, "ls-files", "--stage", "--", "third_party")
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("not a git checkout")
    links = dict(re.findall(r"160000 (\w{40}) 0\tthird_party/(\S+)", listing))
    assert {name: commit for commit, name in links.items()} == {
        name: repository.commit for name, repository in repositories().items()
    }
