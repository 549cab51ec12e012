"""``bench doctor``: what this installation has, and what is wrong with it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import joblib

from bench import registry
from bench.configfile import ConfigFile
from bench.data.source import NoSplitError
from bench.encoders.architectures import find
from bench.errors import InputError
from bench.provenance import code_version, library_versions
from bench.store import check_writable, nearest_there

if TYPE_CHECKING:
    from bench.session import Session


@dataclass(frozen=True)
class Finding:
    """One checked thing: whether it is as it should be, in words."""

    good: bool
    what: str


def findings(config: Path, cache: Path | None) -> Iterator[Finding]:
    """Check libraries, devices, configuration, data sets and the cache folder, in that order."""
    yield Finding(True, f"code {code_version()}")
    for name, version in library_versions().items():
        yield Finding(version != "not installed", f"{name} {version}")
    yield from _devices()
    for group in registry.GROUPS:
        for name in registry.entries(group):
            try:
                missing = registry.missing_packages(registry.load(group, name))
            except InputError as error:
                yield Finding(False, str(error))
                continue
            note = f" (skipped: pip install {' '.join(missing)})" if missing else ""
            yield Finding(True, f"{group[:-1]} {name}{note}")
    yield from _submodules()
    yield from _configuration(config, cache)


def _submodules() -> Iterator[Finding]:
    """The authors' repositories: absent ones are fine, changed ones are not."""
    from bench.upstream import checkout

    try:
        status = checkout.status()
    except OSError as error:
        yield Finding(False, f"{error.filename}: {error.strerror}")
        return
    for found in status:
        name, state = found.repository.name, found.state
        hint = f" (bench third-party sync {name})" if state in ("absent", "broken") else ""
        good = state in ("present", "absent")
        yield Finding(good, f"{found.path} {state}{hint}")


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding(True, f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} torch threads")
    able = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.10 cannot tell
    if able and not (able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16")):
        yield Finding(
            True,
            "cpu: computes bfloat16 in software; training of profiles with `precision: bfloat16` "
            "takes about twice as long here as with float32",
        )
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        yield Finding(True, f"cuda: {count} x {torch.cuda.get_device_name()}")
    else:
        yield Finding(True, "cuda: none, everything runs on the cpu")
    if importlib.util.find_spec("ray") is None:
        yield Finding(
            True,
            "ray: not installed; several processes, GPUs or machines at once need it: "
            "pip install 'ssl-backdoor-bench[ray]'",
        )
    else:
        yield Finding(True, "ray: installed; `bench run --executor ray` uses all of this machine")


def _configuration(config: Path, cache: Path | None) -> Iterator[Finding]:
    from bench.session import Selection, Session

    try:
        file = ConfigFile(config)
        file.check_components()
    except InputError as error:
        yield Finding(False, str(error))
        return
    yield Finding(True, f"{config}: {len(file.config.profiles)} profiles")
    unusable = {}
    for name in file.config.datasets:
        finding, problem = _dataset(file, name)
        yield finding
        if problem:
            unusable[name] = problem
    for name in file.config.profiles:
        yield _profile(file, name, unusable)
    try:
        yield _cache(Session(file, Selection(cache=cache)).store.root)
    except InputError as error:
        yield Finding(False, str(error))


def _dataset(file: ConfigFile, name: str) -> tuple[Finding, str | None]:
    """Whether the headers of all images of a data set can be read, and what a profile that needs
    it lacks otherwise."""
    from bench.data.sources import open_source, remedy
    from bench.session import data_roots

    config = file.config.datasets[name]
    stored = config.stored_as or name
    try:
        source = open_source(name, config, data_roots(file), file.root)
    except (InputError, OSError) as error:
        # A missing optional data set is no defect of the installation; a named path that leads
        # nowhere is one.
        finding = Finding(config.path is None, f"dataset {name} is absent: {error}")
        return finding, f"data set {stored}{remedy(stored) or ' (see its line above)'}"
    kind = type(source).__name__.lower()
    try:
        source.check("train")
        with contextlib.suppress(NoSplitError):
            source.check("test")
    except (InputError, OSError) as error:
        return Finding(False, f"dataset {name}: {kind}: {error}"), f"a readable data set {name}"
    return Finding(True, f"dataset {name}: {kind}"), None


def _cache(root: Path) -> Finding:
    """Whether the cache can be written, and how much space there is."""
    try:
        check_writable(root)
    except OSError as error:
        return Finding(False, f"cache {root}: cannot write: {error.strerror}")
    free = shutil.disk_usage(nearest_there(root)).free / 2**30
    return Finding(free > 2, f"cache {root}: {free:.0f} GiB free")


def _profile(file: ConfigFile, name: str, unusable: Mapping[str, str]) -> Finding:
    """Whether a profile can run here, or what to do about it."""
    import torch

    from bench.data.sources import remedy
    from bench.session import Selection, Session

    missing = [unusable[dataset] for dataset in file.datasets_of(name) if dataset in unusable]
    session = Session(file, Selection(profile=name))
    missing += [
        f"{path.name}{remedy(path.stem)}"
        for path in session.checkpoints.values()
        if not path.is_file()
    ]
    if missing:
        return Finding(True, f"profile {name} cannot run yet: " + "; ".join(dict.fromkeys(missing)))
    try:
        planner, matrix = session.planner, session.matrix
        absent = [planner.row(entry).attack.skip for entry in matrix.attacks]
        absent += [
            planner.column(entry, family).defender.skip
            for family in session.profile.families()
            for entry in matrix.defenses
        ]
    except InputError as error:
        return Finding(False, f"profile {name} cannot run: {error}")
    families = session.profile.families().values()
    published = any(find(family.encoder.architecture).published for family in families)
    slow = published and not torch.cuda.is_available()
    hint = ", but without a GPU it would take weeks: try it with --limit-steps 3" if slow else ""
    named = f" --profile {name}" if name != file.config.default_profile else ""
    skipped = "; ".join(dict.fromkeys(filter(None, absent)))
    without = f", but some of it is skipped until: {skipped}" if skipped else ""
    beyond = _beyond_this_machine(session)
    nodes = f"; through Ray only on a cluster with larger nodes: {beyond}" if beyond else ""
    return Finding(True, f"profile {name} can run here (bench run{named}){hint}{without}{nodes}")


def _beyond_this_machine(session: Session) -> str:
    """What the profile's ``resources`` ask for that this machine does not have; empty when it has
    all of it."""
    import torch

    has = {
        "cpus": joblib.cpu_count(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
    }
    if torch.cuda.is_available():  # elsewhere a run asks for none
        has["gpus"] = torch.cuda.device_count()
    return ", ".join(
        f"a {kind} stage takes {what} {asked:g} of {has[what]:.0f}"
        for kind, resources in session.profile.resources.items()
        for what in has
        if (asked := getattr(resources, what)) is not None and asked > has[what]
    )
