import pytest
import torch

import velatura
from tests.merging.predictions import CALIBRATION_PROMPTS, predict_noise, predict_with, relative_difference
from velatura.errors import BadOverlay, NoEffect, UnsupportedBase
from velatura.merging.bake.bake import bake
from velatura.merging.bake.report import BakeReport
from velatura.overlays.overlay import Card, Overlay


@pytest.fixture(scope="module")
def plain(tiny) -> torch.Tensor:
    return predict_noise(tiny)


@pytest.mark.parametrize(
    "structure",
    [{"layers": (1, 2, 1)}, {"layers": (1, 1), "dropout": (0.0, 0.0)}, {"layers": (1, 2, 1), "dropout": 0.3}],
)
def test_a_linear_hypernetwork_goes_into_weights_exactly(tiny, hyper, plain, structure):
    overlays = [(hyper(name="inca", **structure), 0.5)]
    baked, report = bake(tiny, overlays, prompts=CALIBRATION_PROMPTS, steps=1)
    assert relative_difference(predict_with(tiny, *overlays), plain) > 0.01  # it did do something
    assert relative_difference(predict_noise(baked), predict_with(tiny, *overlays)) < 1e-5
    assert report.is_exact
    assert report.output < 1e-5
    assert report.strengths == (("inca", 0.5),)


def test_several_go_into_weights_in_the_order_in_which_they_act(tiny, hyper):
    overlays = [(hyper(seed=1), 0.8), (hyper(seed=5, widths=(64, 96)), -0.6), (hyper(seed=1), 0.3)]
    baked, _ = bake(tiny, overlays, prompts=CALIBRATION_PROMPTS, steps=1)
    assert relative_difference(predict_noise(baked), predict_with(tiny, *overlays)) < 1e-5
    assert relative_difference(predict_noise(baked), predict_with(tiny, *overlays[::-1])) > 1e-4


def test_the_base_is_left_bit_identical(tiny, hyper, plain):
    before = {key: tensor.clone() for key, tensor in tiny.unet.state_dict().items()}
    overlay = hyper()
    baked, _ = bake(tiny, [(overlay.train(), 0.5)], prompts=CALIBRATION_PROMPTS, steps=1)
    assert overlay.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in tiny.unet.state_dict().items())
    assert torch.equal(predict_noise(tiny), plain)
    with torch.no_grad():
        for part in (baked.unet, baked.vae, baked.text.model):
            next(part.parameters()).zero_()
    assert torch.equal(predict_noise(tiny), plain)


def test_only_layers_that_read_contexts_are_changed(tiny, hyper):
    baked, _ = bake(tiny, [(hyper(), 0.5)], prompts=CALIBRATION_PROMPTS, steps=1)
    ours, theirs = baked.unet.state_dict(), tiny.unet.state_dict()
    changed = {key for key in theirs if not torch.equal(ours[key], theirs[key])}
    ends = ("to_k.weight", "to_v.weight", "to_out.0.bias")
    assert changed == {key for key in theirs if key.endswith(ends) and ".transformer_blocks." in key}


def test_another_activation_is_fitted_and_its_error_reported(tiny, hyper, plain):
    overlays = [(hyper(activation="relu"), 0.5)]
    baked, report = bake(tiny, overlays, prompts=CALIBRATION_PROMPTS, steps=2)
    with_overlay = predict_with(tiny, *overlays)
    assert not report.is_exact
    assert {fit.width for fit in report.widths} == {64, 96, 128, 192}
    for fit in report.widths:
        assert 0 < fit.k < fit.k_missed < 1
        assert 0 < fit.v < fit.v_missed < 1
    assert 0 < report.output_missed < 0.5
    # measured here on a text, noise and step of our own
    assert relative_difference(predict_noise(baked), with_overlay) < 0.5 * relative_difference(plain, with_overlay)


@torch.no_grad()
def test_the_error_of_v_is_about_the_same_on_other_texts(tiny, hyper):
    overlay = hyper(activation="relu", widths=(96,))
    baked, report = bake(tiny, [(overlay, 1.0)], prompts=CALIBRATION_PROMPTS, steps=1)
    context = tiny.text.encode(["a dragon", "two people dancing"])
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    ours, theirs = (base.unet.get_submodule(layer) for base in (baked, tiny))
    shift = torch.linalg.solve(theirs.to_out[0].weight, ours.to_out[0].bias - theirs.to_out[0].bias)
    found = ours.to_v(context) + shift - theirs.to_v(context)
    wanted = theirs.to_v(overlay.transform(context)[1] - context)
    assert relative_difference(found, wanted) == pytest.approx(report.widths[0].v_missed, rel=0.5)


def test_widths_that_nothing_changes_stay_as_they_are(tiny, hyper):
    baked, report = bake(tiny, [(hyper(widths=(96,)), 0.5)], prompts=CALIBRATION_PROMPTS, steps=1)
    assert [fit.width for fit in report.widths] == [96]
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight"
    assert torch.equal(baked.unet.state_dict()[name], tiny.unet.state_dict()[name])


def test_a_report_is_printed_and_read_again(tiny, hyper):
    _, report = bake(
        tiny, [(hyper(name="inca", activation="mish", widths=(96, 64)), 0.5)], prompts=CALIBRATION_PROMPTS, steps=1
    )
    assert BakeReport.model_validate_json(report.model_dump_json()) == report
    lines = str(report).splitlines()
    assert lines[0] == "inca:0.5 on tiny"
    assert "  64: 3 layers, fitted, error of K " in str(report)
    assert "of the change lost" in lines[-2]
    assert lines[-1].strip() == "measured on 1 held-out prompt, 1 step each"


def test_progress_counts_the_steps(tiny, hyper):
    progress: list[tuple[int, int]] = []
    bake(
        tiny,
        [(hyper(activation="relu", widths=(96,)), 1)],
        prompts=CALIBRATION_PROMPTS,
        steps=2,
        on_step=lambda *counts: progress.append(counts),
    )
    assert progress == [(done, 6) for done in range(1, 7)]  # two prompts at once, then one, then one


def test_a_base_of_half_precision_stays_one(hyper):
    half = velatura.tiny(dtype="bfloat16")
    baked, report = bake(half, [(hyper(), 0.5)], prompts=CALIBRATION_PROMPTS, steps=1)
    assert baked.dtype == torch.bfloat16
    assert report.output < 2**-7  # of the order of bfloat16's own rounding, 2^-9


def test_nothing_to_bake_is_refused(tiny, hyper):
    with pytest.raises(NoEffect):
        bake(tiny, [])
    with pytest.raises(NoEffect):
        bake(tiny, [(hyper(), 0.0)])


def test_an_overlay_that_changes_no_weights_is_refused(tiny):
    class Other(Overlay):
        kind = "other"
        card = Card(kind="other")

    with pytest.raises(BadOverlay, match="other"):
        bake(tiny, [(Other(), 1.0)])


def test_a_base_with_overlays_on_it_is_refused(tiny, hyper):
    with velatura.attach(tiny, hyper(), 0.1), pytest.raises(UnsupportedBase, match="detach"):
        bake(tiny, [(hyper(), 0.5)])


def test_a_base_and_overlays_are_named_by_their_paths(tiny, lora, tmp_path):
    velatura.save(tiny, tmp_path / "base.safetensors")
    velatura.save(lora(), tmp_path / "ink.safetensors")
    overlay = velatura.open_overlay(tmp_path / "ink.safetensors")
    expected, _ = bake(tiny, [(overlay, 0.5)], prompts=CALIBRATION_PROMPTS, steps=1)
    path = tmp_path / "base.safetensors"
    baked, report = bake(str(path), [(tmp_path / "ink.safetensors", 0.5)], prompts=CALIBRATION_PROMPTS, steps=1)
    assert report.base == "base"
    assert relative_difference(predict_noise(baked), predict_noise(expected)) < 1e-6
