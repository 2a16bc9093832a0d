"""Pages in a headless Chromium: tables sort and copy, a phone shows them, both themes are readable, no name is run."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.reporting.conftest import HOSTILE

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CONTRAST = 4.5
"""Least contrast of text that WCAG 2.2 asks for at level AA (success criterion 1.4.3)."""
# Contrast of every element with a text of its own, by WCAG's relative luminance, against the nearest painted ground.
LOW_CONTRAST = """(least) => {
  const channel = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const colour = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const found = colour(getComputedStyle(e).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll("main *")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
    const pair = [luminance(colour(getComputedStyle(element).color)), luminance(ground(element))].sort((a, b) => b - a);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < least) low.push(`${element.textContent.slice(0, 40)}: ${contrast.toFixed(2)}`);
  }
  return low;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start the installed Chromium."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def address(report: Path) -> str:
    """Return where the browser finds the report of the synthetic experiment."""
    return report.as_uri()


def opened(browser: Browser, address: str, **context: Any) -> tuple[Page, list[str]]:
    """Open the page; also return what it asked for and what went wrong in it."""
    page = browser.new_context(**context).new_page()
    events: list[str] = []
    page.on("request", lambda request: events.append(request.url.split(",")[0]))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.goto(address)
    return page, [event for event in events if event not in (address, "data:image/svg+xml;base64")]


def test_tables_sort_and_copy(browser: Browser, address: str) -> None:
    """By number with the largest first, then turned; by name; what is copied is the table as tabs and lines."""
    page, events = opened(browser, address)
    assert events == []
    table = page.locator("#methods table")

    def methods() -> list[str]:
        return table.locator("tbody th").all_text_contents()

    table.get_by_role("button", name="Mean return").click()
    largest_first = ["Prompt Diffuser", "Prompt Diffuser + task context", "Prompt-DT", "Another task's prompt"]
    largest_first += ["Mean action of the training data", "Zero actions"]
    assert methods() == largest_first
    assert table.locator("thead th").nth(1).get_attribute("aria-sort") == "descending"
    table.get_by_role("button", name="Mean return").click()
    assert methods() == largest_first[::-1]
    table.get_by_role("button", name="Method").click()
    assert methods() == sorted(largest_first, reverse=True)
    page.locator("#methods").get_by_role("button", name="Copy the table Methods").click()
    page.evaluate("document.body.append(document.createElement('textarea'))")
    page.locator("textarea").focus()
    page.keyboard.press("Control+V")
    lines = [line.split("\t") for line in page.locator("textarea").input_value().split("\n")]
    assert lines[0][0] == "Method"
    assert [line[0] for line in lines[1:]] == methods()
    assert {len(line) for line in lines} == {6}


PAGES = ("report", "comparison", "benchmark", "sweep")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_can_be_read(browser: Browser, hostile_pages: dict[str, Path], name: str, theme: str) -> None:
    """All text has the contrast that WCAG asks for, figures are described, and regions and headings have names."""
    page, _ = opened(browser, hostile_pages[name].as_uri(), color_scheme=theme)
    red = int(page.evaluate("getComputedStyle(document.querySelector('section')).backgroundColor.match(/\\d+/)[0]"))
    assert (red < 64) == (theme == "dark")
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    assert page.evaluate(LOW_CONTRAST, CONTRAST) == []
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator("[role=region]:not([aria-label]), th:not([scope])").count() == 0


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_shows_it_without_sideways_scrolling(
    browser: Browser, hostile_pages: dict[str, Path], name: str
) -> None:
    """Only what is inside a scrolling region is wider than the screen."""
    phone = {"viewport": {"width": 360, "height": 780}, "is_mobile": True, "has_touch": True}
    page, _ = opened(browser, hostile_pages[name].as_uri(), **phone)
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("name", PAGES)
def test_markup_in_a_name_is_text(browser: Browser, hostile_pages: dict[str, Path], name: str) -> None:
    """It is shown letter by letter, adds no element and no attribute, and nothing in it is run or fetched."""
    page, events = opened(browser, hostile_pages[name].as_uri())
    assert events == []
    assert page.title().endswith(" - Prompt Diffuser")
    assert page.locator("script").count() == 1
    assert page.locator("b").count() == 0
    shown = page.locator("main").text_content()
    assert HOSTILE in shown
    assert "&lt;" not in shown
