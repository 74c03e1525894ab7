"""Wildcards and variants that pictures and grids draw, and the templates in their recipes."""

import re

import pytest

import velatura
from velatura import Recipe
from velatura.errors import BadFile
from velatura.sampling.recipe.expand import draw_templates

WORDS = {"steps": 1, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wildcards")
    (folder / "colour.txt").write_text("red\nblue\ngreen\n")
    return folder


def test_a_picture_draws_by_its_seed_and_records_the_template(tiny, folder, tmp_path):
    template, negative = "a __colour__ {house|boat}", "{rain|snow}"
    fields = {"negative": negative, "seed": 7, **WORDS}
    picture = velatura.generate(tiny, template, wildcards=folder, **fields)
    assert re.fullmatch("a (red|blue|green) (house|boat)", picture.recipe.prompt)
    assert picture.recipe.negative in {"rain", "snow"}
    assert (picture.recipe.template, picture.recipe.negative_template) == (template, negative)
    assert velatura.generate(tiny, template, wildcards=str(folder), **fields).recipe == picture.recipe
    recipe = Recipe.from_image(picture.save(tmp_path / "a.png"))
    again = velatura.generate(tiny, recipe, wildcards=folder)
    assert again.recipe == picture.recipe
    assert again.image.tobytes() == picture.image.tobytes()


def test_pictures_of_one_template_draw_for_themselves(tiny, folder):
    recipes = [Recipe(prompt="a __colour__ {house|boat}", seed=seed, **WORDS) for seed in range(6)]
    many = velatura.generate_many(tiny, recipes, wildcards=folder)
    assert len({picture.recipe.prompt for picture in many}) > 1
    assert [picture.recipe for picture in many] == [
        picture.recipe
        for _, picture in sorted(
            velatura.generate_stream(tiny, recipes, wildcards=folder), key=lambda indexed: indexed[0]
        )
    ]


def test_without_a_folder_nothing_is_drawn(tiny):
    recipe = velatura.generate(tiny, "a {house|boat}", seed=1, **WORDS).recipe
    assert (recipe.prompt, recipe.template) == ("a {house|boat}", None)


def test_a_prompt_without_a_template_keeps_a_missing_seed_and_records_none(folder):
    recipe = Recipe(prompt="a house")
    assert draw_templates(recipe, folder) == recipe
    drawn = draw_templates(Recipe(prompt="a house", negative="{rain|snow}"), folder)
    assert drawn.seed is not None
    assert (drawn.template, drawn.negative_template) == (None, "{rain|snow}")


def test_a_folder_that_does_not_exist_is_named(tiny, tmp_path):
    with pytest.raises(BadFile, match=r"nowhere is not a folder.*\(--wildcards\)"):
        velatura.generate(tiny, "a {house|boat}", wildcards=tmp_path / "nowhere", **WORDS)


def test_the_cells_of_a_grid_draw_after_their_axes(tiny, folder):
    recipe = Recipe(prompt="a __colour__ {word}", seed=7, **WORDS)
    axes = {"x": ("seed", [0, 1, 3, 5]), "y": ("word", ["house", "{boat|cat}"])}
    grid = velatura.grid(tiny, recipe, wildcards=folder, **axes)
    houses, others = ([cell.recipe for cell in row] for row in grid.rows)
    assert {cell.template for cell in houses} == {"a __colour__ house"}
    assert {cell.template for cell in others} == {"a __colour__ {boat|cat}"}
    assert all(re.fullmatch("a (red|blue|green) house", cell.prompt) for cell in houses)
    assert all(re.fullmatch("a (red|blue|green) (boat|cat)", cell.prompt) for cell in others)
    assert len({cell.prompt for cell in houses}) > 1
    single = velatura.generate(tiny, recipe.replace(prompt="a __colour__ house", seed=3), wildcards=folder)
    assert houses[2].prompt == single.recipe.prompt
    assert "Template: a __colour__ house" in grid.infotext()


def test_a_matrix_draws_before_its_parts_are_combined(tiny, folder):
    recipe = Recipe(prompt="a {red|blue} house|at night", seed=7, **WORDS)
    grid = velatura.grid(tiny, recipe, matrix=True, wildcards=folder)
    prompts = [cell.recipe.prompt for row in grid.rows for cell in row]
    assert len(prompts) == 2
    assert {re.match("a (red|blue) house", prompt)[0] for prompt in prompts} == {prompts[0]}
