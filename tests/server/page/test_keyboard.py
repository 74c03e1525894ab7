"""Everything can be reached by the tab key, in the order in which it stands, and shows that it has the focus."""

from __future__ import annotations

import pytest

from tests.server.page.conftest import PROMPT, until

# What has the focus and how it shows it: by an outline of its own, or by that of the label that stands for it
FOCUS = """() => {
  const element = document.activeElement;
  const shown = element.matches("input.unseen") ? element.nextElementSibling : element;
  const style = getComputedStyle(shown);
  const box = shown.getBoundingClientRect();
  const isSeen = box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  const hasOutline = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
  element.dataset.visited ??= window.visits = (window.visits ?? 0) + 1;
  const isIn = Boolean(element.closest("[role=tabpanel]"));
  return { isIn, text: element.outerHTML.slice(0, 120), hasOutline, isSeen };
}"""
CONTROLS = """(name) => [...document.querySelectorAll("a[href], button, input, select, textarea, summary, canvas")]
  .filter((element) => element.closest(`#panel-${name}`))
  .filter((element) => element.checkVisibility() && !element.disabled && element.tabIndex >= 0)
  .map((element) => [Number(element.dataset.visited), element.outerHTML.slice(0, 120)])"""
MAX_TABS = 150


def walk(page, name):
    """Press the tab key through a tab of the page, and return what is wrong with where the focus went."""
    page.locator(f"#tab-{name}").focus()
    faults, is_inside = [], False
    for _ in range(MAX_TABS):
        page.keyboard.press("Tab")
        focus = page.evaluate(FOCUS)
        if is_inside and not focus["isIn"]:
            break
        is_inside = focus["isIn"]
        if is_inside and not (focus["hasOutline"] and focus["isSeen"]):
            faults.append(focus)
    visits = page.evaluate(CONTROLS, name)
    faults += [f"never: {text}" for visit, text in visits if not visit]
    numbers = [visit for visit, _ in visits if visit]
    return faults + [f"order: {numbers}"] * (numbers != sorted(numbers))


def test_every_control_of_paint_is_reached(open_page):
    page = open_page("#paint")
    page.locator(".card").first.wait_for()
    page.locator(PROMPT).fill("a house <lora:ink:0.5>")
    page.get_by_label("Strength of ink", exact=True).wait_for()
    for summary in page.locator("#panel-paint .paint-form summary:visible").all()[1:]:
        summary.click()
    assert walk(page, "paint") == []


@pytest.mark.parametrize("name", ["train", "library", "compare", "info"])
def test_every_control_is_reached(open_page, name):
    page = open_page(f"#{name}")
    until(page, f"document.querySelectorAll('#panel-{name} :is(button, input)').length > 0")
    if name == "train":
        page.get_by_label("Set of pictures", exact=True).select_option("neon")
        page.locator(".picture").first.wait_for()
        page.get_by_text("Steps, learning rate, previews").click()
    if name == "library":
        page.locator(".library-row", has_text="ink").first.click()
        page.get_by_role("heading", name="ink").wait_for()
    assert walk(page, name) == []


def test_strength_is_set_and_a_file_is_opened_and_closed_by_keys(open_page):
    page = open_page("#paint")
    page.locator(PROMPT).fill("a house")
    page.locator(".card-main", has_text="ink").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(PROMPT).input_value() == "a house <lora:ink:1>"
    page.get_by_label("Strength of ink", exact=True).wait_for()
    page.keyboard.press("Tab")
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    assert page.locator(PROMPT).input_value() == "a house <lora:ink:0.8>"
    page.evaluate("location.hash = '#library'")
    page.locator(".library-row", has_text="ink").first.focus()
    page.keyboard.press("Enter")
    until(page, "document.activeElement.tagName === 'H2' && document.activeElement.textContent === 'ink'")
    page.set_viewport_size({"width": 360, "height": 700})  # where the file's page stands in place of the list
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    until(page, "document.activeElement.classList.contains('library-row')")


def test_a_study_is_described_by_keys(open_page):
    page = open_page("#compare")
    box = page.get_by_label("Set of pictures", exact=True)
    page.locator("#panel-compare option[value=neon]").wait_for(state="attached")
    box.focus()
    page.keyboard.type("neon")
    assert box.input_value() == "neon"
    page.get_by_label("Embedding").focus()
    page.keyboard.press("Space")
    assert not page.get_by_label("Embedding").is_checked()
    page.get_by_label("Name", exact=True).focus()
    page.keyboard.type("by keys")
    sent = []
    answer = {"error": {"code": "busy", "message": "Not now.", "field": "minutes"}}
    page.route(
        "**/api/jobs", lambda route: (sent.append(route.request.post_data_json), route.fulfill(status=429, json=answer))
    )
    page.keyboard.press("Enter")
    page.get_by_text("Not now.").wait_for()
    [request] = sent
    assert (request["dataset"], request["study"]) == ("neon", "by keys")
    assert "embedding" not in request["kinds"]
    # a refusal moves the focus to the field that caused it
    assert page.evaluate("document.activeElement.closest('.field').dataset.field") == "minutes"


def test_a_training_is_described_by_keys(open_page):
    page = open_page("#train")
    page.locator("#panel-train option[value=neon]").wait_for(state="attached")
    sent = []

    def refuse(route):
        request = route.request.post_data_json
        sent.append(request)
        error = {"code": "busy", "message": "Not now.", "field": "plan.steps"}
        route.fulfill(status=429, json={"error": error}) if request["kind"] == "train" else route.continue_()

    page.route("**/api/jobs", refuse)
    page.get_by_label("Set of pictures", exact=True).focus()
    page.keyboard.type("neon")
    page.get_by_label("Kind", exact=True).focus()
    page.keyboard.type("lora")
    page.get_by_text("Steps, learning rate, previews").focus()
    page.keyboard.press("Enter")
    page.get_by_label("Rank").focus()
    page.keyboard.type("3")
    page.keyboard.press("Enter")
    page.get_by_text("Not now.").wait_for()
    [request] = [request for request in sent if request["kind"] == "train"]
    assert request["overlay"] == {"kind": "lora", "rank": 3}
    assert request["dataset"] == "neon"
    assert page.evaluate("document.activeElement.closest('.field').dataset.field") == "steps"
