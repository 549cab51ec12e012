"""What the driver and the machines of a Ray run decide, without a cluster: who is let in, how much
is handed out, what a lost process, node or result means."""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import replace
from queue import Empty, Queue
from types import SimpleNamespace

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'ssl-backdoor-bench[ray]'")

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    WorkerCrashedError,
)

from bench.cells import CellStore, RunningMark
from bench.config import StageResources
from bench.errors import InputError
from bench.executors.computing import StorageError
from bench.executors.ray_actors import About, Keeper, software, storage_id
from bench.executors.ray_cluster import Cluster
from bench.executors.ray_driver import ATTEMPTS, LOST_NODES, RayExecutor, _Task
from bench.executors.ray_head import HeadWatch
from bench.executors.ray_worker import Origin, _copy
from bench.executors.schedule import Schedule
from bench.graph import Cell, Stage
from bench.progress import Silent
from bench.session import Selection
from bench.store import Store

ORIGIN = Origin("/x/bench.yaml", "d1", Selection(), "/x/.bench")
HERE = About("here", "s1", "d1", software())


class Told(Silent):
    """Keeps what a reader is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def finish(self, label: str, seconds: float, outcome: str) -> None:
        self.lines.append(f"{label}: {outcome}")

    def note(self, message: str) -> None:
        self.lines.append(message)


def answering(value=None):
    """A method of an actor whose answer is looked at by the patched ``ray.get``."""
    return SimpleNamespace(remote=lambda *_: value)


@pytest.fixture
def cluster() -> Cluster:
    shares = {"fit": StageResources(gpus=0.5, cpus=2), "evaluate": StageResources(gpus=0, cpus=1)}
    made = Cluster(ORIGIN, shares, threads=8, device="cuda")
    made._nodes = [{"CPU": 16.0, "GPU": 1.0}, {"CPU": 4.0}]
    made.board = SimpleNamespace(end=answering(), memory_of=answering())
    return made


def cell(name: str, **inputs: Stage) -> Cell:
    identity = {"attack": name, "defense": "d", "dataset": "x", "downstream": "x", "seed": 0}
    spec = {"name": name, "identity": identity, "config": {}}
    return Cell(Stage("evaluate", spec, inputs, f"evaluate {name}"))


@pytest.fixture
def executor(cluster, tmp_path, monkeypatch):
    """On two cells that rest on one fit, which is handed out; nothing is computed."""
    monkeypatch.setattr(ray, "get", lambda value, **_: value)
    fit = Stage("fit", {"name": "fit"}, {}, "fit d")
    made = RayExecutor(
        cluster,
        ORIGIN,
        Store(tmp_path / "cache"),
        CellStore(tmp_path / "results"),
        Told(),
        RunningMark(tmp_path / "results"),
    )
    (tmp_path / "results" / "cells").mkdir(parents=True)
    cells = [cell("one", fit=fit), cell("two", fit=fit)]
    made._cell_of = {each.key: each for each in cells}
    made._schedule = Schedule(cells, lambda stage: None)
    made._schedule.take()
    made.task = _Task(fit, None, cluster.demand(fit), asked=True)
    return made


def lose(executor: RayExecutor, error: Exception) -> None:
    """The stage that is out ends with an error of Ray's, and is handed out again where it may."""
    executor._died(replace(executor.task), error)
    if executor._schedule.peek() is not None:
        executor._schedule.take()


def lost_object() -> ObjectLostError:
    return ObjectLostError("ab", None, "")


@pytest.mark.parametrize(
    ("error", "most", "reason"),
    [
        (lambda: WorkerCrashedError(), ATTEMPTS, "its process died 3 times"),
        (lambda: NodeDiedError("gone"), LOST_NODES, "its node died 10 times"),
        (lost_object, LOST_NODES, "its node died 10 times"),
    ],
)
def test_what_is_lost_is_begun_again_so_many_times(executor, error, most, reason):
    for _ in range(most - 1):
        lose(executor, error())
        assert executor._outcome.failed == {}
    lose(executor, error())
    assert len(executor._outcome.failed) == 2
    assert all(why == f"fit d: {reason}" for why in executor._outcome.failed.values())


def test_a_full_object_store_ends_the_run_and_fails_no_cell(executor):
    with pytest.raises(StorageError, match="Ray has no space left for results"):
        lose(executor, ObjectStoreFullError())
    assert executor._outcome.failed == {}


def test_an_artifact_that_is_lost_over_and_over_fails_what_needs_it(executor):
    executor._schedule.finish(executor.task.stage.key)
    executor._cluster.count_nodes = lambda patience: None
    for _ in range(LOST_NODES + 1):
        evaluate = executor._schedule.take()
        executor._missing(_Task(evaluate, None, {}, asked=True), executor.task.stage.key)
        if executor._schedule.open and (again := executor._schedule.peek()).kind == "fit":
            executor._schedule.take()
            executor._schedule.finish(again.key)
    (reason,) = executor._outcome.failed.values()
    assert reason == "evaluate one: fit d, which it needs, was lost 10 times"


def test_no_more_is_handed_out_than_twice_what_the_machines_have(executor, cluster):
    fit, evaluate = ({"num_cpus": 2, "num_gpus": 0.5}, {"num_cpus": 1, "num_gpus": 0})
    for _ in range(4):
        assert executor._has_room(fit)
        executor._handed_out.update(fit)
    assert not executor._has_room(fit)
    # Those that take no device do not wait for one.
    for _ in range(32):
        assert executor._has_room(evaluate)
        executor._handed_out.update(evaluate)
    assert not executor._has_room(evaluate)
    assert executor._has_room(evaluate, 4)


def test_the_next_stage_of_other_kinds():
    fit = Stage("fit", {}, {}, "fit")
    cells = [cell("one", fit=fit), cell("two")]
    schedule = Schedule(cells, lambda stage: 5.0 if stage.kind == "fit" else 1.0)
    assert schedule.peek().spec["name"] == "two"  # what ends a cell goes before what takes longer
    assert schedule.peek({"evaluate"}).kind == "fit"
    assert schedule.peek({"fit", "evaluate"}) is None
    assert schedule.take({"evaluate"}).kind == "fit"
    assert schedule.take().spec["name"] == "two"
    with pytest.raises(LookupError):
        schedule.take()


def test_what_waits_asks_for_less_when_the_widest_node_goes(executor, cluster, monkeypatch):
    """Eight processors were asked for where a node had sixteen; the one that is left has four."""
    cancelled = []
    monkeypatch.setattr(ray, "cancel", lambda reference, force: cancelled.append(reference))
    probe = Stage("probe", {}, {}, "probe")
    cluster._device = "cpu"
    task = _Task(probe, "reference", cluster.demand(probe), asked=False)
    assert task.demand == {"num_cpus": 8}
    cluster._nodes = [{"CPU": 4.0}]
    assert not cluster.fits(task.demand)
    executor._rehouse(task)
    executor._rehouse(task)
    assert cancelled == ["reference"]
    assert task.outdated
    assert cluster.demand(probe) == {"num_cpus": 4}


def test_what_no_node_can_take_any_more_is_named_once(executor, cluster):
    cluster._nodes = [{"CPU": 16.0}]
    executor._rehouse(executor.task)
    executor._rehouse(executor.task)
    assert executor._reporter.lines == [
        "warning: no node is left that has what a fit stage takes (num_cpus 2, num_gpus 0.5): it "
        "waits for one"
    ]


def test_a_node_without_processors_takes_nothing(cluster):
    """The head of a cluster that others have not joined yet."""
    cluster._device, cluster._nodes = "cpu", [{"CPU": 0.0, "memory": 2.0**40}]
    probe = Stage("probe", {}, {}, "probe")
    assert cluster.demand(probe) == {"num_cpus": 1}
    with pytest.raises(InputError, match=r"no node has what a probe stage takes \(num_cpus 1\)"):
        cluster.check(probe)


def test_memory_is_told_as_it_was_asked_for(cluster):
    fit = Stage("fit", {}, {}, "fit")
    assert cluster.in_words(fit, {"memory": 5000 * 2**30}) == "a fit stage takes (memory_gb 5000)"


def test_a_run_whose_head_goes_is_ended_in_words():
    said: Queue[str] = Queue()
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = "{}:{}".format(*head.getsockname())
        watch = HeadWatch(address, said.put, every=0.02, patience=0.1)
        with pytest.raises(Empty):
            said.get(timeout=0.5)  # as long as it answers
    assert said.get(timeout=30).startswith(f"the head of the Ray cluster at {address} is gone; ")
    watch.stop()


def test_a_client_whose_connection_breaks_is_told_the_same(cluster, monkeypatch):
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    cluster._address = "ray://head:10001"
    with pytest.raises(StorageError, match="cluster at ray://head:10001 is gone"):
        cluster.__exit__(ConnectionError, ConnectionError("no more"), None)
    cluster.__exit__(KeyError, KeyError("ours"), None)
    cluster._address = "head:6379"
    cluster.__exit__(ConnectionError, ConnectionError("of a stage"), None)


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"config_digest": ""}, "node here has another /x/bench.yaml, or none"),
        ({"software": {**software(), "torch": "1.0"}}, "node here has torch 1.0, this one "),
        ({"software": {**software(), "bench": "0.0.1"}}, "node here has bench 0.0.1, this one "),
    ],
)
def test_a_node_that_would_compute_something_else_is_refused(cluster, about, reason):
    cluster._check_node(HERE)
    with pytest.raises(InputError, match=reason):
        cluster._check_node(replace(HERE, **about))


def test_a_node_without_git_is_let_in(cluster, monkeypatch):
    monkeypatch.setattr("bench.executors.ray_cluster.software", lambda: {"bench": "1.0+gab12"})
    cluster._check_node(replace(HERE, software={"bench": "1.0"}))
    with pytest.raises(InputError, match=r"has bench 0\.9\+gab12, this one 1\.0\+gab12"):
        cluster._check_node(replace(HERE, software={"bench": "0.9+gab12"}))


def test_a_copied_cache_is_another_one(tmp_path):
    first = tmp_path / "first"
    assert storage_id(first) == storage_id(first)
    shutil.copytree(first, tmp_path / "second")
    assert storage_id(tmp_path / "second") != storage_id(first)


def test_a_cache_without_hard_links_has_a_name(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    assert storage_id(tmp_path) == storage_id(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["storage-id"]


def test_files_travel_in_parts(tmp_path, monkeypatch):
    for module in ("ray_actors", "ray_worker"):  # who reads parts, and who asks for more
        monkeypatch.setattr(f"bench.executors.{module}.BYTES_AT_ONCE", 4)
    monkeypatch.setattr(ray, "get", lambda value: value)
    stage = Stage("data", {}, {}, "data")
    keeper = Keeper(str(tmp_path))
    for content in (b"", b"four", b"more than four"):
        folder = keeper._store.folder("data", stage.key)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "x").write_bytes(content)
        remote = SimpleNamespace(read=SimpleNamespace(remote=keeper.read))
        with (tmp_path / "copy").open("wb") as file:
            _copy(remote, stage, "x", file)
        assert (tmp_path / "copy").read_bytes() == content


def test_a_worker_runs_what_the_driver_read(tmp_path, monkeypatch, tiny, write_config):
    """Whatever becomes of the file meanwhile: a stage that is begun later belongs to one run."""
    from bench.executors import ray_worker

    path = write_config(tiny)
    content = path.read_bytes()
    path.write_text("half of an ed")
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray_worker, "_contexts", {})
    board = SimpleNamespace(experiment=answering(content))
    origin = replace(ORIGIN, config=str(path), cache=str(tmp_path / "cache"))
    workspace = ray_worker._context(origin, board).workspace
    assert workspace.environment.threads == tiny["profiles"]["tiny"]["threads"]
