"""``bench scan``: the command."""

from __future__ import annotations

import json
import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli_options import Device
from bench.errors import InputError
from bench.limits import MOST_SEED
from bench.store import check_writable

if TYPE_CHECKING:
    from bench.scan.findings import Findings
    from bench.scan.opening import Wishes

FILES = ("scores.csv", "scan.json", "report.html")
_ARCHIVES = (".tar", ".pth", ".pt", ".ckpt", ".safetensors")
_KEY_LENGTH, _SHOWN_OF_A_KEY = 64, 12


class Precision(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"


def scan(
    encoder: Annotated[Path, typer.Argument(help="encoder file, checkpoint or victim's folder")],
    images: Annotated[Path, typer.Option(help="folder of images, or a parquet file")],
    auxiliary: Annotated[
        Path | None, typer.Option(help="clean images of the same kind: fitting and thresholds")
    ] = None,
    defenses: Annotated[str | None, typer.Option(help="comma-separated names")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--set", help="defense.parameter=value; repeatable")
    ] = None,
    architecture: Annotated[str | None, typer.Option(help="default: told from the keys")] = None,
    settings: Annotated[
        str | None, typer.Option(help="of the architecture: width=32,stem_stride=2")
    ] = None,
    mean: Annotated[str | None, typer.Option(help="normalisation, r,g,b in [0, 1]")] = None,
    std: Annotated[str | None, typer.Option(help="normalisation, r,g,b in [0, 1]")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, max=1024, help="pixels; default: the architecture's")
    ] = None,
    fpr: Annotated[float, typer.Option(help="share of clean images a threshold may flag")] = 0.05,
    output: Annotated[Path | None, typer.Option(help="default: scan-<encoder>")] = None,
    device: Annotated[Device, typer.Option(help="where it is computed")] = Device.auto,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="of every random choice")] = 0,
    precision: Annotated[
        Precision, typer.Option(help="what detectors may train in")
    ] = Precision.float32,
    top: Annotated[int, typer.Option(min=1, max=500, help="images shown per detector")] = 24,
) -> None:
    """Look for a backdoor in an encoder file, with images of which some may carry the trigger."""
    from bench.progress import reporter
    from bench.scan.examining import Request, examine
    from bench.scan.findings import summary
    from bench.scan.selection import parse_parameters

    if not 0 < fpr < 1:
        raise InputError(f"--fpr is a share between 0 and 1, got {fpr:g}")
    parameters = parse_parameters(parameter or ())
    folder = output_folder(encoder, output)
    check_writable(folder)
    request = Request(
        encoder,
        images,
        auxiliary,
        wishes=_wishes(architecture, settings, mean, std, image_size),
        defenses=None if defenses is None else _names(defenses),
        parameters=parameters,
        fpr=fpr,
        device=device.value,
        seed=seed,
        precision=precision.value,
        top=top,
    )
    with reporter() as shown:
        findings, page = examine(request, shown)
    write(folder, findings, page)
    for line in summary(findings):
        typer.echo(line)
    typer.echo(f"report: {folder / 'report.html'}; scores: {folder / 'scores.csv'}")
    if findings.failed:
        raise typer.Exit(1)


def write(folder: Path, findings: Findings, page: str) -> None:
    """Write the three files of a scan."""
    from bench.scan.findings import described, scores_table
    from bench.store import write_atomically

    text = json.dumps(described(findings), indent=1, sort_keys=True, ensure_ascii=False)
    # First: it marks the folder as a scan's.
    write_atomically(folder / "scan.json", text + "\n")
    write_atomically(folder / "scores.csv", scores_table(findings))
    write_atomically(folder / "report.html", page)


def output_folder(encoder: Path, output: Path | None) -> Path:
    """Where the files of a scan go.

    Raises
    ------
    InputError
        When a file is in the way, or files of those names that no scan wrote.
    """
    folder = output if output is not None else Path(f"scan-{_stem(encoder)}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; a folder is wanted there")
    for name in FILES:
        if (folder / name).is_dir():
            raise InputError(f"{folder / name} is a folder; a file goes there")
    strangers = [name for name in FILES if (folder / name).exists()]
    if strangers and "scan.json" not in strangers:
        raise InputError(
            f"{folder} holds a {strangers[0]} that no scan wrote; name another --output"
        )
    return folder


def _wishes(
    architecture: str | None,
    settings: str | None,
    mean: str | None,
    std: str | None,
    image_size: int | None,
) -> Wishes:
    from bench.encoders.architectures import find
    from bench.scan.opening import Wishes, parse_colour, parse_settings

    if architecture is not None:
        try:
            find(architecture)
        except ValueError as error:
            raise InputError(str(error)) from None
    return Wishes(
        architecture,
        parse_settings(settings, architecture),
        parse_colour(mean, "--mean"),
        parse_colour(std, "--std"),
        image_size,
    )


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise InputError("--defenses names none; leave it out for the default ones")
    return names


def _stem(encoder: Path) -> str:
    name = os.path.basename(os.path.realpath(encoder))
    while name.endswith(_ARCHIVES):
        name = name.rpartition(".")[0]
    key = len(name) == _KEY_LENGTH and set(name) <= set("0123456789abcdef")
    return name[:_SHOWN_OF_A_KEY] if key else name
