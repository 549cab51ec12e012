"""A tiny experiment on real digits, and ways to run it."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

# Threads that spin while they wait make tests crawl on a busy machine; before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import yaml
from experiment import TINY

from bench import registry
from bench.configfile import ConfigFile
from bench.session import Selection, Session

ALONE = [True]
"""Whether the test at hand may reach no other machine: Ray, of the slow ones, asks for its own."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    ALONE[:] = [item.get_closest_marker("slow") is None]


@pytest.fixture(autouse=True, scope="session")
def reached_for() -> Iterator[list[str]]:
    """Other machines that tests and their fixtures reached for in this process, which fails."""
    hosts: list[str] = []
    look_up = socket.getaddrinfo

    def refuse(host: Any) -> None:
        if not ALONE[0]:
            return
        if host not in (None, "", "localhost", "127.0.0.1", "::1"):
            hosts.append(str(host))
            raise OSError(f"a test asked for {host}")

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: socket.socket, *arguments: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                refuse(arguments[-1][0])  # the address comes last
            return method(self, *arguments)

        return call

    def looked_up(host: Any, *rest: Any, **more: Any) -> Any:
        refuse(host)
        return look_up(host, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
        patch.setattr(socket, "getaddrinfo", looked_up)
        yield hosts


@pytest.fixture(autouse=True)
def no_network(reached_for: list[str]) -> Iterator[None]:
    """Nothing is fetched unasked (invariant 11), not even where the error would be swallowed."""
    yield
    hosts = reached_for.copy()
    reached_for.clear()
    assert hosts == []


@pytest.fixture
def tiny() -> dict[str, Any]:
    """The tiny experiment as a dictionary that a test may change."""
    return copy.deepcopy(TINY)


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Write an experiment to ``bench.yaml`` in a folder of its own."""

    def write(content: dict[str, Any] | str, name: str = "bench.yaml") -> Path:
        path = tmp_path / name
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        path.write_text(text)
        return path

    return write


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take longer than all the rest of a small run."""
    monkeypatch.setattr("bench.report.rendering.drawn", lambda *_: {})


@pytest.fixture
def session_of(write_config: Callable[..., Path], no_plots: None) -> Callable[..., Session]:
    """A :class:`Session` of an experiment, with selections as keywords; its runs draw no plots."""

    def make(content: dict[str, Any], **selection: Any) -> Session:
        return Session(ConfigFile(write_config(content)), Selection(**selection))

    return make


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For runs of a module to which it does not matter whether a stage is computed or found: not
    for one that puts another defense under a name, whose fit the others would find."""
    return tmp_path_factory.mktemp("shared-cache")


@pytest.fixture
def warm_session_of(
    session_of: Callable[..., Session], shared_cache: Path
) -> Callable[..., Session]:
    """``session_of`` on a cache in which the encoders of the tiny experiment soon are."""

    def make(content: dict[str, Any], **selection: Any) -> Session:
        return session_of(content, **{"cache": shared_cache, **selection})

    return make


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """The tiny experiment, run once for all tests, without plots. Read only."""
    folder = tmp_path_factory.mktemp("tiny")
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(TINY, sort_keys=False))
    session = Session(ConfigFile(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.report.rendering.drawn", lambda *_: {})
        outcome = session.run()
    assert outcome.failed == {}
    return session


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Offer classes as third-party components, the way an installed package's entry points do."""

    def offer(group: str, **targets: str) -> None:
        points = [
            EntryPoint(name.replace("_", "-"), target, f"bench.{group}")
            for name, target in targets.items()
        ]
        monkeypatch.setattr(
            registry, "_entry_points", lambda asked: points if asked == group else []
        )
        registry.entries.cache_clear()
        registry.load.cache_clear()

    yield offer
    registry.entries.cache_clear()
    registry.load.cache_clear()
