import numpy as np
import pytest
import torch
from PIL import Image

import velatura
from velatura.errors import BadPrompt, BadRecipe, NoPicture, UnknownName, VelaturaWarning
from velatura.sampling.recipe import Recipe
from velatura.sampling.samplers import SAMPLERS

QUICK = Recipe(prompt="a red house", steps=2, seed=7)


def pixels(picture):
    return np.asarray(picture.image).astype(int)


def same(a, b):
    return np.array_equal(pixels(a), pixels(b))


def close(a, b):
    """The same but for rounding: sums over a batch of another size are ordered otherwise."""
    return np.abs(pixels(a) - pixels(b)).max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_recipe_in_a_saved_picture_makes_it_again_bit_for_bit(tiny, sampler, tmp_path):
    recipe = Recipe(prompt="a (red:1.3) house, BREAK night", negative="day", sampler=sampler, steps=3, guidance=4.5)
    picture = velatura.generate(tiny, recipe)
    path = picture.save(tmp_path / "house.png")
    again = Recipe.from_image(path)
    assert again == picture.recipe
    assert same(velatura.generate(tiny, again), picture)
    assert np.array_equal(np.asarray(Image.open(path)), pixels(picture))


def test_a_recipe_comes_back_filled_in(tiny):
    picture = velatura.generate(tiny, "a red house", steps=1, sampler="euler A")
    recipe = picture.recipe
    assert (recipe.width, recipe.height, recipe.sampler) == (64, 64, "Euler a")
    assert recipe.seed is not None
    assert (recipe.base, recipe.base_hash) == (tiny.name, tiny.hash)
    assert picture.image.size == (64, 64)


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"prompt": "a boat"}, {"negative": "red"}, {"guidance": 1}, {"steps": 3}, {"sampler": "DDIM"}],
)
def test_every_field_counts(tiny, change):
    assert not same(velatura.generate(tiny, QUICK), velatura.generate(tiny, QUICK, **change))


def test_pictures_of_a_batch_are_what_they_are_alone(tiny, hyper):
    overlays = {"neon": hyper()}
    recipes = [
        QUICK,
        QUICK.but(prompt="a boat", seed=8),
        QUICK.but(prompt="a red house <hypernet:neon:0.5>"),
        QUICK.but(prompt="a boat <hypernet:neon:0.5>", seed=8),
        QUICK.but(prompt="a boat, " * 40),
        QUICK.but(width=96),
    ]
    together = velatura.generate_many(tiny, recipes, overlays=overlays)
    for recipe, picture in zip(recipes, together, strict=True):
        assert picture.recipe.prompt == recipe.prompt
        assert close(picture, velatura.generate(tiny, recipe, overlays=overlays))


def test_a_tag_lays_its_overlay_on_at_its_strength(tiny, hyper):
    neon = hyper()
    tagged = velatura.generate(tiny, QUICK, prompt="a red house<hypernet:Neon:0.5>", overlays={"neon": neon})
    with velatura.attach(tiny, neon, 0.5):
        assert same(velatura.generate(tiny, QUICK), tagged)
    assert not same(velatura.generate(tiny, QUICK), tagged)


def test_a_strength_of_0_is_no_overlay_at_all(tiny, hyper):
    off = velatura.generate(tiny, QUICK, prompt="a red house<hypernet:neon:0>", overlays={"neon": hyper()})
    assert same(velatura.generate(tiny, QUICK), off)


def test_the_same_overlay_twice_acts_twice(tiny, hyper):
    overlays = {"neon": hyper()}
    once, twice = (
        velatura.generate(tiny, QUICK, prompt="a red house" + tags, overlays=overlays)
        for tags in ("<hypernet:neon:0.5>", "<hypernet:neon:0.5><hypernet:neon:0.5>")
    )
    assert not same(once, twice)


def test_a_tag_finds_its_overlay_in_a_library(tiny, hyper, tmp_path):
    neon = hyper()
    velatura.save(neon, tmp_path / "neon.safetensors")
    recipe = QUICK.but(prompt="a red house <hypernet:neon:0.5>")
    found = velatura.generate(tiny, recipe, library=velatura.Library(tmp_path))
    assert same(found, velatura.generate(tiny, recipe, overlays={"neon": neon}))


def test_a_tag_that_names_nothing_names_what_is_near(tiny, hyper):
    with pytest.raises(UnknownName, match="did you mean 'neon'"):
        velatura.generate(tiny, "a <hypernet:neom:1>", overlays={"neon": hyper()})
    with pytest.raises(UnknownName, match="nobody knows the overlay 'neon': pass library="):
        velatura.generate(tiny, "a <hypernet:neon:1>")


def test_a_kind_that_does_not_exist_is_refused(tiny):
    with pytest.raises(UnknownName, match="no kind of overlay is called 'hyponet': did you mean 'hypernet'"):
        velatura.generate(tiny, "a <hyponet:neon:1>")


def test_mistakes_are_found_before_the_first_step(tiny):
    steps = []
    for wrong in ("a <hypernet:neon:strong>", "a <hypernet:neon:1>"):
        with pytest.raises((BadPrompt, UnknownName)):
            velatura.generate_many(tiny, [QUICK, QUICK.but(prompt=wrong)], on_step=lambda *done: steps.append(done))
    assert not steps


def test_the_overlay_comes_off_when_something_goes_wrong(tiny, hyper):
    before = velatura.generate(tiny, QUICK)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        velatura.generate(tiny, "a <hypernet:neon:1>", overlays={"neon": hyper()}, on_step=stop)
    assert same(velatura.generate(tiny, QUICK), before)


def test_latents_that_are_no_numbers_make_no_picture(tiny):
    with pytest.raises(NoPicture, match="lower the strength"):
        velatura.generate(tiny, QUICK, guidance=1e38)


def test_a_width_that_the_base_cannot_make_is_refused(tiny):
    with pytest.raises(BadRecipe, match=r"the width is 66 pixels; .* such as 64"):
        velatura.generate(tiny, QUICK, width=66)


def test_a_picture_need_be_no_square_and_no_multiple_of_the_unets_own(tiny):
    assert velatura.generate(tiny, QUICK, width=100, height=36).image.size == (100, 36)


def test_a_recipe_of_another_base_is_warned_of(tiny):
    with pytest.warns(VelaturaWarning, match=r"made on sd15 \(0123456789\), this is .*: the picture will be another"):
        velatura.generate(tiny, QUICK.but(base="sd15", base_hash="0123456789"))


def test_the_name_of_another_base_is_warned_of(tiny):
    with pytest.warns(VelaturaWarning, match=r"made on sd15, this is tiny .*: the picture will be another"):
        velatura.generate(tiny, QUICK.but(base="sd15"))
    with pytest.warns(VelaturaWarning, match=r"made on sd15 .*, this is tiny .*: only its name is another"):
        velatura.generate(tiny, QUICK.but(base="sd15", base_hash=tiny.hash))


def test_steps_are_told_over_all_pictures(tiny):
    told = []
    velatura.generate_many(tiny, [QUICK, QUICK.but(steps=3)], on_step=lambda *done: told.append(done))
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_generating_leaves_no_gradients(tiny, hyper):
    overlay = hyper()
    velatura.generate(tiny, "a <hypernet:neon:1>", steps=1, overlays={"neon": overlay})
    assert torch.is_grad_enabled()
    assert all(each.grad is None for each in overlay.parameters())
