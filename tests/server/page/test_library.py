"""The tab Library in a browser: thousands of files stay a short list, and a file's notes are saved beside it."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.server.page.conftest import until

FILES = 5000
MAX_SHOWN = 60  # elements of a list of which some twenty are in view


def entry(number: int) -> dict[str, object]:
    name = f"file-{number:04}"
    return {
        "id": f"{number:016x}",
        "name": name,
        "kind": "lora" if number % 2 else "embedding",
        "family": "tiny" if number % 3 else "SDXL",
        "place": f"folder/{name}.safetensors",
        "summary": "lora",
        "bytes": 1000,
        "trigger_words": [],
        "strength": None,
        "has_preview": False,
        "error": None,
    }


def answer_with_many(route) -> None:
    query = parse_qs(urlsplit(route.request.url).query)
    start, limit = int(query["start"][0]), int(query["limit"][0])
    files = [entry(number) for number in range(start, min(FILES, start + limit))]
    route.fulfill(json={"files": files, "total": FILES})


@pytest.fixture
def ink(client):
    client.post("/api/library/refresh")
    files = client.get("/api/library", params={"search": "ink", "kind": "lora"}).json()["files"]
    return next(file for file in files if file["name"] == "ink")


def test_five_thousand_files_stay_a_short_list(open_page):
    page = open_page("#info")
    page.locator("#panel-info .drop").wait_for()
    page.route("**/api/library?*", answer_with_many)
    page.evaluate("location.hash = '#library'")
    page.get_by_text("5,000 files", exact=True).wait_for()
    items = page.locator(".library-item")
    items.first.wait_for()
    assert items.count() < MAX_SHOWN
    page.evaluate("document.querySelector('.library-list').scrollTop = 1e9")
    page.get_by_text("file-4999", exact=True).wait_for()
    assert items.count() < MAX_SHOWN
    page.get_by_label("Search").fill("file-0042")
    page.get_by_text("1 of 5,000 files").wait_for()
    assert items.count() == 1
    page.get_by_label("Search").fill("")
    page.get_by_label("Kind", exact=True).select_option("lora")
    page.get_by_text("2,500 of 5,000 files").wait_for()  # every other number is odd


def test_notes_are_saved_beside_the_file_and_kept_until_then(open_page, client, models, ink):
    page = open_page(f"#library?file={ink['id']}")
    page.get_by_label("Trigger words").fill("inked lines")
    until(page, "(localStorage.getItem('velatura:library-notes') ?? '').includes('inked lines')")
    page.reload()
    box = page.get_by_label("Trigger words")
    box.wait_for()
    assert box.input_value() == "inked lines"
    page.locator(".library-notes").get_by_label("Strength").fill("0.7")
    with page.expect_response(lambda answer: answer.request.method == "PATCH"):
        page.get_by_role("button", name="Save notes").click()
    assert json.loads((models / "ink.json").read_text()) == {"activation text": "inked lines", "preferred weight": 0.7}
    page.get_by_text("<lora:ink:0.7>").first.wait_for()
    (models / "ink.json").unlink()
    client.post("/api/library/refresh")


def test_a_file_is_converted_and_shown(open_page, client, state, ink):
    page = open_page(f"#library?file={ink['id']}")
    page.locator("summary", has_text="Convert").click()
    form = page.locator("details", has=page.locator("summary", has_text="Convert")).locator("form")
    form.get_by_label("Name of the new file").fill("ink-page")
    form.get_by_role("button", name="Convert").click()
    form.get_by_role("button", name="Show ink-page").click()
    page.get_by_role("heading", name="ink-page").wait_for()
    (state.folders.models / "ink-page.safetensors").unlink()
    client.post("/api/library/refresh")
