"""A person with a browser: forms, wrong values refused, a run watched to its end, its artifacts, promotion, rollback.

`SCREENSHOTS=docs` keeps the pictures there (`make screenshots`).
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tasks.store.manifest import read_manifest
from tests.e2e.served import Served, wait_for
from tests.tiny import make_rows, write_jsonl

CHROMIUM = shutil.which("chromium")
MINUTES = 60_000.0
"""As Playwright counts. A busy machine may need many; what is waited for is a state, and is there at once otherwise."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="needs Debian's chromium, as .ci/run installs it"),
]


@pytest.fixture
def page(deployed: Served) -> Iterator[Page]:
    """The UI, with its password typed in."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce").new_page()
        page.set_default_timeout(3 * MINUTES)
        expect.set_options(timeout=3 * MINUTES)
        page.goto(deployed.url)
        page.get_by_placeholder("admin:pass").fill(deployed.environment["PREFECT_API_AUTH_STRING"])
        page.get_by_role("button", name="Login").click()
        yield page
        browser.close()


def form_of(page: Page, deployment: str) -> None:
    page.get_by_role("link", name="Deployments").first.click()
    links = page.locator("a[href*='/deployments/deployment/']")
    links.filter(has_text=re.compile(f"^{deployment}$")).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()
    expect(page.get_by_role("button", name="Submit")).to_be_visible()


def field(page: Page, title: str) -> Locator:
    return page.get_by_label(title, exact=True).first


def watched(deployed: Served, page: Page, name: str, values: dict[str, str]) -> None:
    """Fill in the form and submit it, and follow the run of this name to its end."""
    submit = page.get_by_role("button", name="Submit")
    for _ in range(3):  # the UI may draw a form anew after something was typed, which is then gone
        for title, value in {**values, "Run Name": name}.items():
            field(page, title).fill(value)
        submit.click()
        with contextlib.suppress(AssertionError):
            expect(submit).to_be_hidden(timeout=MINUTES / 2)
            break
    named = {"flow_runs": {"name": {"any_": [name]}}}
    run = wait_for(lambda: deployed.api("/flow_runs/filter", named), f"{name} was not submitted")[0]
    page.goto(f"{deployed.url}/v2/runs/flow-run/{run['id']}")  # lists of runs may be out of date
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=10 * MINUTES)


def test_a_person_runs_promotes_and_goes_back(deployed: Served, page: Page, tmp_path: Path, tiny_model: Path) -> None:
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path)).absolute()
    taken = []

    def picture(name: str, height: int = 900) -> None:
        page.set_viewport_size({"width": 1280, "height": height})
        taken.append(pictures / f"ui-{name}.png")
        page.screenshot(path=taken[-1])
        page.set_viewport_size({"width": 1280, "height": 900})

    registry = deployed.folder / "store" / "registry" / "by-hand"
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(40))
    configuration = tmp_path / "by-hand.yaml"
    configuration.write_text(
        f"data: {{path: {rows}}}\nmodel: {{base: {tiny_model}}}\nevaluation: {{max_new_tokens: 4}}\n"
        "training: {max_steps: 8}\npublishing: {name: by-hand}\n"
    )

    # the whole form: titles, choices, bounds, defaults, and templates in boxes of several lines
    form_of(page, "on-demand")
    expect(page.get_by_text("Rank of the LoRA matrices. [≥ 1, ≤ 1,024, default 16]").first).to_be_visible()
    expect(page.get_by_text("{% endif %}### Output:").first).to_be_visible()
    page.get_by_text("formatting (Optional)").first.scroll_into_view_if_needed()
    picture("form")

    # the short form: wrong values are refused at their fields
    form_of(page, "quick")
    field(page, "Name (Optional)").fill("By Hand")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("Validation failed for field 'publishing.name'").first).to_be_visible()
    field(page, "LoRA r (Optional)").fill("0")  # refused by the browser
    assert not field(page, "LoRA r (Optional)").evaluate("field => field.checkValidity()")
    picture("refused")

    # three fields changed, and the run watched to its end
    form_of(page, "quick")
    changed = {"LoRA r (Optional)": "8", "Learning rate (Optional)": "0.01", "Batch size (Optional)": "4"}
    for title, value in changed.items():
        field(page, title).fill(value)
    field(page, "configuration").scroll_into_view_if_needed()
    picture("quick", 1300)
    watched(deployed, page, "tuned by hand", {**changed, "configuration": str(configuration)})
    expect(page.get_by_text("by-hand", exact=True).first).to_be_visible()  # a tag
    made = read_manifest(next((deployed.folder / "store/artifacts").glob("train-*"))).identity.config
    assert [made[name] for name in ("lora_r", "learning_rate", "batch_size", "max_steps")] == [8, 0.01, 4, 8]
    page.get_by_role("tab", name="Artifacts").click()
    for key in ("data-by-hand", "progress-train", "report-by-hand"):
        expect(page.get_by_text(key, exact=True).last).to_be_visible()
    picture("run")
    page.get_by_text("retrain-by-hand", exact=True).last.click()
    page.locator("a[href*='/artifacts/artifact/']").first.click()
    expect(page.get_by_role("cell", name="ROUGE-L", exact=True)).to_be_visible()
    loss = page.get_by_role("img", name="Loss")
    loss.scroll_into_view_if_needed()
    assert loss.evaluate("image => image.complete && image.naturalWidth > 0")
    picture("artifact", 1300)

    # promoted and rolled back; a second version has the same weights, so nothing is trained
    configuration.write_text(configuration.read_text().replace("name: by-hand", "name: by-hand, hub_private: false"))
    quick = deployed.api("/deployments/name/retrain-file/quick")["id"]
    parameters = {
        "configuration": str(configuration),
        "training": {"lora_r": 8, "learning_rate": 0.01, "batch_size": 4},
    }
    again = deployed.api(f"/deployments/{quick}/create_flow_run", {"parameters": parameters})["id"]
    run = wait_for(lambda: deployed.finished(again), "the second run does not end")
    assert run["state"]["message"].startswith("Published by-hand v0002"), run["state"]["message"]
    for deployment, values, in_use in (
        ("promote", {"name": "by-hand", "version": "v0002", "reason": "It reads better"}, "v0002"),
        ("rollback", {"name": "by-hand", "version (Optional)": "v0001", "reason": "It does not after all"}, "v0001"),
    ):
        form_of(page, deployment)
        watched(deployed, page, f"my {deployment}", values)
        assert (registry / "champion").resolve().name == in_use
    picture("rolled-back")
    assert all(file.stat().st_size < 200_000 for file in taken)
