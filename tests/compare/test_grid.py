import numpy as np
import pytest
from PIL import Image

import velatura
from velatura.compare.cells import axis_labels, cell_recipes
from velatura.compare.grid_page import grid_page
from velatura.errors import BadRecipe, UnknownName, VelaturaWarning
from velatura.sampling.image_grid import draw_grid, stack_grids
from velatura.sampling.recipe.infotext import read_infotext
from velatura.sampling.recipe.metadata import read_image_infotext
from velatura.sampling.recipe.recipe import RECORDED_FIELDS

RED, BLUE = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
QUICK = velatura.Recipe(prompt="a house <hypernet:neon:{s}>", steps=1, seed=7)


def dark(sheet, box):
    """How many pixels of a part of the sheet are ink."""
    return int((np.asarray(sheet.crop(box).convert("L")) < 80).sum())


def test_small_pictures_are_enlarged_by_a_whole_factor():
    sheet = draw_grid([[RED, BLUE]])
    assert sheet.size == (6 + 2 * (192 + 6), 6 + 192 + 6)
    assert sheet.getpixel((6, 6)) == sheet.getpixel((6 + 191, 6 + 191)) == (255, 0, 0)
    assert sheet.getpixel((6 + 192 + 6, 6)) == (0, 0, 255)


def test_large_pictures_stay_as_they_are():
    assert draw_grid([[Image.new("RGB", (512, 768))]]).size == (512 + 12, 768 + 12)


def test_labels_stand_over_columns_and_beside_rows():
    bare, labelled = draw_grid([[RED], [BLUE]]), draw_grid([[RED], [BLUE]], ["strength 0.5"], ["a red house", "a boat"])
    left, top = labelled.width - bare.width, labelled.height - bare.height
    assert dark(labelled, (left, 0, labelled.width, top))
    assert dark(labelled, (0, top, left, top + 200))
    assert dark(labelled, (0, top + 200, left, labelled.height))


def test_a_long_label_is_broken_between_words():
    short, long = (draw_grid([[RED]], [text]) for text in ("a house", "a house " * 20))
    assert long.width == short.width
    assert long.height > short.height


def test_axes_change_a_field_and_a_word_of_the_prompt(tiny, hyper):
    overlays = {"neon": hyper()}
    made = velatura.grid(tiny, QUICK, x=("s", [0, 0.5, 1.0]), y=("seed", [7, 8]), overlays=overlays)
    prompts = [[picture.recipe.prompt for picture in row] for row in made.rows]
    assert prompts == [[f"a house <hypernet:neon:{s}>" for s in ("0", "0.5", "1")]] * 2
    assert [[picture.recipe.seed for picture in row] for row in made.rows] == [[7] * 3, [8] * 3]
    alone = velatura.generate(tiny, made.rows[1][1].recipe, overlays=overlays)
    assert np.abs(np.asarray(alone.image).astype(int) - np.asarray(made.rows[1][1].image)).max() <= 1


def test_an_axis_of_prompts_may_hold_the_word_of_the_other(tiny, hyper):
    prompts = ["a house <hypernet:neon:{s}>", "a boat <hypernet:neon:{s}>"]
    made = velatura.grid(tiny, QUICK, x=("s", [0, 1]), y=("prompt", prompts), overlays={"neon": hyper()})
    assert made.rows[1][1].recipe.prompt == "a boat <hypernet:neon:1>"


def test_a_third_axis_makes_sheets_one_below_the_other(tiny):
    made = velatura.grid(tiny, "a {what}", x=("seed", [1, 2]), y=("steps", [1, 2]), z=("what", ["house", "boat"]))
    prompts = [[{picture.recipe.prompt for picture in row} for row in sheet] for sheet in made.sheets]
    assert prompts == [[{"a house"}] * 2, [{"a boat"}] * 2]
    assert made.image.height > 2 * draw_grid([[cell.image for cell in row] for row in made.sheets[0]]).height


def test_the_first_value_is_searched_for_and_replaced_by_the_others(tiny):
    made = velatura.grid(
        tiny, QUICK.replace(prompt="a house, house", negative="house"), x=("replace", ["house", "boat", ""])
    )
    found = [(picture.recipe.prompt, picture.recipe.negative) for picture in made.rows[0]]
    assert found == [("a house, house", "house"), ("a boat, boat", "boat"), ("a ,", "")]


@pytest.mark.parametrize(
    ("value", "text"), [(0.1 + 0.2, "0.3"), (1.0, "1"), (1234567.5, "1234567.5"), (0.0000125, "0.0000125"), (7, "7")]
)
def test_a_number_of_an_axis_is_written_into_a_prompt_exactly(value, text):
    [recipe] = cell_recipes(velatura.Recipe(prompt="a house of {n}"), [("n", [value])])
    assert recipe.prompt == f"a house of {text}"


def test_labels_of_an_axis_are_short_unless_they_would_be_the_same():
    assert axis_labels(("s", [1 / 3, 0.5])) == ["s 0.333333", "s 0.5"]
    assert axis_labels(("s", [100000.25, 100000.5])) == ["s 100000.25", "s 100000.5"]


def test_words_to_replace_that_are_nowhere_are_refused(tiny):
    with pytest.raises(BadRecipe, match="neither prompt contains 'tree'"):
        velatura.grid(tiny, "a house", x=("replace", ["tree", "boat"]))


def test_sheets_are_stacked_under_their_labels():
    sheet = stack_grids([RED, BLUE], ["first", "second"])
    assert sheet.width == 64
    assert sheet.getpixel((5, sheet.height - 5)) == (0, 0, 255)
    assert dark(sheet, (0, 0, 64, 40)) > 0


def test_a_page_holds_every_recipe(tiny):
    made = velatura.grid(tiny, "a <b>{what}", x=("what", ["house", "boat"]), y=("seed", [7, 8]))
    page = grid_page(made)
    assert page.count("<img src=") == 4
    assert page.count("Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 8") == 2
    assert "a &lt;b&gt;boat" in page
    assert "<b>" not in page


def test_an_open_seed_is_drawn_once_for_all(tiny):
    made = velatura.grid(tiny, "a house", x=("steps", [1, 2]))
    [[one, two]] = made.rows
    assert one.recipe.seed == two.recipe.seed is not None


def test_seeds_that_are_open_on_an_axis_are_drawn_once_for_all_cells(tiny):
    """As in the webui; else the cells of a column would be of different seeds, and say nothing of what changes."""
    recipe = velatura.Recipe(prompt="a house", steps=1, variation_strength=0.2)
    made = velatura.grid(tiny, recipe, x=("seed", [-1, 7]), y=("guidance", [1.0, 2.0]))
    [[one, seven], [other, _]] = made.rows
    assert one.recipe.seed == other.recipe.seed == made.x[1][0]
    assert seven.recipe.seed == 7
    assert len({picture.recipe.variation_seed for row in made.rows for picture in row}) == 1


def test_a_saved_grid_says_how_it_was_made(tiny, hyper, tmp_path):
    made = velatura.grid(tiny, QUICK, x=("s", [0, 0.5]), y=("seed", [7, 8]), overlays={"neon": hyper()})
    path = made.save(tmp_path / "grid.png")
    prompt, _, fields = read_infotext(read_image_infotext(path))
    assert prompt == QUICK.prompt.replace("{s}", "0")
    assert fields["X Type"] == "s"
    assert fields["Y Values"] == "7, 8"
    with Image.open(path) as image:
        assert image.size == made.image.size


@pytest.mark.parametrize(
    "axes",
    [
        {"x": ("seed", [-1, -1])},
        {"x": ("s", ["red", "blue"]), "y": ("guidance", [2.0, 5.0]), "z": ("seed", [3, 4])},
        {"x": ("replace", ["house", "boat"]), "y": ("width", [64, 96])},
        {"x": ("order", [("house", "{s}"), ("{s}", "house")])},
        {"matrix": True},
    ],
)
def test_the_recipe_in_a_saved_grid_makes_its_first_picture(tiny, axes, tmp_path):
    """As in the web UI, where a grid has the settings of its first cell."""
    made = velatura.grid(tiny, velatura.Recipe(prompt="a {s} house|at night", steps=1), **axes)
    path = made.save(tmp_path / "grid.png")
    with pytest.warns(VelaturaWarning, match="this is a grid"):
        read = velatura.Recipe.from_image(path)
    again = velatura.generate(tiny, read)
    assert again.recipe == made.rows[0][0].recipe
    difference = np.asarray(again.image, dtype=int) - np.asarray(made.rows[0][0].image, dtype=int)
    assert abs(difference).max() <= 3  # batches of other sizes round otherwise


@pytest.mark.parametrize(
    ("axis", "words"), [(("strength", [0, 1]), r"write \{strength\} into the prompt"), (("seed", []), "has no values")]
)
def test_an_axis_that_changes_nothing_is_refused(tiny, axis, words):
    with pytest.raises(BadRecipe, match=words):
        velatura.grid(tiny, "a house", x=axis)


@pytest.mark.parametrize("field", [field for field in RECORDED_FIELDS if field != "base"])
def test_an_axis_that_only_keeps_record_is_refused(tiny, field):
    with pytest.raises(BadRecipe, match=f"the recipe's {field} records what a picture was made with"):
        velatura.grid(tiny, "a house", x=(field, ["tiny", "sd15"]))


def test_a_bad_value_on_an_axis_is_refused(tiny):
    with pytest.raises(UnknownName):
        velatura.grid(tiny, "a house", x=("sampler", ["Euler a", "Eular"]))
