"""``bench doctor``: what this installation has, and what is wrong with it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import registry
from bench.configfile import ConfigFile
from bench.data.source import NoSplitError, Source
from bench.encoders.architectures import find
from bench.errors import InputError
from bench.provenance import code_version, library_versions
from bench.store import check_writable


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

    for found in checkout.status():
        name, state = found.repository.name, found.state
        hint = f" (bench third-party sync {name})" if state in ("absent", "broken") else ""
        good = state in ("present", "absent")
        yield Finding(good, f"third_party/{name} {state}{hint}")


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
    from bench.data.sources import open_source
    from bench.session import Selection, Session, data_roots

    try:
        file = ConfigFile(config)
        file.check_components()
    except InputError as error:
        yield Finding(False, str(error))
        return
    yield Finding(True, f"{config}: {len(file.config.profiles)} profiles")
    for name, dataset in file.config.datasets.items():
        try:
            source = open_source(name, dataset, data_roots(file), file.root)
        except InputError as error:
            # A missing optional data set is no defect of the installation.
            yield Finding(True, f"dataset {name} is absent: {error}")
        else:
            yield _readable(source)
    for name in file.config.profiles:
        yield _profile(file, name)
    root = Session(file, Selection(cache=cache)).store.root
    try:
        check_writable(root)
    except OSError as error:
        yield Finding(False, f"cache {root}: cannot write: {error.strerror}")
    else:
        parent = next(path for path in (root, *root.parents) if path.exists())
        free = shutil.disk_usage(parent).free / 2**30
        yield Finding(free > 2, f"cache {root}: {free:.0f} GiB free")


def _readable(source: Source) -> Finding:
    """Whether the headers of all images of a data set can be read."""
    kind = type(source).__name__.lower()
    try:
        source.check("train")
        with contextlib.suppress(NoSplitError):
            source.check("test")
    except InputError as error:
        return Finding(False, f"dataset {source.name}: {kind}: {error}")
    return Finding(True, f"dataset {source.name}: {kind}")


def _profile(file: ConfigFile, name: str) -> Finding:
    """Whether a profile can run here, or what to do about it."""
    import torch

    from bench.data.sources import open_source
    from bench.session import Selection, Session, data_roots

    config, missing = file.config, []
    for dataset in file.datasets_of(name):
        described = config.datasets[dataset]
        try:
            open_source(dataset, described, data_roots(file), file.root)
        except InputError:
            stored = described.stored_as or dataset
            missing.append(f"data set {stored}{remedy(stored)}")
    session = Session(file, Selection(profile=name))
    for path in session.checkpoints.values():
        if not path.is_file():
            missing.append(f"{path.name}{remedy(path.stem)}")
    if missing:
        return Finding(True, f"profile {name} cannot run yet: " + "; ".join(dict.fromkeys(missing)))
    absent = [row.attack.skip for row in map(session.planner.row, session.matrix.attacks)]
    absent += [
        column.defender.skip for column in map(session.planner.column, session.matrix.defenses)
    ]
    families = session.profile.families().values()
    published = any(find(family.encoder.architecture).published for family in families)
    slow = published and not torch.cuda.is_available()
    hint = ", but without a GPU it would take weeks: try it with --limit-steps 3" if slow else ""
    command = "bench run" + (f" --profile {name}" if name != config.default_profile else "")
    skipped = "; ".join(dict.fromkeys(filter(None, absent)))
    without = f", but some of it is skipped until: {skipped}" if skipped else ""
    return Finding(True, f"profile {name} can run here ({command}){hint}{without}")


def remedy(name: str) -> str:
    """How to get a data set or weights, where a command can."""
    from bench.data.sources import Torchvision
    from bench.encoders.pretrained import PRETRAINED

    return f" (bench download {name})" if name in (*Torchvision.NAMES, *PRETRAINED) else ""
