"""The leaderboard page: one file that needs nothing else and runs no text of the results."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from stored_cells import write_cell, write_manifest

from bench.report.curves import STEPS, cell_scores, histograms, roc_points
from bench.report.export import export
from bench.report.formats import escape_latex, number_text
from bench.report.leaderboard import leaderboard
from bench.report.page import leaderboard_page
from bench.report.page_cells import FIGURES_BUDGET, LOOKS_BUDGET
from bench.report.presentation import leaderboard_table
from bench.report.rendering import render
from bench.report.schema import LEADERBOARD_COLUMNS, load_results

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "</script><img src=x onerror=alert(1)>"
SPECIAL = "_%&#${}\\<>\" <!-- \u2028 漢 é '` ~^"


class Markup(HTMLParser):
    """Tags with their attributes, and the text of each script and style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open = tag

    def handle_data(self, text):
        if self._open in self.inside:
            self.inside[self._open].append(text)

    def handle_endtag(self, tag):
        self._open = ""


def page_of(folder: Path) -> str:
    return leaderboard_page(load_results(folder))


def payload_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found.group(1))


def shown(payload: dict, view: str = "mean") -> list[dict[str, str]]:
    """Rows as column title -> text."""
    texts, table = payload["texts"], payload["table"]
    titles = [texts[column["title"]] for column in table["columns"]]
    return [
        dict(zip(titles, (texts[number] for number in row["t"]), strict=True))
        for row in table[view]
    ]


def values(payload: dict, view: str = "mean") -> list[dict[str, str]]:
    """Rows as column of leaderboard.csv -> text."""
    texts, table = payload["texts"], payload["table"]
    return [
        dict(zip(table["names"], (texts[number] for number in row["v"]), strict=True))
        for row in table[view]
    ]


@pytest.fixture
def hostile(tmp_path):
    labels = (HOSTILE, SPECIAL)
    keys = [
        write_cell(tmp_path, HOSTILE, SPECIAL, figures=True),
        write_cell(tmp_path, HOSTILE, HOSTILE, status="failed", reason=f"{HOSTILE}\n{SPECIAL}"),
        write_cell(tmp_path, "=1+1", SPECIAL, control=True),
    ]
    path = tmp_path / "cells" / keys[0] / "cell.json"
    cell = json.loads(path.read_text())
    cell["config"]["attack"] = {HOSTILE: {SPECIAL: [HOSTILE, None, 1.5]}}
    cell["decoy"] = {"description": HOSTILE, "candidates": [{"name": HOSTILE, "used": True}]}
    cell["provenance"] = {
        "versions": {HOSTILE: SPECIAL},
        "stages": [{"kind": "fit", "label": HOSTILE, "key": HOSTILE}],
    }
    cell["reduced"] = HOSTILE
    path.write_text(json.dumps(cell))
    write_manifest(tmp_path, [HOSTILE, "=1+1"], labels, keys)
    return tmp_path


def test_the_page_is_one_file_that_loads_nothing(make_results):
    page = page_of(make_results(figures=True))
    markup = Markup(page)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in markup.tags}
    for _, attributes in markup.tags:
        assert "src" not in attributes
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert (attributes.get("href") or "#").startswith("#")
    assert "@import" not in page
    assert "url(" not in page


def test_the_policy_allows_the_own_script_and_style_and_nothing_else(make_results):
    markup = Markup(page_of(make_results()))
    policy = next(a["content"] for tag, a in markup.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind, contents in markup.inside.items():
        digest = base64.b64encode(hashlib.sha256(contents[-1].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_names_are_data_and_never_markup(hostile):
    page = page_of(hostile)
    markup = Markup(page)
    assert [tag for tag, _ in markup.tags].count("script") == 2
    assert "img" not in [tag for tag, _ in markup.tags]
    assert HOSTILE not in page
    assert "<!--" not in page
    embedded = re.search(r'id="data">(.*?)</script>', page, re.S).group(1)
    assert embedded.isascii()
    assert not re.search("[<>&]", embedded)
    rows = shown(payload_of(page))
    assert {row["attack"] for row in rows} == {HOSTILE, "=1+1 (control)"}
    assert rows[0]["defense"].startswith(SPECIAL)


def test_no_script_makes_markup_of_data():
    for path in (ROOT / "bench" / "report" / "assets").glob("*.js"):
        text = path.read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
            assert word not in text, (path.name, word)
        assert "</" not in text


def test_latex_is_escaped_as_in_the_other_tables(hostile):
    payload = payload_of(page_of(hostile))
    for number, text in enumerate(payload["texts"]):
        assert payload["latex"].get(str(number), text) == escape_latex(text)


def test_every_column_of_the_leaderboard_can_be_shown(make_results):
    payload = payload_of(page_of(make_results()))
    table = payload["table"]
    behind = {table["names"][part] for column in table["columns"] for part in column["parts"]}
    assert behind >= set(LEADERBOARD_COLUMNS)
    titles = [payload["texts"][column["title"]] for column in table["columns"]]
    assert len(set(titles)) == len(titles)
    assert all(column["meanings"] for column in table["columns"])
    assert {column["group"] for column in table["columns"]} <= set(table["groups"])


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_what_is_shown_at_first_is_the_readable_table(make_results, seeds):
    results = load_results(make_results(seeds=seeds))
    payload = payload_of(leaderboard_page(results))
    table = leaderboard_table(results)
    first = [
        payload["texts"][column["title"]]
        for column in payload["table"]["columns"]
        if column["shown"] and column["view"] != "seeds"
    ]
    assert first == list(table.headers)
    rows = [tuple(row[title] for title in first) for row in shown(payload)]
    assert rows == list(table.rows)


def test_seeds_are_averaged_and_each_can_be_seen(make_results):
    results = load_results(make_results(seeds=(0, 1, 2)))
    payload = payload_of(leaderboard_page(results))
    assert len(payload["table"]["mean"]) == 9
    assert {row["seed"] for row in values(payload)} == {"0, 1, 2"}
    single = values(payload, "seeds")
    frame = leaderboard(results)
    assert [row["key"] for row in single] == list(frame["key"])
    assert [row["auroc"] for row in single] == [number_text(value) for value in frame["auroc"]]
    assert sorted(map(len, payload["siblings"])) == [3] * 9


def test_seeds_of_a_row_stand_in_numerical_order(make_results):
    results = load_results(make_results(count=60, seeds=(10, 2)))
    payload = payload_of(leaderboard_page(results))
    assert {row["seed"] for row in values(payload)} == {"2, 10"}


def test_one_seed_has_no_switch(make_results):
    assert payload_of(page_of(make_results()))["table"]["seeds"] is None


def test_every_status_is_a_row_with_a_page(make_results):
    special = {
        ("badencoder", "dede"): ("failed", "boom"),
        ("badencoder", "knn"): ("attack-weak", "ASR 0.4"),
        ("badencoder", "kmeans"): ("attack-invalid", "ASR 0.1"),
        ("drupe", "dede"): ("uncontrolled", "no twin"),
        ("drupe", "knn"): ("skipped", "needs text"),
    }
    payload = payload_of(page_of(make_results(special=special)))
    rows = payload["table"]["mean"]
    assert {row["s"] for row in rows} == {"ok", *(status for status, _ in special.values())}
    reasons = {(row["attack"], row["defense"]): row["reason"] for row in values(payload)}
    assert all(reasons[place] == reason for place, (_, reason) in special.items())
    for row in rows:
        cell = payload["cells"][row["c"]]
        assert cell["status"] == row["s"]
        assert (cell["roc"] is None) == (row["s"] in ("failed", "skipped"))
        if row["s"] == "uncontrolled":
            assert cell["roc"]["twin"] is None
            assert "placebo" not in cell["histograms"]


def test_an_unfinished_run_says_so(make_results):
    page = page_of(make_results(absent=frozenset([("drupe", "knn")])))
    assert '<p class="state" role="note">1 of 9 cells is not stored yet' in page
    assert len(payload_of(page)["cells"]) == 8


@pytest.mark.parametrize("smoke", [True, False])
def test_a_run_without_cells_is_a_page(tmp_path, smoke):
    keys = [write_cell(tmp_path, "x", "d")] if smoke else []
    write_manifest(tmp_path, ["x"], ["d"], keys, smoke=smoke)
    page = page_of(tmp_path)
    assert "No rows." in page
    assert ("smoke run" in page) == smoke
    assert payload_of(page)["cells"] == []


def test_one_cell_is_a_page(tmp_path):
    write_manifest(tmp_path, ["x"], ["d"], [write_cell(tmp_path, "x", "d")])
    payload = payload_of(page_of(tmp_path))
    assert [row["defense"] for row in shown(payload)] == ["d"]


def test_without_script_the_readable_table_is_there(make_results):
    page = page_of(make_results())
    inside = re.search("<noscript>(.*?)</noscript>", page, re.S).group(1)
    assert inside.count("<tr") == 10
    assert "<td>dede</td>" in inside


def test_notes_and_marks_are_those_of_the_other_tables(make_results):
    results = load_results(make_results())
    page = leaderboard_page(results)
    text = re.sub(r"\s+", " ", page).replace("&gt;", ">").replace("&lt;", "<").replace("&#39;", "'")
    for note in leaderboard_table(results).notes:
        assert f"<p>{note}</p>" in text
    assert any("†" in note for note in leaderboard_table(results).notes)


def test_the_export_and_the_report_are_this_page_and_other_tables_are_plain(make_results):
    folder = make_results(count=60, shifts={"dede": 2.0})
    page = page_of(folder)
    assert export(folder, "html") == page
    assert "<script" not in export(folder, "html", "summary")
    render(folder)
    assert (folder / "leaderboard.html").read_text() == page


def test_two_processes_write_the_same_bytes_without_torch_or_matplotlib(make_results):
    folder = make_results(figures=True, count=60)
    add_looks(folder)
    code = (
        "import sys; from bench.report.export import export\n"
        "sys.stdout.write(export(sys.argv[1], 'html'))\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'torch', 'matplotlib', 'attacks', 'defenses'}, loaded\n"
    )
    pages = [
        subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            cwd=ROOT,
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert pages[0] == pages[1]
    assert pages[0].decode() == page_of(folder)


def add_looks(folder: Path, side: int = 32) -> None:
    """Give every measured cell what its attack looks like."""
    generator = np.random.default_rng(0)
    clean = generator.integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    triggered = clean.copy()
    triggered[:, -8:, -8:] = 255
    for cell in load_results(folder).cells:
        if cell.measured:
            np.savez(
                cell.path / "attack.npz",
                clean=clean,
                triggered=triggered,
                difference=triggered - clean,
                gain=np.float32(2),
                victim_points=np.zeros((3, 2), np.float32),
                victim_groups=np.array(["clean"] * 3),
                victim_variance=np.ones(2, np.float32),
            )


def test_looks_are_embedded_once_for_all_cells_of_an_attack(make_results):
    folder = make_results(figures=True, count=60)
    add_looks(folder)
    payload = payload_of(page_of(folder))
    assert len(payload["looks"]) == 3
    places = {cell["looks"] for cell in payload["cells"]}
    assert places == {0, 1, 2}
    labels = [payload["texts"][label] for label, _, _ in payload["looks"][0]["pictures"]]
    assert labels == ["clean", "triggered", "difference × 2, around grey"]
    for png in payload["pictures"]:
        assert base64.b64decode(png)[:4] == b"\x89PNG"
    assert len(set(payload["pictures"])) == len(payload["pictures"])
    drawn = [cell["pictures"] for cell in payload["cells"] if cell["pictures"]]
    assert len(drawn) == 2
    assert [payload["texts"][label] for label, _, _ in drawn[0]] == [
        "clean input",
        "clean: reconstruction (victim)",
        "clean: reconstruction (twin)",
        "triggered input",
        "triggered: reconstruction (victim)",
        "triggered: reconstruction (twin)",
    ]


def test_pictures_stay_within_their_budget_and_what_is_left_out_is_told(make_results, monkeypatch):
    folder = make_results(figures=True, count=60, seeds=(0, 1))
    add_looks(folder, side=224)
    whole = payload_of(page_of(folder))
    assert sum(map(len, whole["pictures"])) < FIGURES_BUDGET + LOOKS_BUDGET
    assert not any(cell["left_out"] for cell in whole["cells"])
    monkeypatch.setattr("bench.report.page_cells.FIGURES_BUDGET", 3_000)
    monkeypatch.setattr("bench.report.page_cells.LOOKS_BUDGET", 5_000)
    small = payload_of(page_of(folder))
    assert sum(map(len, small["pictures"])) <= 8_000
    assert any(cell["left_out"] for cell in small["cells"])
    assert small["looks"] == []


def test_curves_are_thin_and_true(make_results):
    folder = make_results(count=4000, shifts={"dede": 2.0})
    for cell in load_results(folder).cells:
        scores = cell_scores(cell)
        for encoder, metric in (("victim", "auroc"), ("twin", "auroc_placebo")):
            points = np.cumsum(np.reshape(roc_points(scores, encoder), (-1, 2)), axis=0) / STEPS
            assert len(points) < 120
            assert points[0].tolist() == [0, 0]
            assert points[-1].tolist() == [1, 1]
            area = np.trapezoid(points[:, 1], points[:, 0])
            assert area == pytest.approx(cell.row[metric], abs=2e-3)
        bins = histograms(scores)
        assert sum(bins["clean"]) == pytest.approx(STEPS, rel=0.02)


def test_constant_scores_without_a_threshold_are_drawn(tmp_path):
    key = write_cell(tmp_path, "x", "d", count=40)
    path = tmp_path / "cells" / key
    frame = load_frame(path)
    frame.assign(score=np.float32(1)).to_parquet(path / "scores.parquet")
    cell = json.loads((path / "cell.json").read_text())
    cell["thresholds"][0]["threshold"] = None
    cell["config"] = {"attack": None, "defense": ["x", {"y": 1e300}]}
    (path / "cell.json").write_text(json.dumps(cell))
    write_manifest(tmp_path, ["x"], ["d"], [key])
    payload = payload_of(page_of(tmp_path))
    assert payload["cells"][0]["roc"]["victim"] == [0, 0, STEPS, STEPS]
    assert payload["cells"][0]["histograms"]["threshold"] is None


def load_frame(path: Path):
    import pandas as pd

    return pd.read_parquet(path / "scores.parquet")


def test_a_profile_with_three_seeds_stays_small(tmp_path):
    attacks = [f"attack-{number}" for number in range(7)]
    defenses = [f"defense-{number}" for number in range(16)]
    noise = np.random.default_rng(1)
    keys = []
    for attack in attacks:
        for place, defense in enumerate(defenses):
            for seed in range(3):
                key = write_cell(tmp_path, attack, defense, seed, count=500, figures=place < 4)
                fill_out(tmp_path / "cells" / key, noise)
                keys.append(key)
    write_manifest(tmp_path, attacks, defenses, keys, (0, 1, 2))
    add_looks(tmp_path)
    page = page_of(tmp_path)
    assert len(keys) == 336
    assert len(page.encode()) < 3_000_000


def fill_out(path: Path, noise: np.random.Generator) -> None:
    """As much beside the numbers as a real cell has."""
    cell = json.loads((path / "cell.json").read_text())
    cell["config"]["defense"] |= {f"parameter_{n}": float(n) for n in range(25)}
    probes = [(e, p) for e in ("victim", "twin") for p in ("mlp", "knn", "embedding")]
    cell["downstream"] = [
        {"encoder": e, "probe": p, "metric": f"m{n}", "value": v, "low": v - 0.1, "high": v + 0.1}
        for e, p in probes
        for n, v in enumerate(noise.random(6).tolist())
    ]
    cell["provenance"] = {
        "versions": {f"library-{n}": "1.2.3" for n in range(9)},
        "stages": [
            {"kind": "fit", "label": f"fit {n}", "seconds": v, "key": path.name}
            for n, v in enumerate(noise.random(13).tolist())
        ],
    }
    (path / "cell.json").write_text(json.dumps(cell))
