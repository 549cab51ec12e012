"""``bench parity``: native against upstream, function by function and by what trainings come to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bench.session import Session
    from bench.upstream.parity import Result

PROFILE = "upstream"
SEEDS = (0, 1, 2)
DIFFERS, UNDECIDED = "differs", "undecided"


def parity(
    names: Annotated[list[str] | None, typer.Argument(help="repositories; default: all")] = None,
    config: Annotated[Path, typer.Option("--config")] = Path("bench.yaml"),
    probes_only: Annotated[
        bool, typer.Option("--probes-only", help="functions alone, no trainings")
    ] = False,
    stored_only: Annotated[
        bool, typer.Option("--stored-only", help="train nothing: compare the cells there are")
    ] = False,
    regenerate: Annotated[
        Path | None, typer.Option(help="write the golden figures there, as upstream gives them")
    ] = None,
    results: Annotated[Path | None, typer.Option("--results", help="default: results/")] = None,
    cache: Annotated[Path | None, typer.Option("--cache")] = None,
) -> None:
    """Compare our functions and trainings with the authors'; writes parity.csv and parity.md.

    Functions are compared on formula data, beside the figures in tests/golden/. Trainings are those
    of the profile `upstream` over three seeds, run where they are not stored yet.
    """
    from bench.upstream import outcomes
    from bench.upstream.parity import regenerate as regenerated
    from bench.upstream.parity import write_report
    from bench.upstream.repositories import find, repositories

    if regenerate is not None:
        stale = regenerated(regenerate)
        typer.echo(
            f"written: {regenerate}; {len(stale)} figures differ {', '.join(stale)}".rstrip()
        )
        raise typer.Exit(1 if stale else 0)
    chosen = [find(name).name for name in names] if names else list(repositories())
    folder = results or config.resolve().parent / "results"
    sessions = [] if probes_only else _sessions(chosen, config, results, cache)
    found = _probed(chosen)
    write_report(found, folder)
    if sessions:
        from bench.progress import reporter

        with reporter() as shown:
            for session in sessions:
                session.reporter = shown
                if not stored_only:
                    session.run()
        rows = outcomes.rows(outcomes.outcomes(sessions[0].results))
        found += [row for row in rows if row.repository in chosen]
        write_report(found, folder)
    _tell(found, folder)


def _tell(found: list[Result], folder: Path) -> None:
    """Counts of verdicts, and every difference that nothing explains: then the exit status is 1.

    What these seeds leave undecided is listed too, and is no difference: zero lies in its interval.
    """
    counts = Counter(row.verdict.partition(":")[0] for row in found)
    typer.echo(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    open_ = [row for row in found if not row.explained_by]
    left = [row for row in open_ if row.verdict.startswith(DIFFERS)]
    for word, rows in (
        ("unexplained", left),
        (UNDECIDED, [row for row in open_ if row.verdict == UNDECIDED]),
    ):
        for row in rows:
            typer.echo(f"{word}: {row.repository} {row.probe}, {row.what}: {row.difference}")
    typer.echo(f"written: {folder / 'parity.md'}")
    if left:
        raise typer.Exit(1)


def _probed(names: list[str]) -> list[Result]:
    """The probes of each repository; one whose process fails is a row that says so."""
    from bench.upstream.job import UpstreamError
    from bench.upstream.parity import Result, run_probes

    found: list[Result] = []
    for name in names:
        typer.echo(f"{name}: calling the probed functions", err=True)
        try:
            found += run_probes(name)
        except UpstreamError as error:
            reason = " ".join(str(error).split())
            found.append(Result("all", name, "the probes' process", verdict=f"differs: {reason}"))
    return found


def _sessions(
    names: list[str], config: Path, results: Path | None, cache: Path | None
) -> list[Session]:
    """What to train over all seeds: every attack that ``names`` run, in both backends, against the
    last defense of the profile's matrix; and every defense against the first attack.

    What an attack comes to does not depend on the defense; a defense's verdicts do on the attack,
    and more cells of the same run are compared where they are stored.
    """
    from bench import registry
    from bench.configfile import ConfigFile
    from bench.session import Selection, Session

    file = ConfigFile(config)
    matrix, _ = file.config.matrix_of(PROFILE)
    selected = []
    for kind, entries in (("attack", matrix.attacks), ("defense", matrix.defenses)):
        theirs = {
            name.removesuffix(registry.UPSTREAM)
            for name in registry.upstream_entries(f"{kind}s")
            if registry.load(f"{kind}s", name).repository in names
        }
        selected.append(tuple(e.label for e in entries if getattr(e, kind) in theirs))
    attacks, defenses = selected
    pairs = ((attacks, (matrix.defenses[-1].label,)), ((matrix.attacks[0].label,), defenses))
    sessions = [
        Session(
            file,
            Selection(
                profile=PROFILE,
                attacks=these,
                defenses=those,
                seeds=SEEDS,
                results=results,
                cache=cache,
            ),
        )
        for these, those in pairs
        if these and those
    ]
    for session in sessions:
        session.check()
    return sessions
