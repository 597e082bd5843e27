"""The Prefect UI in a real browser: what an operator sees of this project's flows."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError
from served_platform import ServedPlatform, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.prefect, pytest.mark.mpi, pytest.mark.camels_mini]

ROOT = Path(__file__).parents[2]
PATIENCE = 60_000
"""Milliseconds that a page may take, on a machine that is busy otherwise."""
ATTEMPTS = 4
"""How often a page is loaded: the interface does not ask again for what a busy server did not give it."""


@pytest.fixture
def open_page(browser: Browser, platform: ServedPlatform) -> Iterator[Callable[[str], Page]]:
    """Return a function that opens a page of the UI."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)

    def go(path: str) -> Page:
        page.goto(platform.url + path)
        return page

    yield go
    page.close()


def test_the_deployments_are_listed(open_page: Callable[[str], Page]) -> None:
    """The page of deployments shows all six, with their flows, by name."""
    page = open_page("/v2/deployments")
    for name in ("audit-known", "audit-verified", "generate", "new-simulations", "normalize", "pack"):
        expect(page.get_by_role("link", name=name, exact=True).first).to_be_visible()
    expect(page.get_by_text("6 Deployments")).to_be_visible()
    expect(page.get_by_text("Upgrade")).to_have_count(0)


def test_a_deployment_explains_itself(open_page: Callable[[str], Page], platform: ServedPlatform) -> None:
    """Its page has the description that says what it does."""
    page = open_page(f"/v2/deployments/deployment/{platform.deployment('generate')['id']}?tab=Description")
    expect(page.get_by_text("Make every sample that is asked for and does not exist yet.")).to_be_visible()


def test_the_form_has_a_field_with_help_for_every_setting(
    open_page: Callable[[str], Page], platform: ServedPlatform
) -> None:
    """Each setting of the configuration is in the form by its own name, with its help and the deployment's value."""
    deployment = platform.deployment("generate")
    page = open_page(f"/v2/deployments/deployment/{deployment['id']}/run")
    model = deployment["parameter_openapi_schema"]["definitions"]["DatasetConfig"]["properties"]
    for name, setting in model.items():
        expect(page.get_by_text(re.compile(rf"^{name}( \(Optional\))?$")).first).to_be_visible()
        expect(page.get_by_text(setting["description"], exact=True).first).to_be_visible()
    expect(page.get_by_text("Make samples anew that would come out differently today")).to_be_visible()
    expect(page.get_by_label(re.compile("^dmo_base")).first).to_have_value(str(platform.suite / "DMO"))
    expect(page.get_by_label(re.compile("^output_root")).first).to_have_value(str(platform.dataset))


def test_a_run_is_started_from_the_form(open_page: Callable[[str], Page], platform: ServedPlatform) -> None:
    """Filled in and submitted, the form starts a run with those values; one that cannot be is marked at its field."""
    deployment = platform.deployment("audit-known")
    page = open_page(f"/v2/deployments/deployment/{deployment['id']}/run")
    field = page.get_by_label(re.compile("^dataset")).first
    expect(field).to_have_value(str(platform.dataset))
    field.fill(str(platform.folder / "nowhere"))
    page.get_by_role("button", name="Submit").click()
    runs = wait_for(
        lambda: [run for run in platform.flow_runs("audit-known") if "nowhere" in str(run["parameters"])], "the run"
    )
    run = platform.finished(runs[0]["id"])
    assert run["state_type"] == "FAILED"
    message = f"There is no data set in {platform.folder / 'nowhere'}"
    wait_for(lambda: any(message in line for line in platform.log_lines(run["id"])), "the log of the run")
    page = open_page(f"/v2/runs/flow-run/{run['id']}")
    expect(page.get_by_text(message).first).to_be_in_viewport()


def test_a_finished_run_shows_steps_and_artifacts(
    open_page: Callable[[str], Page], platform: ServedPlatform, first_run: dict[str, Any]
) -> None:
    """The run's page has its outcome in words, its steps by name, and its artifacts."""
    page = open_page(f"/v2/runs/flow-run/{first_run['id']}?tab=Details")
    expect(page.get_by_text("made 81 samples; 81 of 81 planned samples exist").first).to_be_in_viewport()
    page.get_by_role("tab", name="Task Runs").click()
    for step in ("plan", "validate block 0", "project block 1", "record block 1", "take stock"):
        expect(page.get_by_text(step, exact=True).first).to_be_visible()
    page.get_by_role("tab", name="Artifacts").click()
    for key in ("contact-sheet", "generation-summary", "generation-progress"):
        expect(page.get_by_text(key, exact=True).first).to_be_visible()


def test_the_artifacts_are_worth_looking_at(
    open_page: Callable[[str], Page], platform: ServedPlatform, first_run: dict[str, Any]
) -> None:
    """The contact sheet is a picture, drawn within the window; the summary is a table with a row per simulation."""
    artifacts = platform.artifacts(first_run["id"])
    page = open_page(f"/v2/artifacts/artifact/{artifacts['contact-sheet']['id']}")
    picture = page.get_by_role("img", name="The heaviest haloes")
    for _ in range(ATTEMPTS):
        with suppress(PlaywrightTimeoutError):
            picture.wait_for(timeout=20_000)
            break
        page.reload()
    expect(picture).to_be_in_viewport()
    assert picture.evaluate("image => image.complete && image.naturalWidth > 800")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1400
    page = open_page(f"/v2/artifacts/artifact/{artifacts['generation-summary']['id']}")
    for simulation, samples in {"SB35_0": "40", "SB35_2": "41"}.items():
        row = page.get_by_role("row").filter(has_text=simulation)
        expect(row).to_contain_text("complete")
        expect(row.get_by_role("cell", name=samples, exact=True).first).to_be_visible()


def test_text_from_data_is_shown_and_not_interpreted(
    open_page: Callable[[str], Page], platform: ServedPlatform
) -> None:
    """Tags, links and pictures in names and messages are text in both of the server's interfaces."""
    hostile = "SB35_<img src=x onerror=alert(1)> | [it](javascript:alert(1)) ![it](http://127.0.0.1:1/it.png)"
    arguments = f"[{{'simulation': {hostile!r}, 'planned': 3}}], key='hostile', description={'about ' + hostile!r}"
    code = f"from flows.artifacts import leave_table; leave_table({arguments})"
    subprocess.run([sys.executable, "-c", code], env=platform.environment, cwd=ROOT, check=True)
    (artifact,) = platform.ask("POST", "/artifacts/filter", artifacts={"key": {"any_": ["hostile"]}})
    for interface in ("/v2", ""):
        page = open_page(f"{interface}/artifacts/artifact/{artifact['id']}")
        expect(page.get_by_role("cell").filter(has_text="onerror=alert(1)")).to_be_visible()
        expect(page.get_by_text("about SB35_<img src=x").first).to_be_visible()
        assert page.locator("img[src=x], img[src*='it.png'], a[href^=javascript]").count() == 0


def test_automations_are_listed_with_what_they_do(open_page: Callable[[str], Page]) -> None:
    """The page of automations shows the one that declares silent runs dead, and the follow-up of new samples."""
    page = open_page("/v2/automations")
    expect(page.get_by_text("bind-data: runs without a sign of life")).to_be_visible()
    expect(page.get_by_text("normalize after new samples")).to_be_visible()
    expect(page.get_by_text("Three heartbeats missed.")).to_be_visible()
