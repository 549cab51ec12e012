"""``bench parity``: native against upstream, function by function and by what trainings come to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PROFILE = "upstream"
SEEDS = (0, 1, 2)
UNEXPLAINED = ("differs", "undecided")


def parity(
    names: Annotated[list[str] | None, typer.Argument(help="repositories; default: all")] = None,
    config: Annotated[Path, typer.Option("--config")] = Path("bench.yaml"),
    probes_only: Annotated[
        bool, typer.Option("--probes-only", help="functions alone, no trainings")
    ] = False,
    results: Annotated[Path | None, typer.Option("--results", help="default: results/")] = None,
    cache: Annotated[Path | None, typer.Option("--cache")] = None,
) -> None:
    """Compare our functions and trainings with the authors'; writes parity.csv and parity.md.

    Functions are compared on formula data, beside the figures in tests/golden/. Trainings are those
    of the profile `upstream` over three seeds, run where they are not stored yet.
    """
    from bench.configfile import ConfigFile
    from bench.upstream import outcomes
    from bench.upstream.parity import run_probes, write_report
    from bench.upstream.repositories import find, repositories

    chosen = [find(name).name for name in names] if names else list(repositories())
    found = []
    for name in chosen:
        typer.echo(f"{name}: calling the probed functions", err=True)
        found += run_probes(name)
    file = ConfigFile(config)
    if not probes_only:
        stored = _trained(file, results, cache)
        found += [
            row for row in outcomes.rows(outcomes.outcomes(stored)) if row.repository in chosen
        ]
    folder = results or file.root / "results"
    write_report(found, folder)
    counts = {row.verdict.partition(":")[0]: 0 for row in found}
    for row in found:
        counts[row.verdict.partition(":")[0]] += 1
    typer.echo(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    left = [row for row in found if row.verdict.startswith(UNEXPLAINED) and not row.explained_by]
    for row in left:
        typer.echo(f"unexplained: {row.repository} {row.probe}, {row.what}: {row.difference}")
    typer.echo(f"written: {folder / 'parity.md'}")
    if left:
        raise typer.Exit(1)


def _trained(file, results: Path | None, cache: Path | None) -> Path:
    """The results of the profile over all seeds; what is not stored is run now."""
    from bench.progress import reporter
    from bench.session import Selection, Session

    with reporter() as shown:
        selection = Selection(profile=PROFILE, seeds=SEEDS, results=results, cache=cache)
        session = Session(file, selection, shown)
        session.run()
    return session.results
