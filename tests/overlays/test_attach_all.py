"""Several overlays over one target at once."""

import pytest
import torch
from torch import nn

import velatura
from velatura.errors import BadStrength


def test_combined_side_by_side(tiny, strong, says):
    layer = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    overlays, context = [strong(1, activation="relu"), strong(2)], torch.randn(2, 77, 96)
    changes = [
        overlay.transform(context, strength)[1] - context for overlay, strength in zip(overlays, (0.5, 2), strict=True)
    ]
    listed = [(overlay, strength, ("in", "mid", "out")) for overlay, strength in zip(overlays, (0.5, 2.0), strict=True)]
    for combine, share in (("sum", 1), ("average", 0.5)):
        laid = velatura.attach_all(tiny, listed, combine=combine)
        with torch.no_grad():
            expected = nn.functional.linear(context + share * sum(changes), layer.to_v.weight)
            torch.testing.assert_close(layer.to_v(context), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(says(), says(plain=True), rtol=1e-5, atol=1e-5)
        laid[0].strength = laid[1].strength = 0
        combined = says()
        for each in laid:
            each.detach()
        assert torch.equal(combined, says())


def test_in_sequence_is_one_after_the_other(tiny, strong, says):
    overlays = [strong(1, activation="relu"), strong(2, activation="tanh")]
    with velatura.attach(tiny, overlays[0], 0.5), velatura.attach(tiny, overlays[1], 0.8):
        expected = says()
    laid = velatura.attach_all(
        tiny, [(overlays[0], 0.5, ("in", "mid", "out")), (overlays[1], 0.8, ("in", "mid", "out"))]
    )
    assert torch.equal(says(), expected)
    for each in laid:
        each.detach()


def test_all_or_none_are_laid_on(tiny, strong, says):
    off = says()
    with pytest.raises(BadStrength):
        velatura.attach_all(tiny, [(strong(), 1.0, ("in",)), (strong(), float("nan"), ("in",))])
    assert torch.equal(says(), off)


def test_each_may_act_on_a_side_and_in_blocks_of_its_own(tiny, strong, says):
    overlays = [strong(1, activation="relu"), strong(2)]
    with (
        velatura.attach(tiny, overlays[0], 0.5, on="prompt"),
        velatura.attach(tiny, overlays[1], 0.8, on="negative", blocks=["mid"]),
    ):
        expected = says()
    first = velatura.AttachSpec(overlays[0], 0.5, on="prompt")
    laid = velatura.attach_all(tiny, [first, velatura.AttachSpec(overlays[1], 0.8, ["mid"], "negative")])
    assert torch.equal(says(), expected)
    for each in laid:
        each.detach()


def test_strengths_alone_lie_everywhere(tiny, strong, says):
    overlay = strong(activation="relu")
    with velatura.attach(tiny, overlay, 0.5):
        expected = says()
    [laid] = velatura.attach_all(tiny, [velatura.AttachSpec(overlay, 0.5)])
    with laid:
        assert torch.equal(says(), expected)


@pytest.mark.parametrize("side", ["prompt", "negative"])
def test_a_side_alone_is_summed_too(tiny, strong, says, side):
    overlays = [strong(1, activation="relu"), strong(2, activation="tanh")]
    wanted = [velatura.AttachSpec(each, 0.5, on=side) for each in overlays]
    off, rows = says(), slice(0, 2) if side == "negative" else slice(2, 4)
    whole = velatura.attach_all(tiny, [velatura.AttachSpec(each, 0.5) for each in overlays], combine="sum")
    both = says()
    for each in whole:
        each.detach()
    laid = velatura.attach_all(tiny, wanted, combine="sum")
    said = says()
    torch.testing.assert_close(said, says(plain=True), rtol=1e-5, atol=1e-5)
    for each in laid:
        each.detach()
    torch.testing.assert_close(said[rows], both[rows], rtol=1e-4, atol=1e-4)
    rest = [i for i in range(4) if i not in range(rows.start, rows.stop)]
    torch.testing.assert_close(said[rest], off[rest], rtol=1e-5, atol=1e-5)
