"""The tab Compare in a browser: a study is started, watched, and its report is read in a frame that runs nothing."""

from __future__ import annotations

from threading import Event

import pytest

from tests.server.test_studies_api import quick
from velatura.studies import study as study_module

__all__ = ["quick"]


@pytest.fixture
def quick_budget(monkeypatch, quick):
    """Measure no step, which takes seconds: one step of each kind."""
    monkeypatch.setattr(study_module, "_step_counts", lambda _setup, options: dict.fromkeys(options.kinds, 1))
    return quick


def test_a_study_is_started_watched_and_read(open_page, quick_budget):
    page = open_page("#compare")
    page.get_by_label("Set of pictures", exact=True).select_option("neon")
    for kind in ("Embedding", "DreamBooth", "Aesthetic gradient"):
        page.get_by_label(kind).uncheck()
    page.get_by_label("Trainings of each kind").fill("2")
    page.get_by_label("Name").fill("seen")
    page.get_by_role("button", name="Start the study").click()
    rows = page.locator(".compare-table tbody tr")
    page.get_by_role("cell", name="2", exact=True).nth(1).wait_for()  # two trainings of both kinds
    assert sorted(row.locator("th").inner_text() for row in rows.all()) == ["Hypernetwork", "LoRA"]
    assert page.locator("iframe").get_attribute("sandbox") == ""
    page.frame_locator("iframe").get_by_text("velatura train").wait_for()
    assert sorted(quick_budget) == [("hypernet", 0), ("hypernet", 1), ("lora", 0), ("lora", 1)]


def open_loras(open_page, trainings, name):
    """Open the tab with a study of neon by LoRAs alone."""
    page = open_page("#compare")
    page.get_by_label("Set of pictures", exact=True).select_option("neon")
    for kind in ("Embedding", "Hypernetwork", "DreamBooth", "Aesthetic gradient"):
        page.get_by_label(kind).uncheck()
    page.get_by_label("Trainings of each kind").fill(f"{trainings}")
    page.get_by_label("Name").fill(name)
    return page


def test_a_study_measures_kinds_beside_another_overlay(open_page, quick_budget):
    page = open_loras(open_page, trainings=1, name="beside-ink")
    strength = page.get_by_label("Strength of the other")
    strength.wait_for(state="hidden")
    other = page.get_by_label("Beside another overlay")
    other.locator("option", has_text="ink, LoRA").wait_for(state="attached")
    other.select_option("ink")
    strength.fill("0")
    page.get_by_role("button", name="Start the study").click()
    page.locator('[data-field="together_strength"] .error', has_text="strength 0").wait_for()
    strength.fill("0.6")
    page.get_by_role("button", name="Start the study").click()
    table = page.locator(".compare-table")
    page.locator(".compare-study").get_by_text("with ink.safetensors at 0.6 attached too").wait_for()
    assert {"Score with both", "Left of the other"} <= set(table.locator("thead th").all_inner_texts())
    assert {"0.30", "0.90"} <= set(table.locator("tbody td").all_inner_texts())  # as the quick trial has them
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")  # its words stay whole, and it scrolls


@pytest.fixture
def listed(open_page):
    """Open the tab with a library that holds these overlays besides others: name, kind, place, and other fields."""
    common = {
        "trigger_words": [],
        "strength": 0.7,
        "has_preview": False,
        "error": None,
        "summary": "",
        "family": "tiny",
    }

    def opened(*rows):
        files = [
            common | {"id": place, "name": name, "kind": kind, "place": place} | more
            for name, kind, place, more in rows
        ]
        page = open_page("#info")
        page.locator("#panel-info .drop").wait_for()
        page.route("**/api/library?*", lambda route: route.fulfill(json={"files": files, "total": len(files)}))
        page.evaluate("location.hash = '#compare'")
        page.get_by_label("Beside another overlay").locator("option", has_text="veil").wait_for(state="attached")
        return page

    return opened


VEIL = ("veil", "lora", "veil.safetensors", {})


def test_overlays_of_one_name_are_told_apart_and_others_left_out(listed):
    page = listed(
        ("glow", "lora", "glow/glow.safetensors", {}),
        ("glow", "hypernet", "glow-2/glow.safetensors", {}),
        VEIL,
        ("large", "lora", "large.safetensors", {"family": "SDXL"}),
        ("tiny", "checkpoint", "tiny.safetensors", {}),
        ("torn", "lora", "torn.safetensors", {"error": "it is cut"}),
    )
    other = page.get_by_label("Beside another overlay")
    assert other.locator("option").all_inner_texts() == [
        "none",
        "glow/glow.safetensors, LoRA",
        "glow-2/glow.safetensors, Hypernetwork",
        "veil, LoRA",
    ]
    other.select_option("veil")
    assert page.get_by_label("Strength of the other").get_attribute("placeholder") == "0.7"  # as its notes say


def test_an_overlay_is_told_apart_from_a_damaged_one_of_its_name(listed):
    inks = [("ink", "lora", "ink.safetensors", {}), ("Ink", "lora", "old/ink.pt", {"error": "it is cut"})]
    glows = [("glow", "lora", "glow.safetensors", {}), ("glow", "unknown", "old/glow.pt", {"error": "it is cut"})]
    page = listed(VEIL, *inks, *glows)
    options = page.get_by_label("Beside another overlay").locator("option").all_inner_texts()
    assert options == ["none", "veil, LoRA", "ink.safetensors, LoRA", "glow.safetensors, LoRA"]


def test_an_overlay_that_is_gone_or_no_longer_fits_is_refused_beside_the_field(open_page):
    page = open_page("#compare")
    page.evaluate("localStorage['velatura:compare'] = JSON.stringify({dataset: 'neon', together: 'nobody'})")
    page.reload()
    other = page.get_by_label("Beside another overlay")
    other.locator("option", has_text="ink, LoRA").wait_for(state="attached")
    page.get_by_role("button", name="Start the study").click()
    page.locator('[data-field="together"] .error', has_text="not in the library, or does not fit the base").wait_for()
    assert other.evaluate("field => field === document.activeElement")


def test_a_study_waits_for_the_library_that_knows_the_strength_of_the_other_overlay(open_page):
    page = open_page("#compare")
    page.evaluate("localStorage['velatura:compare'] = JSON.stringify({dataset: 'neon', together: 'ink'})")
    page.route("**/api/library?*", lambda _route: None)  # it is never answered
    page.reload()
    page.get_by_label("Set of pictures", exact=True).locator("option", has_text="neon").wait_for(state="attached")
    page.get_by_role("button", name="Start the study").click()
    page.locator('[data-field="together"] .error', has_text="The library is still loading").wait_for()


def test_a_wrong_strength_of_no_overlay_stops_no_study(open_page):
    page = open_page("#compare")
    other, strength = page.get_by_label("Beside another overlay"), page.get_by_label("Strength of the other")
    other.locator("option", has_text="ink, LoRA").wait_for(state="attached")
    other.select_option("ink")
    strength.fill("50")
    page.get_by_label("Set of pictures", exact=True).select_option("neon")
    page.get_by_role("button", name="Start the study").click()
    page.locator('[data-field="together_strength"] .error', has_text="Give -10 to 10.").wait_for()
    other.select_option("none")
    page.route("**/api/jobs", lambda route: route.abort() if route.request.method == "POST" else route.fallback())
    with page.expect_request(lambda request: request.method == "POST" and request.url.endswith("/api/jobs")) as sent:
        page.get_by_role("button", name="Start the study").click()
    assert "together" not in sent.value.post_data_json


def test_the_table_keeps_focus_and_place_while_it_grows(open_page, quick_budget, monkeypatch):
    second = Event()
    run_trial = study_module.run_trial

    def wait_before_the_second(setup, kind, seed, steps, on_stage=None):
        assert not seed or second.wait(60)
        return run_trial(setup, kind, seed, steps, on_stage)

    monkeypatch.setattr(study_module, "run_trial", wait_before_the_second)
    page = open_loras(open_page, trainings=2, name="grown")
    table = page.get_by_role("region", name="Scores")
    assert table.count() == 0  # an empty one cannot be reached
    page.set_viewport_size({"width": 320, "height": 700})
    page.get_by_role("button", name="Start the study").click()
    table.wait_for()
    table.focus()
    table.evaluate("box => box.scrollLeft = 20")
    second.set()
    table.get_by_role("cell", name="2", exact=True).wait_for()
    assert table.evaluate("box => [box === document.activeElement, box.scrollLeft]") == [True, 20]


def test_a_study_without_pictures_is_refused_beside_the_field(open_page):
    page = open_page("#compare")
    page.get_by_role("button", name="Start the study").click()
    page.locator('[data-field="dataset"] .error:not([hidden])').wait_for()
    assert page.get_by_label("Set of pictures", exact=True).get_attribute("aria-invalid") == "true"
