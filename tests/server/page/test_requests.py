"""What the page sends: settings become requests, and nothing is painted before image and mask are at the server."""

from __future__ import annotations

import io
import re

import pytest
from PIL import Image

from tests.server.page.conftest import PAINTED, PROMPT, until

SETTINGS = """async (changes) => {
  const { DEFAULTS, toRecipe } = await import("/page/recipe.js");
  return toRecipe({ ...DEFAULTS, image: null, mask: null, extra: {}, ...changes });
}"""


@pytest.mark.parametrize(
    ("changes", "recipe"),
    [
        ({}, {}),
        ({"hires_scale": 2, "denoising": 0.5}, {"hires_scale": 2, "denoising": 0.5}),
        # a second pass at a size is one too, with all that belongs to it
        (
            {"extra": {"hires_size": [96, 64], "hires_prompt": "a cat"}, "hires_steps": 9, "denoising": 0.5},
            {"hires_size": [96, 64], "hires_prompt": "a cat", "hires_steps": 9, "denoising": 0.5},
        ),
        ({"extra": {"hires_prompt": "a cat"}, "hires_steps": 9, "denoising": 0.5}, {}),
        ({"image": "a", "denoising": 0.5, "fit": "crop", "mask_blur": 0}, {"denoising": 0.5, "fit": "crop"}),
        ({"image": "a", "mask": "b", "mask_blur": 0}, {"mask_blur": 0}),
        ({"mask": "b", "mask_blur": 0, "fit": "crop"}, {}),
        ({"variation_seed": 3}, {}),
        ({"variation_seed": 3, "variation_strength": 0.2}, {"variation_seed": 3, "variation_strength": 0.2}),
    ],
)
def test_settings_become_the_fields_that_count(blank, changes, recipe):
    assert blank.evaluate(SETTINGS, changes) == recipe


def test_a_property_that_is_false_is_set(blank):
    build = """async () => {
      const { h } = await import("/page/dom.js");
      const box = h("textarea", { spellcheck: false, hidden: false, "aria-label": false });
      return [box.spellcheck, box.hidden, box.hasAttribute("aria-label")];
    }"""
    assert blank.evaluate(build) == [False, False, False]


def test_the_end_of_a_job_that_the_page_does_not_know_is_told(blank, client):
    request = {"kind": "paint", "recipe": {"prompt": "a mug", "steps": 1000}}
    job = client.post("/api/jobs", json=request).json()["id"]
    wait = """async (id) => {
      const { cancel, live, whenOver } = await import("/page/jobs.js");
      live.clear();
      const over = whenOver(id);
      while (!live.has(id)) await new Promise((resolve) => setTimeout(resolve, 5));
      await cancel(id);
      return (await over).state;
    }"""
    assert blank.evaluate(wait, job) == "cancelled"


@pytest.fixture
def prompt(request):
    """A prompt of which no picture was painted before."""
    return request.node.name.replace("_", " ")


@pytest.fixture
def easel(open_page, prompt):
    """The tab Paint with an image to begin from, and its canvas."""
    page = open_page("#paint")
    page.get_by_label("Steps", exact=True).fill("1")
    page.locator(PROMPT).fill(prompt)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "navy").save(buffer, "PNG")
    page.get_by_text("Begin from an image").click()
    page.locator("#start-file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
    page.locator(".easel canvas").wait_for()
    return page


def draw(page, height: float) -> None:
    canvas = page.locator(".easel canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + height * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + height * box["height"], steps=3)
    page.mouse.up()


def requests_of_paintings(page) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    page.on("request", lambda request: request.url.endswith("/api/jobs") and found.append(request.post_data_json))
    return found


def test_nothing_is_painted_with_a_mask_that_the_server_did_not_take(easel, prompt):
    sent = requests_of_paintings(easel)
    answer = {"error": {"code": "too_many", "message": "Too many images: wait a little."}}
    easel.route("**/api/inputs", lambda route: route.fulfill(status=429, json=answer))
    draw(easel, 0.1)
    easel.keyboard.press("Control+Enter")
    easel.get_by_text("Too many images: wait a little.").wait_for()
    assert sent == []
    easel.unroute("**/api/inputs")
    easel.keyboard.press("Control+Enter")
    easel.locator(f"{PAINTED}[alt='{prompt}']").wait_for()
    [request] = sent
    assert re.fullmatch(r"input:[0-9a-f]{64}\.png", request["mask"])
    assert easel.get_by_text("Too many images: wait a little.").is_hidden()


def test_the_mask_that_was_drawn_last_is_painted_with_also_if_an_older_one_arrives_later(easel, client, prompt):
    sent = requests_of_paintings(easel)
    held = []
    easel.route("**/api/inputs", lambda route: route.continue_() if held else held.append(route))
    draw(easel, 0.1)
    while not held:
        easel.wait_for_timeout(20)
    draw(easel, 0.9)
    stored = "JSON.parse(localStorage.getItem('velatura:paint') ?? '{}').mask"
    until(easel, f"Boolean({stored})")
    newest = easel.evaluate(stored)
    with easel.expect_response("**/api/inputs"):
        held[0].continue_()
    easel.keyboard.press("Control+Enter")
    easel.locator(f"{PAINTED}[alt='{prompt}']").wait_for()
    assert [request["mask"] for request in sent] == [newest]
    with Image.open(io.BytesIO(client.get(f"/api/inputs/{newest}").content)) as mask:
        assert [mask.convert("L").getpixel((32, y)) for y in (6, 32, 57)] == [255, 0, 255]


def test_a_mask_does_not_outlive_its_image(easel, prompt):
    draw(easel, 0.1)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "green").save(buffer, "PNG")
    drop = {"name": "b.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    with easel.expect_response("**/api/inputs"):
        easel.locator("#start-file").set_input_files(drop)
    drawn = "document.querySelector('.easel canvas').getContext('2d').getImageData(0, 0, 64, 64).data.some(Boolean)"
    until(easel, f"!{drawn}")
    sent = requests_of_paintings(easel)
    easel.keyboard.press("Control+Enter")
    easel.locator(f"{PAINTED}[alt='{prompt}']").wait_for()
    assert "mask" not in sent[0]
