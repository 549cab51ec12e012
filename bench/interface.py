"""The Python interface: ``bench.run``, ``bench.load_victim``, ``bench.load_scores``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.configfile import ConfigFile
from bench.errors import InputError
from bench.session import Selection, Session

if TYPE_CHECKING:
    import pandas as pd


def run(
    config: str | Path = "bench.yaml",
    *,
    profile: str | None = None,
    attacks: Sequence[str] | None = None,
    defenses: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    device: str | None = None,
    results: str | Path | None = None,
    cache: str | Path | None = None,
    retry_failed: bool = False,
    limit_steps: int | None = None,
) -> pd.DataFrame:
    """Run a matrix and return its leaderboard, one row per cell.

    The same as ``bench run``, without progress output.

    Raises
    ------
    InputError
        For a mistake in the configuration or an input file, before anything is written.
    """
    from bench.report.leaderboard import leaderboard
    from bench.report.schema import load_results

    session = Session(
        ConfigFile(Path(config)),
        Selection(
            profile=profile,
            attacks=tuple(attacks) if attacks is not None else None,
            defenses=tuple(defenses) if defenses is not None else None,
            seeds=tuple(seeds) if seeds is not None else None,
            device=device,
            results=Path(results) if results is not None else None,
            cache=Path(cache) if cache is not None else None,
            retry_failed=retry_failed,
            limit_steps=limit_steps,
        ),
    )
    session.run()
    return leaderboard(load_results(session.results))


def load_victim(path: str | Path) -> Any:
    """The :class:`bench.api.Victim` in an artifact's folder: encoder, trigger, training figures.

    Parameters
    ----------
    path
        The artifact's folder in the cache: ``<cache>/implant/<xx>/<key>`` after model poisoning,
        ``<cache>/pretrain/<xx>/<key>`` after data poisoning, ``<cache>/import/<xx>/<key>`` of an
        imported victim.

    Raises
    ------
    InputError
        When the folder is not a whole victim.
    """
    from bench.api import Victim
    from bench.encoders.encoder import Encoder
    from bench.store import damage
    from bench.workspace import restore_trigger

    folder = Path(path)
    problem = damage(folder) if folder.is_dir() else "no such folder"
    if problem or not (folder / "triggers.json").is_file():
        raise InputError(f"{folder} holds no victim: {problem or 'it has no trigger'}")
    return Victim(
        Encoder.load(folder / "encoder.safetensors"),
        restore_trigger(json.loads((folder / "triggers.json").read_text())["trigger"]),
        json.loads((folder / "metrics.json").read_text()),
    )


def load_scores(cell: str | Path) -> pd.DataFrame:
    """The scores of a stored cell, one row per scored image.

    Parameters
    ----------
    cell
        The cell's folder, ``results/<profile>/cells/<key>``.

    Returns
    -------
    DataFrame
        Columns image, label, split, condition, encoder, score.
    """
    import pandas as pd

    path = Path(cell) / "scores.parquet"
    if not path.is_file():
        raise InputError(f"{cell} holds no scores; is it a finished cell?")
    return pd.read_parquet(path)
