"""Do our functions still say what the authors' say? Every probe, from their code as pinned.

``attacks/upstream/_NAME_probes.py`` and ``defenses/upstream/_NAME_probes.py`` list the probes of a
repository in ``PROBES``; ``_NAME_probes_driver.py`` beside them runs in the authors' process.
Three values meet in a probe: what upstream's function returns now, the figure in
``tests/golden/``, and what ours returns.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import bench
from bench import registry
from bench.upstream.checkout import UpstreamAbsent, third_party_root
from bench.upstream.job import UpstreamJob
from bench.upstream.probes import Figure, Probe, Tolerance
from bench.upstream.probing import ERRORS, RECORD, digest, plain

PROJECT = Path(bench.__file__).resolve().parents[1]
GOLDEN = PROJECT / "tests" / "golden"
TIME_LIMIT = 600.0
SHOWN = 6
FUNCTION, OUTCOME = "function", "outcome"
EQUAL, RECORDED, DIFFERS, FIXED = "equal", "as recorded", "differs", "fixed figure"
SKIPPED, FAILED = "skipped", "failed"


@dataclass(frozen=True)
class Suite:
    """The probes of a repository and what runs them in its process."""

    repository: str
    probes: tuple[Probe, ...]
    driver: Path


@dataclass(frozen=True)
class Result:
    """A row of the report.

    Attributes
    ----------
    kind
        ``function``: one array of one probe. ``outcome``: one figure of trainings, see
        :mod:`bench.upstream.outcomes`.
    verdict
        Of a function ``equal`` (upstream's, ours, and the recorded figure where there is one),
        ``as recorded`` (there is none of ours to compare), or ``differs``, ``fixed figure`` or
        ``skipped`` with the reason after a colon.
    audit
        Entries of docs/upstream-audit.md that have to do with it.
    """

    probe: str
    repository: str
    what: str
    upstream: str = ""
    golden: str = ""
    native: str = ""
    difference: str = ""
    tolerance: str = ""
    verdict: str = ""
    audit: str = ""
    kind: str = FUNCTION

    @property
    def compared(self) -> bool:
        return not self.verdict.startswith((SKIPPED, FIXED))


def suites() -> list[Suite]:
    """Every suite there is, attacks first, by file name."""
    found = []
    for group in registry.GROUPS:
        for path in sorted((registry.folder(group) / "upstream").glob("_*_probes.py")):
            module = importlib.import_module(f"{group}.upstream.{path.stem}")
            probes = tuple(module.PROBES)
            driver = path.with_name(f"{path.stem}_driver.py")
            found.append(Suite(probes[0].repository, probes, driver))
    return found


def run_probes(repository: str, golden: Path = GOLDEN) -> list[Result]:
    """Run the probes of a submodule in its process and compare.

    Raises
    ------
    ValueError
        When no probe calls that repository.
    bench.upstream.checkout.UpstreamChanged
        When the submodule is modified or at another commit.
    bench.upstream.job.UpstreamError
        When its process ends without a record.
    """
    results = []
    chosen = [suite for suite in suites() if suite.repository == repository]
    if not chosen:
        known = ", ".join(sorted({suite.repository for suite in suites()}))
        raise ValueError(f"no probe calls {repository!r}; probes call {known}")
    for suite in chosen:
        found, reasons = observe(suite)
        results += compare(suite, found, reasons, golden)
    return results


def observe(suite: Suite) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What upstream's functions return, and for each probe that gave nothing, the verdict."""
    running = [probe for probe in suite.probes if not probe.fixed]
    try:
        job = UpstreamJob(suite.repository, suite.driver, device="cpu", time_limit=TIME_LIMIT)
    except UpstreamAbsent as absent:
        return {}, {probe.id: f"{SKIPPED}: {absent}" for probe in running}
    reasons = {}
    for probe in running:
        missing = [name for name in probe.imports if importlib.util.find_spec(name) is None]
        left_out = [name for name in probe.files if not (job.path / name).exists()]
        if missing:
            hint = "pip install -e '.[upstream]'"
            reasons[probe.id] = f"{SKIPPED}: needs {', '.join(missing)}: {hint}"
        elif left_out:
            reasons[probe.id] = f"{SKIPPED}: {', '.join(left_out)} is not checked out"
    with job:
        asked = [probe.id for probe in running if probe.id not in reasons]
        job.run({"probes": asked})
        found = job.arrays(RECORD)
        errors = json.loads(job.output(ERRORS).read_text(encoding="utf-8"))
    return found, {**reasons, **{name: f"{DIFFERS}: {text}" for name, text in errors.items()}}


def compare(
    suite: Suite,
    found: Mapping[str, np.ndarray],
    reasons: Mapping[str, str],
    golden: Path = GOLDEN,
) -> list[Result]:
    """A row per array of every probe, in the order of the suite."""
    results = []
    for probe in suite.probes:
        row = Result(probe.id, probe.repository, probe.what, audit=probe.explained)
        names = [name for name in found if name.startswith(f"{probe.id}.")]
        if probe.fixed:
            figures = [figure for each in (probe.golden or {}).values() for figure in each]
            shown = _shown(figures, golden)
            results.append(replace(row, golden=shown, verdict=f"{FIXED}: {probe.fixed}"))
        elif probe.id in reasons:
            results.append(replace(row, verdict=reasons[probe.id]))
        else:
            absent = set(probe.golden or {}) - {name.partition(".")[2] for name in names}
            if absent or not names:
                lost = ", ".join(sorted(absent)) or "array"
                results.append(replace(row, verdict=f"{DIFFERS}: upstream gave no {lost}"))
            results += _rows(probe, row, {name: found[name] for name in names}, golden)
    # An entry of the audit explains how a probe is set, and excuses no difference.
    return [replace(row, audit="") if row.verdict.startswith(DIFFERS) else row for row in results]


def _rows(probe: Probe, row: Result, found: Mapping[str, np.ndarray], golden: Path) -> list[Result]:
    ours, rows = {}, []
    if probe.native is not None:
        try:
            ours = probe.native(third_party_root() / probe.repository)
        except Exception as error:  # of ours: shown in the table, the other probes still run
            rows.append(replace(row, verdict=f"{DIFFERS}: ours raised {type(error).__name__}"))
    for full, theirs in found.items():
        name, tolerance = full.partition(".")[2], probe.tolerance_of(full.partition(".")[2])
        native = plain(ours[name]) if name in ours else None
        row = replace(
            row,
            probe=full,
            upstream=brief(theirs),
            golden=_shown(probe.figures(name), golden),
            native="" if native is None else brief(native),
            difference="" if native is None else _difference(native, theirs),
            tolerance=str(tolerance),
        )
        wrong = [] if native is None or tolerance.holds(native, theirs) else ["native"]
        if native is None and not probe.figures(name):
            wrong.append("from nothing, as it is compared with nothing")
        if any(not _agrees(figure, theirs, tolerance, golden) for figure in probe.figures(name)):
            wrong.append("golden")
        verdict = RECORDED if native is None else EQUAL
        if wrong:
            verdict = f"{DIFFERS}: {', '.join(wrong)}"
        rows.append(replace(row, verdict=verdict))
    for name in sorted(set(ours) - {full.partition(".")[2] for full in found}):
        why = f"{DIFFERS}: upstream gave none"
        rows.append(replace(row, probe=f"{probe.id}.{name}", verdict=why))
    return rows


def _agrees(figure: Figure, theirs: np.ndarray, tolerance: Tolerance, golden: Path) -> bool:
    return (figure.tolerance or tolerance).holds(figure.of(theirs), figure.stored(golden))


def regenerate(
    target: Path,
    golden: Path = GOLDEN,
    names: Collection[str] | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Write the golden files to ``target`` with the figures that upstream gives now.

    Figures of probes that gave nothing, of other repositories than ``names`` (default: all), and
    fixed ones, stay as they are.

    Returns
    -------
    list[str]
        Addresses of the figures that upstream gives otherwise, beyond their tolerance.
    dict[str, str]
        Probe -> why it gave nothing.

    Raises
    ------
    bench.upstream.checkout.UpstreamChanged, bench.upstream.job.UpstreamError
        See :func:`run_probes`.
    """
    stale, files, silent = [], {}, {}
    for suite in suites():
        if names is not None and suite.repository not in names:
            continue
        found, reasons = observe(suite)
        silent |= {f"{suite.repository} {probe}": why for probe, why in reasons.items()}
        for figure, value, tolerance in _figures(suite, found):
            if not tolerance.holds(value, figure.stored(golden)):
                stale.append(figure.address)
            name, *keys = figure.address.split("/")
            if name not in files:
                files[name] = json.loads((golden / name).read_text(encoding="utf-8"))
            *path, last = keys
            place = files[name]
            for key in path:
                place = place[int(key) if isinstance(place, list) else key]
            place[int(last) if isinstance(place, list) else last] = value.tolist()
    target.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (target / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return stale, silent


def _figures(
    suite: Suite, found: Mapping[str, np.ndarray]
) -> Iterator[tuple[Figure, np.ndarray, Tolerance]]:
    for probe in suite.probes:
        for name, figures in (probe.golden or {}).items():
            theirs = found.get(f"{probe.id}.{name}")
            for figure in figures if theirs is not None else ():
                yield figure, figure.of(theirs), figure.tolerance or probe.tolerance_of(name)


def read_report(folder: Path) -> list[Result]:
    """The rows of ``parity.csv`` under ``folder``; none where there is none, or one of an earlier
    layout."""
    path = folder / "parity.csv"
    if not path.is_file():
        return []
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(table.columns) != [field.name for field in fields(Result)]:
        return []
    return [Result(**row) for row in table.to_dict("records")]


def merged(before: Iterable[Result], found: Iterable[Result]) -> list[Result]:
    """``found`` in the place of what ``before`` says of the same repositories and kinds.

    Where all that was found is why nothing could be compared, what there was stays. By repository,
    functions first.
    """
    compared, silent = _grouped(found), {}
    for place in [place for place, rows in compared.items() if not any(r.compared for r in rows)]:
        silent[place] = compared.pop(place)
    together = {**silent, **_grouped(before), **compared}
    return [row for place in sorted(together, key=_order) for row in together[place]]


def _grouped(rows: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for row in rows:
        groups.setdefault((row.repository, row.kind), []).append(row)
    return groups


def _order(place: tuple[str, str]) -> tuple[str, bool]:
    repository, kind = place
    return repository, kind != FUNCTION


def write_report(results: Iterable[Result], folder: Path) -> None:
    """``parity.csv`` and ``parity.md`` under ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [field.name for field in fields(Result)]
    table = pd.DataFrame([vars(result) for result in results], columns=names)
    table.to_csv(folder / "parity.csv", index=False)
    lines = ["# Parity with the authors' code", ""]
    for kind, rows in table.groupby("kind", sort=False):
        lines += [f"{kind}s: {counted(rows['verdict'])}.", ""]
    for repository, rows in table.groupby("repository", sort=False):
        lines += [f"## {repository}", ""]
        header = [name.replace("_", " ") for name in names if name != "repository"]
        lines += [_line(header), _line(["---"] * len(header))]
        lines += [_line(row) for row in rows.drop(columns="repository").itertuples(index=False)]
        lines.append("")
    (folder / "parity.md").write_text("\n".join(lines), encoding="utf-8")


def counted(verdicts: Iterable[str]) -> str:
    """How many there are of each, most frequent first: ``92 equal, 72 as recorded``."""
    counts = Counter(verdict.partition(":")[0] for verdict in verdicts)
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())


def _line(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def brief(array: np.ndarray) -> str:
    """A number, a few of them, or the sum, the digest and the first of many."""
    flat = array.reshape(-1)
    first = " ".join(str(x) if array.dtype.kind in "Ub" else f"{x:.10g}" for x in flat[:SHOWN])
    if len(flat) <= SHOWN:
        return first
    if array.dtype.kind == "U":
        return f"{len(flat)} of them, sha {digest(array)}: {flat[0]}, ..."
    exact = f", sha {digest(array)}" if array.dtype.kind in "iu" else ""
    return f"{'x'.join(map(str, array.shape))}, sum {flat.sum():.10g}{exact}: {first} ..."


def _shown(figures: Iterable[Figure], golden: Path) -> str:
    return "; ".join(brief(figure.stored(golden)) for figure in figures)


def _difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """The largest absolute one."""
    if ours.shape != theirs.shape:
        return f"shape {ours.shape} for {theirs.shape}"
    if "U" in (ours.dtype.kind, theirs.dtype.kind):
        return "0" if np.array_equal(ours, theirs) else "text"
    return f"{np.abs(ours.astype(float) - theirs.astype(float)).max(initial=0):.2g}"
