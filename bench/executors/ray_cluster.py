"""The machines of a Ray run: connecting, which nodes live, whose cache has what."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

import joblib
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bench.config import StageResources
from bench.errors import InputError
from bench.executors.computing import StorageError
from bench.executors.ray_actors import About, Board, Keeper, software
from bench.executors.ray_head import HeadWatch, head_is_gone, is_lost_connection
from bench.executors.ray_worker import Origin
from bench.graph import Stage

SECONDS_BETWEEN_CENSUSES = 5.0
SECONDS_TO_ANSWER = 60.0
SECONDS_TO_CONNECT = 10.0
SECONDS_TO_PING = 10.0
_RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
_PASSED_ON = ("PYTHONPATH", "BENCH_DATA", "BENCH_THIRD_PARTY", "OMP_WAIT_POLICY")


class Cluster:
    """A connection to Ray, closed at the end of a ``with`` block.

    Parameters
    ----------
    origin
        Of the run; every node must have the same configuration file.
    resources
        Of the profile, by stage kind.
    threads, device
        Of the profile: the processors of a stage unless the resources say otherwise, and whether
        it takes an accelerator.
    address
        Of a running cluster (``auto``, ``host:port``, ``ray://host:port``); None: this machine,
        for as long as the run lasts.
    processors
        To use of this machine, without an address; None: all that this process may use.
    experiment
        The configuration file as the driver read it.

    Attributes
    ----------
    notes
        Lines for the reader that nobody has shown yet.

    Raises
    ------
    InputError
        On entering, when no cluster answers or a node has another configuration.
    """

    def __init__(
        self,
        origin: Origin,
        resources: Mapping[str, StageResources],
        threads: int,
        device: str,
        address: str | None = None,
        processors: int | None = None,
        experiment: bytes = b"",
    ) -> None:
        self._origin, self._resources = origin, resources
        self._threads, self._device = threads, device
        self._address, self._own_processors = address, processors
        self._experiment = experiment
        self.notes: list[str] = []
        self._head: HeadWatch | None = None
        self._joining: dict[str, tuple[Any, Any]] = {}  # node -> keeper, its answer to come
        self._keepers: dict[str, Any] = {}  # node -> its keeper
        self._names: dict[str, str] = {}  # node -> what its keeper is called
        self._storage: dict[str, str] = {}  # node -> the cache it uses
        self._holders: dict[str, set[str]] = {}  # stage -> caches that have its artifact
        self._nodes = []
        self._counted = self._asked = -SECONDS_BETWEEN_CENSUSES

    @staticmethod
    def check_address(address: str | None) -> None:
        """Refuse an address that nobody answers at: Ray would try it for minutes.

        Raises
        ------
        InputError
            With what an address looks like, or why there is no connection.
        """
        if address in (None, "auto", "local"):
            return
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise InputError(f"--address is auto, HOST:PORT or ray://HOST:PORT, got {address!r}")
        try:
            socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_CONNECT).close()
        except OSError as error:
            why = error.strerror or error
            raise InputError(f"no Ray cluster at {address}: {why}") from None

    def __enter__(self) -> Cluster:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        # Ray would set it to the processors of a task, and libraries read it when they load.
        environment["OMP_NUM_THREADS"] = str(self._threads)
        # Older versions of Ray would hide the device from stages that take none of it.
        environment["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._address is None:
            environment["BENCH_CACHE"] = self._origin.cache
            # Ray would count those that a Slurm job or a container may not use.
            processors = self._own_processors or joblib.cpu_count()
            settings |= {"include_dashboard": False, "num_cpus": processors}
            for unread in ("task_events_report_interval_ms", "enable_metrics_collection"):
                os.environ.setdefault(f"RAY_{unread}", "0")  # what a dashboard would show
        ended = signal.getsignal(signal.SIGTERM)
        try:
            # Without "local", Ray would look for a cluster of somebody else on this machine first.
            ray.init(self._address or "local", runtime_env={"env_vars": environment}, **settings)
        except (OSError, RayError, ValueError, RuntimeError) as error:
            where = self._address or "this machine"
            raise InputError(f"no Ray cluster at {where}: {' '.join(str(error).split())}") from None
        if ended is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ended)  # Ray's own would leave without a word
        here = ray.get_runtime_context().get_node_id()
        self.board_name = _fresh_name("board")
        self.board = _pinned(Board, here, self.board_name).remote(self._experiment)
        if not self._through_client:  # a client is told
            self._head = HeadWatch(ray.get_runtime_context().gcs_address)
        try:
            self.count_nodes(patience=SECONDS_TO_ANSWER)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._leave()
        if self._through_client and is_lost_connection(error):
            raise StorageError(head_is_gone(str(self._address))) from None

    def _leave(self) -> None:
        if self._head is not None:
            self._head.stop()
        ray.shutdown()

    @property
    def _through_client(self) -> bool:
        return (self._address or "").startswith("ray://")

    def count_nodes(self, patience: float | None = None) -> None:
        """Meet the nodes that came and forget those that went, at most every few seconds.

        ``patience``: do it in any case, wait that many seconds for those that are new, and ask
        the others whether they still answer.
        """
        recent = time.monotonic() - self._counted < SECONDS_BETWEEN_CENSUSES
        if recent and patience is None:
            return
        alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        silent = self._silent() if patience is not None else set()
        for gone in (self._keepers.keys() - alive.keys()) | silent:
            del self._keepers[gone], self._storage[gone]
        for gone in self._joining.keys() - alive.keys():
            del self._joining[gone]
        for node in alive.keys() - self._keepers.keys() - self._joining.keys():
            name = _fresh_name("keeper")
            keeper = _pinned(Keeper, node, name).remote(self._origin.cache)
            self._names[node] = name
            self._joining[node] = keeper, keeper.about.remote(self._origin.config)
        if self._joining:
            self._meet(patience or 0.0)
        self._nodes, self._counted = list(alive.values()), time.monotonic()

    @property
    def _nodes(self) -> list[dict[str, float]]:
        """What each node that lives has."""
        return self._living

    @_nodes.setter
    def _nodes(self, living: list[dict[str, float]]) -> None:
        # Summed once: it is asked for every stage that might be handed out.
        self._living = living
        # At least one: a head that works nothing itself has none until others have joined.
        self._widest = max((1, *(node.get("CPU", 0) for node in living)))
        self._capacity = {
            name: sum(node.get(theirs, 0) for node in living) for name, theirs in _RESOURCES.items()
        }

    def _silent(self) -> set[str]:
        """Nodes whose keeper has died, though they live; one that is only busy has not."""
        if not self._keepers or time.monotonic() - self._asked < SECONDS_BETWEEN_CENSUSES:
            return set()
        asked = {keeper.sweep.remote(): node for node, keeper in self._keepers.items()}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=SECONDS_TO_PING)
        dead = set()
        for answer in ready:
            try:
                ray.get(answer)
            except RayError:
                dead.add(asked[answer])
        self._asked = time.monotonic()
        return dead

    def _meet(self, patience: float) -> None:
        """Hear those that have come: a slow one is heard at a later census."""
        answers = [answer for _, answer in self._joining.values()]
        ready, waited = ray.wait(answers, num_returns=len(answers), timeout=patience)
        if patience and waited and not self._nodes:
            self.notes.append(
                f"warning: {len(waited)} of {len(answers)} nodes did not answer within "
                f"{patience:.0f} s: nobody can fetch what is stored there until they do"
            )
        for node, (keeper, answer) in list(self._joining.items()):
            if answer not in ready:
                continue
            del self._joining[node]
            try:
                about = ray.get(answer)
            except RayError:
                continue  # it went as it came; if only its keeper did, the next census asks again
            self._check_node(about)
            self._keepers[node], self._storage[node] = keeper, about.storage

    def capacity(self, name: str) -> float:
        """``num_cpus`` or ``num_gpus`` of all nodes."""
        return self._capacity[name]

    @property
    def several_gpus(self) -> bool:
        """Whether a node has more than one."""
        return any(node.get("GPU", 0) > 1 for node in self._nodes)

    @property
    def apart(self) -> bool:
        """Whether there is more than one cache, so that artifacts have to travel."""
        return len(set(self._storage.values())) > 1

    def stored(self, key: str, storage: str) -> None:
        """A stage's artifact lies in that cache."""
        self._holders.setdefault(key, set()).add(storage)

    def lost(self, key: str) -> None:
        """No node that lives has the artifact."""
        self._holders.pop(key, None)

    def sweep(self) -> None:
        """Have every node remove what died processes left in its cache."""
        for keeper in self._keepers.values():
            keeper.sweep.remote()

    def holders(self, stage: Stage) -> tuple[str, ...]:
        """The keepers that can read its artifact, by name."""
        caches = self._holders.get(stage.key, set())
        return tuple(self._names[node] for node in self._keepers if self._storage[node] in caches)

    def demand(self, stage: Stage, alone: bool = False) -> dict[str, float]:
        """Ray's ``num_cpus``, ``num_gpus`` and ``memory`` (bytes); ``alone``: a whole device."""
        asked = self.asked(stage)
        widest = self._widest
        demand = {"num_cpus": asked.cpus or min(self._threads, widest)}
        if self._device == "cuda":
            gpus = 1.0 if asked.gpus is None else asked.gpus
            demand["num_gpus"] = max(1.0, gpus) if alone else gpus
        if asked.memory_gb is not None:
            demand["memory"] = asked.memory_gb * 2**30
        return demand

    def asked(self, stage: Stage) -> StageResources:
        """What the profile says of such stages."""
        return self._resources.get(stage.kind, StageResources())

    def check(self, stage: Stage) -> None:
        """Refuse a stage that no node can ever take.

        Raises
        ------
        InputError
            With what the stage takes.
        """
        demand = self.demand(stage)
        if not self.fits(demand):
            raise InputError(f"no node has what {self.in_words(stage, demand)}")

    def fits(self, demand: Mapping[str, float]) -> bool:
        """Whether a node that lives has as much."""
        return any(
            all(node.get(_RESOURCES[name], 0) >= value for name, value in demand.items())
            for node in self._nodes
        )

    @staticmethod
    def in_words(stage: Stage, demand: Mapping[str, float]) -> str:
        """``a fit stage takes (num_cpus 2, num_gpus 1)``."""
        shown = dict(demand)
        if "memory" in shown:
            shown["memory_gb"] = shown.pop("memory") / 2**30
        wanted = ", ".join(f"{name} {value:g}" for name, value in shown.items())
        return f"a {stage.kind} stage takes ({wanted})"

    def _check_node(self, about: About) -> None:
        """Refuse a node that would compute something else under the same keys."""
        if about.config_digest != self._origin.config_digest:
            raise InputError(
                f"node {about.host} has another {self._origin.config}, or none: every node needs "
                "the same checkout"
            )
        for name, ours in software().items():
            theirs = about.software.get(name)
            # A commit is known where there is a git checkout, and git to ask.
            if name == "bench" and not ("+g" in ours and "+g" in str(theirs)):
                ours, theirs = ours.partition("+")[0], str(theirs).partition("+")[0]
            if theirs != ours:
                raise InputError(
                    f"node {about.host} has {name} {theirs}, this one {ours}: every node needs the "
                    "same"
                )


def _fresh_name(kind: str) -> str:
    return f"bench-{kind}-{uuid.uuid4().hex}"


def _pinned(kind: type, node: str, name: str) -> Any:
    """An actor class that runs on one node and takes none of its processors."""
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(kind).options(name=name, num_cpus=0, scheduling_strategy=where)
