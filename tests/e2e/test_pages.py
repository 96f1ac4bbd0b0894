"""The overview of a running exporter in a real Chromium: what people see, and what names cannot do."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.simulator.server import Simulator, Status
from tests.support.browser import Browser, Page, running_browser
from tests.support.exporters import KEY, Exporter, configure, running_exporter
from tests.support.servers import eventually

pytestmark = pytest.mark.server

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</td></table></main><script>alert(1)</script><!--",
    "V" * 119,
    "\u202e right to left \u2067 and never back",
    "two\nlines \r and \t more",
    "W" * 1000,
    "{title} %s &amp; &#60; ]]>",
)
PHONE, DESKTOP = 360, 1280


@pytest.fixture(scope="module")
def browser(chromium: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser for all tests of this file."""
    with running_browser(chromium, tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    """An exporter whose campaigns have hostile names, after its only round; one of them fails with a hostile text."""
    with Simulator(api_key=KEY) as braze:
        names = {
            campaign.id: (*HOSTILE, "Welcome", "Cart 2", "Cart 10", "Bye")[place]
            for place, campaign in enumerate(braze.campaigns)
        }
        failing = next(identifier for identifier, name in names.items() if name == "Cart 2")
        braze.misbehave(Status(400, b'{"message": "<script>alert(1)</script>"}'), campaign_id=failing)
        file = configure(tmp_path_factory.mktemp("exporter"), braze, workspace='<b onclick="alert(1)">', names=names)
        with running_exporter(file) as exporter:
            yield exporter


def names(page: Page) -> list[str]:
    """Return the names of the campaigns that are shown, in their order, each as one line."""
    return [" ".join(text.split()) for text in page.texts("#campaigns tbody td:nth-child(2) div")]


@pytest.mark.parametrize("width", [PHONE, 768, DESKTOP, 2560])
@pytest.mark.parametrize("javascript", [True, False])
def test_names_do_nothing(browser: Browser, exporter: Exporter, width: int, javascript: bool) -> None:  # noqa: FBT001
    """Whatever a campaign is called, its name is text: no dialog, no error, no violation, nothing out of its place."""
    with browser.page(exporter.url, width=width, javascript=javascript) as page:
        page.screenshot(whole=True)

        assert page.troubles() == []
        assert set(names(page)) == {
            " ".join(name.split()) for name in (*HOSTILE, "Welcome", "Cart 2", "Cart 10", "Bye")
        }
        assert page.texts("#workspaces tbody td:nth-child(1)") == ['<b onclick="alert(1)">']
        assert "Braze responded with 400: <script>alert(1)</script>" in page.texts("#campaigns td:nth-child(4)")[0]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(
            "[...document.querySelectorAll('td > *, form *')].every((each) =>"
            " each.getBoundingClientRect().right <= each.parentElement.getBoundingClientRect().right + 1)"
        )


def test_the_policy_is_enforced(browser: Browser, exporter: Exporter) -> None:
    """A script or a style that is not the page's own does nothing: the browser refuses it, and the tests see that."""
    with browser.page(exporter.url) as page:
        page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = true'}));"
            "document.body.append(Object.assign(document.createElement('style'), {textContent: 'p {display: none}'}));"
            "document.body.append(Object.assign(document.createElement('img'), {src: '/favicon.ico'}))"
        )

        assert page.evaluate("window.ran") is None
        assert page.texts("p") != []
        violations = " ".join(page.troubles())
        assert all(f'"violatedDirective": "{rule}' in violations for rule in ("script-src", "style-src", "img-src"))


def test_failing_campaigns_are_found_first(browser: Browser, exporter: Exporter) -> None:
    """Failures are in the title, in the first sentence and in the first row, with what to do."""
    with browser.page(exporter.url, height=900) as page:
        assert page.evaluate("document.title") == "1 failing - braze-exporter"
        assert page.texts("p.bad") == ["1 of 12 campaigns failing: 1 bad request."]
        assert "What to do: use the API identifier" in page.texts("ul")[0]
        assert names(page)[0] == "Cart 2"
        assert page.evaluate(
            "document.querySelector('#campaigns tbody tr').getBoundingClientRect().bottom < innerHeight"
        )


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_sorting_with_the_mouse(browser: Browser, exporter: Exporter, width: int) -> None:
    """A click on a head sorts by it, another the other way round, numbers by size, and assistive tools are told."""
    with browser.page(exporter.url, width=width) as page:
        assert sorted_by(page) == ["Polling ascending"]

        page.click("#campaigns th:nth-child(2) button")
        ascending = names(page)
        assert sorted_by(page) == ["Campaign ascending"]
        page.click("#campaigns th:nth-child(2) button")

        assert sorted_by(page) == ["Campaign descending"]
        assert names(page) == ascending[::-1]
        plain = [name for name in ascending if re.fullmatch("[A-Za-z0-9 ]+", name)]
        assert plain == ["Bye", "Cart 2", "Cart 10", "two lines and more", "V" * 119, "Welcome", "W" * 1000]
        assert page.troubles() == []


def sorted_by(page: Page) -> list[str]:
    """Return the heads by which the table says to be sorted, and in which direction."""
    found = page.evaluate(
        "[...document.querySelectorAll('th[aria-sort]')]"
        ".map((head) => `${head.textContent} ${head.getAttribute('aria-sort')}`)"
    )
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("key", ["Enter", " "])
def test_sorting_with_the_keyboard(browser: Browser, exporter: Exporter, key: str) -> None:
    """Tab leads from the search to the heads, and Enter or the space bar sorts; where the focus is can be seen."""
    with browser.page(exporter.url) as page:
        page.evaluate("document.querySelector('[type=search]').focus()")
        for _ in ("the filter of states", "Polling", "Campaign"):
            page.press("Tab")

        assert page.evaluate("document.activeElement.textContent") == "Campaign"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        page.press(key)

        assert sorted_by(page) == ["Campaign ascending"]
        assert page.evaluate("document.activeElement.textContent") == "Campaign"


def test_searching(browser: Browser, exporter: Exporter) -> None:
    """The rows that hold every word typed stay, in any column and case, and how many they are is told."""
    with browser.page(exporter.url) as page:
        assert page.texts("output") == ["12 of 12 shown"]
        page.evaluate("document.querySelector('[type=search]').focus()")

        page.type("CART bad")

        assert names(page) == ["Cart 2"]
        assert page.texts("output") == ["1 of 12 shown"]
        assert page.evaluate("document.querySelector('output').role ?? 'status'") == "status"
        page.press("Enter")  # sends nothing

        page.reload()
        assert names(page) == ["Cart 2"]
        page.evaluate("document.querySelector('[type=search]').select()")
        page.type("nothing is called so")
        assert names(page) == []
        assert page.troubles() == []


def test_filtering_by_state(browser: Browser, exporter: Exporter) -> None:
    """The states are offered with how many campaigns are in each, and what is chosen outlives a reload."""
    with browser.page(exporter.url) as page:
        assert page.texts("select") == ["all (12)failing (1)no days (0)not polled yet (0)stale (0)up (11)"]

        page.evaluate(
            "const choice = document.querySelector('select'); choice.value = 'failing';"
            "choice.dispatchEvent(new Event('input', {bubbles: true}))"
        )
        assert names(page) == ["Cart 2"]

        page.reload()
        assert names(page) == ["Cart 2"]


def test_the_page_reloads_itself_if_asked(browser: Browser, exporter: Exporter) -> None:
    """The page says how old it is. A link lets it reload itself, which keeps what is searched and sorted by."""
    with browser.page(exporter.url) as page:
        page.click("#campaigns th:nth-child(2) button")
        page.evaluate("document.querySelector('[type=search]').focus()")
        page.type("cart")
        eventually(lambda: page.texts("#age") == [", 2s ago"], what="an age")
        page.click(".note a:nth-of-type(2)")
        eventually(lambda: page.evaluate("location.search") == "?refresh=10", what="a page that reloads itself")
        page.evaluate("window.old = true")
        eventually(lambda: page.evaluate("window.old") is None, what="another load of the page")

        assert names(page) == ["Cart 2", "Cart 10"]
        assert sorted_by(page) == ["Campaign ascending"]
        assert page.texts("[aria-current]") == ["every 10 s"]


def test_the_page_reloads_itself_without_javascript(browser: Browser, exporter: Exporter) -> None:
    """Where scripts are off the browser is told the interval."""
    with browser.page(f"{exporter.url}/?refresh=10", javascript=False) as page:
        page.evaluate("document.title = 'old'")
        eventually(lambda: page.evaluate("document.title") != "old", what="another load of the page")


def test_without_javascript(browser: Browser, exporter: Exporter) -> None:
    """Where scripts are off, every row is there, and nothing that would not work is."""
    with browser.page(exporter.url, javascript=False) as page:
        assert len(names(page)) == 12
        assert page.texts("form, button, input, select") == []
        assert page.texts("#campaigns th")[:2] == ["Polling", "Campaign"]


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("dark", [False, True])
def test_contrast(browser: Browser, exporter: Exporter, width: int, dark: bool) -> None:  # noqa: FBT001 - a parameter
    """In light and dark mode the ground is light or dark, and every text stands out from it as WCAG AA asks."""
    with browser.page(exporter.url, width=width, dark=dark) as page:
        ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (luminance(str(ground)) < 0.1) == dark
        pairs = page.evaluate(_COLOURS)
        assert isinstance(pairs, list)
        assert len(pairs) > 4
        assert [(text, over) for text, over in pairs if contrast(text, over or str(ground)) < 4.5] == []


# The colours of texts, with that of the nearest ground around each, "" for the page's own.
_COLOURS = """
[...new Set([...document.querySelectorAll("h1, h1 small, p, li, b, i, a, th, td, code, label, output")].map((each) => {
  const clear = "rgba(0, 0, 0, 0)";
  let around = each;
  while (around && getComputedStyle(around).backgroundColor === clear) around = around.parentElement;
  return JSON.stringify([getComputedStyle(each).color, around ? getComputedStyle(around).backgroundColor : ""]);
}))].map((pair) => JSON.parse(pair))
"""


def luminance(colour: str) -> float:
    """Return the relative luminance of an opaque colour, `rgb(1, 2, 3)`, as WCAG defines it."""
    parts = [int(part) / 255 for part in re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour).groups()]  # type: ignore[union-attr]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, from 1 to 21."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_thousands_of_campaigns(browser: Browser, tmp_path: Path) -> None:
    """At 5,000 campaigns the page is whole, small on the way, and can be searched and sorted."""
    names_by_id = {f"3bbc4555-8fa0-4c9b-a5c0-{number:012}": f"Campaign {number}" for number in range(5000)}
    with Simulator(api_key=KEY, campaigns=1) as braze:
        braze.misbehave(Status(503))
        with running_exporter(configure(tmp_path, braze, names=names_by_id), ready=False) as exporter:
            answer = exporter.ask("/", Accept_Encoding="gzip")
            assert answer.headers["Content-Encoding"] == "gzip"
            assert len(answer.content) * 3 < len(gzip.decompress(answer.content)) < 2_000_000

            with browser.page(exporter.url) as page:
                assert page.evaluate("document.querySelectorAll('#campaigns tbody tr').length") == 5000
                page.click("#campaigns th:nth-child(2) button")
                page.evaluate("document.querySelector('[type=search]').focus()")
                page.type("campaign 499")

                numbers = (499, 1499, 2499, 3499, 4499, *range(4990, 5000))
                assert names(page) == [f"Campaign {number}" for number in numbers]
                assert page.texts("output") == ["15 of 5,000 shown"]
                assert page.troubles() == []


def test_the_configuration_in_force(browser: Browser, exporter: Exporter) -> None:
    """The browser shows the configuration as text, hostile names included, and the key is nowhere in it."""
    with browser.page(f"{exporter.url}/config") as page:
        text = page.texts("body")[0]

        assert page.troubles() == []
        assert text.startswith("poll:\n  interval: 1h\n")
        assert "name: <script>alert(1)</script>" in text
        assert KEY not in text
