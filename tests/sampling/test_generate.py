from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image

import velatura
from velatura.errors import BadPrompt, BadRecipe, NanLatents, UnknownName, VelaturaWarning, WrongBase
from velatura.overlays.structure import HypernetworkStructure
from velatura.sampling.generate import generate_stream
from velatura.sampling.job import prepare_job, split_into_batches
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.resolve.overlays import OverlayResolver
from velatura.sampling.samplers import SAMPLERS

QUICK = Recipe(prompt="a red house", steps=2, seed=7)


def pixels(picture):
    return np.asarray(picture.image).astype(int)


def same(a, b):
    return np.array_equal(pixels(a), pixels(b))


def close(a, b):
    """The same but for rounding: sums over a batch of another size are ordered otherwise."""
    return np.abs(pixels(a) - pixels(b)).max() <= 1


@pytest.mark.parametrize(
    "sampler", [pytest.param(name, marks=pytest.mark.slow) if name == "DPM adaptive" else name for name in SAMPLERS]
)
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
        QUICK.replace(prompt="a boat", seed=8),
        QUICK.replace(prompt="a red house <hypernet:neon:0.5>"),
        QUICK.replace(prompt="a boat <hypernet:neon:0.5>", seed=8),
        QUICK.replace(prompt="a boat, " * 40),
        QUICK.replace(width=96),
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


@pytest.mark.parametrize(
    ("written", "strengths"),
    [("0@0, 0.8@0.5", [0, 0.4, 0.8, 0.8]), ("0.6:start=0.25:end=0.75", [0, 0.6, 0.6, 0])],
)
def test_a_strength_follows_the_steps(tiny, hyper, written, strengths):
    neon = hyper()
    tagged = velatura.generate(
        tiny, QUICK, steps=4, prompt=f"a red house<hypernet:neon:{written}>", overlays={"neon": neon}
    )
    with velatura.attach(tiny, neon, strengths[0]) as attachment:

        def set_next(done, total):
            attachment.strength = [*strengths, 0][done]

        assert same(velatura.generate(tiny, QUICK, steps=4, on_step=set_next), tagged)


@pytest.mark.parametrize(
    ("written", "how"),
    [
        ("0.5:on=prompt", {"on": "prompt"}),
        ("0.5:on=negative", {"on": "negative"}),
        ("0.5:blocks=mid+out", {"blocks": ("mid", "out")}),
    ],
)
def test_an_overlay_acts_for_one_prompt_or_in_some_blocks(tiny, hyper, written, how):
    overlays = {"neon": hyper()}
    recipes = [
        QUICK.replace(prompt=f"a red {thing}<hypernet:neon:{written}>", negative="day") for thing in ("cat", "car")
    ]
    tagged = velatura.generate_many(tiny, recipes, overlays=overlays)
    with velatura.attach(tiny, overlays["neon"], 0.5, **how):
        by_hand = velatura.generate_many(tiny, [each.replace(prompt=each.prompt.split("<")[0]) for each in recipes])
    assert all(map(same, tagged, by_hand))
    whole = velatura.generate(tiny, QUICK, prompt="a red cat<hypernet:neon:0.5>", negative="day", overlays=overlays)
    assert not close(tagged[0], whole)


def test_without_guidance_the_prompt_is_all_there_is(tiny, hyper):
    overlays, alone = {"neon": hyper()}, QUICK.replace(guidance=1)
    tagged, on_prompt = (
        velatura.generate(tiny, alone, prompt=f"a red house<hypernet:neon:{written}>", overlays=overlays)
        for written in ("0.5", "0.5:on=prompt")
    )
    assert same(tagged, on_prompt)
    with pytest.warns(VelaturaWarning, match=r"neon:0.5:on=negative> acts for the negative prompt only"):
        velatura.generate(tiny, alone, prompt="a red house<hypernet:neon:0.5:on=negative>", overlays=overlays)


def test_an_overlay_that_acts_at_no_step_is_warned_of(tiny, hyper):
    prompt = "a red house<hypernet:neon:0.5:start=0.6>"
    with pytest.warns(VelaturaWarning, match=r"<hypernet:neon:0.5:start=0.6> acts at none of 2 steps"):
        velatura.generate(tiny, QUICK, prompt=prompt, overlays={"neon": hyper()})


def test_every_step_reads_the_very_same_context(tiny):
    read = []
    hook = tiny.unet.register_forward_pre_hook(lambda _, arguments: read.append(arguments[2]))
    try:
        velatura.generate(tiny, QUICK, steps=3)
    finally:
        hook.remove()
    assert len(read) == 3
    assert all(each is read[0] for each in read)


@pytest.mark.parametrize("combine", ["sum", "average"])
def test_overlays_may_act_side_by_side(tiny, hyper, combine):
    overlays = {"neon": hyper(), "ink": hyper(activation="relu", seed=3)}
    recipe = QUICK.replace(prompt="a red house<hypernet:neon:0.5><hypernet:ink:0.4>", combine=combine)
    together = velatura.generate(tiny, recipe, overlays=overlays)
    blocks = ("in", "mid", "out")
    attachment = velatura.attach_all(
        tiny, [(overlays["neon"], 0.5, blocks), (overlays["ink"], 0.4, blocks)], combine=combine
    )
    try:
        assert same(velatura.generate(tiny, QUICK), together)
    finally:
        for each in attachment:
            each.detach()
    assert not same(velatura.generate(tiny, recipe, combine="sequence", overlays=overlays), together)
    assert Recipe.from_infotext(together.recipe.infotext()) == together.recipe


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
    recipe = QUICK.replace(prompt="a red house <hypernet:neon:0.5>")
    found = velatura.generate(tiny, recipe, library=velatura.Library(tmp_path))
    assert same(found, velatura.generate(tiny, recipe, overlays={"neon": neon}))


def test_a_recipe_records_the_files_of_its_overlays_and_warns_of_others(tiny, hyper, tmp_path):
    file, prompt = tmp_path / "neon.safetensors", "a red house <hypernet:Neon:0.5><hypernet:neon:0.2>"
    velatura.save(hyper(), file)
    picture = velatura.generate(tiny, QUICK, prompt=prompt, library=velatura.Library(tmp_path))
    digest = sha256(file.read_bytes()).hexdigest()[:10]
    assert [(each.name, each.hash) for each in picture.recipe.overlay_hashes] == [("neon", digest)]
    again = Recipe.from_image(picture.save(tmp_path / "house.png"))
    assert same(velatura.generate(tiny, again, library=velatura.Library(tmp_path)), picture)

    velatura.save(hyper(seed=5), file)
    other = sha256(file.read_bytes()).hexdigest()[:10]
    with pytest.warns(
        VelaturaWarning, match=rf"made with neon \({digest}\), but the file found is another \({other}\)"
    ):
        repainted = velatura.generate(tiny, again, library=velatura.Library(tmp_path))
    assert {each.hash for each in repainted.recipe.overlay_hashes} == {other}


def test_a_tag_that_names_nothing_names_what_is_near(tiny, hyper):
    with pytest.raises(UnknownName, match="did you mean 'neon'"):
        velatura.generate(tiny, "a <hypernet:neom:1>", overlays={"neon": hyper()})
    with pytest.raises(UnknownName, match="the overlay 'neon' is unknown: pass library="):
        velatura.generate(tiny, "a <hypernet:neon:1>")


def test_a_kind_that_does_not_exist_is_refused(tiny):
    with pytest.raises(UnknownName, match="no kind of overlay is called 'hyponet': did you mean 'hypernet'"):
        velatura.generate(tiny, "a <hyponet:neon:1>")


def test_mistakes_are_found_before_the_first_step(tiny):
    steps = []
    for wrong in ("a <hypernet:neon:strong>", "a <hypernet:neon:1>"):
        with pytest.raises((BadPrompt, UnknownName)):
            velatura.generate_many(tiny, [QUICK, QUICK.replace(prompt=wrong)], on_step=lambda *done: steps.append(done))
    assert not steps


def test_an_overlay_that_does_not_fit_is_found_before_the_first_step(tiny):
    steps = []
    structure = HypernetworkStructure.from_fields({"widths": (768,)}).model_dump(mode="json")
    for_sd1 = velatura.Hypernetwork(velatura.Card(kind="hypernet", structure=structure))
    with pytest.raises(WrongBase, match="768"):
        velatura.generate_many(
            tiny,
            [QUICK, QUICK.replace(prompt="a <hypernet:neon:1>")],
            overlays={"neon": for_sd1},
            on_step=lambda *done: steps.append(done),
        )
    assert not steps


def test_each_picture_is_given_as_soon_as_it_is_painted(tiny):
    reported = []
    recipes = [QUICK.replace(steps=1), QUICK, QUICK.replace(steps=1, seed=8)]
    made = generate_stream(tiny, recipes, on_step=lambda done, _: reported.append(done))
    assert not reported
    first, second = next(made), next(made)
    assert reported == [1]
    third = next(made)
    assert reported == [1, 2, 3]
    assert [place for place, _ in (first, second, third)] == [0, 2, 1]
    assert all(picture.recipe.steps == recipes[place].steps for place, picture in (first, second, third))
    assert next(made, None) is None


@pytest.mark.parametrize(("pixels", "sizes"), [(64, [5]), (512, [2, 2, 1]), (1024, [1] * 5)])
def test_a_batch_holds_as_many_pictures_as_there_is_room_for(tiny, pixels, sizes):
    # in latents of the tiny base, a quarter as wide as the picture, eight pictures of SD 1 are two of 512 pixels
    jobs = [
        prepare_job(tiny, QUICK.replace(width=pixels, height=pixels, seed=i), OverlayResolver(None, None))
        for i in range(5)
    ]
    assert [len(batch) for batch in split_into_batches(jobs)] == sizes


def test_the_overlay_comes_off_when_something_goes_wrong(tiny, hyper):
    before = velatura.generate(tiny, QUICK)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        velatura.generate(tiny, "a <hypernet:neon:1>", overlays={"neon": hyper()}, on_step=stop)
    assert same(velatura.generate(tiny, QUICK), before)


def test_latents_that_are_no_numbers_make_no_picture(tiny):
    with pytest.raises(NanLatents, match="lower the strength"):
        velatura.generate(tiny, QUICK, guidance=1e38)


def test_a_width_that_the_base_cannot_make_is_refused(tiny):
    with pytest.raises(BadRecipe, match=r"the width is 66 pixels; .* such as 64"):
        velatura.generate(tiny, QUICK, width=66)


def test_a_picture_need_be_no_square_and_no_multiple_of_the_unets_own(tiny):
    assert velatura.generate(tiny, QUICK, width=100, height=36).image.size == (100, 36)


def test_a_recipe_of_another_base_is_warned_of(tiny):
    with pytest.warns(
        VelaturaWarning, match=r"made with sd15 \(0123456789\), but this base is .*: the picture will be different"
    ):
        velatura.generate(tiny, QUICK.replace(base="sd15", base_hash="0123456789"))


def test_the_name_of_another_base_is_warned_of(tiny):
    with pytest.warns(
        VelaturaWarning, match=r"made with sd15, but this base is tiny .*: the picture will be different"
    ):
        velatura.generate(tiny, QUICK.replace(base="sd15"))
    with pytest.warns(VelaturaWarning, match=r"made with sd15 .*, but this base is tiny .*: only the name differs"):
        velatura.generate(tiny, QUICK.replace(base="sd15", base_hash=tiny.hash))


def test_steps_are_told_over_all_pictures(tiny):
    reported = []
    velatura.generate_many(tiny, [QUICK, QUICK.replace(steps=3)], on_step=lambda *done: reported.append(done))
    assert reported == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_generating_leaves_no_gradients(tiny, hyper):
    overlay = hyper()
    velatura.generate(tiny, "a <hypernet:neon:1>", steps=1, overlays={"neon": overlay})
    assert torch.is_grad_enabled()
    assert all(each.grad is None for each in overlay.parameters())
