"""Overlays on inpainting and pix2pix models, also overlays that were made for a plain base."""

import pytest
import torch
from PIL import Image

import velatura
from velatura import InitImage
from velatura.errors import VelaturaWarning, WrongBase
from velatura.merging.bake.bake import copy_base
from velatura.merging.bake.weight_deltas import WeightDeltas, add_deltas
from velatura.overlays.deltas.full import FullDelta

KINDS = pytest.mark.parametrize("kind", ["inpainting", "pix2pix"])
CONV_IN = "lora_unet_conv_in"


@pytest.fixture
def base(request, kind):
    return request.getfixturevalue(kind)


def with_deltas(base, overlay):
    """Return a copy of a base with an overlay in its weights, as bake makes it."""
    baked = copy_base(base, "baked")
    add_deltas(base, baked, [WeightDeltas.from_overlay(base, overlay, 1.0)])
    return baked


@torch.no_grad()
def predict(base):
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return base.predict(latents, torch.tensor(500), base.text.encode(["a house", "a boat"]))


@KINDS
@pytest.mark.parametrize("overlay", ["hyper", "lora", "embedding", "aesthetic"])
def test_overlays_act_and_leave_the_base_as_it_was(request, base, kind, overlay):
    before = predict(base)
    with velatura.attach(base, request.getfixturevalue(overlay)()):
        assert not torch.equal(predict(base), before)
    assert torch.equal(predict(base), before)


@KINDS
@pytest.mark.parametrize("algorithm", ["lora", "locon", "loha", "lokr", "full", "dora"])
def test_a_lora_of_a_plain_base_changes_the_channels_of_the_latents_alone(tiny, base, kind, algorithm):
    """A1111 pads the change of the first convolution with zeros."""
    made = velatura.Lora.for_base(tiny, algorithm=algorithm, targets="conv", rank=2, seed=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    delta = made.layers[CONV_IN]
    alone = velatura.Lora(made.card, {CONV_IN: delta})
    plain = {name: tensor.clone() for name, tensor in base.unet.conv_in.state_dict().items()}
    before = plain["weight"]
    with torch.no_grad():
        change, bias_change = delta.weight_delta(before[:, :4]), delta.bias_delta(plain["bias"])
        base.unet.conv_in.weight[:, :4] += change
        base.unet.conv_in.bias += 0 if bias_change is None else bias_change
        expected = predict(base)
        base.unet.conv_in.load_state_dict(plain)
        with velatura.attach(base, alone):
            torch.testing.assert_close(predict(base), expected, rtol=1e-3, atol=1e-4)
    baked = with_deltas(base, alone)
    torch.testing.assert_close(baked.unet.conv_in.weight[:, :4], before[:, :4] + change)
    assert torch.equal(baked.unet.conv_in.weight[:, 4:], before[:, 4:])


@KINDS
def test_a_difference_of_plain_bases_does_too(tiny, base, kind, difference):
    made = difference()
    change = made.layers[CONV_IN]
    assert isinstance(change, FullDelta)
    baked = with_deltas(base, made)
    before = base.unet.conv_in
    torch.testing.assert_close(baked.unet.conv_in.weight[:, :4], before.weight[:, :4] + change.required_tensor("diff"))
    assert torch.equal(baked.unet.conv_in.weight[:, 4:], before.weight[:, 4:])
    expected = predict(baked)
    with velatura.attach(base, made):
        torch.testing.assert_close(predict(base), expected, rtol=1e-3, atol=1e-4)


@KINDS
def test_an_overlay_of_all_channels_is_refused_by_a_plain_base_which_it_names(tiny, base, kind):
    lora = velatura.Lora.for_base(base, algorithm="locon", targets="conv", rank=2, seed=1)
    with pytest.raises(WrongBase, match=rf"it was made for tiny \({kind}\), so open a base of that kind"):
        velatura.attach(tiny, lora)
    with pytest.raises(WrongBase, match=rf"open a base of the family that it was made for \({kind}\)"):
        velatura.attach(tiny, velatura.Difference.for_base(base))


def test_an_overlay_of_inpainting_is_refused_by_pix2pix(inpainting, pix2pix):
    lora = velatura.Lora.for_base(inpainting, algorithm="locon", targets="conv", rank=2, seed=1)
    with pytest.raises(WrongBase, match=r"made for tiny \(inpainting\)"):
        velatura.attach(pix2pix, lora)


@KINDS
def test_a_difference_of_two_such_models_is_exact(base, kind):
    other = copy_base(base, "other")
    with torch.no_grad():
        other.unet.conv_in.weight += 0.01
    made = velatura.Difference.from_bases(base, other)
    expected = predict(other)
    with velatura.attach(base, made):
        torch.testing.assert_close(predict(base), expected, rtol=1e-3, atol=1e-4)


@KINDS
def test_a_lora_is_extracted_from_two_such_models(base, kind):
    other = copy_base(base, "other")
    with torch.no_grad():
        other.unet.conv_in.weight += 0.01
    lora, _ = velatura.extract(base, other, 4, conv_rank=4)
    assert lora.layers[CONV_IN].weight_shape[1] == base.input_channels


def test_hypernetworks_are_baked_with_what_the_model_reads_without_an_image(inpainting, hyper):
    prompts = ["a house", "a boat", "a tree", "a dog"]
    baked, report = velatura.bake(inpainting, [(hyper(), 1.0)], prompts=prompts, steps=1)
    assert baked.image_condition == "inpainting"
    assert report is not None


@KINDS
def test_a_prompt_calls_overlays(base, kind, hyper, lora):
    image = InitImage(Image.new("RGB", (64, 64), "teal"))
    fields = {"seed": 1, "steps": 2, "init_image": image, "overlays": {"neon": hyper(), "inca": lora()}}
    plain = velatura.generate(base, "a house", **fields).image.tobytes()
    for tags in ("<hypernet:neon:0.8>", "<lora:inca:0.7>", "<hypernet:neon:0.8><lora:inca:0.7>"):
        assert velatura.generate(base, f"a house {tags}", **fields).image.tobytes() != plain
    assert velatura.generate(base, "a house <hypernet:neon:0>", **fields).image.tobytes() == plain


@pytest.fixture
def other(tiny):
    """Another plain base: the tiny one with other weights of every layer."""
    made = copy_base(tiny, "other")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for model in (made.unet, made.text.model):
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1 * weight.std().nan_to_num())
    return made


def a1111s_merge(base, other):
    """The weighted sum of A1111 at 1: all of the other base, and the base's own channels behind the latents'."""
    merged = copy_base(base, "merged")
    with torch.no_grad():
        for ours, theirs in ((merged.unet, other.unet), (merged.text.model, other.text.model)):
            for name, weight in ours.named_parameters():
                changed = weight[:, :4] if name == "conv_in.weight" else weight
                changed.copy_(theirs.get_parameter(name))
    return merged


@KINDS
def test_a_plain_base_is_subtracted_in_the_channels_that_it_has(base, kind, other):
    with pytest.warns(VelaturaWarning, match=rf"{kind} is a model for {kind}.* the others stay those of {kind}"):
        made = velatura.Difference.from_bases(base, other)
    expected = predict(a1111s_merge(base, other))
    with velatura.attach(base, made):
        torch.testing.assert_close(predict(base), expected, rtol=1e-3, atol=1e-4)


@KINDS
def test_a_plain_base_is_extracted_in_the_channels_that_it_has(tiny, base, kind):
    other = copy_base(tiny, "other")
    generator = torch.Generator().manual_seed(7)
    column, row = torch.randn(64, 1, generator=generator), torch.randn(1, 36, generator=generator)
    change = 0.05 * (column[: len(other.unet.conv_in.weight)] @ row).view(-1, 4, 3, 3)
    with torch.no_grad():
        other.unet.conv_in.weight += change - (other.unet.conv_in.weight - base.unet.conv_in.weight[:, :4])
    with pytest.warns(VelaturaWarning, match="the difference is in the first 4, and the others stay"):
        made, report = velatura.extract(base, other, rank=2)
    assert list(made.layers) == [CONV_IN]
    assert report.whole.missed < 1e-3
    torch.testing.assert_close(made.layers[CONV_IN].weight_delta(base.unet.conv_in.weight[:, :4]), change)
    baked = with_deltas(base, made)
    torch.testing.assert_close(baked.unet.conv_in.weight[:, :4], other.unet.conv_in.weight, rtol=1e-3, atol=1e-4)
    assert torch.equal(baked.unet.conv_in.weight[:, 4:], base.unet.conv_in.weight[:, 4:])


@KINDS
def test_channels_that_a_base_lacks_are_refused(tiny, base, kind):
    """A1111's checkpoint merger refuses that order of models too."""
    for subtract in (velatura.Difference.from_bases, velatura.extract):
        with pytest.raises(WrongBase, match=rf"{kind} is a model for {kind}, whose .* give the {kind} model first"):
            subtract(tiny, base)


def test_models_for_inpainting_and_for_pix2pix_are_not_subtracted(inpainting, pix2pix):
    for subtract in (velatura.Difference.from_bases, velatura.extract):
        with pytest.raises(WrongBase, match=r"for inpainting \(9 input channels\) and pix2pix one for pix2pix \(8\)"):
            subtract(inpainting, pix2pix)
