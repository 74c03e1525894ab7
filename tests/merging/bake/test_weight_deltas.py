"""Law 6: an attached overlay and a baked one predict the same, for every algorithm of weight changes."""

import pytest
import torch
from torch import nn

import velatura
from tests.merging.predictions import CALIBRATION_PROMPTS, predict_noise, predict_with, random_lora, relative_difference
from velatura.errors import BadArgument, BadOverlay, NoEffect, VelaturaWarning, WrongBase
from velatura.merging.bake.bake import bake, copy_base
from velatura.merging.bake.report import BakeReport
from velatura.merging.bake.weight_deltas import WeightDeltas, add_deltas
from velatura.overlays.deltas import DELTAS
from velatura.overlays.lora.kohya_names import kohya_names
from velatura.overlays.target import Target

LORA_SUFFIXES = ("lora_up.weight", "lora_down.weight")
ONE_STEP = {"prompts": CALIBRATION_PROMPTS, "steps": 1}


@pytest.fixture(scope="module")
def plain(tiny) -> torch.Tensor:
    return predict_noise(tiny)


@pytest.mark.parametrize("algorithm", DELTAS)
def test_attached_and_baked_say_the_same(tiny, plain, algorithm):
    overlay = random_lora(tiny, algorithm)
    wanted = predict_with(tiny, (overlay, 0.6))
    baked = copy_base(tiny, algorithm)
    add_deltas(tiny, baked, [WeightDeltas.from_overlay(tiny, overlay, 0.6)])
    assert relative_difference(wanted, plain) > 1e-3  # it did do something
    assert relative_difference(predict_noise(baked), wanted) < 1e-5


def test_the_report_tells_what_was_added_and_how_exactly(tiny):
    overlay = random_lora(tiny, "loha")
    _, report = bake(tiny, [(overlay, 1.0)], **ONE_STEP)
    assert report.is_exact
    assert report.output < 1e-5
    assert (report.added[0].algorithms, report.added[0].layers) == (("loha",), len(overlay.layers))
    assert BakeReport.model_validate_json(report.model_dump_json()) == report


def test_a_strength_of_each_part_and_of_each_layer_count(tiny):
    overlay = random_lora(tiny, "lora").with_block_weights({"MID": 0.3, "BASE": 0.5})
    strength = velatura.Strength(text=0.4, unet=0.9)
    wanted = predict_with(tiny, (overlay, strength))
    baked, report = bake(tiny, [(overlay, strength)], **ONE_STEP)
    assert relative_difference(predict_noise(baked), wanted) < 1e-5
    assert (report.added[0].unet, report.added[0].text) == (0.9, 0.4)
    assert "added at 0.9 in the UNet, 0.4 in the text encoders" in str(report)


def test_several_kinds_go_into_weights_together(tiny, hyper, difference):
    overlays = [
        (hyper(), 0.5),
        (random_lora(tiny, "lora"), 0.7),
        (difference(seed=2), 0.5),
        (random_lora(tiny, "oft"), -0.4),
    ]
    wanted = predict_with(tiny, *overlays)
    baked, report = bake(tiny, overlays, **ONE_STEP)
    assert relative_difference(wanted, predict_noise(tiny)) > 0.01
    assert relative_difference(predict_noise(baked), wanted) < 1e-5
    assert len(report.strengths) == 4
    assert [row.overlay for row in report.added] == ["lora", "difference", "oft"]


def test_a_network_that_is_fitted_is_fitted_to_what_the_lora_lets_it_read(tiny, hyper):
    overlays = [(random_lora(tiny, "lora"), 0.7), (hyper(activation="relu"), 0.5)]
    wanted = predict_with(tiny, *overlays)
    baked, report = bake(tiny, overlays, **ONE_STEP)
    assert 0 < report.output_missed < 0.5
    assert relative_difference(predict_noise(baked), wanted) < 0.5 * relative_difference(predict_noise(tiny), wanted)


def test_the_base_and_the_overlay_stay_as_they_are(tiny):
    overlay = random_lora(tiny, "dora").train()
    before = {key: tensor.clone() for key, tensor in (*tiny.unet.state_dict().items(), *overlay.state_dict().items())}
    baked, _ = bake(tiny, [(overlay, 1.0)], **ONE_STEP)
    with torch.no_grad():
        for weight in (*baked.unet.parameters(), *baked.text.model.parameters()):
            weight.zero_()
    after = {**tiny.unet.state_dict(), **overlay.state_dict()}
    assert overlay.training
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_a_base_of_half_precision_is_rounded_once(tiny):
    half, overlay = velatura.tiny(dtype="bfloat16"), random_lora(tiny, "lora")
    baked, _ = bake(half, [(overlay, 0.3), (overlay, 0.3)], **ONE_STEP)
    names = kohya_names(Target.from_model(half))
    for kohya_name, delta in overlay.layers.items():
        weight = Target.from_model(half).layer(names[kohya_name]).weight
        change = delta.weight_delta(weight, 0.3)
        wanted = (weight.float() + change + change).bfloat16()
        assert torch.equal(Target.from_model(baked).layer(names[kohya_name]).weight, wanted)


def test_a_bias_and_a_norm_are_changed_too(tiny):
    target = Target.from_model(tiny)
    diffusers_names = kohya_names(target)
    biased = [name for name, path in diffusers_names.items() if target.layer(path).bias is not None][:40]
    tensors: dict[str, torch.Tensor] = {}
    for kohya_name in biased:
        layer = target.layer(diffusers_names[kohya_name])
        kinds = ("w_norm", "b_norm") if isinstance(layer, nn.GroupNorm | nn.LayerNorm) else ("diff", "diff_b")
        tensors |= {f"{kohya_name}.{kinds[0]}": torch.full_like(layer.weight, 0.01)}
        tensors |= {f"{kohya_name}.{kinds[1]}": torch.full_like(layer.bias, 0.01)}
    overlay = velatura.Lora.from_tensors(tensors)
    wanted = predict_with(tiny, (overlay, 0.5))
    assert relative_difference(predict_noise(bake(tiny, [(overlay, 0.5)], **ONE_STEP)[0]), wanted) < 1e-5


def test_layers_that_the_base_lacks_are_warned_of(tiny):
    overlay = random_lora(tiny, "lora")
    tensors = {f"lora_unet_no_such_layer.{suffix}": torch.zeros(4, 4) for suffix in LORA_SUFFIXES}
    more = velatura.Lora.from_tensors({**overlay.state_dict(), **tensors})
    with pytest.warns(VelaturaWarning, match="1 layer"):
        _, report = bake(tiny, [(more, 1.0)], **ONE_STEP)
    assert report.added[0].layers == len(overlay.layers)


def test_an_overlay_that_changes_no_weights_is_refused_with_the_reason(tiny, embedding, aesthetic):
    for overlay, reason in ((embedding(), "is a word"), (aesthetic(), "tunes the text encoders anew for each prompt")):
        with pytest.raises(BadOverlay, match=f"cannot be baked: it {reason}"):
            bake(tiny, [(overlay, 1.0)])


def test_an_overlay_for_another_base_is_refused(tiny, xl, lora):
    with pytest.raises(WrongBase):
        bake(xl, [(lora(), 1.0)])
    tensors = {f"lora_unet_conv_in.{suffix}": torch.zeros(9, 9) for suffix in LORA_SUFFIXES}
    with pytest.raises(WrongBase, match="does not fit its weight"):
        bake(tiny, [(velatura.Lora.from_tensors(tensors), 1.0)])


def test_strengths_of_nothing_and_of_many_are_refused(tiny, lora):
    with pytest.raises(NoEffect):
        bake(tiny, [(lora(), velatura.Strength(0.0, 0.0))])
    with pytest.raises(
        BadArgument, match=r"not a list of pairs \(an Overlay, a text or a path; a number or a Strength\)"
    ):
        bake(tiny, [(lora(), torch.tensor([0.1, 0.2]))])


def test_embeddings_bundled_with_a_lora_are_warned_of(tiny):
    lora = random_lora(tiny, "lora")
    lora.bundled_embeddings = {"inked": {"emb_params": torch.ones(2, 96)}}
    with pytest.warns(
        VelaturaWarning, match=r"brings embeddings \(inked\), which a checkpoint cannot store: keep its file"
    ):
        bake(tiny, [(lora, 0.5)], **ONE_STEP)
