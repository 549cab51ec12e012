"""What a component says about itself: docstring, version, length. Nothing is run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.api import Component, Control
from bench.contract.findings import AbsentError, ContractError, DoubtError, Finding, look

MOST_LINES = 80
_SOURCE = re.compile(
    r"\b(19|20)\d\d\b|et al|arxiv|doi|https?://|\bsections?\b|\bequations?\b|\balgorithm\b",
    re.IGNORECASE,
)


def findings(component: type[Component]) -> Iterator[Finding]:
    """Docstring, source, version and length of one component."""
    yield look("docstring of its own", lambda: _docstring(component))
    yield look("docstring names a source", lambda: _source(component))
    yield look("version", lambda: _version(component))
    length = look("length", lambda: _length(component))
    yield replace(length, status="note") if length.status == "ok" else length


def _docstring(component: type[Component]) -> None:
    if not (vars(component).get("__doc__") or "").strip():
        raise ContractError(
            f"the class {component.__name__} has no docstring of its own: say in one line what it "
            "does and where the method comes from"
        )
    if not (inspect.getmodule(component).__doc__ or "").strip():
        raise DoubtError(
            "the module has no docstring, so `bench list` has nothing to say about the component"
        )


def _source(component: type[Component]) -> None:
    if issubclass(component, Control) or getattr(component, "reference", False):
        raise AbsentError("a control stands for no method")
    module = inspect.getmodule(component)
    if not _SOURCE.search(f"{vars(component).get('__doc__')} {module.__doc__}"):
        raise DoubtError(
            "no paper, section, equation or address is named: say where the method comes from"
        )


def _version(component: type[Component]) -> str:
    version: Any = component.version
    if type(version) is not int or version < 1:
        raise ContractError(
            f"version is {version!r} and must be an int from 1: it is part of every cache key and "
            "goes up when results change"
        )
    return str(version)


def _length(component: type[Component]) -> str:
    try:
        path = Path(inspect.getfile(component))
    except (TypeError, OSError):
        raise AbsentError("its file is not known") from None
    lines = len(path.read_text(encoding="utf-8").splitlines())
    more = f", more than the {MOST_LINES} of a baseline" if lines > MOST_LINES else ""
    return f"{lines} lines{more}"
