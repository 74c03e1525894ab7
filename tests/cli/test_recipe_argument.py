"""`--recipe` with a picture, a text file, or a text on standard input."""

import io
import sys
from pathlib import Path

import pytest

from velatura.cli.app import main
from velatura.cli.arguments import build_recipe
from velatura.errors import BadPrompt, BadRecipe
from velatura.prompts.prompt_file import parse_prompt_lines
from velatura.sampling.recipe.recipe import Recipe

COPIED = "a house\nNegative prompt: blurry\nSteps: 1, Sampler: Euler, CFG scale: 6, Seed: 7, Size: 32x32, RNG: CPU\n"
HOUSE = Recipe(prompt="a house", negative="blurry", steps=1, sampler="Euler", guidance=6, seed=7, width=32, height=32)


@pytest.fixture
def stdin(monkeypatch):
    def give(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


def test_options_change_the_recipe_of_a_text_file(tmp_path):
    (tmp_path / "house.txt").write_text(COPIED)
    assert build_recipe(tmp_path / "house.txt", None, {"seed": 8}, ()) == HOUSE.replace(seed=8)
    assert build_recipe(tmp_path / "house.txt", "a boat", {}, ("steps=2",)) == HOUSE.replace(prompt="a boat", steps=2)


def test_a_text_on_standard_input_is_read(stdin):
    stdin(COPIED.encode())
    assert build_recipe(Path("-"), None, {}, ()) == HOUSE


def test_nothing_on_standard_input_is_refused(stdin):
    stdin(b"")
    with pytest.raises(BadRecipe, match="standard input is empty"):
        build_recipe(Path("-"), None, {}, ())


def test_a_picture_is_made_from_a_text(tmp_path, monkeypatch, stdin):
    monkeypatch.chdir(tmp_path)
    stdin(COPIED.encode())
    assert main(["generate", "--recipe", "-", "--out", "house.png"]) == 0
    recipe = Recipe.from_image("house.png")
    assert (recipe.prompt, recipe.negative, recipe.seed, recipe.steps) == ("a house", "blurry", 7, 1)


@pytest.mark.parametrize("line", COPIED.splitlines()[1:])
def test_generation_data_in_a_prompts_file_is_refused(line):
    """Each of its lines would become a prompt."""
    with pytest.raises(BadPrompt, match="line 2: these are the settings of a picture; give its text by --recipe"):
        parse_prompt_lines(f"a house\n{line}", Recipe.model_fields)
