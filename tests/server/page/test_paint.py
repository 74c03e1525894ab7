"""Painting in a browser, as a visitor does it."""

from __future__ import annotations

import io
import re
import shutil

import pytest
from PIL import Image

import velatura
from tests.face_restoration.states import GFPGAN, RETINAFACE
from tests.face_restoration.test_pictures import find_one_face, save_face_models
from tests.server.page.conftest import PAINTED, PROMPT, until
from velatura.sampling.recipe.recipe import RECORDED_FIELDS

STRENGTHS = ["0", "0.25", "0.5", "0.75", "1", "1.25", "1.5"]


def job_of_last_picture(client):
    picture = client.get("/api/pictures?limit=1").json()["pictures"][0]
    return client.get(f"/api/jobs/{picture['job']}").json()


@pytest.fixture
def paint_page(open_page):
    """The tab Paint with two steps, so that tests are quick."""
    page = open_page("#paint")
    page.get_by_label("Steps", exact=True).fill("2")
    return page


def test_a_first_visitor_paints(paint_page, client):
    page = paint_page
    page.locator(PROMPT).fill("a green bell in the desert")
    page.get_by_role("button", name="Paint", exact=True).click()
    page.locator(f"{PAINTED}[alt='a green bell in the desert']").wait_for()
    until(page, f"document.querySelector({PAINTED!r}).naturalWidth === 64")  # the tiny base's own size
    facts = page.locator(".stage-facts .facts").inner_text()
    assert re.search(r"Steps\s+2 steps", facts)
    recipe = client.get("/api/pictures?limit=1").json()["pictures"][0]["recipe"]
    assert (recipe["prompt"], recipe["steps"]) == ("a green bell in the desert", 2)
    # its address shows it again
    assert f"picture={client.get('/api/pictures?limit=1').json()['pictures'][0]['id']}" in page.url


def test_a_strength_strip_is_painted_and_chosen_from(paint_page, client):
    page = paint_page
    page.locator(PROMPT).fill("a red house")
    page.get_by_role("button", name=re.compile("^ink LoRA")).click()
    assert page.locator(PROMPT).input_value() == "a red house <lora:ink:1>"
    page.get_by_label("Strength of ink", exact=True).fill("0.8")
    assert page.locator(PROMPT).input_value() == "a red house <lora:ink:0.8>"
    page.get_by_role("button", name="Strength strip of ink").click()
    until(page, "document.querySelectorAll('.tile img[src*=thumbnail]').length === 7")
    assert page.locator(".tile").all_inner_texts() == STRENGTHS
    recipes = job_of_last_picture(client)["request"]["recipes"]
    assert [recipe["prompt"] for recipe in recipes] == [f"a red house <lora:ink:{text}>" for text in STRENGTHS]
    assert len({recipe["seed"] for recipe in recipes}) == 1
    page.locator(".tile").nth(1).click()
    assert page.locator(PROMPT).input_value() == "a red house <lora:ink:0.25>"
    assert page.get_by_label("Seed", exact=True).input_value() == str(recipes[0]["seed"])
    page.locator(".effect").wait_for()
    assert "output changed by" in page.locator(".effect").inner_text()
    page.get_by_role("button", name=re.compile("^ink LoRA")).click()
    assert page.locator(PROMPT).input_value() == "a red house"


def test_what_was_typed_survives_a_reload_and_a_refusal_and_is_the_same_in_two_tabs(paint_page, open_page, client):
    page = paint_page
    page.locator(PROMPT).fill("a key (in space:1.2)")
    for label in ("Width", "Height"):
        page.get_by_label(label, exact=True).fill("8192")
    page.keyboard.press("Control+Enter")
    error = page.locator("[data-field=width] .error")
    error.wait_for()
    assert "pixels" in error.inner_text()
    other = open_page("#paint", context=page.context)
    assert other.locator(PROMPT).input_value() == "a key (in space:1.2)"
    other.locator(PROMPT).fill("a key at night")
    until(page, f"document.querySelector({PROMPT!r}).value === 'a key at night'")
    other.close()
    page.reload()
    assert page.locator(PROMPT).input_value() == "a key at night"
    assert page.get_by_label("Width", exact=True).input_value() == "8192"
    page.get_by_label("Steps", exact=True).fill("0")
    assert page.locator("[data-field=steps] .error").inner_text() == "Give 1 to 1000."
    assert page.get_by_label("Steps", exact=True).get_attribute("aria-invalid") == "true"


def test_a_visitor_without_a_mouse_paints_and_looks(paint_page, client):
    page = paint_page
    page.locator(".card").first.wait_for()
    page.reload()  # which leaves the focus at the beginning of the page
    page.locator(".card").first.wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Paint"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    assert page.locator("#panel-paint").is_hidden()
    page.keyboard.press("Home")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
    page.keyboard.press("Control+A")
    page.keyboard.type("a white crown <lora:ink")
    page.locator(".completions:not([hidden])").wait_for()
    page.keyboard.press("Tab")
    assert page.locator(PROMPT).input_value() == "a white crown <lora:ink:1>"
    page.keyboard.press("Control+ArrowDown")
    assert page.locator(PROMPT).input_value() == "a white crown <lora:ink:0.95>"
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+Enter")
    page.keyboard.press("Control+Enter")
    until(page, """document.querySelectorAll(".result img[alt^='a white crown']").length === 2""")
    page.locator(".result").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator(".result").nth(1).get_attribute("aria-current") == "true"


def test_escape_stops(paint_page, client):
    page = paint_page
    page.get_by_label("Steps", exact=True).fill("1000")
    page.locator(PROMPT).fill("a mug")
    page.keyboard.press("Control+Enter")
    page.locator(".stage-previews img").first.wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Stop", exact=True).wait_for(state="hidden")
    job = client.get("/api/jobs?limit=1").json()["jobs"][0]
    assert job["state"] == "cancelled"


def test_a_mask_is_drawn_and_only_that_part_is_painted(paint_page, client):
    page = paint_page
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "navy").save(buffer, "PNG")
    page.get_by_text("Begin from an image").click()
    page.locator("#start-file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
    canvas = page.locator(".easel canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + 5, steps=3)  # along the upper edge
    page.mouse.up()
    page.locator(PROMPT).fill("a star")
    page.keyboard.press("Control+Enter")
    page.locator(f"{PAINTED}[alt='a star']").wait_for()
    request = job_of_last_picture(client)["request"]
    with Image.open(io.BytesIO(client.get(f"/api/inputs/{request['mask']}").content)) as mask:
        assert mask.size == (64, 64)
        assert [mask.convert("L").getpixel((32, y)) for y in (0, 60)] == [255, 0]
    page.reload()
    canvas = page.locator(".easel canvas")
    canvas.wait_for()
    drawn = "(canvas) => canvas.getContext('2d').getImageData(32, 0, 1, 1).data[3] === 255"
    until(page, f"({drawn})(document.querySelector('.easel canvas'))")
    page.get_by_role("button", name="Remove image").click()
    page.get_by_text("Drop an image, or choose one").wait_for()


def test_the_page_knows_the_fields_of_a_recipe(open_page):
    page = open_page("#paint")
    defaults = page.evaluate("import('/page/recipe.js').then((module) => module.DEFAULTS)")
    fields = velatura.Recipe.model_fields
    assert defaults == {name: fields[name].default for name in defaults}
    assert {"prompt", "steps", "seed", "hires_scale"} <= set(defaults)
    assert set(page.evaluate("import('/page/recipe.js').then((module) => module.RECORDED)")) == set(RECORDED_FIELDS)


def test_faces_are_restored_where_the_library_has_the_files(models, state, open_page, client, monkeypatch):
    page = open_page("#paint")
    until(page, "document.querySelectorAll('[data-field=sampler] option').length > 1")  # the choices are there
    assert page.get_by_text("Restore faces").first.is_hidden()
    find_one_face(monkeypatch)
    save_face_models(models, GFPGAN, RETINAFACE)
    state.library.refresh()
    try:
        page = open_page("#paint")
        page.get_by_label("Steps", exact=True).fill("1")
        page.locator(PROMPT).fill("a face of stone")
        page.locator("summary", has_text="Restore faces").click()
        page.get_by_label("Restorer", exact=True).select_option("GFPGAN")
        page.get_by_label("Restore faces", exact=True).check()
        page.get_by_role("button", name="Paint", exact=True).click()
        page.locator(f"{PAINTED}[alt='a face of stone']").wait_for()
        [recipe] = job_of_last_picture(client)["request"]["recipes"]
        assert (recipe["restore_faces"], recipe["face_restorer"]) == (True, "GFPGAN")
        page.get_by_label("Restore faces", exact=True).uncheck()
        settings = "import('/page/recipe.js').then((module) => module.toRecipe(module.settings.values))"
        assert "face_restorer" not in page.evaluate(settings)  # which would change nothing
    finally:
        shutil.rmtree(models / "models")
        state.library.refresh()
