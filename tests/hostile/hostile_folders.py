"""Caches and results folders that somebody else wrote, and names that want to be code."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import warnings
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

KEY = "ab" * 32


def sealed(folder: Path, **files: str) -> Path:
    """An artifact's folder with the checksums of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    (folder / "manifest.json").write_text(json.dumps({"files": digests}))
    return folder


def looked_up(folder: Path, says: str = "leads out of", **more: Any) -> Deed:
    """Ask the cache of the case whether it has an artifact, and for the right to compute it."""

    def call() -> None:
        from bench.store import Store

        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
        store = Store(folder / "cache")
        if store.has("fit", KEY):
            return
        with store.lock(KEY), store.writing("fit", KEY) as place:
            (place / "value").write_text("mine")

    return Deed(call=call, says=says, **more)


def still_there(path: Path, text: str) -> Callable[[], None]:
    def check() -> None:
        assert path.is_file(), f"{path.name} is gone"
        assert path.read_text() == text, f"{path.name} was written to"

    return check


@case("cache", "artifact that is a link to a folder outside")
def linked_artifact(folder: Path) -> Deed:
    outside = sealed(folder / "outside", value="theirs")
    place = folder / "cache" / "fit" / "ab"
    place.mkdir(parents=True)
    (place / KEY).symlink_to(outside)
    return looked_up(folder, after=still_there(outside / "value", "theirs"))


@case("cache", "kind's folder that is a link to a folder outside, with a damaged artifact")
def linked_kind(folder: Path) -> Deed:
    outside = sealed(folder / "outside" / "ab" / KEY, value="theirs")
    (outside / "value").write_text("changed")
    (folder / "cache").mkdir()
    (folder / "cache" / "fit").symlink_to(folder / "outside")
    return looked_up(folder, after=still_there(outside / "value", "changed"))


@case("cache", "file of an artifact that is a link to a file outside")
def linked_file(folder: Path) -> Deed:
    (folder / "secret").write_text("theirs")
    place = sealed(folder / "cache" / "fit" / "ab" / KEY, value="theirs")
    (place / "value").unlink()
    (place / "value").symlink_to(folder / "secret")
    return looked_up(folder, after=still_there(folder / "secret", "theirs"))


@case("cache", "lock that is a link to a file outside")
def linked_lock(folder: Path) -> Deed:
    (folder / "secret").write_text("theirs")
    (folder / "cache" / "locks").mkdir(parents=True)
    (folder / "cache" / "locks" / f"{KEY}.lock").symlink_to(folder / "secret")
    return looked_up(folder, after=still_there(folder / "secret", "theirs"))


@case("cache", "folder of locks that is a link to a folder outside")
def linked_locks(folder: Path) -> Deed:
    (folder / "outside").mkdir()
    (folder / "cache").mkdir()
    (folder / "cache" / "locks").symlink_to(folder / "outside")

    def untouched() -> None:
        assert not list((folder / "outside").iterdir()), "something was written outside"

    return looked_up(folder, after=untouched)


@case("cache", "scratch folder that is a link to a folder outside")
def linked_scratch(folder: Path) -> Deed:
    (folder / "outside").mkdir()
    (folder / "cache").mkdir()
    (folder / "cache" / "tmp").symlink_to(folder / "outside")
    return looked_up(folder)


def leading_outside(place: str) -> Callable[[Path], Deed]:
    """A run where a folder that it writes notes into is a link to a folder outside."""

    def prepare(folder: Path) -> Deed:
        outside = folder / "outside"
        outside.mkdir()
        # What a sweep would remove: a process of that number never lives.
        (outside / f"{machine_name()}-999999999-0").mkdir()
        (folder / place).parent.mkdir(parents=True)
        (folder / place).symlink_to(outside)
        experiment(folder, (("matrix", "defenses"), ["mahalanobis"]))

        def untouched() -> None:
            assert len(list(outside.iterdir())) == 1, "something happened outside"

        return command("run", "--attacks", "none", says="leads out of", after=untouched)

    return prepare


for place in (".bench/logs", ".bench/seconds", "results/tiny/.part", "results/tiny/.running"):
    case("cache", f"run where {place} leads outside", long=True)(leading_outside(place))


@case("cache", "run on a cache whose folder of data leads outside", long=True)
def linked_run(folder: Path) -> Deed:
    (folder / "outside").mkdir()
    (folder / ".bench").mkdir()
    (folder / ".bench" / "data").symlink_to(folder / "outside")
    experiment(folder, (("matrix", "defenses"), ["mahalanobis"]))
    return command("run", "--attacks", "none", says="leads out of", outcome="failed cell")


@case("cache", "artifact whose manifest names ../../../secret")
def traversal(folder: Path) -> Deed:
    return named_in_manifest(folder, "../../../../secret")


@case("cache", "artifact whose manifest names an absolute path")
def absolute(folder: Path) -> Deed:
    return named_in_manifest(folder, str(folder / "secret"))


@case("cache", "artifact whose manifest names a device")
def device(folder: Path) -> Deed:
    return named_in_manifest(folder, "/dev/zero")


def named_in_manifest(folder: Path, name: str) -> Deed:
    (folder / "secret").write_text("theirs")
    place = sealed(folder / "cache" / "fit" / "ab" / KEY, value="theirs")
    digest = hashlib.sha256(b"theirs").hexdigest()
    (place / "manifest.json").write_text(json.dumps({"files": {name: digest}}))
    return again(folder, after=still_there(folder / "secret", "theirs"))


def again(folder: Path, **more: Any) -> Deed:
    """The artifact is damaged: it is computed again, with a warning."""
    return looked_up(folder, says="is damaged", outcome="set aside", **more)


@case("cache", "artifact whose manifest is nested 100,000 deep")
def deep_manifest(folder: Path) -> Deed:
    place = sealed(folder / "cache" / "fit" / "ab" / KEY, value="theirs")
    (place / "manifest.json").write_text("[" * 100_000)
    return again(folder)


@case("cache", "artifact whose manifest is 20 GB (with a hole)")
def huge_manifest(folder: Path) -> Deed:
    place = sealed(folder / "cache" / "fit" / "ab" / KEY, value="theirs")
    os.truncate(place / "manifest.json", 20 * 10**9)
    return again(folder)


@case("cache", "artifact whose manifest is a named pipe")
def pipe_manifest(folder: Path) -> Deed:
    place = sealed(folder / "cache" / "fit" / "ab" / KEY, value="theirs")
    (place / "manifest.json").unlink()
    os.mkfifo(place / "manifest.json")
    return again(folder)


@case("cache", "artifact whose manifest lists a number in the place of names")
def numbered_manifest(folder: Path) -> Deed:
    place = sealed(folder / "cache" / "fit" / "ab" / KEY, value="theirs")
    (place / "manifest.json").write_text('{"files": {"value": 3, "": 1}}')
    return again(folder)


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


SCRIPT = "</script><img src=x onerror=alert(1)>"
FORMULA = '=HYPERLINK("http://x","y")'
TEX = r"\input{/etc/passwd}"
LINK = "[click](javascript:alert(1)) | `x`"


def shown(folder: Path, form: str, text: str, check: Callable[[str], None]) -> Deed:
    """Every table in one format, of a cell whose names and whose error are ``text``."""
    place = results(
        folder, text, status="failed", reason=text, row={"dataset": text, "downstream": text}
    )

    def after() -> None:
        check((folder.parent / f"{folder.name}.out").read_text())

    arguments = ("export", "--format", form, "--results", place.parents[2])
    return command(*arguments, outcome="escaped", after=after)


@case("markup", "HTML in labels, data set and error, as HTML")
def html_html(folder: Path) -> Deed:
    def check(text: str) -> None:
        assert "<img" not in text, "an image tag came through"
        assert "&lt;img" in text, "the text is lost"

    return shown(folder, "html", SCRIPT, check)


@case("markup", "HTML in labels, data set and error, as Markdown")
def html_markdown(folder: Path) -> Deed:
    def check(text: str) -> None:
        assert "<img" not in text, "an image tag came through"
        assert "onerror" in text, "the text is lost"

    return shown(folder, "markdown", SCRIPT, check)


@case("markup", "Markdown in labels, data set and error, as Markdown")
def markdown_markdown(folder: Path) -> Deed:
    def check(text: str) -> None:
        assert "[click](" not in text, "a link came through"
        rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
        widths = {row.count("|") for row in rows}
        assert len(widths) == 1, "a column came through"

    return shown(folder, "markdown", LINK, check)


@case("markup", "LaTeX in labels, data set and error, as LaTeX")
def latex_latex(folder: Path) -> Deed:
    def check(text: str) -> None:
        assert "\\input{" not in text, "a command came through"
        assert "textbackslash" in text, "the text is lost"

    return shown(folder, "latex", TEX, check)


@case("markup", "formula in labels, data set and error, as CSV")
def formula_csv(folder: Path) -> Deed:
    def check(text: str) -> None:
        values = [value for row in csv.reader(io.StringIO(text)) for value in row]
        assert not any(value.startswith(("=", "+", "@")) for value in values), "a formula"
        assert f"'{FORMULA}" in values, "the text is lost"

    return shown(folder, "csv", FORMULA, check)


@case("markup", "formula behind a tab and a line break, as CSV")
def tab_csv(folder: Path) -> Deed:
    def check(text: str) -> None:
        values = [value for row in csv.reader(io.StringIO(text)) for value in row]
        assert not any(value.lstrip().startswith("=") for value in values), "a formula"

    return shown(folder, "csv", f"\n{FORMULA}", check)


@case("markup", "everything at once, in the page of a report", long=True)
def page(folder: Path) -> Deed:
    place = results(folder, SCRIPT, status="failed", reason=SCRIPT + TEX + FORMULA)

    def after() -> None:
        text = (place.parents[1] / "leaderboard.html").read_text()
        assert SCRIPT not in text, "markup came through"

    return command("report", outcome="escaped", after=after)


@case("markup", "names of images that are markup and formulas, in a scan")
def scan_names(folder: Path) -> Deed:
    import numpy as np
    from PIL import Image

    (folder / "images").mkdir()
    torch.save(narrow(), folder / "x.pth")
    for number, name in enumerate(("=cmd|x!A0", "<img src=x onerror=alert(1)>", "@a", "b")):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
    (folder / "images" / "<svg onload=alert(1)>.png").write_bytes(b"")

    def after() -> None:
        assert "<img src=x" not in (folder / "out" / "report.html").read_text(), "an image tag"
        assert "<svg onload" not in (folder / "out" / "report.html").read_text(), "a script"
        table = (folder / "out" / "scores.csv").read_text()
        assert not any(line.startswith(("=", "@")) for line in table.splitlines()), "a formula"

    arguments = ("--images", "images", "--defenses", "mahalanobis", "--device", "cpu")
    return command("scan", "x.pth", *arguments, "--output", "out", outcome="escaped", after=after)


@case("cache", "seconds of a stage that are a list, a pipe, a huge number")
def strange_seconds(folder: Path) -> Deed:
    experiment(folder)
    place = folder / ".bench" / "seconds"
    place.mkdir(parents=True)

    def call() -> None:
        from bench.configfile import ConfigFile
        from bench.graph import cost_name
        from bench.history import History
        from bench.session import Session

        session = Session(ConfigFile(folder / "bench.yaml"))
        stages = [stage for cell in session.cells for stage in cell.stage.inputs.values()]
        names = list(dict.fromkeys(cost_name(stage) for stage in stages))[:4]
        os.mkfifo(place / f"{names[0]}.json")
        strange = ("[1]", '{"seconds": %s}' % ("9" * 400), "[" * 10**5)
        for name, text in zip(names[1:], strange, strict=True):
            (place / f"{name}.json").write_text(text)
        history = History(session.store)
        assert {history.seconds(stage) for stage in stages} == {None}
        print("all of them count as unknown")

    return Deed(call=call, says="all of them count as unknown", outcome="set aside")
