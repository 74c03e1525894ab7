"""Weights that were written to past autograd's knowledge count after refresh()."""

import pytest
import torch
from torch import nn

import velatura
from velatura.overlays.composition import Blend, Composition, Leaf

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def predict(tiny):
    generator = torch.Generator().manual_seed(3)
    latents, context = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 96, generator=generator)

    def say(*, plain: bool = False):
        with torch.set_grad_enabled(plain):
            return tiny.predict(latents, torch.tensor(500), context).detach()

    return say


@pytest.fixture(params=["linear", "relu", "composed"])
def overlay(request, hyper):
    made = hyper(activation="linear" if request.param == "linear" else "relu")
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(1))
    if request.param == "composed":
        return Composition(Blend((Leaf("a", 0.5), Leaf("a", 0.9)), (1, 2)), {"a": made})
    return made


def test_an_overlay_whose_data_was_written_to_is_read_anew(tiny, overlay, predict):
    with velatura.attach(tiny, overlay, 0.7) as attachment:
        before = predict()
        for weight in overlay.parameters():
            weight.data.mul_(0.5)
        attachment.refresh()
        prediction = predict()
        torch.testing.assert_close(prediction, predict(plain=True), **TOLERANCE)
        assert not torch.equal(prediction, before)


def test_a_base_whose_data_was_written_to_is_read_anew(tiny, hyper, predict):
    projection = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v
    with velatura.attach(tiny, hyper(), 0.7) as attachment:
        before = predict()
        projection.weight.data.mul_(1.5)
        try:
            attachment.refresh()
            torch.testing.assert_close(predict(), predict(plain=True), **TOLERANCE)
            assert not torch.equal(predict(), before)
        finally:
            projection.weight.data.div_(1.5)


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_a_weight_in_place_of_a_dead_one_is_read_anew_without_being_told(tiny, hyper, activation):
    """A fresh tensor often comes to lie where the one before the last did, under the same id."""
    overlay = hyper(activation=activation, widths=[96])
    layer = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    first, context, hidden = overlay.get_submodule("96_1.linear.0"), torch.randn(1, 5, 96), torch.randn(1, 7, 192)
    with velatura.attach(tiny, overlay, 0.7), torch.no_grad():
        for _ in range(20):
            layer(hidden, encoder_hidden_states=context)
            for _ in range(2):
                first.weight = nn.Parameter(0.05 * torch.randn(192, 96), requires_grad=False)
            expected = nn.functional.linear(overlay.transform(context, 0.7)[1], layer.to_v.weight)
            layer.to_k(context)
            torch.testing.assert_close(layer.to_v(context), expected, rtol=1e-5, atol=1e-5)


def test_nothing_else_changes(tiny, overlay, predict):
    off = predict()
    with velatura.attach(tiny, overlay, 0.7) as attachment:
        before = predict()
        attachment.refresh()
        assert torch.equal(predict(), before)
    assert torch.equal(predict(), off)
