"""The server goes away under the page and comes back: the page says so, loses nothing, and goes on."""

from __future__ import annotations

from tests.server.page.conftest import PAINTED, PROMPT, serve, until
from velatura.server.settings import ServerSettings

LOST = "The server does not answer. The page tries again by itself; what you typed is kept."


def test_a_server_that_is_started_again_is_found_and_nothing_typed_is_lost(open_page, models, tmp_path, port):
    settings = ServerSettings.of(library=(models,), out=tmp_path, batch=1)
    with serve(settings, port):
        page = open_page("#paint", address=f"http://127.0.0.1:{port}/")
        page.locator(PROMPT).fill("a lamp")
        page.get_by_label("Steps", exact=True).fill("80")
        page.locator(".card").first.wait_for()
        page.keyboard.press("Control+Enter")
        page.locator(".stage-previews img").first.wait_for()
    page.get_by_text(LOST).wait_for()
    page.locator(PROMPT).fill("a lamp and a boat")
    page.get_by_label("Steps", exact=True).fill("2")
    page.keyboard.press("Control+Enter")
    page.locator(".form-error", has_text="The server does not answer").first.wait_for()
    with serve(settings, port):
        page.get_by_text(LOST).wait_for(state="hidden")
        page.locator(".form-error").first.wait_for(state="hidden")
        page.locator(f"{PAINTED}[alt='a lamp']").wait_for()  # the painting that was begun before went on
        assert page.locator(PROMPT).input_value() == "a lamp and a boat"
        page.keyboard.press("Control+Enter")
        page.locator(f"{PAINTED}[alt='a lamp and a boat']").wait_for()
        assert page.locator(".form-error").first.is_hidden()
        page.close()


def test_two_pages_show_the_same_queue_and_the_same_pictures(open_page, client):
    first = open_page("#paint")
    second = open_page("#paint", context=first.context)
    first.get_by_label("Steps", exact=True).fill("1000")
    first.locator(PROMPT).fill("a pear")
    first.keyboard.press("Control+Enter")
    for page in (first, second):
        page.locator(".progress-text", has_text="step ").wait_for()
        until(page, "document.querySelector('#status').textContent.includes('1 running')")
    second.get_by_role("button", name="Stop", exact=True).click()
    for page in (first, second):
        page.get_by_role("button", name="Stop", exact=True).wait_for(state="hidden")
        until(page, "!document.querySelector('#status').textContent.includes('running')")
    second.get_by_label("Steps", exact=True).fill("2")
    until(first, "[...document.querySelectorAll('[data-field=steps] input')].some((box) => box.value === '2')")
    second.keyboard.press("Control+Enter")
    for page in (first, second):
        page.locator(f"{PAINTED}[alt='a pear']").wait_for()


def test_escape_stops_only_what_the_page_began(open_page, client):
    page = open_page("#paint")
    page.locator(".card").first.wait_for()
    request = {"kind": "paint", "recipe": {"prompt": "a drum", "steps": 1000}}
    job = client.post("/api/jobs", json=request).json()["id"]
    page.locator(".progress-text", has_text="step ").wait_for()
    sent = []
    page.on("request", lambda request: sent.append(request.url) if request.url.endswith("/cancel") else None)
    page.keyboard.press("Escape")
    assert sent == []
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="Stop", exact=True).wait_for(state="hidden")
    assert [url.split("/")[-2] for url in sent] == [job]
