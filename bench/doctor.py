"""``bench doctor``: what this installation has, and what is wrong with it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import registry
from bench.errors import InputError
from bench.provenance import code_version, library_versions


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
        yield Finding(True, f"cuda: {torch.cuda.get_device_name()}")
    else:
        yield Finding(True, "cuda: none, everything runs on the cpu")


def _configuration(config: Path, cache: Path | None) -> Iterator[Finding]:
    from bench.configfile import ConfigFile
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
            yield Finding(True, f"dataset {name}: {type(source).__name__.lower()}")
    root = Session(file, Selection(cache=cache)).store.root
    parent = next(path for path in (root, *root.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        yield Finding(False, f"cache {root}: cannot write: {error.strerror}")
    else:
        free = shutil.disk_usage(parent).free / 2**30
        yield Finding(free > 2, f"cache {root}: {free:.0f} GiB free")
