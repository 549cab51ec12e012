"""Where DeDe's error is: inside the trigger, outside of it, and with another embedding.

    python benchmarks/dede_parts.py [--profile cifar10-ablations] [--results results]
        [--record results/robustness/dede_parts.csv]

Reads stored cells and computes nothing anew. DeDe's score is a sum of squared errors, and
``dede-outside`` is the same fit's sum without the trigger's pixels, so that the difference of the
two is the error inside the trigger, image by image. Test images of other classes than the target.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from recording import replace

from bench.report.schema import Results, StoredCell, load_results

WHOLE, OUTSIDE, ANOTHER = "dede-id", "dede-outside", "dede-another"
IMAGE = ["image", "condition", "encoder"]


def scores(cell: StoredCell, folder: Path) -> pd.DataFrame:
    """float64 scores of test images of other classes, by image, condition and encoder."""
    table = pd.read_parquet(folder / "cells" / cell.key / "scores.parquet")
    kept = table[(table["split"] == "test") & (table["label"] != cell.row["target"])]
    return kept.set_index(IMAGE)["score"].astype("float64").sort_index()


def parts(results: Results, folder: Path) -> Iterator[dict[str, Any]]:
    """Mean and deviation over images per attack, seed, encoder, condition and part."""
    found: dict[tuple[str, str, int, int], dict[str, pd.Series]] = {}
    for cell in results.cells:
        if cell.row["defense"] in (WHOLE, OUTSIDE, ANOTHER) and cell.measured:
            of = (cell.row["attack"], cell.row["downstream"], cell.row["target"], cell.seed)
            here = found.setdefault(of, {})
            here[cell.row["defense"]] = scores(cell, folder)
    for (attack, downstream, target, seed), here in sorted(found.items()):
        if not {WHOLE, OUTSIDE} <= set(here):
            continue
        columns = {"whole": here[WHOLE], "outside": here[OUTSIDE]}
        columns["inside"] = columns["whole"] - columns["outside"]
        if ANOTHER in here:
            columns["another embedding"] = here[ANOTHER]
        table = pd.DataFrame(columns)
        for (condition, encoder), images in table.groupby(level=["condition", "encoder"]):
            for part in columns:
                yield {
                    "profile": results.manifest.profile,
                    "attack": attack,
                    "downstream": downstream,
                    "target": target,
                    "seed": seed,
                    "encoder": encoder,
                    "condition": condition,
                    "part": part,
                    "images": len(images),
                    "mean": f"{images[part].mean():.2f}",
                    "deviation": f"{images[part].std():.2f}",
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="cifar10-ablations")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    folder = arguments.results / arguments.profile
    rows = list(parts(load_results(folder), folder))
    if not rows:
        parser.error(f"{folder} has no attack with both {WHOLE} and {OUTSIDE}")
    print(pd.DataFrame(rows).to_string(index=False))
    if arguments.record is not None:
        replace(arguments.record, rows)


if __name__ == "__main__":
    main()
