"""LoRAs on the layers of a base: which they change, how they add up, and what is said where they do not fit."""

from copy import deepcopy
from itertools import product

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

import velatura
from velatura.base.encoding_context import encoding_row
from velatura.errors import BadOverlay, BadStrength, UnknownName, UnsupportedBase, VelaturaWarning, WrongBase
from velatura.overlays.lora.block_weights import block_of, expand_block_weights
from velatura.overlays.lora.kohya_names import kohya_names
from velatura.overlays.target import Target
from velatura.tensors import write_safetensors

QUERY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"
KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def pair():
    """A small LoRA of one layer, with the numbers that it is made of."""
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(192, 2, generator=generator), torch.randn(2, 96, generator=generator)
    tensors = {f"{KEY}.lora_up.weight": up, f"{KEY}.lora_down.weight": down, f"{KEY}.alpha": torch.tensor(1.0)}
    return velatura.Lora.from_tensors(tensors), 0.5 * up @ down  # alpha 1 over rank 2


def key_of(base):
    return base.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k


@pytest.fixture
def context():
    return torch.randn(2, 7, 96, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_a_layer_computes_with_the_changed_weight(tiny, pair, context):
    lora, change = pair
    layer = key_of(tiny)
    assert layer.weight.shape == change.shape
    with velatura.attach(tiny, lora, 0.7):
        torch.testing.assert_close(layer(context), context @ (layer.weight + 0.7 * change).T, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_several_read_the_bare_layer_and_add_up(tiny, pair, context):
    lora, change = pair
    layer = key_of(tiny)
    with velatura.attach(tiny, lora, 0.7), velatura.attach(tiny, lora, -0.3), velatura.attach(tiny, lora, 1.0):
        torch.testing.assert_close(layer(context), context @ (layer.weight + 1.4 * change).T, rtol=1e-5, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("combine", "expected"), [("sequence", 1.0), ("sum", 1.0), ("average", 0.5)])
def test_those_side_by_side_add_up_or_are_averaged(tiny, pair, context, combine, expected):
    lora, change = pair
    layer = key_of(tiny)
    attachments = velatura.attach_all(
        tiny, [velatura.AttachSpec(lora, 0.7), velatura.AttachSpec(lora, 0.3)], combine=combine
    )
    output = layer(context)
    for attachment in attachments:
        attachment.detach()
    torch.testing.assert_close(output, context @ (layer.weight + expected * change).T, rtol=1e-5, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("activation", "hyper_first"), list(product(["linear", "relu"], [True, False])))
def test_a_hypernetwork_changes_what_a_lora_reads(tiny, pair, hyper, activation, hyper_first):
    lora, change = pair
    context = torch.randn(2, 7, 96, generator=torch.Generator().manual_seed(5))
    layer, net = key_of(tiny), hyper(activation=activation, widths=[96])
    k, _ = net.transform(context, 0.6)
    expected = k @ (layer.weight + 0.7 * change).T
    order = [(net, 0.6), (lora, 0.7)] if hyper_first else [(lora, 0.7), (net, 0.6)]
    with velatura.attach(tiny, *order[0]), velatura.attach(tiny, *order[1]):
        torch.testing.assert_close(layer(context), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(layer(context), context @ layer.weight.T, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_text_towers_and_unet_have_strengths_of_their_own(tiny, lora):
    made, words = lora(), ["a red house"]
    before = tiny.text.encode(words)
    with velatura.attach(tiny, made, velatura.Strength(text=0.0, unet=1.0)) as attachment:
        assert torch.equal(tiny.text.encode(words), before)
        attachment.strength = velatura.Strength(text=0.5, unet=0.0)
        assert (float(attachment.text_strength), float(attachment.strength)) == (0.5, 0.0)
        half = tiny.text.encode(words)
        assert not torch.equal(half, before)
        attachment.strength = 0.5
        assert torch.equal(tiny.text.encode(words), half)
        attachment.strength = 0
        assert torch.equal(tiny.text.encode(words), before)


@torch.no_grad()
def test_both_towers_of_an_sdxl_are_changed(xl):
    made = velatura.Lora.for_base(xl, rank=2, text=True, seed=1)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.3)
    assert {name[:9] for name in made.layers} == {"lora_unet", "lora_te1_", "lora_te2_"}
    before = xl.text.conditioning(["a boat"])
    with velatura.attach(xl, made):
        conditioning = xl.text.conditioning(["a boat"])
    for ours, width in ((slice(16), 16), (slice(16, None), 24)):
        assert before.context[..., ours].shape[-1] == width
        assert not torch.allclose(conditioning.context[..., ours], before.context[..., ours])


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["text_encoder.", "lora_te_"])
def test_a_file_of_the_first_tower_alone_changes_the_first_tower_of_an_sdxl(xl, tmp_path, prefix):
    """diffusers names the first text encoder of an SDXL text_encoder, as it names the only one of an SD1."""
    made = velatura.Lora.for_base(xl, rank=2, text=True, seed=1)
    path = "text_model.encoder.layers.0.self_attn.q_proj"
    delta = made.layers["lora_te1_" + path.replace(".", "_")]
    name = prefix + (path if prefix.endswith(".") else path.replace(".", "_"))
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(delta.tensor(f"lora_{way}.weight").shape, generator=generator) for way in ("down", "up"))
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
    write_safetensors(tmp_path / "first.safetensors", tensors)
    before = xl.text.conditioning(["a boat"]).context
    with velatura.attach(xl, velatura.open_overlay(tmp_path / "first.safetensors")):
        after = xl.text.conditioning(["a boat"]).context
    assert not torch.allclose(after[..., :16], before[..., :16])
    assert torch.equal(after[..., 16:], before[..., 16:])


def test_names_are_those_of_kohyas_files(tiny):
    names = kohya_names(Target.from_model(tiny))
    assert names[KEY] == "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj" in names
    assert "lora_unet_conv_in" in names
    assert len(names) == len(set(names.values()))


def test_what_it_touches_follows_from_its_layers(lora):
    assert lora().target_parts == {"unet", "text"}
    assert lora(text=False).target_parts == {"unet"}
    text = {name: tensor for name, tensor in lora().state_dict().items() if name.startswith("lora_te")}
    assert velatura.Lora.from_tensors(text).target_parts == {"text"}


@pytest.mark.parametrize(
    ("options", "kinds", "count"),
    [
        # the tiny base has seven transformers, each with two attentions of four layers, two layers after those, and two
        # convolutions around them; its text tower has three layers
        ({"targets": "context"}, {"Linear"}, 7 * 2),
        ({"targets": "attention"}, {"Linear"}, 7 * 2 * 4),
        ({"targets": "attention", "text": True}, {"Linear"}, 7 * 2 * 4 + 3 * 4),
        ({"targets": "transformer"}, {"Linear", "Conv2d"}, 7 * (2 * 4 + 2 + 2)),
        ({"targets": "linear"}, {"Linear"}, None),
        ({"targets": "conv"}, {"Linear", "Conv2d"}, None),
        ({"algorithm": "norm"}, {"GroupNorm", "LayerNorm"}, None),
    ],
)
def test_targets_say_which_layers_change(tiny, options, kinds, count):
    made, place = velatura.Lora.for_base(tiny, rank=1, **options), Target.from_model(tiny)
    assert {type(place.layer(name)).__name__ for name in made.deltas(place)} == kinds
    everywhere = sum(type(module).__name__ in kinds for module in tiny.unet.modules())
    assert len(made.layers) == (count or everywhere)


def test_convolutions_may_have_a_rank_of_their_own(tiny):
    made = velatura.Lora.for_base(tiny, algorithm="locon", targets="conv", rank=8, conv_rank=3, conv_alpha=1)
    assert made.layers["lora_unet_mid_block_resnets_0_conv1"].rank == 3
    assert made.layers[QUERY].rank == 8
    assert made.card.outline == f"rank 3 to 8, {len(made.layers)} layers"
    assert str(made.card).startswith("lora rank 3 to 8")


def test_a_lokr_may_be_told_its_factor(tiny):
    made = velatura.Lora.for_base(tiny, algorithm="lokr", rank=2, factor=4)
    assert made.layers[QUERY].lokr_w1.shape == (4, 4)


def test_rank_stabilised_scales_by_the_root_of_the_rank(tiny):
    made = velatura.Lora.for_base(tiny, rank=16, alpha=8, rank_stabilised=True)
    assert float(made.layers[QUERY].scale(16)) == pytest.approx(8 / 4)  # alpha over sqrt(16)


def test_a_seed_makes_the_same_lora_and_leaves_chance_alone(tiny):
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    first, second = (velatura.Lora.for_base(tiny, rank=2, seed=7).state_dict() for _ in range(2))
    assert torch.equal(torch.rand(()), expected)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 0}, BadOverlay, "the LoRA's rank is 0: it should be greater than"),
        ({"alpha": -1.0}, BadOverlay, "the LoRA's alpha is -1.0: it should be greater than"),
        ({"dropout": 1.0}, BadOverlay, "the LoRA's dropout is 1.0: it should be less than 1"),
        ({"algorithm": "lara"}, UnknownName, "did you mean 'lora'"),
        ({"targets": "atention"}, UnknownName, "did you mean 'attention'"),
        ({"algorithm": "ia3", "dropout": 0.1}, BadOverlay, "leave out dropout"),
        ({"factor": 4}, BadOverlay, "leave out factor"),
    ],
)
def test_what_cannot_be_is_refused(tiny, options, error, message):
    with pytest.raises(error, match=message):
        velatura.Lora.for_base(tiny, **options)


def test_dropouts_act_while_training_only(tiny, pair, context):
    made = velatura.Lora.for_base(tiny, rank=4, dropout=0.5, rank_dropout=0.5, module_dropout=0.5, seed=1)
    nn.init.normal_(made.layers[KEY].get_parameter("lora_up.weight"))
    again = velatura.Lora.from_tensors(made.state_dict(), made.card)  # as from a file of ours
    layer = key_of(tiny)
    for overlay in (made, again):
        with velatura.attach(tiny, overlay):
            assert torch.equal(layer(context), layer(context))
            overlay.train()
            torch.manual_seed(0)
            seen = {tuple(layer(context).detach().flatten()[:4].tolist()) for _ in range(8)}
            overlay.eval()
        assert len(seen) > 3
        bare = tuple((context @ layer.weight.T).detach().flatten()[:4].tolist())
        assert any(output == pytest.approx(bare, abs=1e-5) for output in seen)  # the whole layer was dropped


def test_ranks_that_drop_keep_the_mean(tiny, context):
    made = velatura.Lora.for_base(tiny, rank=4, rank_dropout=0.25, seed=1)
    nn.init.normal_(made.layers[KEY].get_parameter("lora_up.weight"))
    layer = key_of(tiny)
    with torch.no_grad(), velatura.attach(tiny, made):
        expected = layer(context)
        made.train()
        torch.manual_seed(0)
        mean = torch.stack([layer(context) for _ in range(2000)]).mean(0)
    assert float((mean - expected).abs().max() / expected.abs().max()) < 0.05


@torch.no_grad()
def test_blocks_have_strengths_of_their_own(tiny, lora, context):
    made, layer = lora(), key_of(tiny)
    before = layer(context)
    with velatura.attach(tiny, made, 0.4):
        weak = layer(context)
    with velatura.attach(tiny, made.with_block_weights({"MID": 0.4})):
        torch.testing.assert_close(layer(context), weak)
    off = made.with_block_weights({"MID": 0.4}).with_block_weights({"MID": 0})
    with velatura.attach(tiny, off):
        assert torch.equal(layer(context), before)
    assert off.layers[KEY] is made.layers[KEY]
    assert not made.block_weights


def test_numbers_stand_for_blocks_as_people_write_them():
    assert expand_block_weights([1, *[0] * 6, 0.5, *[0] * 9])["MID"] == 0.5
    assert list(expand_block_weights([0] * 12)) == [
        *("BASE", "IN04", "IN05", "IN07", "IN08", "MID", "OUT00", "OUT01", "OUT02", "OUT03", "OUT04", "OUT05")
    ]
    assert len(expand_block_weights([0] * 26)) == 26
    with pytest.raises(BadStrength, match="13 block weights fit no model: give 12, 17, 20, 26"):
        expand_block_weights([0] * 13)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("conv_in", "IN00"),
        ("down_blocks.0.resnets.0.conv1", "IN01"),
        ("down_blocks.1.attentions.1.proj_in", "IN05"),
        ("down_blocks.1.downsamplers.0.conv", "IN06"),
        ("down_blocks.3.resnets.1.conv2", "IN11"),
        ("mid_block.attentions.0.proj_in", "MID"),
        ("up_blocks.0.resnets.2.conv1", "OUT02"),
        ("up_blocks.1.upsamplers.0.conv", "OUT05"),
        ("up_blocks.3.attentions.2.proj_out", "OUT11"),
        ("time_embedding.linear_1", "BASE"),
    ],
)
def test_blocks_are_numbered_as_in_checkpoints(name, block):
    """The numbers are those of LDM's input_blocks and output_blocks, two layers a stage: formats.md, section 4."""
    unet = nn.Module()
    unet.config = {"layers_per_block": 2}
    assert block_of(Target("an SD1", unet), f"unet.{name}") == block


def test_blocks_that_no_model_has_are_refused(lora):
    with pytest.raises(UnknownName, match="did you mean 'MID'"):
        lora().with_block_weights({"MIDD": 1})
    with pytest.raises(BadStrength, match="give a finite number"):
        lora().with_block_weights({"MID": float("nan")})


@torch.no_grad()
def test_only_some_blocks_of_the_unet(tiny, lora):
    made = lora()
    with velatura.attach(tiny, made, blocks=["mid"]) as attachment:
        tiny.predict(torch.randn(1, 4, 8, 8), torch.tensor(1), tiny.text.encode(["a"]))
        parts = {row.part: row.layers for row in attachment.effect.outputs}
    assert parts == {"text": 12, "mid": 8}


@torch.no_grad()
def test_effects_tell_how_much_outputs_change(tiny, pair, context):
    lora, change = pair
    layer = key_of(tiny)
    with velatura.attach(tiny, lora, 0.5) as attachment:
        assert "mid: 1 layer, not measured yet" in str(attachment.effect)
        layer(context)
        [effect] = attachment.effect.outputs
    added, bare = 0.5 * context @ change.T, context @ layer.weight.T
    assert effect.change == pytest.approx(float(added.norm() / bare.norm()), rel=1e-4)
    assert f"mid: 1 layer, output changed by {effect.change:.1%}" in str(attachment.effect)


def test_a_lora_that_changes_nothing_is_warned_of(tiny):
    made = velatura.Lora.for_base(tiny, rank=2)
    attachment = velatura.attach(tiny, made)
    with torch.no_grad():
        tiny.predict(torch.randn(1, 4, 8, 8), torch.tensor(1), torch.randn(1, 7, 96))
    with pytest.warns(VelaturaWarning, match="changed nothing at all"):
        attachment.detach()


@torch.no_grad()
def test_written_weights_count_at_once(tiny, lora, context):
    made, layer = lora(algorithm="loha"), key_of(tiny)
    with velatura.attach(tiny, made):
        before = layer(context)
        made.layers[KEY].hada_w1_a.mul_(2)
        after = layer(context)
    bare = layer(context)
    torch.testing.assert_close(after - bare, 2 * (before - bare), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_weights_that_hide_their_change_count_once_refreshed(tiny, lora, context):
    made, layer = lora(algorithm="loha"), key_of(tiny)
    with velatura.attach(tiny, made) as attachment:
        before = layer(context)
        made.layers[KEY].hada_w1_a.data.mul_(2)
        assert torch.equal(layer(context), before)
        attachment.refresh()
        assert not torch.equal(layer(context), before)


@torch.no_grad()
def test_a_copy_of_a_lora_has_weights_of_its_own(tiny, lora, context):
    made, layer = lora(), key_of(tiny)
    with velatura.attach(tiny, made):
        before = layer(context)
    copy = deepcopy(made)
    for weight in copy.parameters():
        weight.zero_()
    with velatura.attach(tiny, made):
        assert torch.equal(layer(context), before)


@torch.no_grad()
def test_first_ranks_are_views(tiny, lora):
    made = lora(rank=4)
    less = made.with_ranks(1)
    assert {delta.rank for delta in less.layers.values()} == {1}
    assert less.layers[KEY].get_parameter("lora_down.weight").data_ptr() == made.layers[KEY].lora_down.weight.data_ptr()
    with pytest.raises(BadOverlay, match="1 or more"):
        made.with_ranks(0)


def test_loras_of_other_bases_are_refused(tiny, xl, lora):
    with pytest.raises(WrongBase, match=r"attn1.to_q has a weight of .*: it was made for tiny"):
        velatura.attach(xl, lora(text=False))
    odd = {key.replace("_blocks_", "_bloks_"): tensor for key, tensor in lora(text=False).state_dict().items()}
    with pytest.raises(WrongBase, match="the LoRA has 56 layers that tiny lacks: it was made for tiny"):
        velatura.attach(tiny, velatura.Lora.from_tensors(odd))
    wide = {f"{KEY}.lora_up.weight": torch.ones(192, 2), f"{KEY}.lora_down.weight": torch.ones(2, 768)}
    with pytest.raises(WrongBase, match=r"attn2.to_k has a weight of \(192, 96\).* of \(192, 768\): .* made for SD1"):
        velatura.attach(tiny, velatura.Lora.from_tensors(wide))


def test_layers_that_a_base_lacks_are_named(tiny, lora):
    state = lora(text=False).state_dict()
    extra = {key.replace("mid_block", "mid_blok"): tensor for key, tensor in state.items() if KEY in key}
    made = velatura.Lora.from_tensors({**state, **extra})
    with pytest.warns(VelaturaWarning, match="has 1 layer that tiny lacks .*mid_blok"):
        velatura.attach(tiny, made).detach()


def test_text_layers_over_a_unet_alone_are_named(tiny, lora):
    with pytest.warns(VelaturaWarning, match="12 layers for text encoders, of which UNet2DConditionModel has none"):
        velatura.attach(tiny.unet, lora()).detach()


def test_sides_of_a_batch_need_to_be_told_in_text(tiny, lora):
    pipeline = nn.Module()
    pipeline.unet, pipeline.text_encoder = tiny.unet, tiny.text.model
    with pytest.raises(BadStrength, match=r"give Strength\(text=0, unet=...\)"):
        velatura.attach(pipeline, lora(), on="prompt")
    velatura.attach(pipeline, lora(), velatura.Strength(text=0, unet=1), on="prompt").detach()


@torch.no_grad()
def test_texts_that_are_encoded_by_themselves_tell_their_side(tiny, lora):
    before = tiny.text.encode(["a boat"])
    with velatura.attach(tiny, lora(), on="prompt"):
        with encoding_row(negative=True, row=0, rows=2):
            assert torch.equal(tiny.text.encode(["a boat"]), before)
        with encoding_row(negative=False, row=1, rows=2):
            encoding = tiny.text.encode(["a boat"])
    with velatura.attach(tiny, lora()):
        torch.testing.assert_close(tiny.text.encode(["a boat"]), encoding)
    assert not torch.equal(encoding, before)


def test_weights_on_the_meta_device_are_refused(lora):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**velatura.tiny().unet.config)
    with pytest.raises(UnsupportedBase, match="meta device"):
        velatura.attach(unet, lora(text=False))


def test_a_lora_of_no_layers_is_refused():
    with pytest.raises(BadOverlay, match="no layers at all"):
        velatura.Lora.from_tensors({})
    with pytest.raises(BadOverlay, match=r"lora_unet_x: the tensors lora_up.weight belong to no known algorithm"):
        velatura.Lora.from_tensors({"lora_unet_x.lora_up.weight": torch.ones(2, 2)})


@torch.no_grad()
def test_fused_projections_are_refused_whenever_they_come(lora):
    unet, overlay = velatura.tiny().unet, lora(text=False)
    attachment = velatura.attach(unet, overlay)
    unet.fuse_qkv_projections()
    with pytest.raises(UnsupportedBase, match="unfuse_qkv_projections"):
        unet(torch.randn(1, 4, 8, 8), 1, torch.randn(1, 7, 96))
    with pytest.raises(UnsupportedBase, match="unfuse_qkv_projections"):
        velatura.attach(unet, overlay)
    attachment.detach()
