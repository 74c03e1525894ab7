import shlex

import pytest

from velatura.cli.arguments import expand_recipe
from velatura.errors import BadPrompt, BadRecipe, VelaturaWarning
from velatura.prompts.prompt_file import PromptLine, parse_prompt_lines
from velatura.sampling.recipe.recipe import Recipe

FIELDS = list(Recipe.model_fields)


def parse(text):
    return parse_prompt_lines(text, FIELDS)


def test_options_follow_the_prompt():
    [line] = parse("a (red:1.2) house, -- at dusk --n blurry, ugly --w 512 --h 768 --s 30 --d 42 --l 7.5\n")
    assert line.settings == {
        "prompt": "a (red:1.2) house, -- at dusk",
        "negative": "blurry, ugly",
        "width": "512",
        "height": "768",
        "steps": "30",
        "seed": "42",
        "guidance": "7.5",
    }
    assert Recipe(**line.settings).height == 768


def test_the_webuis_names_and_quotes_are_read():
    text = """--prompt "a house --s 30" --negative_prompt 'bad, "worse"' --cfg_scale=5 --sampler_name Euler a"""
    assert parse(f"{text} --n_iter 2 --batch_size 3") == [
        PromptLine(
            1,
            {"prompt": "a house --s 30", "negative": 'bad, "worse"', "guidance": "5", "sampler": "Euler a"},
            count=6,
        )
    ]


def test_quotes_within_a_value_are_part_of_it():
    assert parse('a sign "open" --n "closed" sign')[0].settings == {
        "prompt": 'a sign "open"',
        "negative": '"closed" sign',
    }


def test_every_field_of_a_recipe_is_an_option():
    assert parse("a --keep-layout b --tiling true")[0].settings == {"prompt": "a", "keep_layout": "b", "tiling": "true"}


def test_empty_lines_and_comments_are_skipped():
    assert [(line.number, line.settings) for line in parse("# mine\n\na\r\n  \nb --n\n--s 3")] == [
        (3, {"prompt": "a"}),
        (5, {"prompt": "b", "negative": ""}),
        (6, {"steps": "3"}),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a\nb --ar 16:9", r"line 2: --ar is not an option; use --n .*\"b \^--ar"),
        ("a --stpes 3", "did you mean --steps"),
        ("a --s --w 3", "--s has no value"),
        ("a --s 3 --steps 4", "steps is given twice"),
        ("a --prompt b", "prompt is given twice"),
        ("a --count many", "'many' is not a number of pictures"),
    ],
)
def test_a_mistake_in_a_line_is_shown(text, reason):
    with pytest.raises(BadPrompt, match=reason):
        parse(text)


# The web UI's script splits a line by Python's shlex
@pytest.mark.parametrize(
    "value",
    [
        r'"a \"red\" house"',
        r'"a \(red\) house"',
        r'"C:\\pictures\\"',
        r'"\\\""',
        r'"a \'b\' --s 3"',
        r"'a \"red\" house'",
        '""',
    ],
)
def test_quotes_and_backslashes_are_read_as_by_shlex(value):
    [expected] = shlex.split(value)
    assert parse(f"--prompt {value} --s 3")[0].settings == {"prompt": expected, "steps": "3"}


@pytest.mark.parametrize("value", ['"a house', '"a house --s 3', r'"a house\"'])
def test_a_quotation_mark_that_is_not_closed_is_refused(value):
    with pytest.raises(BadPrompt, match="line 1: the quotation mark after --prompt is not closed"):
        parse(f"--prompt {value}")


def test_an_apostrophe_may_begin_a_value():
    assert parse("--prompt 'tis the season --s 3")[0].settings["prompt"] == "'tis the season"


@pytest.mark.parametrize(
    "words",
    [
        *("—n blurry", "–n blurry", "−−n blurry", "‐n blurry"),  # as editors write two hyphens
        *("-n blurry", "---n blurry", "-- n blurry", "--\u200bn blurry", "red--n blurry", "—negative blurry"),
    ],
)
def test_words_that_look_like_an_option_are_named(words):
    with pytest.warns(
        VelaturaWarning, match=r"^line 1: '.*' is read as words of the prompt: for the option, write --n"
    ):
        assert parse(f"a house {words} --s 3")[0].settings == {"prompt": f"a house {words}", "steps": "3"}
    with pytest.warns(VelaturaWarning, match="read as words"):
        assert parse(f"a house --negative trees {words} --s 3")[0].settings["negative"] == f"trees {words}"


@pytest.mark.parametrize("words", ["well-known", "a - n b", "a — house", "-5", "t-shirt -x", '--prompt "say --n x"'])
def test_other_hyphens_are_words(words):
    assert len(parse(f"{words} --s 3")) == 1


def test_a_line_of_options_needs_a_prompt_from_somewhere(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a house\n--s 3\n")
    with pytest.raises(BadRecipe, match="line 2 has options, but no prompt: write one before them"):
        expand_recipe(Recipe(), path, 1, [])
    assert [recipe.prompt for recipe in expand_recipe(Recipe(prompt="a boat"), path, 1, [])] == ["a house", "a boat"]
    path.write_text('--prompt "" --s 3')
    assert [recipe.steps for recipe in expand_recipe(Recipe(), path, 1, [])] == [3]
