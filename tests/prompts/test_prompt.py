import pytest

from velatura.errors import VelaturaWarning
from velatura.prompts.grammar import Run
from velatura.prompts.prompt import Prompt


def test_a_prompt_keeps_its_text_and_gives_up_its_tags():
    prompt = Prompt.read("a (red:1.3) house<hypernet:neon:0.5> # a note")
    assert prompt.text == "a (red:1.3) house<hypernet:neon:0.5> # a note"
    assert prompt.runs == [Run("a ", 1.0), Run("red", 1.3), Run(" house \n", 1.0)]
    assert [(tag.kind, tag.name, tag.strengths.constant) for tag in prompt.tags] == [("hypernet", "neon", 0.5)]


def test_a_tag_in_a_comment_is_a_comment():
    assert Prompt.read("a house # <hypernet:neon:0.5>").tags == ()


def test_a_tag_in_the_negative_prompt_is_words_and_warned_of():
    with pytest.warns(VelaturaWarning, match="put it into the prompt"):
        prompt = Prompt.read_negative("ugly <hypernet:neon:1>")
    assert prompt.words == "ugly <hypernet:neon:1>"
    assert not prompt.tags


def test_prompt_editing_is_taken_as_words_with_a_warning():
    with pytest.warns(VelaturaWarning, match="prompt editing .*does not read it yet"):
        assert Prompt.read("a [cat:dog:0.5]").words == "a [cat:dog:0.5]"
