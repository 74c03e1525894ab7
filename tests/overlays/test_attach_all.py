"""Several overlays over one target at once."""

import pytest
import torch
from torch import nn

import velatura
from velatura.errors import BadStrength


def test_combined_side_by_side(tiny, strong, predict):
    layer = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    overlays, context = [strong(1, activation="relu"), strong(2)], torch.randn(2, 77, 96)
    changes = [
        overlay.transform(context, strength)[1] - context for overlay, strength in zip(overlays, (0.5, 2), strict=True)
    ]
    listed = [(overlay, strength, ("in", "mid", "out")) for overlay, strength in zip(overlays, (0.5, 2.0), strict=True)]
    for combine, share in (("sum", 1), ("average", 0.5)):
        attachments = velatura.attach_all(tiny, listed, combine=combine)
        with torch.no_grad():
            expected = nn.functional.linear(context + share * sum(changes), layer.to_v.weight)
            torch.testing.assert_close(layer.to_v(context), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(predict(), predict(plain=True), rtol=1e-5, atol=1e-5)
        attachments[0].strength = attachments[1].strength = 0
        combined = predict()
        for attachment in attachments:
            attachment.detach()
        assert torch.equal(combined, predict())


def test_in_sequence_is_one_after_the_other(tiny, strong, predict):
    overlays = [strong(1, activation="relu"), strong(2, activation="tanh")]
    with velatura.attach(tiny, overlays[0], 0.5), velatura.attach(tiny, overlays[1], 0.8):
        expected = predict()
    attachments = velatura.attach_all(
        tiny, [(overlays[0], 0.5, ("in", "mid", "out")), (overlays[1], 0.8, ("in", "mid", "out"))]
    )
    assert torch.equal(predict(), expected)
    for attachment in attachments:
        attachment.detach()


def test_all_or_none_are_laid_on(tiny, strong, predict):
    off = predict()
    with pytest.raises(BadStrength):
        velatura.attach_all(tiny, [(strong(), 1.0, ("in",)), (strong(), float("nan"), ("in",))])
    assert torch.equal(predict(), off)


def test_each_may_act_on_a_side_and_in_blocks_of_its_own(tiny, strong, predict):
    overlays = [strong(1, activation="relu"), strong(2)]
    with (
        velatura.attach(tiny, overlays[0], 0.5, on="prompt"),
        velatura.attach(tiny, overlays[1], 0.8, on="negative", blocks=["mid"]),
    ):
        expected = predict()
    first = velatura.AttachSpec(overlays[0], 0.5, on="prompt")
    attachments = velatura.attach_all(tiny, [first, velatura.AttachSpec(overlays[1], 0.8, ["mid"], "negative")])
    assert torch.equal(predict(), expected)
    for attachment in attachments:
        attachment.detach()


def test_strengths_alone_lie_everywhere(tiny, strong, predict):
    overlay = strong(activation="relu")
    with velatura.attach(tiny, overlay, 0.5):
        expected = predict()
    [attachment] = velatura.attach_all(tiny, [velatura.AttachSpec(overlay, 0.5)])
    with attachment:
        assert torch.equal(predict(), expected)


@pytest.mark.parametrize("side", ["prompt", "negative"])
def test_a_side_alone_is_summed_too(tiny, strong, predict, side):
    overlays = [strong(1, activation="relu"), strong(2, activation="tanh")]
    wanted = [velatura.AttachSpec(overlay, 0.5, on=side) for overlay in overlays]
    off, rows = predict(), slice(0, 2) if side == "negative" else slice(2, 4)
    whole = velatura.attach_all(tiny, [velatura.AttachSpec(overlay, 0.5) for overlay in overlays], combine="sum")
    both = predict()
    for attachment in whole:
        attachment.detach()
    attachments = velatura.attach_all(tiny, wanted, combine="sum")
    prediction = predict()
    torch.testing.assert_close(prediction, predict(plain=True), rtol=1e-5, atol=1e-5)
    for attachment in attachments:
        attachment.detach()
    torch.testing.assert_close(prediction[rows], both[rows], rtol=1e-4, atol=1e-4)
    rest = [i for i in range(4) if i not in range(rows.start, rows.stop)]
    torch.testing.assert_close(prediction[rest], off[rest], rtol=1e-5, atol=1e-5)
