"""Victims' and results folders that somebody else wrote."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from campaign import Deed, case, command, experiment
from hostile_checkpoints import narrow, zip_bomb
from hostile_images import npy
from stored_cells import write_cell, write_manifest

from bench.store import machine_name


def victim_folder(folder: Path, triggers: str) -> Deed:
    """``bench run`` of a victim's folder without a manifest."""
    from bench.encoders.encoder import Encoder

    victim = folder / "victim"
    victim.mkdir()
    settings = {"width": 4, "stem_stride": 2}
    encoder = Encoder.initialise("resnet-narrow", settings, generator=torch.Generator())
    encoder.network.load_state_dict(narrow())
    encoder.save(victim / "encoder.safetensors")
    (victim / "triggers.json").write_text(triggers)
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in victim.iterdir()
    }
    (victim / "manifest.json").write_text(json.dumps({"files": digests}))
    experiment(folder, (("matrix", "attacks", 1), {"from": "victim", "target": 0}))
    return command("run", says="matrix.attacks[1]")


@case("victim", "folder whose trigger is nested 100,000 deep")
def deep_trigger(folder: Path) -> Deed:
    return victim_folder(folder, '{"trigger": ' + "[" * 100_000)


@case("victim", "folder whose trigger is of a kind that is a path")
def kind_trigger(folder: Path) -> Deed:
    return victim_folder(folder, '{"trigger": {"kind": "../../os.system", "parameters": {}}}')


@case("victim", "folder whose trigger is a patch of 10^12 pixels")
def vast_trigger(folder: Path) -> Deed:
    patch = {"size": 10**6, "row": 0, "column": 0, "colour": [1, 1, 1], "image_size": 10**6}
    return victim_folder(folder, json.dumps({"trigger": {"kind": "patch", "parameters": patch}}))


def results(folder: Path, attack: str = "none", **more: Any) -> Path:
    """Stored results of one cell; the path of its folder."""
    experiment(folder)
    place = folder / "results" / "tiny"
    key = write_cell(place, attack, "knn", **more)
    write_manifest(place, [attack], ["knn"], [key])
    return place / "cells" / key


def exported(**more: Any) -> Deed:
    arguments = ("export", "--format", "csv", "--profile", "tiny")
    return command(*arguments, says=more.pop("says", "damaged"), **more)


@case("cell", "cell.json nested 100,000 deep")
def deep_cell(folder: Path) -> Deed:
    (results(folder) / "cell.json").write_text('{"row": ' + "[" * 100_000)
    return exported(says="cell.json")


@case("cell", "cell.json of 20 GB (with a hole)")
def huge_cell(folder: Path) -> Deed:
    os.truncate(results(folder) / "cell.json", 20 * 10**9)
    return exported(says="cell.json")


@case("cell", "cell.json that is a named pipe")
def pipe_cell(folder: Path) -> Deed:
    path = results(folder) / "cell.json"
    path.unlink()
    os.mkfifo(path)
    return exported(says="cell.json")


@case("cell", "cell.json that is a link to /dev/zero")
def zeros_cell(folder: Path) -> Deed:
    path = results(folder) / "cell.json"
    path.unlink()
    path.symlink_to("/dev/zero")
    return exported(says="cell.json")


@case("cell", "cell's folder that is a link out of the results")
def linked_cell(folder: Path) -> Deed:
    place = results(folder)
    place.rename(folder / "outside")
    place.symlink_to(folder / "outside")
    return exported(says="leads out of")


@case("cell", "AUROC of 1e999")
def infinite_cell(folder: Path) -> Deed:
    path = results(folder) / "cell.json"
    changed(path, lambda cell: cell["row"].update(auroc="@"))
    path.write_text(path.read_text().replace('"@"', "1e999"))
    return exported()


@case("cell", "AUROC that is a text")
def text_cell(folder: Path) -> Deed:
    changed(results(folder) / "cell.json", lambda cell: cell["row"].update(auroc="<b>1</b>"))
    return exported()


@case("cell", "number of 5,000 digits")
def digits_cell(folder: Path) -> Deed:
    path = results(folder) / "cell.json"
    changed(path, lambda cell: cell["row"].update(seed="@"))
    path.write_text(path.read_text().replace('"@"', "9" * 5000))
    return exported()


@case("cell", "seed of 30 digits")
def seed_cell(folder: Path) -> Deed:
    changed(results(folder) / "cell.json", lambda cell: cell["row"].update(seed=10**30))
    return exported()


@case("cell", "cell that says it is another")
def other_cell(folder: Path) -> Deed:
    changed(results(folder) / "cell.json", lambda cell: cell.update(key="cd" * 32))
    return exported()


@case("cell", "manifest that lists a cell called ../../../../etc")
def outside_cell(folder: Path) -> Deed:
    changed(results(folder).parents[1] / "manifest.json", lambda m: m.update(cells=["../../../x"]))
    return exported(says="manifest.json")


@case("cell", "manifest nested 100,000 deep")
def deep_results(folder: Path) -> Deed:
    (results(folder).parents[1] / "manifest.json").write_text("[" * 100_000)
    return exported(says="manifest.json")


@case("cell", "failed cell without a name, asked for its status")
def nameless_cell(folder: Path) -> Deed:
    place = results(folder, status="failed", reason="x")
    (place / "cell.json").write_text('{"row": {"status": "failed"}}')
    digest = hashlib.sha256((place / "cell.json").read_bytes()).hexdigest()
    (place / "manifest.json").write_text(json.dumps({"files": {"cell.json": digest}}))
    return command("status", says="not run yet", outcome="set aside")


@case("cell", "marks of running processes that are none")
def marks(folder: Path) -> Deed:
    place = results(folder).parents[1] / ".running"
    place.mkdir()
    for name, text in {"x": "[]", "-1": "{}", "1": "[" * 10**5, "2": '{"since": "x"}'}.items():
        (place / f"{machine_name()}-{name}.json").write_text(text)
        (place / f"elsewhere-{name}.json").write_text(text)
    return command("status", says="not run yet", outcome="set aside")


@case("cell", "scores of 20,000,000 rows in a few kB", long=True)
def scores_bomb(folder: Path) -> Deed:
    path = results(folder) / "scores.parquet"
    table = pq.read_table(path).slice(0, 1)
    wide = pa.concat_tables([table] * 1000).combine_chunks()
    big = pa.concat_tables([wide] * 1000).combine_chunks()
    with pq.ParquetWriter(path, big.schema) as writer:
        for _ in range(20):
            writer.write_table(big)
    return command("report", says="scores.parquet")


@case("cell", "scores that are a text")
def scores_text(folder: Path) -> Deed:
    pq.write_table(pa.table({"score": ["<b>"]}), results(folder) / "scores.parquet")
    return command("report", says="scores.parquet")


@case("cell", "pictures of 2 GB of zeros packed into 2 MB")
def pictures_bomb(folder: Path) -> Deed:
    head = npy("(2000000000,)")
    zip_bomb(results(folder) / "attack.npz", {"clean.npy": head}, zeros=2 * 10**9)
    return command("report", says="attack.npz")


@case("cell", "figures whose array says 10^15 bytes")
def figures_shape(folder: Path) -> Deed:
    path = results(folder) / "figures.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("input.npy", npy("(1000000000000000,)"))
    return command("report", says="figures.npz")


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
