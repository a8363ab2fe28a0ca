"""The report in a real browser: silent, fetching nothing, legible at every width and by ear."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from records import HOSTILE, make_evaluation, make_record, make_sample, make_study
from secateur.reporting import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None,
    reason="no Chromium: apt-get install chromium-headless-shell, or name one in CHROMIUM",
)
SIZES = pytest.mark.parametrize("width", [360, 768, 1280])
SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])


class Tab:
    """One open page, and all that it said and asked for.

    Attributes:
        page: playwright's page.
        said: console messages, errors and dialogs.
        asked: addresses of all requests.
        refused: those that failed, and why.
    """

    def __init__(self, context: Any) -> None:
        self.page = context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.refused: dict[str, str] = {}
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda fault: self.said.append(str(fault)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.on("requestfailed", lambda it: self.refused.update({it.url: it.failure}))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def go(self, path: Path) -> None:
        """Open a file, and every part of it that is closed."""
        self.page.goto(path.as_uri())
        self.page.evaluate("document.querySelectorAll('details').forEach(it => it.open = true)")


Open = Callable[..., Tab]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """`open_page(path, width=360, scheme="dark")`."""
    contexts = []

    def make(path: Path, width: int = 1280, scheme: str = "light") -> Tab:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        tab = Tab(context)
        tab.go(path)
        return tab

    yield make
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A study, one run alone, runs that do not compare, hostile names, a deep model."""
    folder = tmp_path_factory.mktemp("pages")
    hostile = make_record(
        HOSTILE + "x" * 300,
        evaluations=(make_evaluation(12, source=HOSTILE),),
        recipe={"model": HOSTILE, "calibration": HOSTILE, "out": HOSTILE},
        sample=make_sample("a").model_copy(update={"pruned": HOSTILE}),
        notices=(HOSTILE,),
        architecture=HOSTILE,
    )
    records = {
        "study": make_study(),
        "alone": [make_record("wanda++", perplexity=None)],
        "apart": [make_record(), make_record("gblm", recipe={"model": "models/other"})],
        "hostile": [hostile, make_record("gblm", evaluations=hostile.evaluations)],
        "deep": [make_record(method, blocks=80) for method in ("wanda", "gblm")],
    }
    for name, found in records.items():
        write_report(found, folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in records}


PAGES = pytest.mark.parametrize("name", ["study", "alone", "apart", "hostile", "deep"])


@PAGES
@SIZES
@SCHEMES
def test_it_is_silent_fetches_nothing_and_fits(
    open_page: Open, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    tab = open_page(pages[name], width, scheme)
    assert tab.said == []
    assert tab.asked == [pages[name].as_uri()]
    assert tab.page.evaluate("document.documentElement.scrollWidth") == width
    dark = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(22, 22, 21)") is (scheme == "dark")


NAMES_OF_CHARTS = """
[...document.querySelectorAll('svg')].map(svg =>
  svg.getAttribute('role') !== 'img' ? '' : svg.getAttribute('aria-label') ??
  svg.getAttribute('aria-labelledby').split(' ')
     .map(id => document.getElementById(id).textContent).join(' '))
"""


@PAGES
def test_every_chart_has_words(open_page: Open, pages: dict[str, Path], name: str) -> None:
    said = open_page(pages[name]).page.evaluate(NAMES_OF_CHARTS)
    assert said
    assert all(len(words) > 10 for words in said)


def test_a_chart_is_read_out_with_its_numbers(open_page: Open, pages: dict[str, Path]) -> None:
    page = open_page(pages["study"]).page
    chart = page.get_by_role("img", name="Perplexity on heldout at 2:4")
    assert chart.count() == 1  # of the narrow and the wide one, one is shown
    words = chart.locator("desc").text_content()
    assert words == "magnitude 5000.00; wanda 14.00; wanda++ 11.00; dense 10.00."


@pytest.mark.parametrize("name", ["study", "alone", "apart", "deep"])
def test_no_heading_of_a_table_is_broken_into_letters(
    open_page: Open, pages: dict[str, Path], name: str
) -> None:
    heights = open_page(pages[name], 360).page.evaluate(
        "[...document.querySelectorAll('thead')].map(it => it.getBoundingClientRect().height)"
    )
    assert max(heights) < 100


@SIZES
def test_the_table_has_every_method_and_pattern(
    open_page: Open, pages: dict[str, Path], width: int
) -> None:
    table = open_page(pages["study"], width).page.locator("#g1-results")
    for name in ("dense", "2:4", "50%"):
        assert table.get_by_role("rowheader", name=name, exact=True).count() == 1
    for name in ("magnitude", "wanda", "wanda++"):
        assert table.get_by_role("rowheader", name=name, exact=True).count() == 2
    assert table.locator(".best").all_text_contents() == ["11.00", "11.00"]


CONTRASTS = """
() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number)
      .map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const worst = (selector, property) => Math.min(...[...document.querySelectorAll(selector)]
    .map(it => ratio(paper, light(getComputedStyle(it)[property]))));
  return [worst('h1, p, dt, dd, th, td, summary, a, button, figcaption, caption, li', 'color'),
          worst('svg text', 'fill'), worst('svg .mark', 'fill')];
}
"""


@SCHEMES
def test_text_and_marks_stand_out(open_page: Open, pages: dict[str, Path], scheme: str) -> None:
    """The contrasts that the web's guidelines ask for: 4.5 for text, 3 for what is drawn."""
    text, labels, marks = open_page(pages["study"], scheme=scheme).page.evaluate(CONTRASTS)
    assert text > 4.5
    assert labels > 4.5
    assert marks > 3


OVERLAPS = """
[...document.querySelectorAll('svg')].filter(svg => svg.getClientRects().length).flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  const boxes = [...svg.querySelectorAll('text')]
    .map(it => [it.textContent, it.getBoundingClientRect()]);
  const out = boxes.filter(([, box]) => box.left < frame.left - 1 || box.right > frame.right + 1
    || box.top < frame.top - 1 || box.bottom > frame.bottom + 1).map(([words]) => words);
  const crossing = boxes.flatMap(([words, a], i) => boxes.slice(i + 1)
    .filter(([, b]) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 4
      && b.top < a.bottom - 4).map(([other]) => words + ' / ' + other));
  return [...out, ...crossing];
})
"""


@PAGES
@pytest.mark.parametrize("width", [360, 1280])
def test_words_in_charts_stay_inside_and_apart(
    open_page: Open, pages: dict[str, Path], name: str, width: int
) -> None:
    assert open_page(pages[name], width).page.evaluate(OVERLAPS) == []


def test_a_button_copies_the_table(open_page: Open, pages: dict[str, Path]) -> None:
    page = open_page(pages["study"]).page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy as LaTeX").click()
    page.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#g1-LaTeX").text_content()
    assert r"\toprule" in copied


def test_the_policy_forbids_what_is_not_in_the_file(
    open_page: Open, pages: dict[str, Path]
) -> None:
    """Even if markup slipped in, it could neither run nor fetch."""
    tab = open_page(pages["study"])
    tab.page.evaluate(
        """() => {
          window.broken = new Set();
          document.addEventListener('securitypolicyviolation',
            event => window.broken.add(event.effectiveDirective));
          document.body.insertAdjacentHTML('beforeend',
            '<img src="https://example.org/x.png" onerror="alert(1)"><style>p {}</style>');
          fetch('https://example.org/').catch(() => {});
        }"""
    )
    forbidden = ["connect-src", "img-src", "script-src-attr", "style-src-elem"]
    tab.page.wait_for_function("count => window.broken.size >= count", arg=len(forbidden))
    assert tab.page.evaluate("[...window.broken].sort()") == forbidden
    while tab.refused.keys() != set(tab.asked[1:]):  # told of a moment after it was refused
        tab.page.wait_for_event("requestfailed")
    assert tab.refused == {"https://example.org/x.png": "csp"}  # fetch() does not even ask
    assert "dialog" not in tab.said


def test_on_paper_it_is_dark_on_white_without_buttons(
    open_page: Open, pages: dict[str, Path]
) -> None:
    tab = open_page(pages["study"], scheme="dark")
    tab.page.emulate_media(media="print")
    assert tab.page.get_by_role("button", name="Copy as CSV").is_hidden()
    tab.page.set_viewport_size({"width": 672, "height": 970})  # A4 within its margins
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 672
    look = tab.page.evaluate(
        "[document.documentElement, document.body].map(it => getComputedStyle(it)).flatMap("
        "style => [style.colorScheme, style.color, style.backgroundColor])"
    )
    assert look[0] == "light"
    assert look[4:] == ["rgb(26, 26, 26)", "rgb(255, 255, 255)"]
    assert tab.page.pdf(format="A4").startswith(b"%PDF")
