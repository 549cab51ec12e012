"""Experiment files and command lines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from campaign import Deed, case, command, experiment

PROFILE = ("profiles", "tiny")


def yaml_of(folder: Path, content: str | bytes, **more: Any) -> Deed:
    data = content.encode() if isinstance(content, str) else content
    (folder / "bench.yaml").write_bytes(data)
    return command("run", says=more.pop("says", "bench.yaml"), **more)


def appended(folder: Path, text: str, **more: Any) -> Deed:
    path = experiment(folder)
    return yaml_of(folder, path.read_text() + text, **more)


@case("config", "a billion laughs: ten aliases of ten aliases, nine times")
def laughs(folder: Path) -> Deed:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 10):
        inner = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} [{inner}]")
    return yaml_of(folder, "\n".join(lines) + "\n")


@case("config", "alias that contains itself")
def circular(folder: Path) -> Deed:
    return yaml_of(folder, "a: &a [*a]\n", says="contains itself")


@case("config", "tag that calls a function")
def tagged(folder: Path) -> Deed:
    def unharmed() -> None:
        assert not (folder / "ran").exists(), "the tag ran its command"

    return yaml_of(folder, "a: !!python/object/apply:os.mkdir [ran]\n", says="tag", after=unharmed)


@case("config", "lists nested 20,000 deep")
def nested(folder: Path) -> Deed:
    return yaml_of(folder, "a: " + "[" * 20_000, says="nested")


@case("config", "key that stands twice")
def twice(folder: Path) -> Deed:
    return appended(folder, "matrix: {}\n", says="stands twice")


@case("config", "file of 50 MB", long=True)
def enormous(folder: Path) -> Deed:
    return yaml_of(folder, "# comment\n" * 5 * 10**6)


@case("config", "file of 20 GB (with a hole)")
def hole(folder: Path) -> Deed:
    deed = yaml_of(folder, "")
    with (folder / "bench.yaml").open("r+b") as file:
        file.truncate(20 * 10**9)
    return deed


@case("config", "bytes that are no text")
def not_text(folder: Path) -> Deed:
    return yaml_of(folder, b"a: \xff\xfe\n")


@case("config", "zero bytes")
def zero_bytes(folder: Path) -> Deed:
    return yaml_of(folder, "a: b\0c\n")


@case("config", "date that does not exist")
def date(folder: Path) -> Deed:
    return appended(folder, "x: 2001-99-99\n")


@case("config", "number of 5,000 digits")
def digits(folder: Path) -> Deed:
    return appended(folder, f"x: {'9' * 5000}\n")


@case("config", "tag of an integer on a word")
def misnamed(folder: Path) -> Deed:
    return appended(folder, "x: !!int word\ny: !!timestamp word\n")


@case("config", "key that is a list")
def list_key(folder: Path) -> Deed:
    return appended(folder, "? [a, b]\n: c\n", says="plain words")


@case("config", "number that is none")
def nan(folder: Path) -> Deed:
    experiment(folder, (("protocol", "poison_rate"), float("nan")))
    return command("run", says="poison_rate")


@case("config", "number that is infinite")
def infinite(folder: Path) -> Deed:
    experiment(folder, ((*PROFILE, "pretraining", "learning_rate"), float("inf")))
    return command("run", says="learning_rate")


@case("config", "seed of 30 digits")
def seed(folder: Path) -> Deed:
    experiment(folder, ((*PROFILE, "seeds"), [10**30]))
    return command("run", says="seeds")


@case("config", "split seed of 30 digits")
def split_seed(folder: Path) -> Deed:
    experiment(folder, (("protocol", "split_seed"), 10**30))
    return command("run", says="split_seed")


@case("config", "label with a path in it")
def label_path(folder: Path) -> Deed:
    experiment(folder, (("matrix", "attacks", 1), {"attack": "badencoder", "label": "../../x"}))
    return command("run", says="label")


@case("config", "label with a line break, a zero byte and markup")
def label_markup(folder: Path) -> Deed:
    label = "a\n\0<script>alert(1)</script>"
    experiment(folder, (("matrix", "attacks", 1), {"attack": "badencoder", "label": label}))
    return command("run", says="label")


@case("config", "folder in the place of a file")
def is_folder(folder: Path) -> Deed:
    (folder / "bench.yaml").mkdir()
    return command("run", says="bench.yaml")


@case("config", "named pipe that nobody writes to")
def pipe(folder: Path) -> Deed:
    os.mkfifo(folder / "bench.yaml")
    return command("run", says="bench.yaml")


@case("config", "/dev/zero")
def zeros(folder: Path) -> Deed:
    return command("run", "--config", "/dev/zero", says="/dev/zero")


@case("config", "link to itself")
def itself(folder: Path) -> Deed:
    (folder / "bench.yaml").symlink_to("bench.yaml")
    return command("run", says="bench.yaml")


@case("config", "profile that extends itself")
def extends(folder: Path) -> Deed:
    experiment(folder, ((*PROFILE, "extends"), "tiny"))
    return command("run", says="extends itself")


@case("config", "profile whose name leads out of the results")
def profile_path(folder: Path) -> Deed:
    path = experiment(folder)
    text = path.read_text().replace("tiny", '"../../out"')
    return yaml_of(folder, text, says="profiles")


@case("command line", "seed of 20 digits")
def seed_option(folder: Path) -> Deed:
    experiment(folder)
    return command("run", "--seeds", "99999999999999999999", says="--seeds")


@case("command line", "seed of 5,000 digits")
def seed_digits(folder: Path) -> Deed:
    experiment(folder)
    return command("run", "--seeds", "9" * 5000, says="--seeds")


@case("command line", "negative seed")
def seed_negative(folder: Path) -> Deed:
    experiment(folder)
    return command("run", "--seeds", "0,-1", says="--seeds")


@case("command line", "attack with a path and a line break in its name")
def attack_path(folder: Path) -> Deed:
    experiment(folder)
    return command("run", "--attacks", "../../x\ny\x1b[2J", says="unknown attack")


@case("command line", "profile with a path in its name")
def profile_option(folder: Path) -> Deed:
    experiment(folder)
    return command("report", "--profile", "../../etc", says="unknown profile")


@case("command line", "0 steps")
def steps(folder: Path) -> Deed:
    experiment(folder)
    return command("run", "--limit-steps", "0", says="limit-steps")


@case("command line", "steps that are no number")
def steps_word(folder: Path) -> Deed:
    experiment(folder)
    return command("run", "--limit-steps", "1e999", says="limit-steps")


@case("command line", "results folder that is a file")
def results_file(folder: Path) -> Deed:
    experiment(folder)
    (folder / "results").write_text("")
    return command("run", says="results")


@case("command line", "cache that is a device")
def cache_device(folder: Path) -> Deed:
    experiment(folder)
    return command("run", "--cache", "/dev/null", says="/dev/null")


@case("command line", "BENCH_DATA that is a file")
def data_file(folder: Path) -> Deed:
    (folder / "data.txt").write_text("")
    experiment(
        folder,
        (("datasets", "cifar10"), {"source": "auto"}),
        ((*PROFILE, "dataset"), "cifar10"),
    )
    return command("run", environment={"BENCH_DATA": str(folder / "data.txt")}, says="cifar10")


@case("command line", "scan with a value nested 10,000 deep")
def set_nested(folder: Path) -> Deed:
    value = "mahalanobis.shrinkage=" + "[" * 10_000
    (folder / "images").mkdir()
    return command("scan", "x.pth", "--images", "images", "--set", value, says="--set")


@case("command line", "scan with a date that does not exist as a value")
def set_date(folder: Path) -> Deed:
    (folder / "images").mkdir()
    pair = "mahalanobis.shrinkage=2001-99-99"
    return command("scan", "x.pth", "--images", "images", "--set", pair, says="--set")


@case("command line", "scan at a rate that is no number")
def rate(folder: Path) -> Deed:
    (folder / "images").mkdir()
    return command("scan", "x.pth", "--images", "images", "--fpr", "nan", says="--fpr")


@case("command line", "scan with a seed of 30 digits")
def scan_seed(folder: Path) -> Deed:
    import torch
    from hostile_checkpoints import narrow, scanned

    torch.save(narrow(), folder / "x.pth")
    deed = scanned(folder, "x.pth")
    return command(*deed.arguments, "--seed", "1" * 30, says="seed")


@case("command line", "scan of a path of 10,000 characters")
def long_path(folder: Path) -> Deed:
    (folder / "images").mkdir()
    return command("scan", "x" * 10_000 + ".pth", "--images", "images")


@case("command line", "Ray at a port where nobody answers")
def nobody(folder: Path) -> Deed:
    experiment(folder)
    return command("run", "--executor", "ray", "--address", "127.0.0.1:1", says="no Ray cluster")


@case("command line", "Ray at a word")
def word(folder: Path) -> Deed:
    experiment(folder)

    def unwritten() -> None:
        assert not (folder / "results").exists(), "a refused run wrote results"

    more = ("--executor", "ray", "--address", "nonsense")
    return command("run", *more, says="HOST:PORT", after=unwritten)


@case("command line", "Ray at the address of a page")
def page(folder: Path) -> Deed:
    experiment(folder)
    return command("run", "--executor", "ray", "--address", "http://127.0.0.1:1", says="HOST:PORT")


@case("command line", "cache below a file")
def cache_below(folder: Path) -> Deed:
    experiment(folder)
    (folder / "file").write_text("")

    def unwritten() -> None:
        assert not (folder / "results").exists(), "a refused run wrote results"

    return command("run", "--cache", "file/cache", says="file/cache: Not a d", after=unwritten)


@case("config", "path of half a character")
def surrogate(folder: Path) -> Deed:
    return appended(folder, 'data_roots: ["\\ud800"]\n', says="half a character")


@case("config", "width of 31 digits")
def width(folder: Path) -> Deed:
    experiment(folder, (("profiles", "tiny", "encoder", "settings", "width"), 10**30))
    return command("run", says="width should be at most")


@case("config", "description that would steer the terminal")
def escapes(folder: Path) -> Deed:
    experiment(folder, (("profiles", "tiny", "description"), "\x1b]0;mine\x07"))
    return command("list", "profiles", outcome="set aside", says="\\x1b]0;mine")


@case("command line", "cache whose name is no text")
def cache_bytes(folder: Path) -> Deed:
    experiment(folder)
    return command("run", "--cache", os.fsdecode(b"cache-\xff"), says="has to be UTF-8")


@case("command line", "results whose name is no text")
def results_bytes(folder: Path) -> Deed:
    experiment(folder)
    return command("run", "--results", os.fsdecode(b"results-\xff"), says="has to be UTF-8")
