"""What is asked of attach by mistake is refused by name, and never taken for something else."""

import pytest
import torch

import velatura
from velatura.errors import BadArgument, BadStrength, NoEffect, UnknownName, VelaturaWarning


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": "positive"}, "no side of a guided batch is called 'positive'"),
        ({"blocks": ["middle"]}, "no block of a UNet is called 'middle': did you mean 'mid'"),
    ],
)
def test_an_option_that_does_not_exist(tiny, hyper, options, message):
    with pytest.raises(UnknownName, match=message):
        velatura.attach(tiny, hyper(), **options)
    with pytest.raises(UnknownName, match=message):
        velatura.attach_all(tiny, [velatura.AttachSpec(hyper(), **options)])


def test_a_word_in_place_of_a_list_of_blocks(tiny, hyper):
    with pytest.raises(BadArgument, match="attach: blocks is 'mid', not a list: give a list"):
        velatura.attach(tiny, hyper(), blocks="mid")


def test_a_way_to_combine_that_does_not_exist(tiny, hyper):
    with pytest.raises(UnknownName, match="no way to combine overlays is called 'mean'"):
        velatura.attach_all(tiny, [velatura.AttachSpec(hyper())], combine="mean")


def test_no_blocks_at_all(tiny, hyper):
    with pytest.raises(NoEffect, match="because blocks is empty"):
        velatura.attach(tiny, hyper(), blocks=[])


@pytest.mark.parametrize("strength", ["0.5", None, {}, [[1], [1, 2]], 1j], ids=str)
def test_a_strength_that_is_no_number(tiny, hyper, strength):
    with pytest.raises(BadStrength, match="0 is off, 1 is as trained"):
        velatura.attach(tiny, hyper(), strength)
    with velatura.attach(tiny, hyper(), 0.5) as attachment:
        with pytest.raises(BadStrength, match="0 is off, 1 is as trained"):
            attachment.strength = strength
        assert attachment.strength == torch.tensor(0.5)


@pytest.mark.parametrize(
    "strength", [-1.5, 2.5, torch.tensor([0.5, 3.0]), velatura.Strength(text=-2.0, unet=1.0)], ids=str
)
def test_a_strength_at_which_pictures_fall_apart_is_warned_of_once(tiny, hyper, strength):
    with pytest.warns(VelaturaWarning, match="where 1 is as trained: pictures usually fall apart beyond -1 to 2"):
        attachment = velatura.attach(tiny, hyper(), strength)
    attachment.strength = 4.0
    attachment.detach()


@pytest.mark.parametrize("strength", [-1.0, 0.0, 1.0, 2.0])
def test_a_strength_that_people_use_is_not_warned_of(tiny, hyper, strength):
    velatura.attach(tiny, hyper(), strength).detach()


@pytest.mark.parametrize("strength", [-5.0, -3.0, 5.0, velatura.Strength(text=0.0, unet=4.0)], ids=str)
def test_strengths_of_sliders_are_not_warned_of(tiny, lora, strength):
    velatura.attach(tiny, lora(), strength).detach()


@pytest.mark.parametrize("strength", [-6.0, 8.0])
def test_a_lora_far_beyond_sliders_is_warned_of(tiny, lora, strength):
    with pytest.warns(VelaturaWarning, match="pictures usually fall apart beyond -5 to 5"):
        velatura.attach(tiny, lora(), strength).detach()


def test_a_strength_set_within_the_attachment_is_warned_of(tiny, hyper):
    with velatura.attach(tiny, hyper(), 0.5) as attachment:
        with pytest.warns(VelaturaWarning, match="has a strength of -3,"):
            attachment.strength = -3
        attachment.strength = -4


def test_a_strength_after_detach_is_warned_of(tiny, hyper):
    attachment = velatura.attach(tiny, hyper())
    attachment.detach()
    with pytest.warns(VelaturaWarning, match="is detached, so its strength changes nothing in tiny: attach it again"):
        attachment.strength = 0.5


@pytest.mark.parametrize(
    ("pictures", "count", "is_fine"), [(3, 2, False), (3, 3, True), (3, 6, True), (3, 1, True), (6, 4, False)]
)
def test_strengths_are_one_or_those_of_pictures_or_rows(tiny, hyper, pictures, count, is_fine):
    latents = torch.zeros(2 * pictures, 4, 16, 16)
    context = tiny.text.encode(["a tree"] * 2 * pictures)
    with velatura.attach(tiny, hyper(), torch.full((count,), 0.5)):
        if is_fine:
            tiny.predict(latents, torch.tensor([10]), context)
        else:
            with pytest.raises(BadStrength, match=f"{count} strengths do not fit a batch of {2 * pictures}"):
                tiny.predict(latents, torch.tensor([10]), context)


def test_three_rows_for_a_picture_are_those_of_pipelines_that_have_them(tiny, hyper):
    """Diffusers' StableDiffusionPAGPipeline has the rows: negative prompts, prompts, perturbed prompts."""

    class StableDiffusionPAGPipeline:
        unet = tiny.unet
        text_encoder = None

    class StableDiffusionPipeline(StableDiffusionPAGPipeline):
        pass

    strengths = torch.tensor([0.2, 0.9])
    latents, context = torch.ones(6, 4, 16, 16), tiny.text.encode(["a tree"] * 6)
    refused = pytest.raises(BadStrength, match="2 strengths do not fit a batch of 6")
    with velatura.attach(StableDiffusionPipeline(), hyper(), strengths), refused:
        tiny.predict(latents, torch.tensor([10]), context)
    with velatura.attach(StableDiffusionPAGPipeline(), hyper(), strengths):
        result = tiny.predict(latents, torch.tensor([10]), context)
    for picture, strength in enumerate(strengths.tolist()):
        with velatura.attach(tiny, hyper(), strength):
            alone = tiny.predict(latents, torch.tensor([10]), context)
        torch.testing.assert_close(result[picture::2], alone[picture::2])
    assert not torch.equal(result[0], result[1])
