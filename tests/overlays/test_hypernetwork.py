import warnings

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

import velatura
from velatura.errors import BadOverlay, BadStrength, UnknownName, UnsupportedBase, VelaturaWarning, WrongBase
from velatura.overlays.structure import ACTIVATIONS, WEIGHT_INITS, HypernetworkStructure


def layers_of(**options):
    structure = HypernetworkStructure.from_fields({"widths": (8,), **options})
    return [type(layer).__name__ for layer in structure.build_network(8)]


# As A1111 1.8 builds them, by its state dicts: Linear, activation, LayerNorm, Dropout in each block.
@pytest.mark.parametrize(
    ("options", "sequence"),
    [
        ({}, "Linear Linear"),
        ({"activation": "relu"}, "Linear ReLU Linear"),
        ({"activation": "relu", "activate_output": True}, "Linear ReLU Linear ReLU"),
        ({"activate_output": True}, "Linear Linear"),
        ({"layer_norm": True}, "Linear LayerNorm Linear LayerNorm"),
        ({"activation": "relu", "layer_norm": True}, "Linear ReLU LayerNorm Linear LayerNorm"),
        (
            {"layers": (1, 2, 2, 1), "activation": "relu", "layer_norm": True, "dropout": (0, 0.3, 0.3, 0)},
            "Linear ReLU LayerNorm Dropout Linear ReLU LayerNorm Dropout Linear LayerNorm",
        ),
        ({"layers": (1, 2, 2, 1), "dropout": (0, 0.3, 0, 0)}, "Linear Dropout Linear Linear"),
        ({"layers": (1, 1)}, "Linear"),
    ],
)
def test_layers_stand_in_a1111s_order(options, sequence):
    assert " ".join(layers_of(**options)) == sequence


def test_fractions_of_a_feature_are_cut_off():
    assert [
        layer.out_features
        for layer in HypernetworkStructure.from_fields({"widths": (8,), "layers": (1, 1.3, 1)}).build_network(8)
    ] == [10, 8]


def test_swish_is_hardswish():
    assert layers_of(activation="swish") == ["Linear", "Hardswish", "Linear"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_trains_and_keeps_shapes(tiny, activation):
    overlay = velatura.Hypernetwork.for_base(
        tiny, activation=activation, widths=[64], seed=0, activate_output=True
    ).train()
    context = torch.randn(2, 5, 64)
    k, v = overlay.transform(context)
    assert k.shape == v.shape == context.shape
    (k + v).square().mean().backward()
    assert all(weight.grad is not None for weight in overlay.parameters())


@pytest.mark.parametrize("init", WEIGHT_INITS)
def test_the_same_seed_draws_the_same_weights(tiny, init):
    one, other = (velatura.Hypernetwork.for_base(tiny, init=init, seed=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(
        next(one.parameters()), next(velatura.Hypernetwork.for_base(tiny, init=init, seed=5).parameters())
    )


def test_normal_weights_have_a_deviation_of_a_hundredth(tiny):
    overlay = velatura.Hypernetwork.for_base(tiny, widths=[192], layer_norm=True, layers=(1, 4, 1), seed=0)
    linear, norm = overlay.get_submodule("192_0.linear.0"), overlay.get_submodule("192_0.linear.1")
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert norm.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not linear.bias.any()
    assert not norm.bias.any()


def test_making_one_with_a_seed_leaves_the_global_dice_alone(tiny):
    before = torch.get_rng_state()
    velatura.Hypernetwork.for_base(tiny, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_new_one_fits_every_width_of_its_base(tiny):
    overlay = velatura.Hypernetwork.for_base(tiny, activation="mish", name="ink")
    assert sorted(overlay.structure.widths) == [64, 96, 128, 192]
    assert not overlay.training
    assert str(overlay.card) == "hypernet 64,96,128,192 · 1,2,1 mish · tiny"
    assert (overlay.card.base, overlay.card.base_hash) == ("tiny", tiny.hash)


def test_one_number_for_dropout_goes_after_every_hidden_layer(tiny):
    overlay = velatura.Hypernetwork.for_base(tiny, layers=(1, 2, 2, 1), dropout=0.2)
    assert overlay.structure.dropout == (0, 0.2, 0.2, 0)


def test_strength_is_ignored_while_training(hyper):
    overlay, context = hyper().train(), torch.randn(2, 7, 96)
    assert torch.equal(overlay.transform(context, 0.0)[0], overlay.transform(context, 1.0)[0])


def test_a_width_it_lacks_comes_back_as_it_is(hyper):
    context = torch.randn(1, 4, 320)
    k, v = hyper().transform(context)
    assert k is context
    assert v is context


def test_half_a_context_is_computed_whole_and_comes_back_half(hyper):
    overlay, context = hyper(), torch.randn(2, 5, 96, dtype=torch.bfloat16)
    k, _ = overlay.transform(context, 0.5)
    assert k.dtype == torch.bfloat16
    assert torch.equal(k, overlay.transform(context.float(), 0.5)[0].bfloat16())


def test_under_autocast_it_computes_in_half(hyper):
    overlay, context = hyper(), torch.randn(2, 5, 96, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        k, _ = overlay.transform(context, 1.0)
    assert k.dtype == torch.bfloat16
    torch.testing.assert_close(k.float(), overlay.transform(context.float())[0], rtol=0.05, atol=0.05)


def test_no_strength_but_a_finite_number_is_taken(tiny, hyper):
    for wrong in (float("nan"), float("inf"), torch.zeros(2, 2), torch.zeros(0)):
        with pytest.raises(BadStrength):
            velatura.attach(tiny, hyper(), wrong)
    with velatura.attach(tiny, hyper()) as attachment:
        with pytest.raises(BadStrength, match="must be finite"):
            attachment.strength = float("nan")
        assert float(attachment.strength) == 1


def test_as_many_strengths_as_rows_or_one(hyper):
    with pytest.raises(BadStrength, match="3 strengths do not fit a batch of 2"):
        hyper().transform(torch.randn(2, 4, 96), torch.ones(3))
    hyper().transform(torch.randn(2, 4, 96), torch.ones(1))


def test_a_strength_is_copied_in(tiny, hyper):
    mine = torch.tensor(0.5)
    with velatura.attach(tiny, hyper(), mine) as attachment:
        attachment.strength = 0.1
    assert mine.item() == 0.5


def test_k_and_v_of_every_layer_of_a_width_are_changed(tiny, hyper):
    seen = {}

    def note(name):
        return lambda _layer, arguments: seen.setdefault(name, arguments[0])

    projections = {name: module for name, module in tiny.unet.named_modules() if name.endswith(("to_k", "to_v"))}
    overlay = hyper(widths=[96])
    with velatura.attach(tiny, overlay, 0.5):
        handles = [layer.register_forward_pre_hook(note(name)) for name, layer in projections.items()]
        context = tiny.text.encode(["a cat"])
        tiny.predict(torch.randn(1, 4, 16, 16), torch.tensor(3), context)
    for handle in handles:
        handle.remove()
    k, v = overlay.transform(context, 0.5)
    for name, read in seen.items():
        if "attn2" in name:
            assert torch.equal(read, k if name.endswith("to_k") else v)
    assert sum("attn2" in name for name in seen) == 14


def test_hypernetworks_act_in_the_order_they_were_attached(tiny, hyper):
    first, second, context = hyper(widths=[96]), hyper(widths=[96], seed=9), torch.randn(1, 77, 96)
    seen = []
    projection = tiny.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    with velatura.attach(tiny, first, 0.5), velatura.attach(tiny, second, 2.0):
        handle = projection.register_forward_pre_hook(lambda _layer, arguments: seen.append(arguments[0]))
        projection(context)
    handle.remove()
    assert torch.equal(seen[0], second.transform(first.transform(context, 0.5)[0], 2.0)[0])


def test_a_users_own_attention_processor_stays(tiny, hyper):
    processors = dict(tiny.unet.attn_processors)
    try:
        tiny.unet.set_attn_processor(AttnProcessor())
        plain = tiny.predict(torch.ones(1, 4, 16, 16), torch.tensor(3), tiny.text.encode([""]))
        with velatura.attach(tiny, hyper()):
            assert all(type(processor) is AttnProcessor for processor in tiny.unet.attn_processors.values())
            assert not torch.equal(
                tiny.predict(torch.ones(1, 4, 16, 16), torch.tensor(3), tiny.text.encode([""])), plain
            )
    finally:
        tiny.unet.set_attn_processor(processors)


def test_a_diffusers_pipeline_and_a_unet_take_overlays_too(tiny, hyper):
    pipeline = StableDiffusionPipeline(
        vae=tiny.vae,
        text_encoder=tiny.text.model,
        tokenizer=tiny.text.tokenizer,
        unet=tiny.unet,
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    latents, context = torch.ones(1, 4, 16, 16), tiny.text.encode(["a dog"])
    before, predictions = tiny.predict(latents, torch.tensor(3), context), []
    for target in (tiny, pipeline, tiny.unet):
        with velatura.attach(target, hyper()):
            predictions.append(tiny.predict(latents, torch.tensor(3), context))
    assert torch.equal(predictions[0], predictions[1])
    assert torch.equal(predictions[0], predictions[2])
    assert not torch.equal(predictions[0], before)


def test_fused_projections_are_refused(tiny, hyper):
    layer = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    layer.fused_projections = True
    try:
        with pytest.raises(UnsupportedBase, match=r"mid_block.*attn1.*unfuse_qkv_projections"):
            velatura.attach(tiny, hyper())
    finally:
        layer.fused_projections = False


def test_added_projections_are_refused(tiny, hyper):
    layer = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    layer.add_k_proj = nn.Linear(96, 192)
    try:
        with pytest.raises(UnsupportedBase, match=r"attn2.*add_k_proj"):
            velatura.attach(tiny, hyper())
    finally:
        layer.add_k_proj = None


@pytest.mark.parametrize("target", [nn.Linear(2, 2), "sd15.safetensors"])
def test_what_has_no_attention_is_refused(hyper, target):
    with pytest.raises(UnsupportedBase):
        velatura.attach(target, hyper())


def made_for(*widths):
    structure = HypernetworkStructure.from_fields({"widths": widths})
    return velatura.Hypernetwork(
        velatura.Card(kind="hypernet", name="inca", structure=structure.model_dump(mode="json"))
    )


@pytest.mark.parametrize(
    ("widths", "family"),
    [((320, 640, 768, 1280), "SD1"), ((1024, 320, 64), "SD2"), ((2048, 640), "SDXL"), ((8,), "another model")],
)
def test_a_net_for_another_family_is_refused_with_both_lists(tiny, widths, family):
    with pytest.raises(WrongBase, match=rf"inca changes contexts of .*{max(widths)} .*64, 96, 128 and 192: .*{family}"):
        velatura.attach(tiny, made_for(*widths))


def test_a_net_for_several_families_says_what_idles(tiny):
    with (
        pytest.warns(VelaturaWarning, match="its networks for 768 have no effect here"),
        velatura.attach(tiny, made_for(96, 768)),
    ):
        pass


def test_a_net_for_self_attention_alone_fits(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        velatura.attach(tiny, made_for(64)).detach()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (2, 1)}, "start and end with 1"),
        ({"layers": (1, -1, 1)}, "positive"),
        ({"layers": (1, float("nan"), 1)}, "positive"),
        ({"layers": (1, 1e9, 1)}, "most"),
        ({"layers": (1, 0.001, 1)}, "leave no features"),
        ({"layers": (1,)}, "layers"),
        ({"dropout": 1.5}, "probabilities"),
        ({"dropout": (0, 0.1)}, "2 entries, layers 3"),
        ({"widths": [96, 96]}, "twice"),
        ({"widths": [0]}, "greater than"),
        ({"widths": []}, "at least 1"),
        ({"widths": [9999]}, "tiny has contexts of 64, 96, 128 and 192 features, not of 9999: give"),
        ({"widths": [64, 768]}, "not of 64 and 768"),
    ],
)
def test_a_structure_that_cannot_be_is_refused(tiny, options, message):
    with pytest.raises(BadOverlay, match=message):
        velatura.Hypernetwork.for_base(tiny, **options)


@pytest.mark.parametrize("options", [{"activation": "releu"}, {"init": "normall"}])
def test_an_unknown_name_is_put_right(tiny, options):
    with pytest.raises(UnknownName, match="did you mean"):
        velatura.Hypernetwork.for_base(tiny, **options)
