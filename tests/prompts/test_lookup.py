import pytest

from velatura.errors import UnknownName, VelaturaWarning
from velatura.prompts.grammar import take_tags
from velatura.prompts.lookup import look_up

SHELF = {"inca": 1, "neon": 2}
TAGS = take_tags("a <hypernet:neon:1> house <hypernet:ncia:0.5><hypernet:inca>")[1]


def find(tag):
    if tag.name not in SHELF:
        raise UnknownName.among("overlay", tag.name, SHELF)
    return SHELF[tag.name]


def test_tags_are_looked_up_in_their_order():
    assert look_up(TAGS[::-2], find) == [1, 2]


def test_a_tag_that_names_nothing_is_pointed_at_and_near_names_are_told():
    with pytest.raises(UnknownName, match=r"'ncia': did you mean 'inca'.*house \^<hypernet:ncia:0.5>"):
        look_up(TAGS, find)


def test_leniently_it_is_left_out_with_a_warning():
    with pytest.warns(VelaturaWarning, match="did you mean 'inca'.*it is left out"):
        assert look_up(TAGS, find, lenient=True) == [2, 1]
