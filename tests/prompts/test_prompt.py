import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velatura.errors import BadPrompt, VelaturaWarning
from velatura.prompts.emphasis import Fragment
from velatura.prompts.prompt import Prompt, WeightedText, scheduled_prompt_at
from velatura.prompts.prompt_editing import Timing

PIECES = [*"ab()[]:|\\<>#\n ", ":0.5]", "AND", "BREAK", ":1.2)", "<lora:x:1>", "é", "🏠"]


def scheduled_texts(prompt, steps):
    return [(row.last_call, *((voice.words, voice.weight) for voice in row.texts)) for row in prompt.schedule(steps)]


def test_a_prompt_keeps_its_text_and_gives_up_its_tags():
    prompt = Prompt.parse("a (red:1.3) house<hypernet:neon:0.5> # a note")
    assert prompt.text == "a (red:1.3) house<hypernet:neon:0.5> # a note"
    assert prompt.fragments == [Fragment("a ", 1.0), Fragment("red", 1.3), Fragment(" house \n", 1.0)]
    assert [(tag.kind, tag.name, tag.strengths.constant) for tag in prompt.tags] == [("hypernet", "neon", 0.5)]


def test_a_tag_in_a_comment_is_a_comment():
    assert Prompt.parse("a house # <hypernet:neon:0.5>").tags == ()


def test_a_tag_in_the_negative_prompt_is_words_and_warned_of():
    with pytest.warns(VelaturaWarning, match="put it into the prompt"):
        prompt = Prompt.parse_negative("ugly <hypernet:neon:1>")
    assert prompt.words == "ugly <hypernet:neon:1>"
    assert not prompt.tags


def test_a_plain_prompt_says_one_thing_to_the_end():
    assert scheduled_texts(Prompt.parse("a (red:1.3) house"), 20) == [(20, ("a (red:1.3) house", 1.0))]
    [row] = Prompt.parse("a (red:1.3) house").schedule(20)
    assert row.texts[0].fragments == [Fragment("a ", 1.0), Fragment("red", 1.3), Fragment(" house", 1.0)]


def test_words_change_at_their_steps_in_each_prompt_joined_by_and():
    prompt = Prompt.parse("a [cat:dog:0.5] AND [:snow:8] on hills :0.4")
    assert scheduled_texts(prompt, 10) == [
        (5, ("a cat", 1.0), ("  on hills", 0.4)),
        (8, ("a dog", 1.0), ("  on hills", 0.4)),
        (10, ("a dog", 1.0), (" snow on hills", 0.4)),
    ]


def test_equal_rows_are_one():
    assert scheduled_texts(Prompt.parse("[a:a:3] [b|b]"), 10) == [(10, ("a b", 1.0))]


def test_words_are_scheduled_over_a_second_pass_too():
    rows = Prompt.parse("[a:b:1.5]").schedule(Timing(10, hires_steps=6))
    assert [(row.last_call, row.texts[0].words) for row in rows] == [(3, "a"), (6, "b")]


def test_a_row_is_found_by_its_call_as_in_the_webui():
    # golden samplers: rows hold up to and with the call of their number, counted from 0, and then the first again
    rows = Prompt.parse("[a:b:3]").schedule(10)
    assert [scheduled_prompt_at(rows, call).texts[0].words for call in (0, 3, 4, 10, 11)] == ["a", "a", "b", "b", "a"]


def test_a_negative_prompt_changes_but_is_not_split():
    with pytest.warns(VelaturaWarning, match="AND in the negative prompt is read as a word"):
        prompt = Prompt.parse_negative("[ugly:blurry:5] AND dull:0.5")
    assert scheduled_texts(prompt, 10) == [(5, ("ugly AND dull:0.5", 1.0)), (10, ("blurry AND dull:0.5", 1.0))]


def test_tags_are_taken_out_before_words_change():
    prompt = Prompt.parse("a <hypernet:x:1>[cat:dog:3]")
    assert scheduled_texts(prompt, 5) == [(3, ("a cat", 1.0)), (5, ("a dog", 1.0))]


@pytest.mark.parametrize("text", ["a [cat<hypernet:x:1>:dog:3]", "<hypernet:x:1> AND b [<hypernet:y:1>|c]"])
def test_a_tag_in_words_that_change_is_warned_of(text):
    with pytest.warns(VelaturaWarning, match=r"acts at all steps; limit it in the tag") as warned:
        Prompt.parse(text).schedule(5)
    assert len(warned) == 1


def test_what_no_prompt_can_be_is_refused():
    with pytest.raises(BadPrompt, match="has 65,537 characters: write 65,536 at most"):
        Prompt.parse("a" * 65_537)
    for parse in (Prompt.parse, Prompt.parse_negative):
        with pytest.raises(BadPrompt, match=r"holds '\\udc80', which is not a character"):
            parse("a \udc80")
        with pytest.raises(BadPrompt, match="more than 100 edits"):
            parse("[" * 200 + "a" + ":b:3]" * 200)
    with pytest.raises(BadPrompt, match="is not a strength"):
        Prompt.parse("a <hypernet:x:nan>")


def test_emphasis_that_is_too_large_is_refused_unless_brackets_are_text():
    prompt = Prompt.parse(f"a (cat:{'9' * 40})")
    with pytest.raises(BadPrompt, match="emphasis"):
        prompt.schedule(5)
    assert prompt.schedule(5, "None")


def test_tags_that_call_nothing_do_not_move_the_others():
    with pytest.warns(VelaturaWarning, match="calls nothing"):
        prompt = Prompt.parse("<quux:a:1> <lora::1> [cat<hypernet:x:1>:dog:3]")
    assert [str(tag) for tag in prompt.tags] == ["<hypernet:x:1>"]
    with pytest.warns(VelaturaWarning, match="<hypernet:x:1> is inside words that change"):
        prompt.schedule(5)


def test_a_weight_without_and_is_warned_of():
    with pytest.warns(VelaturaWarning, match="counts 9 times"):
        assert scheduled_texts(Prompt.parse("a photo, 16:9"), 5) == [(5, ("a photo, 16", 9.0))]


def test_words_that_never_change_are_warned_of():
    prompt = Prompt.parse("[a:b:12] [c:d:0.5] [e:f:1.0] AND [g:h:1.5]")
    with pytest.warns(VelaturaWarning, match="never change in 10 steps") as warned:
        prompt.warn_unreached_edits(Timing(10))
    assert [str(warning.message).split()[4] for warning in warned] == ["12", "1.5"]
    prompt.warn_unreached_edits(Timing(10), Timing(10, hires_steps=5))


def test_malformed_editing_gives_a_warning_with_a_caret():
    with pytest.warns(VelaturaWarning, match=r'not a number of steps; .*; at the \^ in "a \^\[cat:dog:0,5\]"'):
        assert scheduled_texts(Prompt.parse("a [cat:dog:0,5]"), 5) == [(5, ("a [cat:dog:0,5]", 1.0))]


@pytest.mark.parametrize("text", ["a [cat:dog:0.5]", "a cat AND a dog"])
def test_where_the_prompt_cannot_change_that_is_warned_of(text):
    with pytest.warns(VelaturaWarning, match="read as plain words here"):
        assert Prompt.parse(text).fragments


def test_emphasis_is_read_as_asked_for():
    [row] = Prompt.parse("a (cat:1.2)").schedule(5, "Ignore")
    assert row.texts == (WeightedText("a (cat:1.2)", 1.0, "Ignore"),)
    assert row.texts[0].fragments == [Fragment("a ", 1.0), Fragment("cat", 1.0)]


@pytest.mark.filterwarnings("ignore::velatura.errors.VelaturaWarning")
@given(st.lists(st.sampled_from(PIECES)))
def test_any_text_is_a_prompt_or_refused_with_a_caret(pieces):
    try:
        rows = Prompt.parse("".join(pieces)).schedule(7)
    except BadPrompt as error:
        assert "^" in str(error)  # noqa: PT017
        return
    assert rows[-1].last_call == 7
    assert all(run.text is not None for row in rows for voice in row.texts for run in voice.fragments)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::velatura.errors.VelaturaWarning")
@settings(max_examples=100_000, deadline=None)
@given(st.lists(st.sampled_from(PIECES)), st.booleans())
def test_no_prompt_crashes_the_reader(pieces, lenient):
    try:
        rows = Prompt.parse("".join(pieces), lenient=lenient).schedule(7)
        _ = [voice.fragments for row in rows for voice in row.texts]
    except BadPrompt as error:
        assert "^" in str(error)  # noqa: PT017


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    ["a red house, ", "(a", "[a:b:3] ", "a AND ", "<lora:x:1> ", "<a:", "lora:", ": 1", " ", "BREAK ", "((a:1.2)b)"],
)
@pytest.mark.filterwarnings("ignore::velatura.errors.VelaturaWarning")
def test_a_prompt_of_a_megabyte_is_read_in_seconds(piece):
    from time import process_time

    start = process_time()
    try:
        for row in Prompt.parse(piece * (1_000_000 // len(piece))).schedule(20):
            _ = [voice.fragments for voice in row.texts]
    except BadPrompt as error:
        assert "^" in str(error)  # noqa: PT017
    assert process_time() - start < 15
