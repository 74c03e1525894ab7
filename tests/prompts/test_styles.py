"""The webui's own styles (tests/data/a1111/styles.*)."""

import json
from pathlib import Path

import pytest

from velatura.errors import BadFile, VelaturaWarning
from velatura.prompts.styles import Style, apply_styles, extract_styles, read_styles

GOLDEN = Path(__file__).parents[1] / "data" / "a1111"
RECORDED = json.loads((GOLDEN / "styles.json").read_text("utf-8"))
STYLES = read_styles((GOLDEN / "styles.csv").read_text("utf-8"))


def test_a_file_of_styles_is_read():
    assert {name: list(style) for name, style in STYLES.items()} == RECORDED["read"]


def test_an_old_file_of_styles_is_read():
    styles = read_styles((GOLDEN / "styles_old.csv").read_text("utf-8"))
    assert {name: list(style) for name, style in styles.items()} == RECORDED["read_old"]


@pytest.mark.parametrize("case", RECORDED["apply"], ids=lambda case: f"{case['styles']} {case['prompt']}")
def test_styles_are_added_and_taken_as_in_the_webui(case):
    styles = [STYLES.get(name, Style(name)) for name in case["styles"]]  # there an unknown one adds nothing
    added = apply_styles(case["prompt"], case["negative"], styles)
    assert added == (case["prompt_out"], case["negative_out"])
    extracted, prompt, negative = extract_styles(*added, STYLES.values())
    assert [[style.name for style in extracted], prompt, negative] == case["extract_from_output"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("title,text\na,b", "do not have a column 'name'"), ('name\n"' + "a" * 200_000, "not a CSV table")],
)
def test_other_files_are_refused(text, reason):
    with pytest.raises(BadFile, match=reason):
        read_styles(text)


# The values by RFC 4180, but for the spaces, which people write after commas and which add nothing to a prompt
@pytest.mark.parametrize(
    "text",
    [
        'name, prompt, negative_prompt\nmaster, "best, sharp", blurry\n',
        'Name,Prompt,Negative_Prompt\r\nmaster,"best, sharp",blurry\r\n',
        "name;prompt;negative_prompt\nmaster;best, sharp;blurry",
        "name\tprompt\tnegative_prompt\nmaster\tbest, sharp\tblurry",
        'name,prompt,negative_prompt,,\nmaster,"best, sharp",blurry,,\n\n',
    ],
)
def test_spaces_and_the_separators_of_spreadsheets_are_read(text):
    assert read_styles(text) == {"master": Style("master", "best, sharp", "blurry")}


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("a,b,c\nmaster,masterpiece, best quality,blurry", "line 3 of the styles, 'master', has 4 texts for 3 columns"),
        ('a,"best, sharp\nb,plain,x\n', "the row from line 2 on has an error"),
        ('x,y,z\na,"best, sharp\nb,"plain, x",y\n', "the row from line 3 on has an error"),
        ('a,"a "red" house",b\n', "the row from line 2 on has an error"),
    ],
)
def test_rows_that_would_say_something_else_are_refused_with_their_line(rows, reason):
    with pytest.raises(BadFile, match=reason):
        read_styles("name,prompt,negative_prompt\n" + rows)


def test_a_comma_that_may_belong_to_the_prompt_is_warned_of():
    with pytest.warns(VelaturaWarning, match="line 3 of the styles, 'master', .* so 'best quality' goes to the neg"):
        styles = read_styles("name,prompt,negative_prompt\na,b,c\nmaster,masterpiece, best quality")
    assert styles["master"].negative == "best quality"


def test_a_text_beyond_unnamed_columns_is_refused():
    with pytest.raises(BadFile, match=r"line 2 .* has 4 texts for 3 columns"):
        read_styles("name,prompt,negative_prompt,\nmaster,masterpiece,best quality,blurry")


def test_a_table_without_a_column_of_texts_is_refused():
    with pytest.raises(BadFile, match="have the columns name, promt, so none of them adds anything"):
        read_styles("name,promt\na,b")
