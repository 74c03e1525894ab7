"""The fields of a recipe as keyword arguments of generate, generate_many and generate_stream."""

import inspect
from typing import get_type_hints

import numpy as np
import pytest

import velatura
from velatura.errors import BadRecipe
from velatura.sampling.recipe.keywords import CommonRecipeFields, FurtherRecipeFields, RecipeFields
from velatura.sampling.recipe.recipe import Recipe


def pixels(picture):
    return np.asarray(picture.image)


def test_the_keyword_arguments_are_the_fields_of_a_recipe():
    assert set(RecipeFields.__annotations__) == set(Recipe.model_fields) - {"base"}  # generate's first parameter
    assert not set(CommonRecipeFields.__annotations__) & set(FurtherRecipeFields.__annotations__)


def test_generate_spells_out_the_common_fields_and_explains_them():
    parameters = inspect.signature(velatura.generate).parameters
    for name in CommonRecipeFields.__annotations__:
        assert parameters[name].default is None
        assert name in velatura.generate.__doc__


@pytest.mark.parametrize("name", RecipeFields.__annotations__)
def test_a_default_of_a_recipe_fits_the_type_of_its_keyword_argument(name):
    """A field that may be None in a recipe may be None as an argument, and no other."""
    keyword_type = get_type_hints(RecipeFields)[name]
    is_optional = type(None) in getattr(keyword_type, "__args__", ())
    assert is_optional == (Recipe.model_fields[name].default is None)


@pytest.mark.parametrize(
    "make", [velatura.generate, lambda base, prompt, **more: velatura.generate_many(base, [prompt], **more)]
)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_inference_steps": 3}, "a recipe has no num_inference_steps: velatura calls it steps$"),
        ({"guidance_scale": 3}, "a recipe has no guidance_scale: velatura calls it guidance$"),
        ({"negative_prompt": "day"}, "a recipe has no negative_prompt: velatura calls it negative$"),
        ({"sampelr": "Euler"}, "a recipe has no sampelr: did you mean sampler"),
        ({"steps": 0}, r"the recipe's steps is 0: it should be greater than or equal to 1 \(sampling steps\)$"),
    ],
)
def test_a_wrong_keyword_argument_is_answered_in_one_line(tiny, make, fields, message):
    with pytest.raises(BadRecipe, match=message) as error:
        make(tiny, "a house", **fields)
    assert "\n" not in str(error.value)


def test_none_keeps_the_value_of_the_recipe(tiny):
    recipe = Recipe(prompt="a house", steps=1, seed=5, sampler="Euler", negative="day")
    picture = velatura.generate(tiny, recipe, steps=None, seed=None, sampler=None, negative=None)
    assert (picture.recipe.steps, picture.recipe.seed, picture.recipe.sampler) == (1, 5, "Euler")
    assert picture.recipe.negative == "day"


def test_a_seed_of_minus_1_replaces_the_recipes_by_a_new_one(tiny):
    recipe = Recipe(prompt="a house", steps=1, seed=2**63 - 1)  # no drawn seed is as large
    assert velatura.generate(tiny, recipe, seed=-1).recipe.seed != recipe.seed


def test_many_pictures_are_made_from_prompts_and_recipes_with_common_fields(tiny):
    house, boat = velatura.generate_many(tiny, ["a house", Recipe(prompt="a boat", seed=3, steps=9)], steps=1, seed=7)
    assert (house.recipe.prompt, boat.recipe.prompt) == ("a house", "a boat")
    assert house.recipe.steps == boat.recipe.steps == 1
    alone = velatura.generate(tiny, "a house", steps=1, seed=7)
    assert np.abs(pixels(house).astype(int) - pixels(alone).astype(int)).max() <= 1
