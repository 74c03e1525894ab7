"""The page about training tells of every field of the plan."""

from pathlib import Path

import pytest

from velatura.training.plan import Plan

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")


@pytest.mark.parametrize("field", Plan.model_fields)
def test_every_field_of_the_plan_is_on_its_page(field):
    rows = [line.partition("|")[2].partition("|")[0] for line in PAGE.splitlines() if line.startswith("| `")]
    assert any(f"`{field}`" in row for row in rows)
