"""The report as a person sees it: in a browser, with nothing fetched and nothing broken."""

import shutil

import pytest
from PIL import Image

import velatura
from velatura.compare.grid_page import grid_page
from velatura.compare.training_report import Figure, TrainingReport

CHROMIUM = shutil.which("chromium")


@pytest.fixture
def page(playwright_engine):
    """A browser's page that notes what it asks the network for, and its errors."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium to look at pages with: apt-get install chromium")
    browser = playwright_engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield browser.new_page(viewport={"width": 1100, "height": 800})
    browser.close()


def test_the_report_shows_all_it_has_and_fetches_nothing(page, tmp_path):
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("teal", "plum", "gold")]
    report = TrainingReport(
        title="A hypernetwork for <neon>",
        opening="It learned.",
        figures=[Figure("What it learned from", "Three pictures.", pictures)],
        losses=[1 / (step + 1) for step in range(50)],
        facts={"size": "2 MB"},
        commands={"a prompt": "velatura generate 'a <hypernet:neon:1>'"},
    )
    file = tmp_path / "index.html"
    file.write_text(report.html(), "utf-8")
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.goto(file.as_uri())
    assert page.title() == "A hypernetwork for <neon>"
    assert page.get_by_role("heading", name="A hypernetwork for <neon>").is_visible()
    assert page.get_by_text("velatura generate 'a <hypernet:neon:1>'").is_visible()
    shown = page.locator("img").evaluate_all("all => all.map(each => each.complete && each.naturalWidth > 0)")
    assert shown == [True] * len(pictures)
    assert page.locator("svg").first.bounding_box()["height"] > 50
    assert page.evaluate("document.documentElement.scrollWidth") <= 1100
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert errors == []


def test_a_grids_page_shows_its_pictures_and_a_recipe_when_asked(page, tmp_path, tiny):
    made = velatura.grid(tiny, "a {what}", x=("what", ["house", "boat"]), y=("seed", [7, 8]))
    file = tmp_path / "grid.html"
    file.write_text(grid_page(made), "utf-8")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    shown = page.locator("img").evaluate_all("all => all.map(each => each.complete && each.naturalWidth > 0)")
    assert shown == [True] * 4
    recipe = page.locator("td details").nth(3)
    assert not recipe.locator("pre").is_visible()
    recipe.locator("summary").click()
    assert recipe.locator("pre").inner_text().startswith("a boat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 8")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1100
    page.screenshot(path=tmp_path / "page.png")
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
