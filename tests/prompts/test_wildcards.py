"""Wildcards and variants in prompts: what is drawn, and what is said of templates that nothing draws."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velatura.cli.app import USER_ERROR_STATUS, main
from velatura.errors import BadFile, BadPrompt, UnknownName, VelaturaWarning
from velatura.prompts.wildcards import BRACES_PATTERN, expand_template, find_template, warn_of_letters
from velatura.sampling.recipe.recipe import Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wildcards")
    (folder / "colour.txt").write_text("red\nblue\n# a comment\n\ngreen\n")
    (folder / "deep").mkdir()
    (folder / "deep" / "scene.txt").write_text("a __colour__ sky\n")
    (folder / "endless.txt").write_text("__endless__ more\n")
    return folder


# What a template may draw, by the documentation of dynamicprompts
DRAWS = {
    "a __colour__ house": r"a (red|blue|green) house",
    "{cat|dog}": r"cat|dog",
    "{2$$a|b|c}": r"[abc],[abc]",
    "{2$$ and $$a|b|c}": r"[abc] and [abc]",
    "__deep/scene__": r"a (red|blue|green) sky",
    "${x=!{cat|dog}}${x} and ${x}": r"(cat) and cat|(dog) and dog",
    "[day|night] (b:1.2) <lora:{ink|neon}:0.5>": r"\[day\|night\] \(b:1\.2\) <lora:(ink|neon):0\.5>",
    "{x|y} 100% $5 a_b__c ^__^ __ smile": r"[xy] 100% \$5 a_b__c \^__\^ __ smile",
    "{5%|$7}": r"5%|\$7",
    "__colour__ <lora:my__style__v2:0.8>": r"(red|blue|green) <lora:my__style__v2:0\.8>",
    "__colour____colour__": r"(red|blue|green){2}",
    "{__colour__|a __~colour__} b": r"(a )?(red|blue|green) b",
    "[{a|b}:{c|d}:0.5] AND x :2": r"\[[ab]:[cd]:0\.5\] AND x :2",
}


@pytest.mark.parametrize("template", DRAWS)
def test_a_template_draws_what_its_language_says(folder, template):
    drawn = {expand_template(template, folder, seed) for seed in range(12)}
    assert all(re.fullmatch(DRAWS[template], text) for text in drawn), drawn
    assert len(drawn) > 1


@given(seed=st.integers(0, 2**32 - 1), template=st.sampled_from(list(DRAWS)))
def test_a_seed_draws_the_same_again(folder, seed, template):
    assert expand_template(template, folder, seed) == expand_template(template, folder, seed)


UNTOUCHED = [
    "a red house",
    "snake_case__ x",
    "[a|b]",
    "(a|b)",
    "<lora:x:{s}>",
    "{{masterpiece}}",
    "a {} b",
    "__ a __",
    "a\nb # c",
    "<lora:my__style__v2:0.8>",
    "<lora:__style__:0.8>",
    "x__x o__o",
    "^__^",
]


@pytest.mark.parametrize("text", UNTOUCHED)
def test_a_prompt_without_templates_is_left_as_it_is(folder, text):
    assert find_template(text) is None
    assert expand_template(text, folder, 1) == text


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a __color__ house", UnknownName),
        ("a ${x} cat", BadPrompt),
        ("{0::a|0::b}", BadPrompt),
        ("${x=a}", BadPrompt),
        ("{a|b$$c}", BadPrompt),
        ("{a|b} {c|d", BadPrompt),
        ("__../colour__", BadPrompt),
        ("__endless__", BadPrompt),
    ],
)
def test_a_template_that_cannot_be_drawn_is_refused_in_one_line(folder, text, error):
    with pytest.raises(error) as caught:
        expand_template(text, folder, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__colour__ cat, {masterpiece}", r"braces that are lost.*'\{masterpiece\}'"),
        ("{[a|b]|c}", r"brackets in a variant.*'\[a\|b\]'"),
    ],
)
def test_marks_that_drawing_takes_apart_are_warned_of(folder, text, message):
    with pytest.warns(VelaturaWarning, match=message):
        expand_template(text, folder, 1)


@pytest.mark.parametrize("piece", ["{", "{|", "|", "-__a ", "__", "{a", "<", "[|", "{$", "${", "(__a(", "_"])
def test_a_hostile_prompt_is_searched_in_little_time(piece):
    """A pattern whose time grows with the square of the length takes minutes here."""
    for text in ("{" + piece * (200_000 // len(piece)), piece * (200_000 // len(piece))):
        find_template(text)
        BRACES_PATTERN.search(text)


def test_a_misspelled_wildcard_is_put_right(folder):
    with pytest.raises(UnknownName, match=r"no wildcard is called 'color' in .*did you mean '.*colour.*'"):
        expand_template("__color__", folder, 1)
    with pytest.raises(BadFile, match="is not a folder"):
        expand_template("__colour__", folder / "nowhere", 1)


@pytest.mark.parametrize("text", ["a __colour__ cat", "{a|b}", "{2$$a|b}", "${x}"])
def test_templates_that_nothing_draws_are_painted_as_letters(text):
    with pytest.warns(VelaturaWarning, match=r"painted as letters \(.*\): .*--wildcards"):
        warn_of_letters(text)
    with pytest.warns(VelaturaWarning, match=r"braces that are painted \('\{best\}', '\{fine\}'\): NovelAI's emphasis"):
        warn_of_letters("{best} {fine} art")


def test_all_templates_that_are_painted_or_missing_are_named_once(folder):
    with pytest.warns(VelaturaWarning, match=r"\('__sky__', '\{a\|b\}', '__tree__'\)"):
        warn_of_letters("__sky__ {a|b} __tree__ __sky__")
    with pytest.warns(VelaturaWarning, match=r"'__e__', \.\.\.\)"):
        warn_of_letters("__a__ __b__ __c__ __d__ __e__ __f__")
    with pytest.raises(UnknownName, match=r"no wildcard is called 'color'.* Missing too: 'tree', 'sky'$"):
        expand_template("__color__ __colour__ __tree__ __sky__ __tree__", folder, 1)


def test_pictures_draw_by_their_seeds_and_replay(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    words = ["generate", "a __colour__ {cat|dog|bird}", "--negative", "{blurry|dark}", "--steps", "1", "--seed", "3"]
    assert main([*words, "--count", "6", "--wildcards", str(folder), "--out", "pictures"]) == 0
    recipes = [Recipe.from_image(path) for path in sorted((tmp_path / "pictures").iterdir())]
    prompts = [recipe.prompt for recipe in sorted(recipes, key=lambda recipe: recipe.seed or 0)]
    assert prompts == [expand_template("a __colour__ {cat|dog|bird}", folder, seed) for seed in range(3, 9)]
    assert len(set(prompts)) > 1
    assert {recipe.negative for recipe in recipes} <= {"blurry", "dark"}


def test_a_folder_of_wildcards_at_the_library_is_used(tmp_path, monkeypatch, capsys, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "wildcards").symlink_to(folder)
    words = ["generate", "a __colour__ cat", "--steps", "1", "--library", "models", "--out", "a.png", "--overwrite"]
    assert main(words) == 0
    recipe = Recipe.from_image("a.png")
    assert recipe.prompt in {"a red cat", "a blue cat", "a green cat"}
    assert expand_template("a __colour__ cat", folder, recipe.seed or 0) == recipe.prompt
    assert main(["generate", "--recipe", "a.png", "--steps", "1", "--out", "b.png"]) == 0
    assert Recipe.from_image("b.png").prompt == recipe.prompt
    assert main(["generate", "a __color__ cat", "--library", "models", "--out", "c.png"]) == USER_ERROR_STATUS
    assert "no wildcard is called 'color'" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["{", "|", "a", "__a ", "{a", "$", "{$", "${"])
def test_long_texts_that_only_begin_a_template_are_read_in_one_pass(part):
    text = "{" + part * (300_000 // len(part))
    assert find_template(text) in {None, "${a"}
    warn_of_letters(text)
