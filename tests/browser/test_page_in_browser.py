"""The page of a run in a real browser: it draws, sorts, filters, prints, runs nothing hostile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import ceilings, hostile_run, rich_run
from report_scale import sweep, write_run
from run_files import make_case, rank_lines, write_plan, write_repeat
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from andromeda_scale.merge import merge_run
from andromeda_scale.report.html import make_page
from andromeda_scale.report.html.figures import FIGURES

POLL_S = 0.05
WIDTHS = {"phone": 360, "desktop": 1440}
_DRAWN = "return [...document.querySelectorAll('.plot')].filter(p => p.querySelector('.main-svg'))"

Browser = Any  # selenium's WebDriver
Make = Callable[[Path], Path]


def large_run(directory: Path) -> Path:
    """40 cases up to 8 ranks, and one of 1,024; benchmarks/report_scale.py makes 200 so."""
    cases = sweep((1, 2, 4, 8), (1, 2)) + sweep((1024,), (1,))[:1]
    write_run(directory, cases)
    return directory


def one_case(directory: Path) -> Path:
    """A case alone, of half a GiB."""
    case = make_case("single", 1)
    write_plan(directory, [case], 1)
    lines = rank_lines(0, [0.1] * 4, peak_memory_bytes=1 << 29)
    write_repeat(directory, case, 0, lines, environment={"software": {"torch": "2.13"}})
    return directory


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each run, made once."""
    made = {}
    runs = {"rich": rich_run, "hostile": hostile_run, "large": large_run, "one": one_case}
    for name, make in runs.items():
        directory = make(tmp_path_factory.mktemp(name))
        made[name] = directory / "report.html"
        text = make_page(merge_run(directory), f"question: {name}\n", ceilings())
        made[name].write_text(text, encoding="utf-8")
    return made


def show(browser: Browser, page: Path, width: int = 1440, *, dark: bool = False) -> None:
    """Open a page and wait for plotly; earlier messages of the console are dropped."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("browser")
    browser.get(page.as_uri())
    WebDriverWait(browser, 60, POLL_S).until(lambda b: b.execute_script("return !!window.Plotly"))


def draw_all(browser: Browser) -> list[str]:
    """Bring every figure into view, as a reader would; the names of those that drew."""
    for place in browser.find_elements(By.CSS_SELECTOR, ".plot"):
        browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant'})", place)
        WebDriverWait(browser, 30, POLL_S).until(
            lambda b, place=place: b.execute_script(
                "return arguments[0].querySelector('.main-svg')", place
            )
        )
    return [place.get_attribute("data-figure") for place in browser.execute_script(_DRAWN)]


def quiet(browser: Browser) -> None:
    """Nothing was complained of: no error, no warning, nothing that a policy refused."""
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def column(browser: Browser, header: str) -> list[str]:
    """The cells of a column of the table, from the top, hidden rows left out."""
    texts: list[str] = browser.execute_script(
        """const table = document.getElementById('table-scaling');
        const at = [...table.tHead.rows[0].cells].findIndex(
            (head) => head.textContent.trim() === arguments[0]);
        return [...table.tBodies[0].rows].filter((row) => !row.hidden)
            .map((row) => row.cells[at].textContent.trim())""",
        header,
    )
    return texts


def head(browser: Browser, header: str) -> Any:
    buttons = browser.find_elements(By.CSS_SELECTOR, "#table-scaling thead button")
    return next(button for button in buttons if button.text.split("\n")[0].strip() == header)


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("name", ["rich", "large"])
def test_every_figure_draws_without_a_complaint_and_nothing_is_wider_than_the_screen(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    show(browser, pages[name], width)
    drawn = draw_all(browser)
    assert set(drawn) == set(FIGURES) - ({"memory"} if name == "large" else set())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    quiet(browser)


def test_one_case_alone_stands_on_axes_without_negative_memory_or_speed(
    browser: Browser, pages: dict[str, Path]
) -> None:
    show(browser, pages["one"])
    draw_all(browser)
    ends = browser.execute_script(
        """const {xaxis, yaxis} = document.querySelector('[data-figure=front]')._fullLayout;
        return [xaxis.range[0], yaxis.range[0]]"""
    )
    assert min(ends) >= 0
    quiet(browser)


def test_the_page_asks_no_network_for_anything(browser: Browser, pages: dict[str, Path]) -> None:
    show(browser, pages["rich"])
    draw_all(browser)
    asked = browser.execute_script("return performance.getEntriesByType('resource')")
    assert [entry["name"] for entry in asked if not entry["name"].startswith("data:")] == []


def test_a_click_on_a_header_sorts_by_its_numbers_and_another_turns_them(
    browser: Browser, pages: dict[str, Path]
) -> None:
    show(browser, pages["rich"])
    assert column(browser, "tokens/s")[-1] == "-"  # out of memory
    for order in ("ascending", "descending"):
        head(browser, "tokens/s").click()
        *values, last = column(browser, "tokens/s")
        numbers = [float(value.replace(",", "")) for value in values]
        assert numbers == sorted(numbers, reverse=order == "descending")
        assert last == "-"  # what was not measured is neither the most nor the least
        sorted_by = browser.find_element(By.CSS_SELECTOR, "#table-scaling th[aria-sort]")
        assert sorted_by.get_attribute("aria-sort") == order


def test_a_table_is_sorted_by_the_keyboard_alone(browser: Browser, pages: dict[str, Path]) -> None:
    show(browser, pages["rich"])
    button = head(browser, "world")
    browser.execute_script("arguments[0].focus()", button)
    button.send_keys(Keys.ENTER)
    assert column(browser, "world") == ["1", "1", "2", "2", "2"]
    quiet(browser)


def test_words_and_a_world_filter_rows_and_the_count_is_said(
    browser: Browser, pages: dict[str, Path]
) -> None:
    show(browser, pages["large"])
    count = browser.find_element(By.CSS_SELECTOR, ".filter .count")
    assert count.text == "41 of 41 rows"
    box = browser.find_element(By.CSS_SELECTOR, ".filter input")
    box.send_keys("ZERO3")
    assert set(column(browser, "strategy")) == {"zero3"}
    assert count.text == "8 of 41 rows"
    Select(browser.find_element(By.CSS_SELECTOR, ".filter select")).select_by_visible_text("8")
    assert count.text == "2 of 41 rows"
    assert set(column(browser, "world")) == {"8"}
    box.clear()
    box.send_keys("no such row")
    assert column(browser, "strategy") == []


def test_a_sentence_shows_the_rows_it_was_made_from_and_gives_them_back(
    browser: Browser, pages: dict[str, Path]
) -> None:
    show(browser, pages["rich"])
    button = browser.find_element(By.CSS_SELECTOR, ".verdict .rows")
    count = browser.find_element(By.CSS_SELECTOR, ".filter .count")
    button.click()
    assert len(column(browser, "strategy")) == len(button.get_attribute("data-cases").split())
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert count.text == "5 of 5 rows"
    quiet(browser)


@pytest.mark.thorough
def test_200_cases_up_to_1024_ranks_are_drawn_sorted_and_filtered(
    browser: Browser, tmp_path: Path
) -> None:
    write_run(tmp_path, sweep([2**power for power in range(3, 11)]))
    page = tmp_path / "report.html"
    page.write_text(make_page(merge_run(tmp_path)), encoding="utf-8")
    assert page.stat().st_size < 6e6
    show(browser, page)
    assert set(draw_all(browser)) == set(FIGURES) - {"memory", "bandwidth"}
    button = head(browser, "tokens/s")
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant'})", button)
    button.click()
    rates = browser.execute_script(
        "const cell = arguments[0].closest('th').cellIndex;"
        "return [...document.getElementById('table-scaling').tBodies[0].rows]"
        ".map((row) => Number(row.cells[cell].dataset.order))",
        button,
    )
    assert (len(rates), rates) == (200, sorted(rates))
    browser.find_element(By.CSS_SELECTOR, ".filter input").send_keys("fsdp2")
    assert set(column(browser, "strategy")) == {"fsdp2"}
    assert browser.find_element(By.CSS_SELECTOR, ".filter .count").text == "40 of 200 rows"
    quiet(browser)


def test_another_case_is_drawn_when_it_is_chosen(browser: Browser, pages: dict[str, Path]) -> None:
    show(browser, pages["large"])
    select = Select(browser.find_element(By.CSS_SELECTOR, "#rank-map select"))
    for world, ranks in (("8 ranks", 8), ("128x8 ranks", 1024)):
        name = next(one.text for one in select.options if one.text.endswith(f", {world}"))
        select.select_by_visible_text(name)
        cells = browser.execute_script(
            "return document.getElementById('plot-rank-map').data[0].z.flat().length"
        )
        assert cells == ranks
    said = browser.find_element(By.ID, "said-rank-map").get_attribute("textContent")
    assert "ms on rank" in said
    quiet(browser)


def test_a_series_is_switched_off_by_the_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    show(browser, pages["rich"])
    draw_all(browser)
    button = browser.find_element(By.CSS_SELECTOR, "#throughput .legend button[data-group^=ddp]")
    button.send_keys(Keys.SPACE)
    pressed = browser.switch_to.active_element
    assert pressed.text == "ddp"
    assert pressed.get_attribute("aria-pressed") == "false"
    visible = browser.execute_script(
        "return document.getElementById('plot-throughput').data.filter("
        "(t) => t.legendgroup === 'ddp').map((t) => t.visible)"
    )
    assert set(visible) == {"legendonly"}


def test_what_a_record_holds_is_shown_and_does_not_run(
    browser: Browser, pages: dict[str, Path]
) -> None:
    show(browser, pages["hostile"])
    draw_all(browser)
    browser.execute_script(  # a click draws the figure and its buttons again
        "for (const box of document.querySelectorAll('.legend'))"
        " for (let at = 0; at < box.children.length; at++) box.children[at].click()"
    )
    assert browser.execute_script("return window.ran") is None
    assert "<script>alert(1)" in browser.title
    assert browser.execute_script(
        "return document.querySelectorAll('img, a[href^=javascript], svg a').length"
    ) == 0  # fmt: skip
    quiet(browser)


def test_print_has_every_figure_and_every_detail_on_light_paper(
    browser: Browser, pages: dict[str, Path]
) -> None:
    show(browser, pages["rich"], dark=True)
    printed = browser.execute_cdp_cmd("Page.printToPDF", {})
    assert len(printed["data"]) > 50_000
    assert len(browser.execute_script(_DRAWN)) == len(FIGURES)
    assert browser.execute_script("return document.querySelector('details:not([open])')") is None
    quiet(browser)


def test_figures_follow_the_theme(browser: Browser, pages: dict[str, Path]) -> None:
    inks = []
    for dark in (False, True):
        show(browser, pages["rich"], dark=dark)
        inks.append(browser.execute_script(
            "return getComputedStyle(document.querySelector('.plot .xtick text')).fill"
        ))  # fmt: skip
    assert inks == ["rgb(27, 27, 25)", "rgb(241, 240, 236)"]
