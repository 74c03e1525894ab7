"""Differences: one base on top of another, bit for bit."""

import copy

import pytest
import torch
from torch import nn

import velatura
from velatura.errors import BadFile, BadOverlay, VelaturaWarning, WrongBase
from velatura.overlays.difference import layer_names
from velatura.overlays.target import Target


@pytest.fixture(scope="module")
def other():
    return another(torch.float32)


def another(dtype):
    """The tiny base with other weights everywhere but in the autoencoder."""
    made, generator = velatura.tiny(dtype), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in (made.unet, made.text.model):
            for weight in part.parameters():
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.02)
    return made


@torch.no_grad()
def predict(base, texts=("a red house", "a boat at night")):
    latents = torch.randn(len(texts), 4, 16, 16, generator=torch.Generator().manual_seed(3))
    return base.predict(latents, torch.tensor(500), base.text.encode(list(texts)))


def test_on_one_base_it_makes_the_other_bit_for_bit_in_half_precision():
    ours, theirs = velatura.tiny(torch.bfloat16), another(torch.bfloat16)
    with velatura.attach(ours, velatura.Difference.from_bases(ours, theirs)):
        assert torch.equal(predict(ours), predict(theirs))


def test_on_one_base_it_makes_the_other(tiny, other):
    with velatura.attach(tiny, velatura.Difference.from_bases(tiny, other)):
        torch.testing.assert_close(predict(tiny), predict(other), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strength", [0.5, 1.7, -1.0])
def test_a_strength_is_a_share_of_the_way_between_the_weights(tiny, other, strength):
    mixed = velatura.tiny()
    with torch.no_grad():
        for part in ("unet", "text"):
            ours, theirs, mine = (getattr(base, part) for base in (tiny, other, mixed))
            ours, theirs, mine = (model if part == "unet" else model.model for model in (ours, theirs, mine))
            for a, b, mean in zip(ours.parameters(), theirs.parameters(), mine.parameters(), strict=True):
                mean.copy_(a + strength * (b - a))
    with velatura.attach(tiny, velatura.Difference.from_bases(tiny, other), strength):
        torch.testing.assert_close(predict(tiny), predict(mixed), rtol=1e-4, atol=1e-4)


def test_rows_may_have_strengths_of_their_own(tiny, other):
    difference = velatura.Difference.from_bases(tiny, other)
    with velatura.attach(tiny, difference, torch.tensor([0.0, 1.0])):
        found = predict(tiny)
    assert torch.equal(found[0], predict(tiny)[0])
    torch.testing.assert_close(found[1], predict(other)[1], rtol=1e-4, atol=1e-4)


def test_differences_add_to_loras_and_to_each_other(tiny, other, lora):
    difference = velatura.Difference.from_bases(tiny, other)
    overlay = lora()
    with velatura.attach(other, overlay):
        wanted = predict(other)
    for order in ((difference, overlay), (overlay, difference)):
        with velatura.attach(tiny, order[0]), velatura.attach(tiny, order[1]):
            torch.testing.assert_close(predict(tiny), wanted, rtol=1e-3, atol=1e-3)
    with velatura.attach(tiny, difference, 0.5), velatura.attach(tiny, difference, 0.5):
        torch.testing.assert_close(predict(tiny), predict(other), rtol=1e-3, atol=1e-3)


def test_hypernetworks_read_by_changed_weights(tiny, other, hyper):
    for activation in ("linear", "relu"):
        overlay = hyper(activation=activation)
        with velatura.attach(other, overlay, 0.3):
            wanted = predict(other)
        for first, second in ((0.3, 1.0), (1.0, 0.3)):
            pair = {0.3: overlay, 1.0: velatura.Difference.from_bases(tiny, other)}
            with velatura.attach(tiny, pair[first], first), velatura.attach(tiny, pair[second], second):
                torch.testing.assert_close(predict(tiny), wanted, rtol=1e-3, atol=1e-3)


def test_a_new_one_is_nothing_and_leaves_tables_of_words_alone(tiny):
    made = velatura.Difference.for_base(tiny, text=True)
    assert not any(weight.any() for weight in made.parameters())
    assert made.target_parts == {"unet", "text"}
    assert not [name for name in made.layers if name.endswith("embedding")]
    assert velatura.Difference.for_base(tiny).target_parts == {"unet"}
    before = predict(tiny)
    with pytest.warns(VelaturaWarning, match="changed nothing"), velatura.attach(tiny, made):
        torch.testing.assert_close(predict(tiny), before, rtol=1e-6, atol=1e-6)


def test_every_weight_of_a_base_but_the_autoencoder_has_a_place(tiny):
    place = Target.from_model(tiny)
    named = {name.partition(".")[2] for name in layer_names(place).values()}
    for model in place.parts.values():
        owners = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
        assert owners <= named


def test_what_is_trained_learns_through_all_layers(tiny):
    made = velatura.Difference.for_base(tiny, text=True).train()
    attachment = velatura.attach(tiny, made)
    latents = torch.randn(1, 4, 16, 16)
    tiny.predict(latents, torch.tensor([10]), tiny.text.encode(["a tree"])).square().mean().backward()
    with pytest.warns(VelaturaWarning, match="changed nothing"):
        attachment.detach()
    assert all(weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in made.parameters())


def test_alike_bases_have_no_difference(tiny):
    with pytest.raises(BadOverlay, match="has the same weights as tiny: give a base that differs"):
        velatura.Difference.from_bases(tiny, velatura.tiny())


def test_bases_of_two_families_have_none_either(tiny, xl):
    with pytest.raises(WrongBase, match="between bases of a family"):
        velatura.Difference.from_bases(tiny, xl)


def test_another_autoencoder_is_said(tiny):
    other = copy.copy(velatura.tiny())
    with torch.no_grad():
        next(other.vae.parameters()).add_(0.1)
        next(other.unet.parameters()).add_(0.1)
    with pytest.warns(VelaturaWarning, match="another VAE"):
        made = velatura.Difference.from_bases(tiny, other)
    assert len(made.layers) == 1  # what is alike is left out


def test_it_lies_over_no_other_family(xl, tiny, other):
    made = velatura.Difference.from_bases(tiny, other)
    with pytest.raises(WrongBase, match="bases of the family"):
        velatura.attach(xl, made)


def test_a_file_keeps_it_bit_for_bit(tiny, other, tmp_path):
    made = velatura.Difference.from_bases(tiny, other, name="odd", dtype=torch.float16)
    velatura.save(made, tmp_path / "odd.safetensors")
    again = velatura.open_overlay(tmp_path / "odd.safetensors")
    assert isinstance(again, velatura.Difference)
    assert again.card == made.card
    assert again.state_dict().keys() == made.state_dict().keys()
    for name, tensor in made.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_a_file_with_what_is_no_number_is_refused(tiny, other, tmp_path):
    made = velatura.Difference.from_bases(tiny, other)
    nn.init.constant_(next(made.parameters()), torch.nan)
    velatura.save(made, tmp_path / "odd.safetensors")
    with pytest.raises(BadFile, match="not finite"):
        velatura.open_overlay(tmp_path / "odd.safetensors")


def test_an_sdxl_has_differences_of_both_its_towers(xl):
    made = velatura.Difference.for_base(xl, text=True)
    assert {name.partition("_text_model")[0] for name in made.layers if "text_model" in name} == {
        "lora_te1",
        "lora_te2",
    }
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(1))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))

    @torch.no_grad()
    def predict(base):
        return base.predict(latents, torch.tensor(500), base.text.conditioning(["a red house"]))

    baked, _ = velatura.bake(xl, [(made, 0.7)])
    with velatura.attach(xl, made, 0.7):
        torch.testing.assert_close(predict(xl), predict(baked), rtol=1e-5, atol=1e-5)
    found = velatura.Difference.from_bases(xl, baked)
    with velatura.attach(xl, found):
        torch.testing.assert_close(predict(xl), predict(baked), rtol=1e-5, atol=1e-5)
