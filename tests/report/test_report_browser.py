"""The leaderboard page in a real browser, opened as a file."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from stored_cells import write_cell, write_manifest
from test_report_page import HOSTILE, SPECIAL, add_looks

from bench.report.export import export
from bench.report.formats import escape_latex
from bench.report.leaderboard import leaderboard
from bench.report.page import leaderboard_page
from bench.report.schema import load_results

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

ROWS = "#table tbody tr"


@pytest.fixture(scope="module")
def browser() -> Iterator[api.Browser]:
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Open the page of a results folder; whatever the browser complains about fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_page(folder: Path, fragment: str = "", **options) -> api.Page:
        path = tmp_path / f"page-{len(contexts)}.html"
        path.write_text(leaderboard_page(load_results(folder)), encoding="utf-8")
        options = {"viewport": {"width": 1280, "height": 800}, "accept_downloads": True, **options}
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: check(request.url))
        page.goto(path.as_uri() + fragment)
        return page

    def check(address: str) -> None:
        if not address.startswith(("file:", "data:", "blob:")):
            complaints.append(address)

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


SPECIALS = {
    ("badencoder", "dede"): ("failed", "boom"),
    ("badencoder", "knn"): ("attack-weak", "ASR 0.4"),
}


def column(page: api.Page, title: str) -> list[str]:
    titles = page.locator("#table thead button span:first-child").all_inner_texts()
    place = titles.index(title) + 1
    return page.locator(f"{ROWS} > :nth-child({place})").all_inner_texts()


def numbers(texts: list[str]) -> list[float]:
    return [float(text) for text in texts if text != "–"]


def heading(page: api.Page, title: str) -> api.Locator:
    return page.locator("#table thead th", has=page.get_by_text(title, exact=True))


def test_a_click_sorts_down_up_and_back(make_results, opened):
    page = opened(make_results(special=SPECIALS))
    before = column(page, "AUROC")
    button = heading(page, "AUROC").get_by_role("button")
    button.click()
    assert heading(page, "AUROC").get_attribute("aria-sort") == "descending"
    found = column(page, "AUROC")
    assert numbers(found) == sorted(numbers(found), reverse=True)
    assert found[-1] == "–"
    button.click()
    assert heading(page, "AUROC").get_attribute("aria-sort") == "ascending"
    found = column(page, "AUROC")
    assert numbers(found) == sorted(numbers(found))
    assert found[-1] == "–"
    button.click()
    assert heading(page, "AUROC").get_attribute("aria-sort") == "none"
    assert column(page, "AUROC") == before


def test_filters_narrow_the_rows(make_results, opened):
    page = opened(make_results(special=SPECIALS))
    page.fill("#filter", "DRUPE kn")
    assert column(page, "defense") == ["knn"]
    assert page.locator("#count").inner_text() == "1 of 9 rows"
    page.fill("#filter", "nothing has this")
    assert page.get_by_text("No row matches").is_visible()
    page.fill("#filter", "")
    page.select_option("#choose-attack", "badencoder")
    page.select_option("#choose-status", "failed")
    assert column(page, "defense") == ["dede"]
    page.select_option("#choose-defense", "knn")
    assert page.locator(ROWS).count() == 0


def test_columns_can_be_chosen(make_results, opened):
    page = opened(make_results())
    page.click("#columns summary")
    page.get_by_label("aupr", exact=True).check()
    page.get_by_label("placebo", exact=True).uncheck()
    assert heading(page, "aupr").is_visible()
    assert heading(page, "placebo").count() == 0
    assert "[" not in column(page, "AUROC")[0]
    page.get_by_label("with intervals").check()
    assert re.fullmatch(r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", column(page, "AUROC")[0])
    page.get_by_role("button", name="All").click()
    assert page.locator("#table thead th").count() > 60
    page.get_by_role("button", name="Default").click()
    assert heading(page, "placebo").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#columns .panel").is_visible()


def test_seeds_can_be_seen_one_by_one(make_results, opened):
    page = opened(make_results(seeds=(0, 1, 2)))
    assert page.locator(ROWS).count() == 9
    assert set(column(page, "n")) == {"3"}
    page.get_by_role("button", name="Each seed").click()
    assert page.locator(ROWS).count() == 27
    assert set(column(page, "seed")) == {"0", "1", "2"}
    page.locator(f"{ROWS} a").first.click()
    page.locator(".seeds a").first.click()
    assert page.locator(".seeds b").inner_text() in ("0", "1", "2")


def test_a_cell_opens_and_back_returns_to_its_row(make_results, opened):
    folder = make_results(figures=True)
    add_looks(folder)
    page = opened(folder)
    page.get_by_role("button", name="delta").click()
    link = page.locator(f"{ROWS} a", has_text="dede").first
    target = link.get_attribute("href")
    link.click()
    api.expect(page.locator("#cell h1")).to_be_focused()
    assert page.url.endswith(target)
    assert page.locator("#cell h1").inner_text().startswith("dede on")
    assert not page.locator("#table").is_visible()
    assert page.locator("#cell .charts svg[role=img]").count() == 2
    assert page.locator("#cell .strips img").count() >= 3
    wide = (
        "Array.from(document.querySelectorAll('#cell img')).every((one) => one.naturalWidth > 30)"
    )
    assert page.evaluate(wide)
    before = page.locator("#cell .charts path.triggered").first.get_attribute("d")
    page.get_by_role("button", name="Logarithmic").click()
    assert page.locator("#cell .charts path.triggered").first.get_attribute("d") != before
    page.go_back()
    api.expect(page.locator("#table")).to_be_visible()
    assert heading(page, "delta").get_attribute("aria-sort") == "descending"
    assert page.evaluate("document.activeElement.getAttribute('href')") == target
    page.go_forward()
    api.expect(page.locator("#cell h1")).to_be_visible()


def test_a_deep_link_opens_its_cell_and_a_wrong_one_says_so(make_results, opened):
    folder = make_results(special=SPECIALS)
    for cell in load_results(folder).cells:
        if (cell.row["attack"], cell.row["defense"]) in SPECIALS:
            page = opened(folder, f"#cell/{cell.key}")
            reason = SPECIALS[cell.row["attack"], cell.row["defense"]][1]
            assert page.locator("#cell .reason").inner_text() == reason
            assert page.locator("#cell .badge").inner_text() == cell.status
    page = opened(folder, "#cell/%E0%A4%A")
    assert page.locator("#cell h1").inner_text() == "No such cell"
    page.get_by_role("link", name="All rows").click()
    api.expect(page.locator("#table")).to_be_visible()


def test_rows_that_are_not_ok_look_different(make_results, opened):
    page = opened(make_results(special=SPECIALS))
    failed = page.locator("#table tr.o-failed")
    assert failed.locator("a").inner_text().startswith("dede")
    ground = "(one) => getComputedStyle(one).backgroundColor"
    plain = page.locator("#table tbody tr:not(.off) td").first
    assert failed.locator("td").first.evaluate(ground) != plain.evaluate(ground)
    failed.locator(".badge").hover()
    assert "boom" in page.locator("#tip").inner_text()


def test_keyboard_alone_sorts_filters_and_opens(make_results, opened):
    page = opened(make_results())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"

    def tab_to(script: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate(script):
                return
        raise AssertionError(f"Tab never reached {script}")

    tab_to("document.activeElement.id === 'filter'")
    page.keyboard.type("drupe")
    assert set(column(page, "attack")) == {"drupe"}
    tab_to("document.activeElement.textContent.startsWith('AUROC')")
    assert page.evaluate("document.activeElement.matches(':focus-visible')")
    assert "triggered non-target images" in page.locator("#tip").inner_text()
    page.keyboard.press("Enter")
    assert heading(page, "AUROC").get_attribute("aria-sort") == "descending"
    assert page.evaluate("document.activeElement.textContent.startsWith('AUROC')")
    tab_to("document.activeElement.matches('tbody a')")
    page.keyboard.press("ArrowDown")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert "auroc_low" in page.locator("#tip").inner_text()
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()
    page.keyboard.press("Enter")
    api.expect(page.locator("#cell h1")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    api.expect(page.locator("#table")).to_be_visible()
    assert page.evaluate("document.activeElement.matches('tbody a')")


def test_a_tap_shows_the_meaning_of_a_column_and_an_interval(make_results, opened):
    options = {"viewport": {"width": 375, "height": 812}, "has_touch": True, "is_mobile": True}
    page = opened(make_results(), **options)
    page.locator("#table tbody td.heat").first.tap()
    assert "auroc_low" in page.locator("#tip").inner_text()
    heading(page, "AUROC").get_by_role("button").tap()
    assert "triggered non-target" in page.locator("#tip").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_never_scrolls_sideways(make_results, opened, scheme):
    folder = make_results(figures=True, special=SPECIALS, seeds=(0, 1))
    add_looks(folder)
    page = opened(folder, viewport={"width": 375, "height": 812}, color_scheme=scheme)
    width = "document.scrollingElement.scrollWidth"
    assert page.evaluate(width) <= 375
    assert page.evaluate("(one => one.scrollWidth > one.clientWidth)(document.all.table)")
    page.evaluate("document.all.table.scrollLeft = 400")
    first = page.locator("#table tbody th").first.bounding_box()
    assert 0 <= first["x"] < 30
    page.click("#columns summary")
    assert page.evaluate(width) <= 375
    page.get_by_role("button", name="All").click()
    page.keyboard.press("Escape")
    assert page.evaluate(width) <= 375
    for place in range(9):
        page.locator(f"{ROWS} a").nth(place).click()
        api.expect(page.locator("#cell h1")).to_be_focused()
        for fold in page.locator("#cell details").all():
            fold.evaluate("(one) => { one.open = true; }")
        assert page.evaluate(width) <= 375
        page.go_back()


def test_the_theme_follows_the_system_until_it_is_chosen(make_results, opened):
    page = opened(make_results(), color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#theme")
    light = page.evaluate(ground)
    assert sum(map(int, re.findall(r"\d+", dark))) < 150
    assert sum(map(int, re.findall(r"\d+", light))) > 600
    page.reload()
    assert page.evaluate(ground) == light


def test_latex_is_that_of_the_export(make_results, opened):
    folder = make_results(special=SPECIALS)
    page = opened(folder, permissions=["clipboard-read", "clipboard-write"])
    page.click("#columns summary")
    page.get_by_label("with intervals").check()
    page.keyboard.press("Escape")
    page.click("#latex")
    api.expect(page.locator("#latex")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    tabular = re.compile(r"\\begin\{tabular\}.*?\\end\{tabular\}", re.S)
    assert tabular.search(copied).group() == tabular.search(export(folder, "latex")).group()
    assert copied.startswith("% needs \\usepackage{booktabs}\n")


def test_latex_is_of_the_rows_and_columns_that_are_shown(make_results, opened):
    page = opened(make_results(), permissions=["clipboard-read", "clipboard-write"])
    page.fill("#filter", "drupe")
    heading(page, "delta").get_by_role("button").click()
    page.click("#columns summary")
    for name in ("status", "auxiliary", "fit s"):
        page.get_by_label(name, exact=True).uncheck()
    page.keyboard.press("Escape")
    page.click("#latex")
    api.expect(page.locator("#latex")).to_have_text("Copied")
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    rows = [line for line in lines if line.startswith("drupe")]
    assert [row.split(" & ")[1].split()[0] for row in rows] == [
        name.split()[0] for name in column(page, "defense")
    ]
    assert "status" not in "".join(lines)
    assert {len(row.split(" & ")) for row in rows} == {page.locator("#table thead th").count()}


def test_copying_falls_back_where_the_clipboard_is_closed(make_results, opened):
    page = opened(make_results())
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.click("#latex")
    api.expect(page.locator("#latex")).to_have_text("Copied")
    page.evaluate("document.execCommand = () => false")
    page.click("#latex")
    assert "\\begin{tabular}" in page.locator("dialog textarea").input_value()
    page.get_by_role("button", name="Close").click()
    api.expect(page.locator("dialog")).to_have_count(0)


def downloaded(page: api.Page) -> list[dict[str, str]]:
    with page.expect_download() as waiting:
        page.click("#csv")
    assert waiting.value.suggested_filename == "leaderboard-quick.csv"
    text = Path(waiting.value.path()).read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_the_numbers_of_the_export(make_results, opened):
    folder = make_results(special=SPECIALS)
    page = opened(folder)
    page.click("#columns summary")
    page.get_by_role("button", name="All").click()
    page.keyboard.press("Escape")
    rows = downloaded(page)
    exported = list(csv.DictReader(io.StringIO(export(folder, "csv"))))
    assert [{name: row[name] for name in exported[0]} for row in rows] == exported
    page.fill("#filter", "badencoder")
    assert len(downloaded(page)) == 3


@pytest.fixture
def hostile(tmp_path):
    folder = tmp_path / "results"
    keys = [
        write_cell(folder, HOSTILE, SPECIAL, figures=True),
        write_cell(folder, HOSTILE, HOSTILE, status="failed", reason=HOSTILE),
        write_cell(folder, "=cmd|' /C calc'!A0", SPECIAL),
        write_cell(folder, "[x", "-2", row={"dataset": HOSTILE, "auroc_delta": -0.5}),
    ]
    for key in keys:
        path = folder / "cells" / key / "cell.json"
        cell = json.loads(path.read_text())
        cell["config"]["attack"] = {HOSTILE: {SPECIAL: [HOSTILE, SPECIAL]}}
        cell["decoy"] = {"description": HOSTILE, "candidates": [{"description": HOSTILE}]}
        cell["trigger"] = {"description": HOSTILE, "kind": SPECIAL}
        stage = {"kind": HOSTILE, "label": SPECIAL, "key": HOSTILE}
        cell["provenance"] = {HOSTILE: SPECIAL, "stages": [stage]}
        for entry in (*cell["thresholds"], *cell["downstream"]):
            entry |= {"rule": HOSTILE, "probe": HOSTILE, "metric": SPECIAL}
        path.write_text(json.dumps(cell))
    write_manifest(folder, [HOSTILE], [SPECIAL, HOSTILE], keys)
    return folder


def test_hostile_names_are_shown_and_run_nothing(hostile, opened):
    page = opened(hostile)
    images = page.locator("img")
    assert images.count() == 0
    assert HOSTILE in column(page, "attack")[0]
    for place in range(4):
        page.locator(f"{ROWS} td, {ROWS} th").nth(place).hover()
        page.locator(f"{ROWS} a").nth(place).click()
        api.expect(page.locator("#cell h1")).to_be_focused()
        text = page.locator("#cell").text_content()
        assert HOSTILE in text
        assert SPECIAL in text
        drawn = images.evaluate_all("(all) => all.map((one) => one.src.slice(0, 15))")
        assert set(drawn) <= {"data:image/png;"}
        page.go_back()
    page.fill("#filter", HOSTILE)
    page.select_option("#choose-defense", HOSTILE)
    assert page.locator(ROWS).count() == 1


def test_hostile_names_are_escaped_in_latex_and_guarded_in_csv(hostile, opened):
    page = opened(hostile, permissions=["clipboard-read", "clipboard-write"])
    page.click("#latex")
    api.expect(page.locator("#latex")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    for text in (HOSTILE, SPECIAL):
        assert escape_latex(text) in copied
    assert "{}[x & " in copied
    assert " & -2 & " in copied
    assert "$-$0.500" in copied
    rows = downloaded(page)
    assert {row["attack"] for row in rows} == {HOSTILE, "'=cmd|' /C calc'!A0", "[x"}
    assert {row["defense"] for row in rows} == {SPECIAL, HOSTILE, "'-2"}
    assert "-0.5" in {row["auroc_delta"] for row in rows}


def test_a_run_without_rows_has_nothing_to_press(tmp_path, opened):
    folder = tmp_path / "results"
    write_manifest(folder, ["x"], ["d"], [])
    page = opened(folder)
    assert page.get_by_text("No rows.").is_visible()
    assert not page.locator("#controls").is_visible()


def test_paper_gets_the_whole_table_without_the_buttons(make_results, opened):
    page = opened(make_results())
    page.emulate_media(media="print")
    assert not page.locator("#controls").is_visible()
    assert page.evaluate("getComputedStyle(document.all.table).overflow") == "visible"
    assert len(leaderboard(load_results(make_results("other")))) == page.locator(ROWS).count()
