import shutil
import warnings

import pytest
import torch
from torch import nn

import velatura
from velatura.errors import BadStrength, NoEffect, VelaturaWarning


@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("side", ["prompt", "negative"])
def test_one_side_of_a_guided_batch(tiny, strong, predict, activation, side):
    overlay, off = strong(activation=activation), predict()
    with velatura.attach(tiny, overlay):
        both = predict(plain=True)
    with velatura.attach(tiny, overlay, on=side):
        prediction = predict()
        torch.testing.assert_close(prediction, predict(plain=True), rtol=1e-5, atol=1e-5)
    untouched, touched = (slice(0, 2), slice(2, 4)) if side == "prompt" else (slice(2, 4), slice(0, 2))
    assert torch.equal(prediction[untouched], off[untouched])
    torch.testing.assert_close(prediction[touched], both[touched], rtol=1e-4, atol=1e-4)


def test_a_batch_without_halves_has_no_sides(tiny, strong):
    with velatura.attach(tiny, strong(), on="prompt"), pytest.raises(BadStrength, match="leave out on='prompt'"):
        tiny.predict(torch.ones(1, 4, 16, 16), torch.tensor(3), tiny.text.encode([""]))


def test_one_strength_for_each_picture_serves_both_halves(tiny, strong, predict):
    overlay = strong(activation="relu")
    with velatura.attach(tiny, overlay, torch.tensor([0.2, 0.9])):
        pictures = predict()
    with velatura.attach(tiny, overlay, torch.tensor([0.2, 0.9, 0.2, 0.9])):
        assert torch.equal(predict(), pictures)
    with velatura.attach(tiny, overlay, torch.ones(3)), pytest.raises(BadStrength, match="3 strengths do not fit"):
        predict()


def test_blocks_add_up_to_the_whole(tiny, strong, predict):
    overlay, off = strong(activation="relu"), predict()
    touched = {}
    for block in ("in", "mid", "out"):
        with velatura.attach(tiny, overlay, blocks=[block]) as attachment:
            assert not torch.equal(predict(), off)
            touched[block] = {row.width: row.layers for row in attachment.effect.widths}
    with velatura.attach(tiny, overlay) as attachment:
        whole, everything = predict(), {row.width: row.layers for row in attachment.effect.widths}
    with (
        velatura.attach(tiny, overlay, blocks=["in"]),
        velatura.attach(tiny, overlay, blocks=["mid"]),
        velatura.attach(tiny, overlay, blocks=["out"]),
    ):
        assert torch.equal(predict(), whole)
    assert touched["mid"] == {96: 1, 192: 1}
    for width, count in everything.items():
        assert sum(counts.get(width, 0) for counts in touched.values()) == count


def test_a_block_without_the_width_is_no_silent_no_op(tiny, strong):
    with pytest.raises(NoEffect, match="in its blocks mid"):
        velatura.attach(tiny, strong(widths=[64]), blocks=["mid"])


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_the_effect_is_measured_on_the_first_step(tiny, strong, predict, activation):
    overlay = strong(activation=activation)
    with velatura.attach(tiny, overlay, 0.5) as attachment:
        assert "96: 7 layers, not measured yet" in str(attachment.effect)
        predict()
        effect = attachment.effect
    context = tiny.text.encode(["", "", "a red house", "a boat at night"]).detach()
    k, v = overlay.transform(context, 0.5)
    [crossing] = [row for row in effect.widths if row.width == 96]
    assert crossing.layers == 7
    assert crossing.k == pytest.approx(((k - context).norm() / context.norm()).item(), rel=1e-4)
    assert crossing.v == pytest.approx(((v - context).norm() / context.norm()).item(), rel=1e-4)
    assert f"96: 7 layers, input changed by {crossing.k:.1%} for K" in str(effect)
    assert velatura.Effect.model_validate_json(effect.model_dump_json()) == effect


def test_of_an_empty_context_all_that_is_changed_is_new(tiny, strong):
    nothing = torch.zeros(1, 77, 96)  # what SDXL reads for no prompt
    unbiased = velatura.Hypernetwork.for_base(tiny, init="xavier_normal", seed=1)
    for overlay, share in ((strong(activation="relu"), 1), (unbiased, 0)):
        with velatura.attach(tiny, overlay) as attachment, torch.no_grad():
            tiny.predict(torch.randn(1, 4, 16, 16), torch.tensor(500), nothing)
            [crossing] = [row for row in attachment.effect.widths if row.width == 96]
        assert (crossing.k, crossing.v) == (share, share)


def test_an_overlay_of_zeros_is_named(tiny, hyper, predict):
    overlay = hyper(activation="relu")
    for weight in overlay.parameters():
        nn.init.zeros_(weight)
    with pytest.warns(VelaturaWarning, match="changed nothing at all"), velatura.attach(tiny, overlay):
        predict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with velatura.attach(tiny, overlay, 0.0):  # off is off, not idle
            predict()


def test_fusing_afterwards_is_noticed(tiny, strong):
    layer = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    with velatura.attach(tiny, strong()):
        layer.fused_projections = True
        try:
            with pytest.raises(velatura.VelaturaError, match="unfuse_qkv_projections"):
                tiny.predict(torch.ones(1, 4, 16, 16), torch.tensor(3), tiny.text.encode([""]))
        finally:
            layer.fused_projections = False


def test_projections_that_are_replaced_are_followed(tiny, strong, predict):
    layer = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    own = layer.to_v
    with velatura.attach(tiny, strong(activation="relu")):
        expected = predict()
        layer.to_v = nn.Linear(96, 192, bias=False)
        layer.to_v.weight = own.weight
        torch.testing.assert_close(predict(), expected)
    layer.to_v = own
    assert not own._forward_pre_hooks


def test_a_strength_that_is_read_is_a_copy(tiny, strong):
    with velatura.attach(tiny, strong(), 0.5) as attachment:
        attachment.strength.mul_(0)
        assert float(attachment.strength) == 0.5


def test_shapes_without_weights_are_no_base(strong):
    hollow = velatura.tiny().unet.to("meta")
    overlay = strong()
    with pytest.raises(velatura.VelaturaError, match="only their shapes"):
        velatura.attach(hollow, overlay)
    assert not any(weight.is_meta for weight in overlay.parameters())


class _Pipeline:
    """As diffusers' pipelines: parts that anybody may replace."""

    def __init__(self, base):
        self.unet, self.text_encoder = base.unet, base.text.model


@pytest.mark.parametrize(
    "use",
    [lambda attachment: setattr(attachment, "strength", 0.5), lambda attachment: attachment.effect],
    ids=["strength", "effect"],
)
def test_a_part_that_was_replaced_is_said_once_when_the_attachment_is_used(hyper, use):
    pipeline = _Pipeline(velatura.tiny())
    attachment = velatura.attach(pipeline, hyper())
    pipeline.unet = velatura.tiny().unet
    with pytest.warns(VelaturaWarning, match="another unet than _Pipeline has now"):
        use(attachment)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attachment.strength = 0.4
        attachment.detach()
    assert not [warning for warning in caught if "another unet" in str(warning.message)]


def test_a_part_that_was_replaced_meanwhile_is_said_at_detach(hyper):
    pipeline, other = _Pipeline(velatura.tiny()), velatura.tiny()
    attachment = velatura.attach(pipeline, hyper())
    original, pipeline.unet = pipeline.unet, other.unet
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attachment.detach()
        attachment.detach()
    assert [str(warning.message) for warning in caught if "another unet than _Pipeline has now" in str(warning.message)]
    assert len([warning for warning in caught if "replaced" in str(warning.message)]) == 1
    attachment = velatura.attach(pipeline, hyper())
    pipeline.unet = other.unet
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attachment.detach()
    assert not [warning for warning in caught if "replaced" in str(warning.message)]
    assert original is not pipeline.unet


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda base, folder: velatura.save(base, folder / "x.safetensors"), "x.safetensors is written"),
        (lambda base, folder: velatura.save(base, folder / "x"), "x is written"),
        (lambda base, _: velatura.merge(base, velatura.tiny(), 0.5), "its weights are read"),
    ],
    ids=["file", "folder", "merge"],
)
def test_weights_that_are_used_without_an_overlay_are_named(hyper, tmp_path, use, words):
    base = velatura.tiny()
    for overlay in (hyper(), velatura.Embedding.for_base(base, name="ink")):  # in the UNet, and in the text encoder
        message = f"attached to tiny, and {words} without"
        with velatura.attach(base, overlay), pytest.warns(VelaturaWarning, match=message):
            use(base, tmp_path)
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
