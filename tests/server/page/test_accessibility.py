"""axe-core finds nothing on any tab, light and dark, empty and filled; it runs where npm can install it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.conftest import paint
from tests.server.page.conftest import PAINTED, PROMPT, until
from tests.server.page.test_info import picture

AXE = "4.14.1"
RUN = """async () => {
  const { violations } = await axe.run(document, { resultTypes: ["violations"] });
  return violations.map(({ id, help, nodes }) => [id, help, ...nodes.slice(0, 3).map((node) => node.html)].join(": "));
}"""


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
    """The script of axe-core."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not here: axe-core cannot be installed")
    folder = tmp_path_factory.mktemp("axe")
    (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": {"axe-core": AXE}}))
    command = [npm, "install", "--no-fund", "--no-audit", "--ignore-scripts", "--prefer-offline", "--fetch-retries=0"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    except (subprocess.SubprocessError, OSError):
        pytest.skip("npm cannot install axe-core here")
    return Path(folder, "node_modules/axe-core/axe.min.js").read_text("utf-8")


@pytest.fixture
def check(axe):
    """Look at a page in light and dark, and return what axe-core finds."""

    def check(page):
        if not page.evaluate("Boolean(window.axe)"):
            page.evaluate(axe)
        found = []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            found += [f"{scheme}: {violation}" for violation in page.evaluate(RUN)]
        return found

    return check


def test_paint_has_no_violation(open_page, client, check):
    page = open_page("#paint")
    page.locator(".card").first.wait_for()
    assert check(page) == []
    page.locator(PROMPT).fill("a house <lora:ink:0.5>")
    paint(client, "a house <lora:ink:0.5>", recipe={"prompt": "a house <lora:ink:0.5>", "steps": 1, "seed": 3})
    page.locator(f"{PAINTED}[alt^='a house']").wait_for()
    for summary in page.locator("#panel-paint .paint-form summary:visible").all()[1:]:
        summary.click()
    picture_file = {"name": "a.png", "mimeType": "image/png", "buffer": picture(None)}
    page.locator("#start-file").set_input_files(picture_file)
    page.locator(".easel canvas").wait_for()
    page.get_by_label("Steps", exact=True).fill("0")  # an error beside its field
    page.locator("[data-field=steps] .error:not([hidden])").wait_for()
    assert check(page) == []
    page.set_viewport_size({"width": 360, "height": 700})
    assert check(page) == []


def test_train_has_no_violation(open_page, check):
    page = open_page("#train")
    page.locator("#train-files").wait_for(state="attached")
    assert check(page) == []
    page.get_by_label("Set of pictures", exact=True).select_option("neon")
    page.locator(".picture").first.wait_for()
    page.get_by_text("Steps, learning rate, previews").click()
    page.get_by_text("pictures.", exact=False).first.wait_for()
    assert check(page) == []


def test_library_has_no_violation(open_page, check):
    page = open_page("#library")
    page.locator(".library-item").first.wait_for()
    assert check(page) == []
    page.locator(".library-row", has_text="ink").first.click()
    page.get_by_role("heading", name="ink").wait_for()
    for summary in page.locator(".library-file summary").all():
        if not summary.locator("..").get_attribute("open"):
            summary.click()
    assert check(page) == []


def test_a_training_and_a_study_that_are_done_have_no_violation(open_page, check):
    run = {
        "run": "glow",
        "name": "glow",
        "state": "interrupted",
        "kind": "lora",
        "base": "tiny",
        "steps": 8,
        "planned_steps": 10,
        "seconds": 60,
        "validation": {0: 0.5, 8: 0.4},
        "best_step": 8,
        "best_loss": 0.4,
        "rescues": [{"step": 5, "back_to": 4, "because": "the loss is NaN", "rate": 1e-3}],
        "snapshots": [4, 8],
        "previews": {0: 1, 8: 1},
        "strength": 0.8,
        "tag": "<lora:glow:0.8>",
        "verdict": ["validation loss 0.5 before, 0.4 after"],
    }
    scores = {"score": "0.8 ± 0.1", "likeness": "0.7", "kept": "0.9", "strength": "1", "trials": 3}
    scores |= {"together": "0.6 ± 0.1", "other_left": "0.9"}
    study = {
        "study": "seen",
        "trials": 3,
        "base": "tiny",
        "together": "ink.safetensors at 0.6",
        "recommendation": "Train a LoRA.",
        "kinds": [{"kind": "lora", **scores}],
        "has_report": False,
    }
    page = open_page("#info")
    page.locator("#panel-info .drop").wait_for()
    page.route("**/api/runs", lambda route: route.fulfill(json=[run]))
    page.route("**/api/runs/glow/losses*", lambda route: route.fulfill(json={"steps": [1, 8], "losses": [0.6, 0.4]}))
    page.route("**/api/studies", lambda route: route.fulfill(json=[study]))
    page.route("**/api/studies/seen", lambda route: route.fulfill(json=study))
    page.evaluate("location.hash = '#train?run=glow'")
    page.get_by_text("At step 5 the guard went back to step 4").wait_for()
    assert page.locator(".train-run dl").inner_text().split("\n") == ["Validation loss", "0.5 before, 0.4 after"]
    assert check(page) == []
    page.evaluate("location.hash = '#compare?study=seen'")
    page.get_by_text("Train a LoRA.").wait_for()
    assert check(page) == []
    page.set_viewport_size({"width": 360, "height": 700})
    assert check(page) == []


def test_compare_has_no_violation(open_page, check):
    page = open_page("#compare")
    page.get_by_role("button", name="Start the study").click()  # without pictures: an error
    page.locator("[data-field=dataset] .error:not([hidden])").wait_for()
    assert check(page) == []


def test_picture_info_has_no_violation(open_page, check):
    page = open_page("#info")
    page.locator("#panel-info .drop").wait_for()
    assert check(page) == []
    page.locator("#info-file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": picture()})
    page.get_by_role("heading", name="Missing here").wait_for()
    until(page, "document.querySelector('.info-picture img')?.complete")
    assert check(page) == []
