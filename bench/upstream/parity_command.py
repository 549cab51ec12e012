"""``bench parity``: native against upstream, function by function and by what trainings come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.errors import InputError

if TYPE_CHECKING:
    from bench.session import Session
    from bench.upstream.parity import Result

PROFILE = "upstream"
SEEDS = (0, 1, 2)


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
    of the profile `upstream` over three seeds, run where they are not stored yet. What is not
    compared this time keeps its rows. Exit status 1 where something differs or failed.
    """
    from bench.upstream.parity import merged, read_report, write_report
    from bench.upstream.repositories import find, repositories

    chosen = [find(name).name for name in names] if names else list(repositories())
    if regenerate is not None:
        _regenerate(regenerate, chosen)
        return
    folder = results or config.resolve().parent / "results"
    sessions = [] if probes_only else _sessions(chosen, config, results, cache)
    before, found = read_report(folder), _probed(chosen)
    if any(row.compared for row in found):
        write_report(merged(before, found), folder)  # trainings take hours, and may be cut
    if sessions:
        found += [row for row in _trained(sessions, stored_only) if row.repository in chosen]
        if any(row.compared for row in found):
            write_report(merged(before, found), folder)
    _tell(found, folder)


def _regenerate(target: Path, names: list[str]) -> None:
    """Golden figures as upstream gives them; exit status 1 unless all were given, and equal."""
    from bench.upstream.checkout import UpstreamChanged
    from bench.upstream.job import UpstreamError
    from bench.upstream.parity import regenerate

    try:
        stale, silent = regenerate(target, names=names)
    except (UpstreamError, UpstreamChanged) as error:
        raise InputError(" ".join(str(error).split())) from None
    for probe, why in silent.items():
        typer.echo(f"{probe}: {why}")
    typer.echo(f"written: {target}; {len(stale)} figures differ {', '.join(stale)}".rstrip())
    if stale or silent:
        raise typer.Exit(1)


def _trained(sessions: list[Session], stored_only: bool) -> list[Result]:
    """Outcomes of trainings, and a row for every cell without one."""
    from bench.progress import reporter
    from bench.upstream import outcomes

    with reporter() as shown:
        for session in sessions:
            session.reporter = shown
            if not stored_only:
                session.run()
    results = sessions[0].results
    return [*outcomes.rows(outcomes.outcomes(results)), *outcomes.unmeasured(results)]


def _tell(found: list[Result], folder: Path) -> None:
    """Counts of verdicts, and what differs, failed, or is left undecided by these seeds."""
    from bench.upstream.outcomes import UNDECIDED
    from bench.upstream.parity import DIFFERS, FAILED, FUNCTION, OUTCOME, counted

    for kind in (FUNCTION, OUTCOME):
        verdicts = [row.verdict for row in found if row.kind == kind]
        if verdicts:
            typer.echo(f"{kind}s: {counted(verdicts)}")
    wrong = [row for row in found if row.verdict.startswith((DIFFERS, FAILED))]
    for row in (*wrong, *(row for row in found if row.verdict == UNDECIDED)):
        about = f" (may be {row.audit})" if row.audit else ""
        said = f"{row.repository} {row.probe}, {row.what}: {row.difference}".rstrip(": ")
        typer.echo(f"{row.verdict}: {said}{about}")
    if any(row.compared for row in found):
        typer.echo(f"written: {folder / 'parity.md'}")
    else:
        why = sorted({row.verdict for row in found if not row.compared})
        typer.echo(f"nothing was compared, nothing written; {'; '.join(why)}")
    if wrong:
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
                retry_failed=True,
            ),
        )
        for these, those in pairs
        if these and those
    ]
    for session in sessions:
        session.check()
    return sessions
