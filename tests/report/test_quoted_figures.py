"""README and docs quote the committed tables: every figure of theirs is looked up.

After a block of text (a paragraph, a list, a table) a comment says where its figures, in their
order, come from; braces stand for several, the first ones varying slowest:

    <!-- figures
    {none,badencoder} dede-id {auroc,auroc_placebo}
    badencoder dede-id auroc - 0.5
    badencoder decree encoder_score seed 1
    cifar10-ablations: badencoder strip-sum auroc
    reported DeDe AUROC published
    restarts badclip {victim,twin} {least,most,mean}
    parts clip-backdoor victim {whole,inside,outside,another}
    parts clip-backdoor victim whole deviation
    given
    in every seed: clip-backdoor dede-id auroc < clip-backdoor dede-id auroc_placebo
    -->

An attack, a defense and a column of ``leaderboard.csv`` (or of ``tables/differences.csv``, or a
metric of ``tables/downstream.csv``) are the mean over the stored seeds, without a sign; ``seed N``
one of them; a profile before a colon is another than ``cifar10-small``; ``restarts`` are sizes in
``robustness/decree_restarts.csv`` (``all all most from 100``: of any encoder, after 100 steps and
more); ``parts`` is the mean of triggered images minus that of clean ones, in thousands, in
``robustness/dede_parts.csv``; ``given`` is no measurement of ours. When results change:

    python tests/report/test_quoted_figures.py --write
"""

from __future__ import annotations

import csv
import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "results"
LEADERBOARD = RESULTS / "cifar10-small" / "leaderboard.csv"
PAGES = {
    "README.md": ("## What it looks like", "### Reading a run"),
    "docs/findings.md": ("# What the first leaderboard says", None),
    "docs/small-scale.md": ("# Attacks at a small scale", "## Published settings"),
}
COMMENT = re.compile(r"<!-- figures\n(.*?)\n-->", re.DOTALL)
FIGURE = re.compile(r"(?<![\w.])\d+(?:\.\d+)? %|(?<![\w.])\d+\.\d+(?!\w|\.\d)")


@dataclass(frozen=True)
class Block:
    """A stretch of text (its place in the page) and the lines that say whence its figures are."""

    start: int
    text: str
    lines: list[str]

    @property
    def sources(self) -> list[str]:
        plain = [line for line in self.lines if not line.startswith("in every seed:")]
        return [source for line in plain for source in _expanded(line)]

    @property
    def claims(self) -> list[str]:
        claims = [line for line in self.lines if line.startswith("in every seed:")]
        return [c for line in claims for c in _expanded(line.removeprefix("in every seed:"))]


def blocks(page: str) -> Iterator[Block]:
    """The annotated blocks of a page's checked part, and what is left with figures."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    first, last = PAGES[page]
    at, end = text.index(first), text.index(last) if last else len(text)
    for comment in COMMENT.finditer(text, at, end):
        yield Block(at, text[at : comment.start()], comment[1].splitlines())
        at = comment.end()
    yield Block(at, text[at:end], [])


def value_of(source: str, seed: str | None = None) -> float:
    """What a table says, of one seed or in the mean over those that are stored."""
    first, *others = source.split(" - ")
    value = _term(first, seed)
    for other in others:
        value -= _term(other, seed)
    return value


def _term(term: str, seed: str | None) -> float:
    profile, _, said = term.rpartition(": ")
    folder, words = RESULTS / (profile.strip() or "cifar10-small"), said.split()
    if len(words) == 1:
        return float(words[0])
    if words[0] == "reported":
        _, system, metric, column = words
        rows = _rows(folder / "tables/reported-vs-measured.csv")
        (row,) = (r for r in rows if (r["system"], r["metric"]) == (system, metric))
        return float(row[column])
    if words[0] == "restarts":
        return _restarts(*words[1:])
    if words[0] == "parts":
        return _parts(*words[1:])
    attack, defense, column, *which = words
    seed = which[1] if which else seed
    table, name = _home(folder, column)
    values = [
        float(row[name])
        for row in _rows(folder / table)
        if (row["attack"], row["defense"]) == (attack, defense)
        and (seed is None or row.get("seed", seed) == seed)
        and (table != "tables/downstream.csv" or _of_victim(row, column))
    ]
    assert values, f"no table has {term!r}"
    return sum(values) / len(values)


def _restarts(attack: str, encoder: str, end: str, bound: str = "from", steps: str = "0") -> float:
    """The least, the most or the mean that DECREE's inversions of some encoders gave."""
    sizes = [
        float(row["pl1"])
        for row in _rows(RESULTS / "robustness" / "decree_restarts.csv")
        if attack in (row["attack"], "all")
        and encoder in (row["encoder"], "all")
        and (
            int(row["steps"]) >= int(steps) if bound == "from" else int(row["steps"]) <= int(steps)
        )
    ]
    return {"least": min, "most": max, "mean": fmean}[end](sizes)


def _parts(attack: str, encoder: str, part: str, what: str = "excess") -> float:
    """How much more error DeDe has on triggered images than on clean ones, in thousands, or how
    much that of triggered ones deviates."""
    found = [
        row
        for row in _rows(RESULTS / "robustness" / "dede_parts.csv")
        if (row["attack"], row["encoder"], row["part"].split()[0]) == (attack, encoder, part)
    ]
    clean, triggered = (
        next(row for row in found if row["condition"] == name) for name in ("clean", "triggered")
    )
    assert len(found) == len({row["condition"] for row in found}), "of several seeds"
    if what == "deviation":
        return float(triggered["deviation"]) / 1000
    return (float(triggered["mean"]) - float(clean["mean"])) / 1000


def _home(folder: Path, column: str) -> tuple[str, str]:
    """The table that has a column or metric, and what the column is called there."""
    for table in ("leaderboard.csv", "tables/differences.csv"):
        if (folder / table).is_file() and column in _rows(folder / table)[0]:
            return table, column
    return "tables/downstream.csv", "value"


def _of_victim(row: dict[str, str], metric: str) -> bool:
    return row["metric"] == metric and row["measured_on"] == "victim"


@cache
def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _expanded(line: str) -> list[str]:
    parts = [
        part[1:-1].split(",") if part.startswith("{") else [part]
        for part in re.split(r"(\{[^}]*\})", line)
    ]
    return ["".join(choice).strip() for choice in itertools.product(*parts)]


def written(value: float, like: str) -> str:
    """A value with as many digits as a figure in the text, as a percentage if that is one."""
    number = like.removesuffix(" %")
    digits = len(number.partition(".")[2])
    percent = number != like
    return f"{abs(value) * (100 if percent else 1):.{digits}f}{' %' if percent else ''}"


def corrected(block: Block) -> str:
    """The block's text with the figures of the tables in place of its own."""
    sources = iter(block.sources)

    def look_up(figure: re.Match[str]) -> str:
        source = next(sources, None)
        assert source is not None, f"no table is named for {figure[0]} in: {block.text.strip()}"
        return figure[0] if source == "given" else written(value_of(source), figure[0])

    text = FIGURE.sub(look_up, block.text)
    left = list(sources)
    assert not left, f"the text has no figure for {left}: {block.text.strip()}"
    return text


pytestmark = pytest.mark.skipif(
    not LEADERBOARD.is_file(), reason="results/ is not here: no checkout"
)


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_is_that_of_its_table(page):
    for block in blocks(page):
        assert block.text == corrected(block)


@pytest.mark.parametrize("page", PAGES)
def test_what_is_said_of_every_seed_holds_in_each(page):
    seeds = sorted({row["seed"] for row in _rows(LEADERBOARD)})
    for block in blocks(page):
        for claim in block.claims:
            left, sign, right = re.split(r" ([<>]) ", claim)
            stored = [s for s in seeds if _stored(left, s)]
            assert stored, claim
            for seed in stored:
                below = value_of(left, seed) < value_of(right, seed)
                assert below == (sign == "<"), f"seed {seed}: {claim}"


def _stored(source: str, seed: str) -> bool:
    attack, defense, *_ = source.split()
    names = (attack, defense, seed)
    rows = _rows(LEADERBOARD)
    return any((r["attack"], r["defense"], r["seed"]) == names for r in rows)


def test_a_wrong_figure_would_be_found():
    right = Block(0, "DeDe has 0.500.", ["none decree-gated auroc"])
    assert corrected(right) == right.text
    wrong = Block(0, "DeDe has 0.501 and 50 %.", ["none decree-gated auroc"] * 2)
    assert corrected(wrong) == "DeDe has 0.500 and 50 %."
    with pytest.raises(AssertionError, match=r"no table is named for 0\.7"):
        corrected(Block(0, "DeDe has 0.7.", []))
    with pytest.raises(AssertionError, match="no figure for"):
        corrected(Block(0, "DeDe has none.", ["given"]))


def write() -> None:
    """Replace every figure of the pages that is not its table's."""
    for page in PAGES:
        path = REPOSITORY / page
        text = path.read_text(encoding="utf-8")
        for block in reversed(list(blocks(page))):
            text = text[: block.start] + corrected(block) + text[block.start + len(block.text) :]
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {sys.argv[0]} --write")
    write()
