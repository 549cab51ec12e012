"""The command line: thin. Exit status 0 fine, 1 a cell failed, 2 bad input, 130 interrupted."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

import typer

from bench import cli_components
from bench.cli_options import (
    DEFAULT_CONFIG,
    CacheOption,
    ConfigOption,
    Device,
    Executor,
    Format,
    LimitOption,
    ListOption,
    ProfileOption,
    ResultsOption,
    SeedsOption,
    open_file,
    refuse_folder,
    results_of,
    session_of,
)
from bench.errors import InputError, nearest
from bench.listing import Kind, listing
from bench.scan.command import scan
from bench.upstream.command import third_party_app
from bench.upstream.parity_command import parity

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Runs every defense against every attack on self-supervised encoders, with controls.",
)

INTERRUPTED = 130


@app.command()
def run(
    config: ConfigOption = DEFAULT_CONFIG,
    profile: ProfileOption = None,
    attacks: ListOption = None,
    defenses: ListOption = None,
    seeds: SeedsOption = None,
    device: Annotated[Device | None, typer.Option(help="default: the profile's")] = None,
    executor: Annotated[Executor, typer.Option(help="how stages run")] = Executor.inline,
    address: Annotated[
        str | None, typer.Option(help="of a Ray cluster: auto, host:port or ray://host:port")
    ] = None,
    results: ResultsOption = None,
    cache: CacheOption = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed")] = False,
    limit_steps: LimitOption = None,
) -> None:
    """Run the matrix and render leaderboard tables and plots."""
    from bench.progress import reporter

    if address is not None and executor is not Executor.ray:
        raise InputError("--address goes with --executor ray")
    start = time.perf_counter()
    with reporter() as shown:
        session = session_of(
            config,
            shown,
            profile=profile,
            attacks=attacks,
            defenses=defenses,
            seeds=seeds,
            device=device,
            results=results,
            cache=cache,
            retry_failed=retry_failed,
            limit_steps=limit_steps,
            executor=executor.value,
            address=address,
        )
        warnings.showwarning = lambda message, *_, **__: shown.note(f"warning: {message}")
        outcome = session.run()
    typer.echo(
        f"{len(session.cells)} cells, {len(outcome.failed)} failed; "
        f"{len(outcome.computed)} stages computed, {len(outcome.cached)} cached; "
        f"{time.perf_counter() - start:.0f} s, stages added up {outcome.seconds:.0f} s"
    )
    identities = {cell.key: cell.identity for cell in session.cells}
    for key, reason in outcome.failed.items():
        identity = identities[key]
        what = f"{identity['attack']} x {identity['defense']}"
        typer.echo(f"failed: {what}: {_harmless(reason)}", err=True)
    typer.echo(f"leaderboard: {_shown(session.results / 'leaderboard.md')}")
    if outcome.failed:
        raise typer.Exit(1)


@app.command()
def plan(
    config: ConfigOption = DEFAULT_CONFIG,
    profile: ProfileOption = None,
    attacks: ListOption = None,
    defenses: ListOption = None,
    seeds: SeedsOption = None,
    device: Annotated[Device | None, typer.Option(help="default: the profile's")] = None,
    results: ResultsOption = None,
    cache: CacheOption = None,
    limit_steps: LimitOption = None,
) -> None:
    """Show the cells, the stages, what is cached and the estimated time; run nothing."""
    from bench.planning import describe_plan
    from bench.progress import Silent

    session = session_of(
        config,
        Silent(),
        profile=profile,
        attacks=attacks,
        defenses=defenses,
        seeds=seeds,
        device=device,
        results=results,
        cache=cache,
        limit_steps=limit_steps,
    )
    session.check()
    typer.echo(describe_plan(session))


@app.command()
def times(
    config: ConfigOption = DEFAULT_CONFIG,
    profile: ProfileOption = None,
    attacks: ListOption = None,
    defenses: ListOption = None,
    seeds: SeedsOption = None,
    device: Annotated[Device | None, typer.Option(help="default: the profile's")] = None,
    results: ResultsOption = None,
    cache: CacheOption = None,
    limit_steps: LimitOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="a CSV file")] = None,
) -> None:
    """Say where the time went: seconds per kind of stage, and what sharing spared."""
    from bench.progress import Silent
    from bench.store import write_atomically
    from bench.times import describe_times, stage_times

    session = session_of(
        config,
        Silent(),
        profile=profile,
        attacks=attacks,
        defenses=defenses,
        seeds=seeds,
        device=device,
        results=results,
        cache=cache,
        limit_steps=limit_steps,
    )
    if output is not None:
        refuse_folder(output)
    session.check()
    table = stage_times(session)
    if output is not None:
        write_atomically(output, table.to_csv(index=False, float_format="%.4g"))
    typer.echo(describe_times(table))


@app.command()
def report(
    config: ConfigOption = DEFAULT_CONFIG,
    profile: ProfileOption = None,
    results: ResultsOption = None,
    every: Annotated[
        bool, typer.Option("--all", help="of every profile that has been run")
    ] = False,
) -> None:
    """Rebuild every table and plot from stored cells, with the tables that the file declares."""
    from bench.report.rendering import declare_tables, render

    file = open_file(config)
    folders = [results_of(config, profile, results)]
    if every:
        if profile is not None:
            raise InputError("--all and --profile exclude each other")
        found = (results_of(config, name, results) for name in file.config.profiles)
        # Tables may lie there without the cells they were made from, as those of `quick` do.
        folders = [folder for folder in found if any((folder / "cells").glob("*/cell.json"))]
        if not folders:
            raise InputError("no profile has stored cells; `bench run` makes them")
    for folder in folders:
        declare_tables(folder, file.config.tables)
        for path in render(folder):
            typer.echo(_shown(path))


@app.command()
def status(
    config: ConfigOption = DEFAULT_CONFIG,
    profile: ProfileOption = None,
    results: ResultsOption = None,
) -> None:
    """Say what is done, running and failed."""
    from bench.cells import describe_status
    from bench.report.schema import load_manifest

    folder = results_of(config, profile, results)
    typer.echo(describe_status(folder, load_manifest(folder).cells))


@app.command()
def export(
    format: Annotated[Format, typer.Option("--format", help="of the text")],
    table: Annotated[str, typer.Option("--table", help="see `bench list tables`")] = "leaderboard",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="a file")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    profile: ProfileOption = None,
    results: ResultsOption = None,
) -> None:
    """Print one table in one format, or write it to a file."""
    from bench.report.export import export as exported
    from bench.report.export import table_names
    from bench.store import write_atomically

    known = table_names(open_file(config).config.tables.declared)
    if table not in known:
        raise InputError(f"unknown table {table!r}{nearest(table, known)}")
    if output is not None:
        refuse_folder(output)
    text = exported(results_of(config, profile, results), format.value, table)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_atomically(output, text)


@app.command()
def compare(
    run_a: Annotated[str, typer.Argument(help="a results folder, or a profile's name")],
    run_b: Annotated[str, typer.Argument(help="another one")],
    as_json: Annotated[bool, typer.Option("--json")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    results: ResultsOption = None,
) -> None:
    """Say what moved between two runs beyond its interval, and why it may have."""
    from bench.report.compare import compare as compared
    from bench.report.compare import comparison_text

    folders = (
        Path(name) if Path(name).is_dir() else results_of(config, name, results)
        for name in (run_a, run_b)
    )
    found = compared(*folders)
    if as_json:
        typer.echo(json.dumps(found.document(), indent=1))
    else:
        typer.echo(comparison_text(found), nl=False)


@app.command("list")
def list_(
    kind: Annotated[Kind, typer.Argument(help="what to list")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """List attacks, defenses, datasets, profiles or tables."""
    rows = listing(kind, config)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        backends = row.get("backends", "native")
        also = f" (backends: {backends})" if backends != "native" else ""
        described = _harmless(f"{row['description']}{also}")
        typer.echo(f"{_harmless(row['name']):<{width}}  {described}".rstrip())


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="cifar10, stl10, gtsrb, svhn or clip-rn50")],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Fetch a data set (torchvision) into the data root, or public CLIP weights (open_clip)."""
    from bench.config import DatasetConfig
    from bench.data.torchvision_copies import Torchvision
    from bench.encoders.pretrained import PRETRAINED, download_pretrained
    from bench.session import data_roots

    known = (*Torchvision.NAMES, *PRETRAINED)
    if name not in known:
        raise InputError(f"cannot download {name!r}{nearest(name, known)}")
    file = open_file(config)
    if name in PRETRAINED:
        # A profile names its checkpoint from bench.yaml on, whatever BENCH_DATA says.
        weights = download_pretrained(name, file.root / file.config.data_roots[0])
        typer.echo(f"{name} is at {_shown(weights)}")
        return
    root = data_roots(file)[0]
    Torchvision(name, DatasetConfig(), root).download()
    typer.echo(f"{name} is in {_shown(root)}")


@app.command()
def doctor(config: ConfigOption = DEFAULT_CONFIG, cache: CacheOption = None) -> None:
    """Check libraries, devices, data, cache and configuration, and say what is wrong."""
    from bench.doctor import findings

    bad = 0
    for finding in findings(config, cache):
        bad += not finding.good
        typer.echo(f"{'ok  ' if finding.good else 'BAD '} {_harmless(finding.what)}")
    if bad:
        raise typer.Exit(1)


app.command()(cli_components.check)
app.command()(cli_components.new)
app.command()(scan)
app.command()(parity)
app.add_typer(third_party_app)


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit status 2."""
    # Before torch loads its OpenMP: threads that spin while they wait make two runs on one
    # machine many times slower than one after the other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Ended from outside: as an interruption, so that nothing that runs for us is left behind.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    code: object
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except typer.Exit as stop:
        code = stop.exit_code
    except ValueError as error:
        if not _one_line(error):
            raise
        _complain(str(error))
        code = 2
    except OSError as error:
        _complain(f"{error.filename or 'a file'}: {error.strerror or error}")
        code = 2
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        # A usage error of the command-line library.
        _complain(error.format_message())
        code = 2
    if code == INTERRUPTED:
        goes_on = "; the same command goes on from the last finished stage"
        typer.echo(f"interrupted{goes_on if sys.argv[1:2] == ['run'] else ''}", err=True)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str) -> None:
    """One line on stderr."""
    typer.echo(f"bench: {_harmless(message)}", err=True)


def _harmless(text: str) -> str:
    """One line in which what would steer the terminal (a stranger's file name may) is shown."""
    line = " ".join(text.split())
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in line)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _one_line(error: ValueError) -> bool:
    from bench.report.schema import ReportError

    return isinstance(error, InputError | ReportError)


def _shown(path: Path) -> str:
    """A path as a reader of the terminal wants it: relative where that is shorter."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
