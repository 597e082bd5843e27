"""The report in a real browser: what a reader can do with it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from audit_results import HOSTILE, finding, result_of, write_samples
from playwright.sync_api import Browser, Page, expect

from bind_core.findings import Severity
from storage.audit_result import AuditCode
from storage.layout import DatasetLayout
from storage.report import write_report

pytestmark = pytest.mark.browser

WIDE, NARROW = 1280, 390


@dataclass
class Visit:
    """A page with all that it complained of and asked for."""

    page: Page
    address: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def assert_quiet(self) -> None:
        """No error, no warning, no alert, and no request but for the page itself and what it holds."""
        assert self.complaints == []
        assert self.dialogs == []
        assert [url for url in self.requests if url != self.address and not url.startswith("data:")] == []


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report of a few simulations, one with a hostile name, one without its files."""
    root = tmp_path_factory.mktemp("data set")
    layout = DatasetLayout(root, "SB35")
    findings = [
        finding(subject=HOSTILE, simulation=HOSTILE, query="SELECT simulation FROM samples"),
        finding(AuditCode.OUTLIER, Severity.WARNING, subject="SB35_0_halo_0_rot_0", query="SELECT 1"),
        finding(AuditCode.OUTLIER, Severity.WARNING, subject="SB35_0_halo_0_rot_1", query="SELECT 2"),
    ]
    result = result_of(root, [HOSTILE, "SB35_0", "SB35_1"], findings=findings)
    result = replace(result, samples=write_samples(result, layout))
    for row in result.samples.filter(result.samples["simulation"] == "SB35_1").iter_rows(named=True):
        layout.absolute(row["path"]).unlink()
    return write_report(result, layout, root / "report.html")


@pytest.fixture
def visit(browser: Browser, report: Path) -> Iterator[Callable[..., Visit]]:
    """Return a function that opens the report; at the end, every page opened must have been quiet."""
    visits: list[Visit] = []

    def open_page(scheme: str = "light", width: int = WIDE, path: Path | None = None) -> Visit:
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        visit = Visit(page, (path or report).as_uri())
        page.on("console", lambda message: visit.complaints.append(message.text))
        page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        page.on("request", lambda request: visit.requests.append(request.url))
        page.on("dialog", lambda dialog: (visit.dialogs.append(dialog.message), dialog.dismiss()))
        visits.append(visit)
        page.goto(visit.address)
        return visit

    yield open_page
    for one in visits:
        one.assert_quiet()
        one.page.close()


def lightness(page: Page, selector: str, what: str = "backgroundColor") -> float:
    """Return how light a colour of an element is, from 0 to 255."""
    colour = page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{what}")
    numbers = [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return sum(numbers) / 3


def test_the_verdict_is_what_a_reader_sees_first(visit: Callable[..., Visit]) -> None:
    """Without scrolling, the window shows the verdict in words."""
    page = visit().page
    expect(page.get_by_role("heading", level=1)).to_have_text("Damaged")
    expect(page.get_by_role("heading", level=1)).to_be_in_viewport()


def test_the_gallery_opens_moves_on_and_closes(visit: Callable[..., Visit]) -> None:
    """A click opens a sample, the arrow keys go through all of them and around, Escape closes where one was."""
    page = visit().page
    cards = page.locator(".card .open")
    number = cards.count()
    assert number == 12
    names = [cards.nth(index).get_attribute("data-sample") for index in range(number)]
    viewer, title = page.get_by_role("dialog"), page.locator("#viewer-title")
    expect(viewer).to_be_hidden()
    cards.nth(2).click()
    expect(viewer).to_be_visible()
    seen = [title.inner_text()]
    for _ in range(number - 1):
        page.keyboard.press("ArrowRight")
        seen.append(title.inner_text())
    assert seen == names[2:] + names[:2]
    page.keyboard.press("ArrowLeft")
    expect(title).to_have_text(names[0])
    page.get_by_role("button", name="Next sample").click()
    page.get_by_role("button", name="Previous sample").click()
    expect(title).to_have_text(names[0])
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(cards.nth(0)).to_be_focused()


def test_the_gallery_needs_no_mouse(visit: Callable[..., Visit]) -> None:
    """A card is reached with the Tab key and opened with Enter; the focus stays in the large view until it closes."""
    page = visit().page
    page.locator(".card .open").first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    inside = "() => document.activeElement === document.body || !!document.activeElement.closest('dialog')"
    for _ in range(8):
        page.keyboard.press("Tab")
        assert page.evaluate(inside)
    page.get_by_role("button", name="Close").press("Enter")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator(".card .open").nth(1)).to_be_focused()


def test_a_large_view_shows_all_maps_and_all_numbers(visit: Callable[..., Visit]) -> None:
    """Condition, three targets and three context maps are drawn, and the numbers of the sample stand below."""
    page = visit().page
    page.locator('.open[data-sample="SB35_0_halo_0_rot_0"]').click()
    viewer = page.get_by_role("dialog")
    pictures = viewer.locator("img")
    assert pictures.count() == 7
    assert pictures.evaluate_all("images => images.every(image => image.complete && image.naturalWidth === 32)")
    for text in ("M200c", "line of sight", "SHA-256", "gas fraction", "context 12.5 Mpc/h", "Outlier."):
        expect(viewer.get_by_text(text, exact=True).locator("visible=true").first).to_be_visible()


def test_a_sample_without_its_file_is_shown_as_such(visit: Callable[..., Visit]) -> None:
    """The card and its large view say why there is no picture."""
    page = visit().page
    card = page.locator('.open[data-sample="SB35_1_halo_0_rot_0"]')
    expect(card).to_contain_text("No such file")
    card.click()
    expect(page.get_by_role("dialog")).to_contain_text("No such file")
    assert page.get_by_role("dialog").locator("img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_system_until_the_reader_chooses(visit: Callable[..., Visit], scheme: str) -> None:
    """It starts as light or dark as the system; the button switches page and plots, and a reload remembers it."""
    page = visit(scheme).page
    is_dark = scheme == "dark"
    ink = ".plot svg text"
    assert (lightness(page, "body") < 128) is is_dark
    assert (lightness(page, ink, "fill") > 128) is is_dark
    page.locator("#theme").click()
    assert (lightness(page, "body") < 128) is not is_dark
    assert (lightness(page, ink, "fill") > 128) is not is_dark
    page.reload()
    assert (lightness(page, "body") < 128) is not is_dark


def test_findings_open_and_close(visit: Callable[..., Visit]) -> None:
    """A group opens with a click, all of them with the button, and the button closes them again."""
    page = visit().page
    groups = page.locator("details.group")
    expect(groups).to_have_count(2)
    subject = groups.first.get_by_role("rowheader").first
    expect(subject).to_be_hidden()
    groups.first.locator("summary").click()
    expect(subject).to_be_visible()
    page.get_by_role("button", name="Expand all").click()
    expect(page.locator("details.group[open]")).to_have_count(2)
    page.get_by_role("button", name="Collapse all").click()
    expect(page.locator("details.group[open]")).to_have_count(0)


def test_a_query_is_copied_whole(visit: Callable[..., Visit]) -> None:
    """The button beside a query puts the command on the clipboard as it stands on the page."""
    page = visit().page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Expand all").click()
    block = page.locator("details.group .copyable").first
    block.get_by_role("button").click()
    expect(block.get_by_role("button")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == block.locator("code").inner_text()
    assert copied.startswith("bind-data query ") and copied.endswith('"SELECT simulation FROM samples"')


def test_a_hostile_name_is_text(visit: Callable[..., Visit]) -> None:
    """A simulation called like an image with a script is shown as that text, everywhere, and nothing of it runs."""
    page = visit().page
    page.get_by_role("button", name="Expand all").click()
    expect(page.locator("details.group").get_by_text(HOSTILE).first).to_be_visible()
    expect(page.locator(".rows").get_by_text(HOSTILE)).to_be_visible()
    card = page.locator(".open").filter(has_text=HOSTILE).first
    card.click()
    expect(page.locator("#viewer-title")).to_contain_text(HOSTILE)
    assert page.locator('img[src="x"]').count() == 0


def test_the_policy_stops_what_escaping_would_let_through(visit: Callable[..., Visit]) -> None:
    """Even a page that was tampered with runs no foreign script and loads nothing from elsewhere."""
    opened = visit()
    opened.page.evaluate(
        """async () => {
            window.refused = [];
            document.addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
            document.body.insertAdjacentHTML("beforeend", '<img src="x" onerror="document.title = 1">');
            document.body.insertAdjacentHTML("beforeend", '<a onclick="document.title = 2" id="foreign">x</a>');
            document.getElementById("foreign").click();
            try { await fetch("https://example.org"); } catch { /* as it should */ }
        }"""
    )
    for directive in ("img-src", "script-src-attr", "connect-src"):
        opened.page.wait_for_function("directive => window.refused.includes(directive)", arg=directive)
    assert opened.page.title().startswith("Damaged")
    assert not [url for url in opened.requests if url.startswith("http")]
    opened.complaints.clear()  # the refusals, which this test provoked
    opened.requests.clear()


@pytest.mark.parametrize("width", [WIDE, NARROW, 320])
def test_nothing_sticks_out_of_the_window(visit: Callable[..., Visit], width: int) -> None:
    """The page is as wide as the window, with all findings open and with the large view open."""
    page = visit(width=width).page
    page.get_by_role("button", name="Expand all").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".card .open").first.click()
    box = page.get_by_role("dialog").bounding_box()
    assert box is not None
    assert box["x"] >= 0 and box["x"] + box["width"] <= width


def test_many_simulations_are_one_stop_of_the_tab_key(visit: Callable[..., Visit], tmp_path: Path) -> None:
    """A thousand cells are walked through with the arrow keys, and the line below tells about each."""
    layout = DatasetLayout(tmp_path, "SB35")
    result = result_of(tmp_path, [f"SB35_{index}" for index in range(1024)], haloes=1, rotations=1)
    page = visit(path=write_report(result, layout, tmp_path / "large.html")).page
    train = page.locator(".cells").first
    assert train.locator('[tabindex="0"]').count() == 1
    train.locator('[tabindex="0"]').focus()
    detail = page.locator("#cell-detail")
    expect(detail).to_contain_text("SB35_0: complete")
    page.keyboard.press("ArrowRight")
    expect(detail).to_contain_text("SB35_1: complete · 1 of 1 planned")
    page.keyboard.press("ArrowDown")
    below = page.evaluate("document.activeElement.getBoundingClientRect().left")
    page.keyboard.press("ArrowUp")
    expect(detail).to_contain_text("SB35_1: ")
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") == below
    page.keyboard.press("End")
    expect(detail).to_contain_text("SB35_1022: ")
    train.locator(".cell").nth(5).hover()
    expect(detail).to_contain_text("SB35_5: ")
