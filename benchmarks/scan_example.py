"""Scans a victim and its clean twin as a stranger would hand them over, and says who was right.

    python benchmarks/scan_example.py --victim <cache>/implant/<xx>/<key> \
        --twin <cache>/pretrain/<xx>/<key> --data ../shared/data/cifar10 --work scan-example

Both encoders are written as a plain ``.pth`` and as safetensors without metadata; the images are
test images as PNG files, 5 % of them triggered (of other classes than the target); the clean ones
are training images. Precision and recall are those of the flags against the truth, which the scan
never sees.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file

import bench
from bench.api import Trigger
from bench.config import DatasetConfig
from bench.data.imageset import ImageSet
from bench.data.parquet import Parquet
from bench.encoders.encoder import Encoder
from bench.progress import Silent
from bench.scan.command import write
from bench.scan.examining import Request, examine
from bench.scan.findings import summary

IMAGES, CLEAN, SHARE = 2000, 2000, 0.05


def write_images(folder: Path, images: torch.Tensor) -> list[str]:
    """uint8 (N, 3, H, W) as numbered PNG files; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:05d}.png" for number in range(len(images))]
    for name, image in zip(names, images.permute(0, 2, 3, 1).numpy(), strict=True):
        Image.fromarray(image).save(folder / name)
    return names


def mixture(
    test: ImageSet, trigger: Trigger, target: int, seed: int
) -> tuple[torch.Tensor, np.ndarray]:
    """uint8 images of which a share is triggered, and which: bool (N,)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = test.select(torch.randperm(len(test), generator=generator)[:IMAGES])
    others = torch.from_numpy(np.flatnonzero(chosen.labels.numpy() != target))
    order = torch.randperm(len(others), generator=generator)
    rows = others[order[: round(IMAGES * SHARE)]]
    pixels = chosen.uint8()
    pixels[rows] = trigger(chosen.float(rows)).mul(255).round().to(torch.uint8)
    triggered = np.zeros(IMAGES, dtype=bool)
    triggered[rows.numpy()] = True
    return pixels, triggered


def judge(scores: pd.DataFrame, triggered: np.ndarray) -> pd.DataFrame:
    """Per detector: flags, precision, recall, and precision among the 100 highest scores."""
    rows = []
    for column in scores.columns:
        if f"{column}_flagged" in scores.columns:
            flags = scores[f"{column}_flagged"].to_numpy(dtype=bool)
            hits = int((flags & triggered).sum())
            first = np.argsort(-scores[column].to_numpy(), kind="stable")[: triggered.sum()]
            rows.append(
                {
                    "detector": column,
                    "flagged": int(flags.sum()),
                    "precision": hits / max(1, int(flags.sum())),
                    "recall": hits / int(triggered.sum()),
                    "of_the_highest": float(triggered[first].mean()),
                }
            )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for name in ("victim", "twin", "data", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--defenses", default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    victim = bench.load_victim(options.victim)
    target = json.loads((options.victim / "victim.json").read_text())["target"]
    source = Parquet("images", DatasetConfig(resize=True), options.data)
    pixels, triggered = mixture(source.load("test"), victim.trigger, target, options.seed)
    write_images(options.work / "images", pixels)
    train = source.load("train")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(options.seed))
    write_images(options.work / "clean", train.select(order[:CLEAN]).uint8())
    for role in ("victim", "twin"):
        state = Encoder.load(getattr(options, role) / "encoder.safetensors").network.state_dict()
        torch.save(state, options.work / f"{role}.pth")
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()},
            options.work / f"{role}.safetensors",
        )
        for suffix in (".pth", ".safetensors"):
            scan(options, options.work / f"{role}{suffix}", triggered)


def scan(options: argparse.Namespace, encoder: Path, triggered: np.ndarray) -> None:
    """Scan one file and print what the command prints, and how right it was."""
    start = time.perf_counter()
    request = Request(
        encoder,
        options.work / "images",
        options.work / "clean",
        defenses=None if options.defenses is None else tuple(options.defenses.split(",")),
        device="cpu",
        seed=options.seed,
    )
    findings, page = examine(request, Silent())
    folder = options.work / f"scan-{encoder.name}"
    write(folder, findings, page)
    print(f"== {encoder.name}, {time.perf_counter() - start:.0f} s")
    print("\n".join(summary(findings)))
    print(judge(pd.read_csv(folder / "scores.csv"), triggered).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
