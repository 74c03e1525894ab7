"""Law 6: what lies over a base and what went into its weights say the same, for every way to write a change down."""

import pytest
import torch
from torch import nn

import velatura
from velatura.errors import BadOverlay, NoEffect, VelaturaWarning, WrongBase
from velatura.merging.bake.bake import bake, copy_base
from velatura.merging.bake.report import BakeReport
from velatura.merging.bake.weight_deltas import WeightDeltas, add_deltas
from velatura.overlays.deltas import DELTAS
from velatura.overlays.lora.kohya_names import kohya_names
from velatura.overlays.target import Target

ONE = {"prompts": ["a red fox", "a lighthouse at dusk", "a robot", "a small house in the snow"], "steps": 1}


@torch.no_grad()
def prediction(base: velatura.Base) -> torch.Tensor:
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    return base.predict(latents, torch.tensor(400), base.text.encode(["an owl on a branch"]))


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def trained(base: velatura.Base, algorithm: str, **options: object) -> velatura.Lora:
    """A LoRA of what an algorithm can change, moved away from nothing by chance."""
    chosen = {"rank": 4, "targets": "conv", "text": True, "seed": 1, "name": algorithm, **options}
    whole = velatura.Lora.for_base(base, algorithm=algorithm, **chosen)
    made = velatura.Lora(whole.card, dict(list(whole.layers.items())[::4]))  # enough of all kinds of layers
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    return made


def attached(base: velatura.Base, *laid: tuple[velatura.Overlay, object]) -> torch.Tensor:
    held = [velatura.attach(base, overlay, strength) for overlay, strength in laid]
    try:
        return prediction(base)
    finally:
        for each in held:
            each.detach()


@pytest.fixture(scope="module")
def plain(tiny) -> torch.Tensor:
    return prediction(tiny)


@pytest.mark.parametrize("algorithm", DELTAS)
def test_attached_and_baked_say_the_same(tiny, plain, algorithm):
    overlay = trained(tiny, algorithm)
    wanted = attached(tiny, (overlay, 0.6))
    baked = copy_base(tiny, algorithm)
    add_deltas(tiny, baked, [WeightDeltas.from_overlay(tiny, overlay, 0.6)])
    assert off(wanted, plain) > 1e-3  # it did do something
    assert off(prediction(baked), wanted) < 1e-5


def test_the_report_tells_what_was_added_and_how_exactly(tiny):
    overlay = trained(tiny, "loha")
    _, report = bake(tiny, [(overlay, 1.0)], **ONE)
    assert report.is_exact
    assert report.output < 1e-5
    assert (report.added[0].algorithms, report.added[0].layers) == (("loha",), len(overlay.layers))
    assert BakeReport.model_validate_json(report.model_dump_json()) == report


def test_a_strength_of_each_part_and_of_each_layer_count(tiny):
    overlay = trained(tiny, "lora").with_block_weights({"MID": 0.3, "BASE": 0.5})
    strength = velatura.Strength(text=0.4, unet=0.9)
    wanted = attached(tiny, (overlay, strength))
    baked, report = bake(tiny, [(overlay, strength)], **ONE)
    assert off(prediction(baked), wanted) < 1e-5
    assert (report.added[0].unet, report.added[0].text) == (0.9, 0.4)
    assert "added at 0.9 in the UNet, 0.4 in the text" in str(report)


def test_several_kinds_go_into_weights_together(tiny, hyper, difference):
    laid = [(hyper(), 0.5), (trained(tiny, "lora"), 0.7), (difference(seed=2), 0.5), (trained(tiny, "oft"), -0.4)]
    wanted = attached(tiny, *laid)
    baked, report = bake(tiny, laid, **ONE)
    assert off(wanted, prediction(tiny)) > 0.01
    assert off(prediction(baked), wanted) < 1e-5
    assert len(report.strengths) == 4
    assert [each.overlay for each in report.added] == ["lora", "difference", "oft"]


def test_a_network_that_is_fitted_is_fitted_to_what_the_lora_lets_it_read(tiny, hyper):
    laid = [(trained(tiny, "lora"), 0.7), (hyper(activation="relu"), 0.5)]
    wanted = attached(tiny, *laid)
    baked, report = bake(tiny, laid, **ONE)
    assert 0 < report.output_missed < 0.5
    assert off(prediction(baked), wanted) < 0.5 * off(prediction(tiny), wanted)


def test_the_base_and_the_overlay_stay_as_they_are(tiny):
    overlay = trained(tiny, "dora").train()
    before = {key: each.clone() for key, each in (*tiny.unet.state_dict().items(), *overlay.state_dict().items())}
    baked, _ = bake(tiny, [(overlay, 1.0)], **ONE)
    with torch.no_grad():
        for weight in (*baked.unet.parameters(), *baked.text.model.parameters()):
            weight.zero_()
    after = {**tiny.unet.state_dict(), **overlay.state_dict()}
    assert overlay.training
    assert all(torch.equal(after[key], each) for key, each in before.items())


def test_a_base_of_half_precision_is_rounded_once(tiny):
    half, overlay = velatura.tiny(dtype="bfloat16"), trained(tiny, "lora")
    baked, _ = bake(half, [(overlay, 0.3), (overlay, 0.3)], **ONE)
    names = kohya_names(Target.from_model(half))
    for own, delta in overlay.layers.items():
        weight = Target.from_model(half).layer(names[own]).weight
        change = delta.weight_delta(weight, 0.3)
        wanted = (weight.float() + change + change).bfloat16()
        assert torch.equal(Target.from_model(baked).layer(names[own]).weight, wanted)


def test_a_bias_and_a_norm_are_changed_too(tiny):
    place = Target.from_model(tiny)
    names = [own for own, name in kohya_names(place).items() if place.layer(name).bias is not None][:40]
    tensors: dict[str, torch.Tensor] = {}
    for own in names:
        layer = place.layer(kohya_names(place)[own])
        kinds = ("w_norm", "b_norm") if isinstance(layer, nn.GroupNorm | nn.LayerNorm) else ("diff", "diff_b")
        tensors |= {f"{own}.{kinds[0]}": torch.full_like(layer.weight, 0.01)}
        tensors |= {f"{own}.{kinds[1]}": torch.full_like(layer.bias, 0.01)}
    overlay = velatura.Lora.from_tensors(tensors)
    wanted = attached(tiny, (overlay, 0.5))
    assert off(prediction(bake(tiny, [(overlay, 0.5)], **ONE)[0]), wanted) < 1e-5


def test_layers_that_the_base_lacks_are_warned_of(tiny):
    overlay = trained(tiny, "lora")
    tensors = {f"lora_unet_no_such_layer.{each}": torch.zeros(4, 4) for each in ("lora_up.weight", "lora_down.weight")}
    more = velatura.Lora.from_tensors({**overlay.state_dict(), **tensors})
    with pytest.warns(VelaturaWarning, match="1 layers"):
        _, report = bake(tiny, [(more, 1.0)], **ONE)
    assert report.added[0].layers == len(overlay.layers)


def test_what_is_no_change_of_weights_is_refused_by_name(tiny, embedding, aesthetic):
    for overlay, said in ((embedding(), "is a word"), (aesthetic(), "anew for each prompt")):
        with pytest.raises(BadOverlay, match=f"cannot be baked: it .*{said}|cannot be baked: it turns"):
            bake(tiny, [(overlay, 1.0)])


def test_an_overlay_for_another_base_is_refused(tiny, xl, lora):
    with pytest.raises(WrongBase):
        bake(xl, [(lora(), 1.0)])
    tensors = {f"lora_unet_conv_in.{each}": torch.zeros(9, 9) for each in ("lora_up.weight", "lora_down.weight")}
    with pytest.raises(WrongBase, match="fits no weight"):
        bake(tiny, [(velatura.Lora.from_tensors(tensors), 1.0)])


def test_strengths_of_nothing_and_of_many_are_refused(tiny, lora):
    with pytest.raises(NoEffect):
        bake(tiny, [(lora(), velatura.Strength(0.0, 0.0))])
    with pytest.raises(BadOverlay, match="several strengths"):
        bake(tiny, [(lora(), torch.tensor([0.1, 0.2]))])


def test_embeddings_that_come_with_a_lora_are_said_to_be_left_behind(tiny):
    lora = trained(tiny, "lora")
    lora.bundled_embeddings = {"inked": {"emb_params": torch.ones(2, 96)}}
    with pytest.warns(VelaturaWarning, match=r"brings embeddings \(inked\), which no checkpoint holds: keep its file"):
        bake(tiny, [(lora, 0.5)], **ONE)
