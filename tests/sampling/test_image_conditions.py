"""Pictures by inpainting and pix2pix models; diffusers' pipelines judge them in a file of their own."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import velatura
from tests.sampling.init_images import WORDS, difference, make_image, make_mask, pixels_of
from velatura import InitImage, Recipe
from velatura.errors import BadRecipe, VelaturaWarning
from velatura.sampling.images import image_pixels
from velatura.sampling.pipeline import seamless_tiling


@pytest.fixture
def image():
    return make_image()


@pytest.fixture
def mask():
    return make_mask()


def test_without_a_mask_the_whole_image_is_hidden_unless_the_recipe_says_less(inpainting, image):
    conditions = {}
    for weight in (None, 1.0, 0.25, 0.0):
        read = []
        hook = inpainting.unet.register_forward_pre_hook(lambda _, arguments, read=read: read.append(arguments[0][0]))
        fields = {**WORDS, "steps": 2, "inpainting_mask_weight": weight}
        picture = velatura.generate(inpainting, "a house", init_image=InitImage(image), **fields)
        hook.remove()
        conditions[weight] = read[0][4:]
        assert picture.recipe.inpainting_mask_weight == (1.0 if weight is None else weight)
        left = pixels_of(image) * (1 - (1.0 if weight is None else weight))
        torch.testing.assert_close(read[0][5:], inpainting.encode(left)[0], rtol=1e-4, atol=1e-5)
        assert bool((read[0][4] == 1).all())
    assert torch.equal(conditions[None], conditions[1.0])


@torch.no_grad()
def test_a_guidance_of_1_still_guides_by_the_image(pix2pix, image):
    # Brooks et al. 2023, eq. 3, by hand for one step; diffusers leaves all guidance out at 1
    read, predictions = [], []

    def record(_, args, output):
        read.append(args[0])
        predictions.append(output[0])

    hook = pix2pix.unet.register_forward_hook(record)
    fields = {**WORDS, "steps": 1, "denoising": 1, "guidance": 1, "image_guidance": 1.7}
    seen = []
    picture = velatura.generate(pix2pix, "a house", init_image=InitImage(image), on_preview=seen.append, **fields)
    hook.remove()
    without, uncond, cond = predictions[0]
    sigma = pix2pix.schedule.sigmas[-1]
    start = read[0][0, :4] * (sigma**2 + 1).sqrt()
    denoised = start - sigma * (without + 1.7 * (uncond - without) + 1 * (cond - uncond))
    expected = pix2pix.decode(denoised[None])[0].permute(1, 2, 0).numpy() * 255
    assert difference(picture, expected) < 1
    assert bool((read[0][0, 4:] == 0).all())
    assert torch.equal(read[0][1, 4:], read[0][2, 4:])


def test_texts_joined_by_and_are_guided_by_one_image(pix2pix, image):
    fields = {**WORDS, "steps": 2}
    joined = velatura.generate(pix2pix, "a house :0.5 AND a house :0.5", init_image=InitImage(image), **fields)
    single = velatura.generate(pix2pix, "a house", init_image=InitImage(image), **fields)
    assert np.abs(np.asarray(joined.image, int) - np.asarray(single.image, int)).max() <= 1


@pytest.mark.parametrize("kind", ["inpainting", "pix2pix"])
def test_the_layout_of_another_prompt_is_kept(request, kind, image):
    base = request.getfixturevalue(kind)
    fields = {**WORDS, "steps": 2, "init_image": InitImage(image)}
    plain = velatura.generate(base, "a boat", **fields)
    kept = velatura.generate(base, "a boat", keep_layout="a house", keep_layout_until=1, **fields)
    same = velatura.generate(base, "a boat", keep_layout="a boat", keep_layout_until=1, **fields)
    assert kept.image.tobytes() != plain.image.tobytes()
    assert np.abs(np.asarray(same.image, int) - np.asarray(plain.image, int)).max() <= 1


@pytest.mark.parametrize("kind", ["inpainting", "pix2pix"])
def test_many_pictures_are_what_they_are_alone(request, kind, image, mask):
    base = request.getfixturevalue(kind)
    recipes = [Recipe(prompt=words, **(WORDS | {"seed": seed})) for seed, words in enumerate(["a house", "a boat"])]
    together = velatura.generate_many(base, recipes, init_image=InitImage(image, mask))
    for recipe, picture in zip(recipes, together, strict=True):
        alone = velatura.generate(base, recipe, init_image=InitImage(image, mask))
        assert np.abs(np.asarray(picture.image, int) - np.asarray(alone.image, int)).max() <= 1


@pytest.mark.parametrize("fields", [{"fit": "crop"}, {"fit": "fill"}, {"fit": "latent"}, {"mask_padding": 4}])
@pytest.mark.parametrize("kind", ["inpainting", "pix2pix"])
def test_images_of_other_sizes_are_fitted(request, kind, fields, image, mask):
    base = request.getfixturevalue(kind)
    init_image = InitImage(image.resize((90, 70)), mask.resize((90, 70)))
    read = []
    hook = base.unet.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    velatura.generate(base, "a house", init_image=init_image, **WORDS, **fields)
    hook.remove()
    assert {tuple(each.shape[1:]) for each in read} == {(base.input_channels, 16, 16)}
    if kind == "inpainting":
        assert set(read[0][:, 4].unique().tolist()) == {0.0, 1.0}


def test_the_shades_of_a_mask_are_read_where_the_recipe_keeps_them(inpainting, image):
    """The UNet reads the mask and the latents of image * (1 - mask), see A1111's `mask_round`; 51 / 255 is 0.2."""
    read = []
    hook = inpainting.unet.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    init_image = InitImage(image, Image.new("L", image.size, 51))
    fields = {**WORDS, "steps": 1, "mask_blur": 0, "denoising": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        soft = velatura.generate(inpainting, "a house", init_image=init_image, unrounded_mask=True, **fields)
    hook.remove()
    assert torch.allclose(read[0][:, 4], torch.tensor(0.2))
    expected = inpainting.encode(image_pixels(image) * 0.8)[0]
    assert torch.allclose(read[0][0, 5:], expected, atol=1e-3)
    assert "Unrounded mask: True" in soft.recipe.infotext()
    assert Recipe.from_infotext(soft.recipe.infotext()) == soft.recipe
    hard = velatura.generate(inpainting, "a house", init_image=init_image, **fields)
    assert not hard.recipe.unrounded_mask
    assert not np.array_equal(np.asarray(soft.image), np.asarray(hard.image))


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_the_second_pass_reads_a_full_mask(inpainting, upscaler, weight):
    read = []
    hook = inpainting.unet.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    fields = {"hires_scale": 1.5, "hires_upscaler": upscaler, "inpainting_mask_weight": weight}
    velatura.generate(inpainting, "a house", **(WORDS | {"steps": 2}), **fields)
    hook.remove()
    second = [each for each in read if each.shape[-1] == 24]
    assert second
    grey = inpainting.encode(torch.zeros(1, 3, 96, 96))[0]
    for each in second:
        assert bool((each[:, 4] == 1).all())
        assert torch.equal(each[0, 5:], grey) == (weight == 1)


def test_a_tiled_picture_reads_a_grey_image_that_is_tiled_too(inpainting):
    read = []
    hook = inpainting.unet.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    for tiling in (False, True, False):
        velatura.generate(inpainting, "a house", tiling=tiling, **(WORDS | {"steps": 1}))
    hook.remove()
    grey = torch.zeros(1, 3, 64, 64)
    with seamless_tiling(inpainting):
        tiled = inpainting.encode(grey)[0]
    plain = inpainting.encode(grey)[0]
    assert [torch.equal(each[0, 5:], tiled) for each in read] == [False, True, False]
    assert [torch.equal(each[0, 5:], plain) for each in read] == [True, False, True]


def test_a_pix2pix_model_without_an_image_is_refused(pix2pix):
    for fields in ({}, {"hires_scale": 1.5}):
        with pytest.raises(BadRecipe, match=r"pix2pix is a pix2pix model, which edits an image .* \(--image\)"):
            velatura.generate(pix2pix, "a house", **fields)


def test_fields_for_other_bases_are_named(tiny, inpainting, pix2pix, image):
    few = WORDS | {"steps": 1}
    with pytest.warns(VelaturaWarning, match="image_guidance changes nothing: inpainting is not a pix2pix model"):
        velatura.generate(inpainting, "a house", image_guidance=2, **few)
    with pytest.warns(VelaturaWarning, match="inpainting_mask_weight changes nothing: tiny is not an inpainting model"):
        velatura.generate(tiny, "a house", inpainting_mask_weight=0.5, init_image=InitImage(image), **few)
    with pytest.warns(VelaturaWarning, match="inpainting_mask_weight changes nothing without an init image"):
        velatura.generate(inpainting, "a house", inpainting_mask_weight=0.5, **few)
    with pytest.warns(VelaturaWarning, match="skip_negative_below changes nothing with an image_guidance"):
        velatura.generate(pix2pix, "a house", skip_negative_below=3, init_image=InitImage(image), **few)


def test_recipes_record_what_a1111_records(tiny, inpainting, pix2pix, image, mask):
    few = WORDS | {"steps": 1}
    edited = velatura.generate(pix2pix, "a house", init_image=InitImage(image), **few).recipe.infotext()
    assert "CFG scale: 7, Image CFG scale: 1.5, Seed: 3" in edited
    filled = velatura.generate(inpainting, "a house", init_image=InitImage(image, mask), **few).recipe
    assert "Denoising strength: 0.75, Conditional mask weight: 1" in filled.infotext()
    assert velatura.generate(inpainting, "a house", **few).recipe.inpainting_mask_weight is None
    plain = velatura.generate(tiny, "a house", init_image=InitImage(image, mask), **few).recipe
    assert plain.image_guidance is None
    assert plain.inpainting_mask_weight is None


def test_recipes_of_a1111_are_read():
    text = "a house\nSteps: 20, Sampler: Euler a, CFG scale: 7, Image CFG scale: 1.35, Seed: 1, Size: 512x512, "
    text += "Denoising strength: 0.75, Conditional mask weight: 0.5"
    recipe = Recipe.from_infotext(text)
    assert recipe.image_guidance == 1.35
    assert recipe.inpainting_mask_weight == 0.5
    assert Recipe.from_infotext(recipe.infotext()) == recipe


def test_an_overlay_for_one_side_acts_on_all_its_rows(pix2pix, inpainting, image, hyper):
    """Of a pix2pix model's rows two are negative prompts, and all texts that AND joins are prompts."""
    for base, prompt, negatives in ((pix2pix, "a house", 2), (pix2pix, "a AND b", 2), (inpainting, "a AND b AND c", 1)):
        few = WORDS | {"steps": 1, "denoising": 1}
        outputs = {}
        for side in (None, "prompt", "negative"):
            predicted = []
            hook = base.unet.register_forward_hook(lambda _, __, output, to=predicted: to.append(output[0]))
            if side is None:
                velatura.generate(base, prompt, init_image=InitImage(image), **few)
            else:
                with velatura.attach(base, hyper(), on=side):
                    velatura.generate(base, prompt, init_image=InitImage(image), **few)
            hook.remove()
            outputs[side] = predicted[0]
        changed = {
            side: [not torch.equal(ours, plain) for ours, plain in zip(outputs[side], outputs[None], strict=True)]
            for side in ("prompt", "negative")
        }
        row_count = len(outputs[None])
        assert changed["negative"] == [row < negatives for row in range(row_count)]
        assert changed["prompt"] == [row >= negatives for row in range(row_count)]
