"""The report as a page: what it says, in which order, and that data stays data."""

import re
import shlex
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from audit_results import HOSTILE, NOON, empty_result, finding, result_of, write_samples

from bind_core.findings import Severity
from storage.audit_result import AuditCode, AuditResult, Depth
from storage.layout import DatasetLayout
from storage.report import render_report, write_report

VOID = {"meta", "link", "img", "br", "circle", "path", "use", "image", "rect"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; notes every element that is closed out of turn."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.astray: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.astray.append(tag)

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in {"style", "script"}:
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    @property
    def sound(self) -> bool:
        return not self.astray and not self.open

    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]


@pytest.fixture
def layout(tmp_path: Path) -> DatasetLayout:
    return DatasetLayout(tmp_path, "SB35")


def page_of(result: AuditResult) -> Page:
    return Page(render_report(result, DatasetLayout(Path(result.root), result.set_name)))


def everything(root: Path) -> AuditResult:
    """Return an audit with every kind of finding, of a few simulations."""
    findings = [
        finding(code, Severity.WARNING if index % 2 else Severity.ERROR, subject=f"SB35_0_halo_{index}_rot_0")
        for index, code in enumerate(AuditCode)
    ]
    return result_of(root, ["SB35_0", "SB35_1", "SB35_2"], findings=findings)


def test_the_verdict_comes_first_and_the_rest_in_order(layout: DatasetLayout) -> None:
    """A reader sees the verdict, then what was audited, counts, checks, findings, plots and pictures."""
    html = render_report(everything(layout.root), layout)
    order = re.findall(r'<h[12] id="([a-z]+)"', html)
    assert order == [
        "verdict",
        "audited",
        "counts",
        "checks",
        "findings",
        "distributions",
        "completeness",
        "gallery",
    ]


@pytest.mark.parametrize(
    ("findings", "headline", "kind"),
    [
        ([], "Sound", "good"),
        ([finding(severity=Severity.WARNING)], "Sound, with warnings", "warn"),
        ([finding(severity=Severity.WARNING), finding()], "Damaged", "bad"),
    ],
)
def test_the_verdict_is_told_in_words_and_by_a_sign(layout: DatasetLayout, findings, headline: str, kind: str) -> None:
    """Errors damage a data set, warnings do not; the word and the sign say it, not the colour alone."""
    result = result_of(layout.root, ["SB35_0"], findings=findings)
    html = render_report(result, layout)
    verdict = html[html.index('<section class="verdict') : html.index("</section>")]
    assert f'<section class="verdict {kind}"' in verdict
    assert f'<svg class="icon {kind}"' in verdict
    assert f">{headline}</h1>" in verdict
    assert result.verdict in Page(verdict).words


def test_failed_checks_stand_before_those_that_passed(layout: DatasetLayout) -> None:
    """Errors come first, then warnings, what could not be made, and the rest; only errors count as failed."""
    findings = [finding(), finding(AuditCode.OUTLIER, Severity.WARNING)]
    html = render_report(result_of(layout.root, ["SB35_0"], findings=findings), layout)
    rows = [attributes["class"] for tag, attributes in Page(html).elements if tag == "tr" and "class" in attributes]
    assert rows[:4] == ["bad", "warn", "none", "good"]
    outcomes = re.findall(r'<td class="outcome">.*</svg> ([a-z ]+)</td>', html)
    assert outcomes == ["failed", "warnings", "not made", "passed"]


def test_long_texts_are_cut_between_words(layout: DatasetLayout) -> None:
    """What is too long ends after a whole word, unless it is a single one."""
    said = " ".join(f"number{i}" for i in range(200))
    page = page_of(result_of(layout.root, ["SB35_0"], findings=[finding(found=said, expected="x" * 2000)]))
    cut = re.findall(r"number0 [^…]*…", page.words)
    assert cut
    assert all(f"{text[:-1]} " in said for text in cut)
    assert "x" * 600 + "…" in page.words


def test_an_empty_data_set_has_a_whole_report(layout: DatasetLayout) -> None:
    """Nothing recorded, planned, measured or found: each part says so, and the page is well-formed."""
    page = page_of(empty_result(layout.root))
    assert page.sound
    for said in (
        "No check was made.",
        "Nothing was found.",
        "There is no halo to draw.",
        "There is no orientation to draw.",
        "this needs an audit at depth verified",
        "The parameters of the simulations were out of reach.",
        "There is no simulation.",
        "There are no samples to show.",
    ):
        assert said in page.words


@pytest.mark.parametrize("absent", ["measures", "channels", "halo_masses", "parameters", "simulations", "samples"])
def test_each_table_may_be_empty(layout: DatasetLayout, absent: str) -> None:
    """Whatever one table lacks, the rest of the page is there."""
    page = page_of(replace(everything(layout.root), **{absent: pl.DataFrame()}))
    assert page.sound
    assert "Findings" in page.words and "Gallery" in page.words


def test_every_kind_of_finding_is_explained(layout: DatasetLayout) -> None:
    """Each kind is a group with its sentence, its number, and what to do; errors come before warnings."""
    result = everything(layout.root)
    page = page_of(result)
    for code in AuditCode:
        assert code.meaning in page.words
    groups = [
        attributes["class"]
        for tag, attributes in page.elements
        if tag == "details" and attributes.get("class", "").startswith("group")
    ]
    assert len(groups) == len(AuditCode)
    assert groups == sorted(groups), "bad before warn"


def test_a_finding_comes_with_the_command_that_shows_it(layout: DatasetLayout) -> None:
    """The query is a whole command about the audited version, safe to paste into a shell whatever names are in it."""
    plain = "SELECT * FROM samples WHERE simulation = 'SB35_0'"
    tricky = "SELECT '$(reboot)`reboot`' AS \"name\""
    found = [finding(query=plain), finding(AuditCode.ORPHAN, query=tricky)]
    page = page_of(result_of(layout.root / "my sets", ["SB35_0"], findings=found))
    commands = [line for line in page.text.splitlines() if "bind-data query" in line]
    start = ["bind-data", "query", "--dataset", f"{layout.root}/my sets", "--version", "7"]
    typed = [line[line.index("bind-data query") : line.rindex("Copy")] for line in commands]
    assert [shlex.split(command) for command in typed] == [[*start, plain], [*start, tricky]]
    assert typed[0].endswith(f'"{plain}"')


def test_commands_in_advice_are_set_as_code(layout: DatasetLayout) -> None:
    """What stands between back quotes is code, still escaped; a lone back quote is just that."""
    advised = [
        finding(advice="Run `bind-data repair <now>` or `x`."),
        finding(AuditCode.ORPHAN, advice="A lone ` is <b>text</b>."),
    ]
    html = render_report(result_of(layout.root, ["SB35_0"], findings=advised), layout)
    assert "Run <code>bind-data repair &lt;now&gt;</code> or <code>x</code>." in html
    assert "A lone ` is &lt;b&gt;text&lt;/b&gt;." in html


def test_many_findings_are_counted_and_few_shown(layout: DatasetLayout) -> None:
    """A thousand findings of a kind do not make a thousand rows, and the true number is told."""
    found = [finding(AuditCode.ORPHAN, subject=f"train/{index}.npz", query="") for index in range(1000)]
    result = replace(result_of(layout.root, ["SB35_0"], findings=found), counts={AuditCode.ORPHAN: 5432}, errors=5432)
    page = page_of(result)
    assert "5,432 errors" in page.words
    assert "and 5392 more" in page.words
    assert page.words.count("train/") < 60


def test_data_is_text_and_never_markup(layout: DatasetLayout) -> None:
    """Names, messages and paths with HTML in them add no element, no attribute and no script to the page."""
    plain = "plain"

    def report(name: str) -> Page:
        spoilt = finding(subject=name, simulation=name, expected=name, found=name, advice=name, query=name)
        result = result_of(layout.root, [name, "SB35_1"], findings=[spoilt])
        simulations = result.simulations.with_columns(message=pl.lit(name), status=pl.lit(name))
        parameters = result.parameters.rename({"parameter_0": name})
        return page_of(
            replace(result, simulations=simulations, parameters=parameters, root=str(layout.root / "x"), set_name=name)
        )

    for hostile in (HOSTILE, '"><script>alert(1)</script>', "' onload='alert(1)", "</style></script>{{ 7 * 7 }}"):
        harmless, spoilt = report(plain), report(hostile)
        assert spoilt.sound
        assert hostile in spoilt.text
        shape = [(tag, sorted(attributes)) for tag, attributes in harmless.elements]
        assert [(tag, sorted(attributes)) for tag, attributes in spoilt.elements] == shape


def test_invisible_characters_are_spelt_out(layout: DatasetLayout) -> None:
    """Text that would turn the reading direction, or cannot be stored, is shown as its escape."""
    trick = "SB35_\u202e0\x00\udc80"
    path = write_report(
        result_of(layout.root, ["SB35_0"], findings=[finding(subject=trick)]), layout, layout.root / "r"
    )
    assert r"SB35_\u202e0\x00\udc80" in path.read_text(encoding="utf-8")


def test_the_page_asks_for_nothing(layout: DatasetLayout) -> None:
    """No element names an address outside the page, and the page's policy forbids any."""
    result = everything(layout.root)
    page = page_of(replace(result, samples=write_samples(result, layout)))
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes[name][:80])
        assert not any(name.startswith("on") for name in attributes), tag
    (policy,) = [a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_identifiers_are_unique(layout: DatasetLayout) -> None:
    """No two elements share an id, those within the plots included."""
    ids = page_of(everything(layout.root)).ids()
    assert len(ids) == len(set(ids))


def test_a_large_data_set_has_a_small_report(layout: DatasetLayout) -> None:
    """1,024 simulations with 500 samples each: every simulation has a cell, and the page stays below a megabyte."""
    result = result_of(layout.root, [f"SB35_{index}" for index in range(1024)], haloes=50, rotations=10)
    html = render_report(result, layout)
    page = Page(html)
    assert page.sound
    assert "512,000" in page.words
    cells = [a for tag, a in page.elements if tag == "button" and a.get("class", "").startswith("cell ")]
    assert len(cells) == 1024
    assert len(html) < 1_000_000


def test_beyond_the_limit_complete_simulations_are_left_out(layout: DatasetLayout) -> None:
    """Of very many simulations those that are not complete are shown, and the number of the others is told."""
    result = result_of(layout.root, [f"SB35_{index}" for index in range(5000)], haloes=1, rotations=1)
    simulations = result.simulations.with_columns(
        missing=pl.when(pl.col("simulation") == "SB35_77").then(1).otherwise("missing"),
        committed=pl.when(pl.col("simulation") == "SB35_77").then(0).otherwise("committed"),
    )
    page = page_of(replace(result, simulations=simulations))
    assert any("SB35_77: " in attributes.get("title", "") for _, attributes in page.elements)
    assert "simulations not shown" in page.words


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "complete"),
        ({"committed": 1, "missing": 3}, "partial"),
        ({"committed": 0, "missing": 4, "status": ""}, "planned"),
        ({"broken": 1}, "broken"),
        ({"stale": 2}, "stale"),
        ({"status": "blocked", "committed": 0, "planned": None, "missing": None}, "blocked"),
        ({"status": "no_work", "committed": 0, "planned": 0}, "no_work"),
        ({"status": "", "planned": None, "missing": None}, "unknown"),
    ],
)
def test_a_simulation_is_shown_as_it_stands(layout: DatasetLayout, changes: dict, state: str) -> None:
    """What is broken, stale, blocked, planned or half done looks different from what is complete."""
    result = result_of(layout.root, ["SB35_0"])
    row = result.simulations.with_columns(pl.lit(value).alias(name) for name, value in changes.items())
    page = page_of(replace(result, simulations=row))
    cells = [a["class"] for tag, a in page.elements if tag == "span" and a.get("class", "").startswith("cell ")]
    assert set(cells) == {f"cell state-{state}"}


def test_the_report_says_what_was_audited(layout: DatasetLayout) -> None:
    """Root, version, times, depth, configuration and its digest are there."""
    result = replace(everything(layout.root), audited_at=NOON + timedelta(hours=3, minutes=4))
    words = page_of(result).words
    for part in (result.root, result.config.digest, "2026-11-01 15:04 UTC", "2026-11-01 12:00 UTC", "verified"):
        assert part in words
    assert "pairing_threshold:" in words


def test_a_known_audit_says_how_it_picked(layout: DatasetLayout) -> None:
    """Without measures the gallery is by mass, and the page says so."""
    known = page_of(result_of(layout.root, ["SB35_0"], depth=Depth.KNOWN))
    assert "these were picked by halo mass" in known.words
    assert "Picked by suspicion" in page_of(result_of(layout.root, ["SB35_0"])).words


def test_the_same_audit_gives_the_same_bytes(layout: DatasetLayout) -> None:
    """A report depends on the audit and the samples alone; writing it again changes nothing and leaves no leftovers."""
    result = everything(layout.root)
    path = layout.root / "reports" / "audit.html"
    assert write_report(result, layout, path) == path
    first = path.read_bytes()
    write_report(result, layout, path)
    assert path.read_bytes() == first
    assert [entry.name for entry in path.parent.iterdir()] == ["audit.html"]
