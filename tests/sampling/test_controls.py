"""What may be set of a picture, each held to what it is for, on the tiny base."""

import numpy as np
import pytest
import torch
from PIL import Image

import velatura
from velatura.errors import BadRecipe, NanLatents, UnknownName, VelaturaWarning, WrongBase
from velatura.overlays.structure import HypernetworkStructure
from velatura.sampling.generate import generate_stream
from velatura.sampling.masks import InitImage
from velatura.sampling.recipe.recipe import Recipe

HOUSE = Recipe(prompt="a red house on the beach", seed=7, steps=6, sampler="Euler")


def pixels(picture):
    """The values of a picture, 0 to 1; those of a part of one as they are."""
    if isinstance(picture, np.ndarray):
        return picture
    return np.asarray(getattr(picture, "image", picture), dtype=float) / 255


def mean_difference(one, other):
    """The mean difference of two pictures."""
    return np.abs(pixels(one) - pixels(other)).mean()


@pytest.fixture(scope="module")
def house(tiny):
    return velatura.generate(tiny, HOUSE)


def test_a_prompt_joined_by_and_weighs_both(tiny, house):
    """A second prompt of weight 0 changes nothing, and the first twice at half the weight is itself."""
    nothing = velatura.generate(tiny, HOUSE.replace(prompt=f"{HOUSE.prompt} AND a boat:0"))
    halves = velatura.generate(tiny, HOUSE.replace(prompt=f"{HOUSE.prompt}:0.5 AND {HOUSE.prompt}:0.5"))
    both = velatura.generate(tiny, HOUSE.replace(prompt=f"{HOUSE.prompt} AND a green boat"))
    assert mean_difference(nothing, house) < 0.003
    assert mean_difference(halves, house) < 0.003
    assert mean_difference(both, house) > 0.02


def test_words_that_change_at_the_end_leave_the_picture_as_it_was(tiny, house):
    late = velatura.generate(tiny, HOUSE.replace(prompt="a [red:green:6] house on the beach"))
    early = velatura.generate(tiny, HOUSE.replace(prompt="a [green:red:0] house on the beach"))
    middle = velatura.generate(tiny, HOUSE.replace(prompt="a [red:green:0.4] house on the beach"))
    assert mean_difference(late, house) < 0.003
    assert mean_difference(early, house) < 0.003
    assert mean_difference(middle, house) > 0.01


def test_words_that_change_are_encoded_once_each(tiny, monkeypatch):
    encoded = []
    encode = type(tiny.text).encode_chunks
    monkeypatch.setattr(
        type(tiny.text), "encode_chunks", lambda *words, **more: encoded.append(1) or encode(*words, **more)
    )
    velatura.generate(tiny, HOUSE.replace(prompt="a [red|green] house"))
    assert len(encoded) == 3  # both, and the negative prompt


def test_clip_skip_reads_another_layer(tiny, house):
    assert mean_difference(velatura.generate(tiny, HOUSE.replace(clip_skip=2)), house) > 0.003
    with pytest.raises(BadRecipe, match="clip_skip is 12"):
        velatura.generate(tiny, HOUSE.replace(clip_skip=12))


@pytest.mark.parametrize("mode", ["No norm", "Ignore", "None", "ComfyUI"])
def test_modes_of_emphasis_differ_where_something_is_stressed(tiny, mode):
    stressed = HOUSE.replace(prompt="a (red:1.6) house")
    assert (
        mean_difference(velatura.generate(tiny, stressed.replace(emphasis=mode)), velatura.generate(tiny, stressed))
        > 1e-4
    )


def test_a_variation_goes_from_one_seed_to_the_other(tiny, house):
    mixed = [
        velatura.generate(tiny, HOUSE.replace(variation_seed=8, variation_strength=strength))
        for strength in (0.1, 0.5, 1)
    ]
    other = velatura.generate(tiny, HOUSE.replace(seed=8))
    assert mean_difference(mixed[0], house) < mean_difference(mixed[1], house) < mean_difference(other, house) * 1.2
    assert mean_difference(mixed[2], other) < 0.003


def test_an_open_variation_seed_is_drawn_and_recorded(tiny):
    picture = velatura.generate(tiny, HOUSE.replace(steps=1, variation_strength=0.5))
    assert picture.recipe.variation_seed is not None
    assert mean_difference(velatura.generate(tiny, picture.recipe), picture) == 0


def test_noise_of_another_size_keeps_the_picture_alike(tiny):
    wide = HOUSE.replace(width=96)
    edited = velatura.generate(tiny, wide.replace(seed_size=(64, 64)))
    assert edited.recipe.seed_size == (64, 64)
    assert mean_difference(edited, velatura.generate(tiny, wide)) > 0.01


@pytest.mark.parametrize("noise", ["CPU", "NV"])
def test_every_source_of_noise_gives_its_own_picture_again(tiny, noise):
    one, again = (velatura.generate(tiny, HOUSE.replace(noise=noise)) for _ in range(2))
    assert mean_difference(one, again) == 0


def test_sparing_the_negative_prompt_spares_calls(tiny, monkeypatch):
    rows = []
    predict = type(tiny).predict
    monkeypatch.setattr(
        type(tiny),
        "predict",
        lambda self, latents, *more, **kw: rows.append(len(latents)) or predict(self, latents, *more, **kw),
    )
    velatura.generate(tiny, HOUSE.replace(skip_negative_below=100.0))
    assert rows == [2, 1, 2, 1, 2, 1]


def test_without_guidance_words_that_change_cost_no_second_row(tiny, monkeypatch):
    rows = []
    predict = type(tiny).predict
    monkeypatch.setattr(
        type(tiny),
        "predict",
        lambda self, latents, *more, **kw: rows.append(len(latents)) or predict(self, latents, *more, **kw),
    )
    velatura.generate(tiny, HOUSE.replace(prompt="a [red:green:2] house", guidance=1, steps=3))
    assert rows == [1, 1, 1]


def test_the_negative_prompt_has_a_say_beside_prompts_that_are_added_up(tiny, hyper):
    """Each is drawn away from it, whatever the guidance is; so an overlay on it acts, and no warning says it rests."""
    recipe = HOUSE.replace(prompt="a red house AND a boat:0.5 <hypernet:it:1:on=negative>", guidance=1, steps=2)
    acting, resting = (
        velatura.generate(
            tiny, recipe.replace(prompt=recipe.prompt.replace(":1:", f":{strength}:")), overlays={"it": hyper()}
        )
        for strength in (1, 0)
    )
    assert mean_difference(acting, resting) > 0.003


def test_a_machine_that_has_no_room_for_a_picture_says_so(tiny, monkeypatch):
    monkeypatch.setattr(type(tiny.unet), "forward", lambda *_, **__: torch.empty(2**60))
    with pytest.raises(NanLatents, match="not enough memory for 64x64 pixels"):
        velatura.generate(tiny, HOUSE)


def test_a_tile_has_no_seam(tiny):
    """The step over the border is no larger than those inside."""
    picture = pixels(velatura.generate(tiny, HOUSE.replace(steps=10, tiling=True, prompt="a forest")))
    plain = pixels(velatura.generate(tiny, HOUSE.replace(steps=10, prompt="a forest")))
    seam = np.abs(picture[:, 0] - picture[:, -1]).mean()
    assert seam < np.abs(plain[:, 0] - plain[:, -1]).mean()
    assert seam < 3 * np.abs(np.diff(picture, axis=1)).mean()
    assert {layer.padding_mode for layer in tiny.unet.modules() if isinstance(layer, torch.nn.Conv2d)} == {"zeros"}


def test_an_image_is_painted_over_by_as_much_as_is_asked(tiny, house):
    strengths = (0.0, 0.4, 1.0)
    picture = [
        velatura.generate(
            tiny, HOUSE.replace(prompt="a green boat", seed=3, denoising=strength), init_image=InitImage(house.image)
        )
        for strength in strengths
    ]
    distances = [mean_difference(each, house) for each in picture]
    assert distances[0] < 0.06
    assert distances == sorted(distances)
    assert all(each.recipe.image_hash for each in picture)


def test_an_image_of_another_size_is_brought_to_the_pictures(tiny, house):
    init_image = InitImage(house.image.resize((100, 40)))
    for fit in ("stretch", "crop", "fill", "latent"):
        picture = velatura.generate(tiny, HOUSE.replace(denoising=0.3, fit=fit, width=96), init_image=init_image)
        assert picture.image.size == (96, 64)


def left_half():
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    return mask


@pytest.mark.parametrize("content", ["fill", "original", "latent noise", "latent nothing"])
def test_only_what_is_masked_changes(tiny, house, content):
    recipe = HOUSE.replace(prompt="a green boat", seed=3, denoising=0.9, mask_blur=0, masked_content=content)
    picture = velatura.generate(tiny, recipe, init_image=InitImage(house.image, left_half()))
    assert mean_difference(pixels(picture)[:, 32:], pixels(house)[:, 32:]) == 0
    assert mean_difference(pixels(picture)[:, :32], pixels(house)[:, :32]) > 0.02


def test_latents_under_grey_change_in_part_where_the_mask_keeps_its_shades(tiny, house):
    recipe = HOUSE.replace(prompt="a green boat", seed=3, denoising=0.9, mask_blur=0)
    changes = []
    for shade, is_rounded in ((102, True), (102, False), (204, False), (255, False)):
        init_image = InitImage(house.image, Image.new("L", (64, 64), shade))
        picture = velatura.generate(tiny, recipe.replace(unrounded_mask=not is_rounded), init_image=init_image)
        changes.append(mean_difference(pixels(picture), pixels(house)))
    assert changes == sorted(changes)
    assert len(set(changes)) == len(changes)


def test_only_the_masked_part_may_be_painted_at_full_size(tiny):
    image = Image.new("RGB", (200, 120), (90, 120, 200))
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (140, 60, 180, 100))
    recipe = HOUSE.replace(denoising=1.0, mask_padding=8, mask_blur=2)
    picture = velatura.generate(tiny, recipe, init_image=InitImage(image, mask)).image
    assert picture.size == image.size
    changed = np.abs(pixels(picture) - pixels(image)).sum(-1) > 0.02
    rows, columns = np.where(changed)
    assert changed.any()
    assert columns.min() >= 130
    assert rows.min() >= 50


def test_a_black_mask_is_refused(tiny, house):
    with pytest.raises(BadRecipe, match="completely black"):
        velatura.generate(tiny, HOUSE, init_image=InitImage(house.image, Image.new("L", (64, 64), 0)))


@pytest.mark.parametrize("upscaler", ["Latent", "Latent (bicubic antialiased)", "latent (nearest-exact)", "Lanczos"])
def test_a_second_pass_paints_the_same_thing_larger(tiny, house, upscaler):
    recipe = HOUSE.replace(hires_scale=1.5, hires_upscaler=upscaler, denoising=0.5, hires_steps=4)
    picture = velatura.generate(tiny, recipe)
    assert picture.image.size == (96, 96)
    large = velatura.generate(tiny, HOUSE.replace(width=96, height=96))
    assert mean_difference(picture.image.resize((64, 64), 4), house) < mean_difference(
        large.image.resize((64, 64), 4), house
    )
    assert mean_difference(velatura.generate(tiny, Recipe.from_infotext(picture.recipe.infotext())), picture) == 0


def test_a_second_pass_may_be_cut_to_another_shape(tiny):
    picture = velatura.generate(tiny, HOUSE.replace(hires_size=(128, 64), hires_steps=2))
    assert picture.image.size == (128, 64)


def test_an_upscaler_that_nobody_knows_is_refused(tiny):
    with pytest.raises(UnknownName, match="Latent"):
        velatura.generate(tiny, HOUSE.replace(hires_scale=2, hires_upscaler="Latnt"))


def test_a_layout_is_kept_from_another_prompt(tiny, house):
    """The boat's picture has the house's arrangement more than a boat of the same seed has."""
    boat = HOUSE.replace(prompt="a red boat on the beach")
    edited = velatura.generate(tiny, boat.replace(keep_layout=HOUSE.prompt, keep_layout_until=1.0))
    assert mean_difference(edited, house) < mean_difference(velatura.generate(tiny, boat), house)
    assert mean_difference(edited, house) > 0.005


def test_a_layout_kept_for_no_step_is_none(tiny):
    boat = HOUSE.replace(prompt="a green boat in the harbour")
    edited = velatura.generate(tiny, boat.replace(keep_layout=HOUSE.prompt, keep_layout_until=0.0))
    assert mean_difference(edited, velatura.generate(tiny, boat)) < 0.003


def test_a_layout_goes_with_one_prompt(tiny):
    with pytest.raises(BadRecipe, match="leave out AND"):
        velatura.generate(tiny, HOUSE.replace(prompt="a house AND a boat", keep_layout="a tree"))


def test_a_layout_that_cannot_be_kept_is_refused_before_the_first_step(tiny):
    with pytest.raises(BadRecipe, match="keep_layout works with one prompt"):
        generate_stream(tiny, [HOUSE, HOUSE.replace(prompt="a AND b", keep_layout="a house")])


def test_a_layout_is_kept_in_a_second_pass_with_tags_of_its_own(tiny, hyper):
    recipe = HOUSE.replace(steps=1, hires_scale=1.5, keep_layout="a boat", hires_prompt="a house <hypernet:b:0.5>")
    recipe = recipe.replace(prompt=f"{HOUSE.prompt} <hypernet:a:0.5><hypernet:c:0.5>")
    overlays = {name: hyper(seed=seed) for seed, name in enumerate("abc")}
    assert velatura.generate(tiny, recipe, overlays=overlays).image.size == (96, 96)


def test_a_kept_layout_does_not_lengthen_its_neighbours(tiny):
    """Prompts of a batch are filled up to the longest, which changes pictures: so only equal lengths share one."""
    recipes = [HOUSE.replace(steps=1, keep_layout=words) for words in ("a boat", "a boat, " * 40)]
    together = velatura.generate_many(tiny, recipes)
    assert mean_difference(together[0], velatura.generate(tiny, recipes[0])) < 0.003


def test_pictures_that_differ_in_strength_only_are_painted_at_once(tiny, hyper, monkeypatch):
    overlays = {"neon": hyper()}
    recipes = [HOUSE.replace(prompt=f"a house <hypernet:neon:{s}>", steps=2) for s in (0, 0.5, 1)]
    alone = [velatura.generate(tiny, each, overlays=overlays) for each in recipes]
    rows = []
    predict = type(tiny).predict
    monkeypatch.setattr(
        type(tiny),
        "predict",
        lambda self, latents, *more, **kw: rows.append(len(latents)) or predict(self, latents, *more, **kw),
    )
    together = velatura.generate_many(tiny, recipes, overlays=overlays)
    assert rows == [6, 6]
    for one, other in zip(alone, together, strict=True):
        assert mean_difference(one, other) < 0.003
    assert mean_difference(together[0], together[2]) > 0.01


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("denoising", 0.5, "denoising changes nothing without an init image or a second pass"),
        ("mask_blur", 9, "mask_blur changes nothing without a mask"),
        ("unrounded_mask", True, "unrounded_mask changes nothing without a mask"),
        ("hires_steps", 9, "hires_steps changes nothing without hires_scale or hires_size"),
        ("variation_seed", 9, "variation_seed changes nothing without variation_strength"),
    ],
)
def test_what_changes_nothing_is_warned_of(tiny, field, value, words):
    with pytest.warns(VelaturaWarning, match=words):
        velatura.generate(tiny, HOUSE.replace(steps=1, **{field: value}))


def test_a_recipe_that_begins_from_an_image_asks_for_it(tiny, house):
    picture = velatura.generate(tiny, HOUSE.replace(steps=2), init_image=InitImage(house.image))
    with pytest.raises(BadRecipe, match="starts from an image"):
        velatura.generate(tiny, picture.recipe)
    assert mean_difference(velatura.generate(tiny, picture.recipe, init_image=InitImage(house.image)), picture) == 0


def test_a_recipe_that_has_a_mask_asks_for_it(tiny, house):
    """An inpainted picture made again without its mask would be another, and nothing would say so."""
    mask = Image.new("L", house.image.size, 0)
    mask.paste(255, (16, 16, 48, 48))
    picture = velatura.generate(tiny, HOUSE.replace(steps=2), init_image=InitImage(house.image, mask))
    with pytest.raises(BadRecipe, match="has a mask"):
        velatura.generate(tiny, picture.recipe, init_image=InitImage(house.image))
    assert (
        mean_difference(velatura.generate(tiny, picture.recipe, init_image=InitImage(house.image, mask)), picture) == 0
    )
    with pytest.warns(VelaturaWarning, match="another mask"):
        velatura.generate(tiny, picture.recipe, init_image=InitImage(house.image, mask.rotate(90).crop((0, 0, 32, 64))))


def test_the_image_of_another_program_is_not_said_to_be_another(tiny, house):
    """The webui's hash of an image is an MD5, golden "Init image hash: d41d8cd98f00b204e9800998ecf8427e"."""
    recipe = HOUSE.replace(steps=1, image_hash="d41d8cd98f00b204e9800998ecf8427e")
    velatura.generate(tiny, recipe, init_image=InitImage(house.image))


def test_words_may_change_as_they_did_before_1_6(tiny):
    """There 2.0 is the second step, and here the very end, since a number with a point is a fraction."""
    recipe = HOUSE.replace(prompt="a [red:green:2.0] house", steps=4)
    old = velatura.generate(tiny, recipe.replace(old_editing=True))
    assert mean_difference(old, velatura.generate(tiny, recipe.replace(prompt="a [red:green:2] house"))) == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hires_size": "1x1"}, "second pass would be"),
        ({"hires_scale": 16, "width": 1024}, "second pass would be 16384x"),
        ({"seed_size": "3x3"}, "seed_size 3x3 is below 4 pixels"),
    ],
)
def test_sizes_that_nothing_can_be_painted_at_are_refused(tiny, fields, words):
    with pytest.raises(BadRecipe, match=words):
        velatura.generate(tiny, HOUSE.replace(steps=1, **fields))


def test_previews_are_given_after_each_step_and_come_near_the_picture(tiny, house):
    seen = []
    velatura.generate(tiny, HOUSE, on_preview=seen.append)
    assert len(seen) == HOUSE.steps
    small = house.image.resize(seen[-1][0].size, 4)
    assert mean_difference(seen[-1][0], small) < 0.7 * mean_difference(seen[0][0], small)


def test_an_unknown_tag_is_left_out_when_asked(tiny, house):
    with pytest.warns(VelaturaWarning, match="left out"):
        picture = velatura.generate(tiny, HOUSE.replace(prompt=HOUSE.prompt + " <hypernet:nowhere:1>"), lenient=True)
    assert mean_difference(picture, house) < 0.003


def test_an_overlay_of_another_family_is_left_out_when_asked(tiny, house):
    structure = HypernetworkStructure.from_fields({"widths": (320, 640, 768, 1280)}).model_dump(mode="json")
    inca = velatura.Hypernetwork(velatura.Card(kind="hypernet", name="inca", structure=structure))
    called = HOUSE.replace(prompt=HOUSE.prompt + " <hypernet:inca:1>")
    with pytest.raises(WrongBase, match="made for SD1"):
        velatura.generate(tiny, called, overlays={"inca": inca})
    with pytest.warns(VelaturaWarning, match="made for SD1, .*; <hypernet:inca:1> is left out"):
        picture = velatura.generate(tiny, called, overlays={"inca": inca}, lenient=True)
    assert mean_difference(picture, house) < 0.003


@pytest.mark.parametrize("words", ["hypernet:inca:1", "a house, lora:ink_v2:0.8", "LoRA:ink:.5", "lyco:ink:-1"])
def test_a_tag_without_its_angle_brackets_is_warned_of(tiny, words):
    with pytest.warns(VelaturaWarning, match="has no angle brackets, so it is read as words: write <"):
        velatura.generate(tiny, f"{words}, by day", steps=1)


@pytest.mark.parametrize("words", ["a (lora:1.2)", "time 10:30:15", "<hypernet:inca:0>", "a ratio:4:3", "flora:ink:1"])
def test_what_is_no_tag_is_not_taken_for_one_without_brackets(tiny, words):
    inca = velatura.Hypernetwork.for_base(tiny, seed=1)
    velatura.generate(tiny, f"{words}, by day", steps=1, overlays={"inca": inca})


def test_cells_that_share_a_prompt_share_its_encoding(tiny, monkeypatch):
    encoded = []
    encode = type(tiny.text).encode_chunks
    monkeypatch.setattr(
        type(tiny.text), "encode_chunks", lambda *words, **more: encoded.append(1) or encode(*words, **more)
    )
    velatura.grid(tiny, HOUSE.replace(steps=1), x=("sampler", ["Euler", "Euler a", "Heun"]), y=("seed", [1, 2]))
    assert len(encoded) == 2  # the prompt and the negative prompt


def test_an_overlay_is_found_by_its_hash_where_it_has_another_name(tiny, hyper, tmp_path):
    velatura.save(hyper(), tmp_path / "neon.safetensors")
    recipe = HOUSE.replace(steps=1, prompt="a house <hypernet:neon:0.7>")
    picture = velatura.generate(tiny, recipe, library=velatura.Library(tmp_path))
    (tmp_path / "neon.safetensors").rename(tmp_path / "renamed.safetensors")
    velatura.save(hyper(seed=5), tmp_path / "neon.safetensors")
    with pytest.warns(VelaturaWarning, match=r"renamed\.safetensors, found by its hash"):
        again = velatura.generate(tiny, picture.recipe, library=velatura.Library(tmp_path))
    assert mean_difference(picture, again) == 0


def test_words_that_never_change_are_warned_of(tiny):
    with pytest.warns(VelaturaWarning, match="words that change at 8 never change in 2 steps"):
        velatura.generate(tiny, HOUSE.replace(steps=2, prompt="a [red:green:8] house"))
    velatura.generate(
        tiny, HOUSE.replace(steps=2, prompt="a [red:green:3] house", hires_scale=1.5)
    )  # in the second pass


def test_later_seeds_are_recorded_where_they_count(tiny):
    """The webui writes ENSD for samplers that draw noise on the way only."""
    with pytest.warns(VelaturaWarning, match="ensd changes nothing: Euler draws no noise"):
        assert "ENSD" not in velatura.generate(tiny, HOUSE.replace(steps=1, ensd=31337)).recipe.infotext()
    picture = velatura.generate(tiny, HOUSE.replace(steps=1, ensd=31337, sampler="Euler a"))
    assert "ENSD: 31337" in picture.recipe.infotext()


@pytest.mark.parametrize("name", ["vae-ft-mse.safetensors", "folder/sd-vae", "folder\\other.vae.pt"])
def test_another_vae_that_a_recipe_names_without_a_hash_is_warned_of(tiny, name):
    """Pictures of other programs, and of the web UI before version 1.6, have no hash of it."""
    recipe = HOUSE.replace(steps=1, vae=name)
    with pytest.warns(velatura.VelaturaWarning, match="made with the autoencoder .*but this one is the base's own"):
        velatura.generate(tiny, recipe)
