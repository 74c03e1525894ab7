"""The tab Compare in a browser: a study is started, watched, and its report is read in a frame that runs nothing."""

from __future__ import annotations

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


def test_a_study_without_pictures_is_refused_beside_the_field(open_page):
    page = open_page("#compare")
    page.get_by_role("button", name="Start the study").click()
    page.locator('[data-field="dataset"] .error:not([hidden])').wait_for()
    assert page.get_by_label("Set of pictures", exact=True).get_attribute("aria-invalid") == "true"
