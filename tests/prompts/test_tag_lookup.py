import json
from pathlib import Path

import pytest

from velatura.errors import UnknownName, VelaturaWarning
from velatura.prompts.prompt import Prompt
from velatura.prompts.tags import add_tag, look_up, split_tags

OVERLAYS = {"inca": 1, "neon": 2}
AUTO_ADDED = [
    case
    for case in json.loads((Path(__file__).parents[1] / "data/a1111/auto_added.json").read_text("utf-8"))["cases"]
    if case["option_sd_hypernetwork"] != "missing"  # which networks there are is not for a prompt to know
]
TAGS = split_tags("a <hypernet:neon:1> house <hypernet:ncia:0.5><hypernet:inca>")[1]


def find(tag):
    if tag.name not in OVERLAYS:
        raise UnknownName.with_suggestions("overlay", tag.name, OVERLAYS)
    return OVERLAYS[tag.name]


def test_tags_are_looked_up_in_their_order():
    assert look_up(TAGS[::-2], find) == [1, 2]


def test_the_error_of_an_unknown_tag_shows_its_position_and_near_names():
    with pytest.raises(UnknownName, match=r"'ncia': did you mean 'inca'.*house \^<hypernet:ncia:0.5>"):
        look_up(TAGS, find)


def test_with_lenient_an_unknown_tag_is_left_out_with_a_warning():
    with pytest.warns(VelaturaWarning, match="did you mean 'inca'.*it is left out"):
        assert look_up(TAGS, find, lenient=True) == [2, 1]


@pytest.mark.parametrize("case", AUTO_ADDED, ids=lambda case: case["prompt"])
def test_an_overlay_of_a_setting_is_tagged_as_in_the_webui(case):
    name, strength = case["option_sd_hypernetwork"], str(case["default_multiplier"])
    assert [add_tag(case["prompt"], "hypernet", name, strength)] == case["all_prompts_after"]


def test_a_tag_is_not_swallowed_by_a_comment():
    prompt = Prompt.parse(add_tag("a house # mine", "hypernet", "inca"))
    assert [tag.name for tag in prompt.tags] == ["inca"]
