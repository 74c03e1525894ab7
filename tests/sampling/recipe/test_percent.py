"""Fractions of recipes and plans may be written in per cent."""

import pytest

import velatura
from velatura.errors import BadPlan, BadRecipe

PERCENT = {"60%": 0.6, " 100 %": 1.0, "0%": 0.0, "2.5%": 0.025, "0.6": 0.6}


@pytest.mark.parametrize(("text", "value"), PERCENT.items())
def test_a_fraction_of_a_recipe_may_be_in_per_cent(text, value):
    assert velatura.Recipe(denoising=text).denoising == pytest.approx(value)


@pytest.mark.parametrize("field", ["caption_dropout", "tag_dropout"])
def test_a_share_of_a_plan_may_be_in_per_cent(field):
    assert getattr(velatura.Plan().replace(**{field: "10%"}), field) == pytest.approx(0.1)
    with pytest.raises(BadPlan):
        velatura.Plan().replace(**{field: "100%"})


@pytest.mark.parametrize("text", ["160%", "-5%", "x%", "%"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(BadRecipe):
        velatura.Recipe(denoising=text)
