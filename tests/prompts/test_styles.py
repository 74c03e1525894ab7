"""The webui's own styles (tests/data/a1111/styles.*)."""

import json
from pathlib import Path

import pytest

from velatura.errors import BadFile
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
