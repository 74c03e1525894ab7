"""The picture of a grid as a recipe: one cell of it, or the whole grid again."""

import numpy as np
import pytest
from PIL import Image

import velatura
from velatura.cli.app import main
from velatura.errors import VelaturaWarning
from velatura.prompts.axis_values import join_texts, texts

STYLES = "name,prompt,negative_prompt\nink,ink drawing,photo\n"
# As A1111's script writes them: what was typed, and the seeds that were drawn for -1
A1111_GRID = (
    "a house on the beach\nSteps: 1, Sampler: Euler a, CFG scale: 7.0, Seed: 5, Size: 64x64, Script: X/Y/Z plot, "
    'X Type: Seed, X Values: "-1,-1", Fixed X Values: "5, 6", Y Type: Prompt S/R, Y Values: "house,boat", '
    "Z Type: CFG Scale, Z Values: 3-7 [2]"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "styles.csv").write_text(STYLES)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["a {what} house", "--x", 'what=red,"blue, green"', "--y", "seed=7-8", "--negative", "{what} tree"],
        ["a house", "--x", "replace=house,boat", "--y", "guidance=2-5 [2]", "--z", "width=64,96"],
        ["a red house", "--x", "order=red,house"],
        ["a house|at night|in snow", "--matrix"],
        ["a house", "--x", "style=ink,None", "--y", "base=tiny"],
        ["--x", 'prompt="a house, red",a boat'],
    ],
)
def test_a_grid_is_made_again_from_its_picture(words, folder, capsys):
    assert main(["grid", *words, "--steps", "1", "--out", "grid.png"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["grid", "--recipe", "grid.png", "--out", "again.png"]) == 0
    assert "this is a grid" not in capsys.readouterr().err
    pixels = [np.asarray(Image.open(folder / name), dtype=int) for name in ("grid.png", "again.png")]
    assert np.array_equal(*pixels)


@pytest.mark.filterwarnings("default")
def test_a_grid_as_a_recipe_of_a_picture_says_which_cell_is_made(folder, capsys):
    words = ["grid", "a {what} house", "--x", "what=red,blue", "--y", "seed=7-8", "--steps", "1", "--out", "grid.png"]
    assert main(words) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["generate", "--recipe", "grid.png", "--out", "cell.png"]) == 0
    [warning] = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert "a grid (x: what = red, blue; y: seed = 7, 8)" in warning
    assert "first cell, what=red, seed=7" in warning
    assert "velatura grid --recipe" in warning
    recipe = velatura.Recipe.from_image(folder / "cell.png")
    assert (recipe.prompt, recipe.seed) == ("a red house", 7)


def test_a_grid_of_the_web_ui_is_made_again(folder, capsys):
    (folder / "grid.txt").write_text(A1111_GRID)
    with pytest.warns(VelaturaWarning, match=r"x: seed = 5, 6; y: replace = house,boat; z: guidance = 3-7 \[2\]"):
        velatura.Recipe.from_file(folder / "grid.txt")
    assert main(["grid", "--recipe", "grid.txt", "--out", "grid.png"]) == 0, capsys.readouterr().err
    with pytest.warns(VelaturaWarning, match=r"x: seed = 5, 6; y: replace = house, boat; z: guidance = 3, 7"):
        velatura.Recipe.from_file(folder / "grid.png")


def test_an_axis_that_only_the_web_ui_has_is_refused(folder, capsys):
    (folder / "grid.txt").write_text(A1111_GRID.replace("X Type: Seed", "X Type: Face restore"))
    assert main(["grid", "--recipe", "grid.txt", "--out", "grid.png"]) == 2
    assert "the axis 'face_restore' changes nothing" in capsys.readouterr().err


@pytest.mark.parametrize("values", [["a", "b, c", 'say "hello"', ""], ["one\ntwo"], [""]])
def test_values_written_as_one_text_are_split_again(values):
    assert texts(join_texts(values)) == values
