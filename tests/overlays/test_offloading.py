"""Pipelines whose weights come to the device only when they are needed, by accelerate's hooks.

Here that device is the CPU too; that an overlay goes to another one is seen on one that knows shapes only.
"""

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import nn

import velatura
from velatura.errors import UnsupportedBase
from velatura.overlays.composition import Composition, Leaf, Series

STRENGTH = 0.7


@pytest.fixture
def pipeline():
    base = velatura.tiny()
    made = StableDiffusionPipeline(
        unet=base.unet,
        vae=base.vae,
        text_encoder=base.text.model,
        tokenizer=base.text.tokenizer,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def strong(overlay):
    for weight in overlay.parameters():
        nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(1))
    return overlay


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("linear", "loha")]


@pytest.fixture(params=["relu", "composed", "lora", "difference", *SLOW])
def overlay(request, hyper, lora, difference):
    if request.param == "difference":
        return difference(text=False)
    if request.param in {"lora", "loha"}:
        return lora(algorithm=request.param, text=False)
    made = strong(hyper(activation="linear" if request.param == "linear" else "relu"))
    return Composition(Series((Leaf("a", 0.5), Leaf("a"))), {"a": made}) if request.param == "composed" else made


def painted(pipeline):
    return pipeline(
        "a red house",
        num_inference_steps=2,
        output_type="latent",
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(0),
    ).images


@pytest.fixture
def expected(pipeline, overlay):
    """What is painted without offloading, with the overlay and without."""
    off = painted(pipeline)
    with velatura.attach(pipeline, overlay, STRENGTH):
        return painted(pipeline), off


def offload_models(pipeline):
    pipeline.enable_model_cpu_offload(device="cpu")


def offload_layers(pipeline):
    """As enable_sequential_cpu_offload does it, which fails on the text encoder where the device is the CPU."""
    cpu_offload(pipeline.unet, torch.device("cpu"))


WAYS = [offload_models, offload_layers]


@pytest.mark.parametrize("way", WAYS)
def test_attached_to_what_is_offloaded(pipeline, overlay, expected, way):
    on, off = expected
    way(pipeline)
    with velatura.attach(pipeline, overlay, STRENGTH) as attachment:
        torch.testing.assert_close(painted(pipeline), on, rtol=1e-4, atol=1e-4)
        attachment.strength = 0
        assert torch.equal(painted(pipeline), off)
    assert torch.equal(painted(pipeline), off)


@pytest.mark.parametrize("way", WAYS)
def test_offloaded_while_attached(pipeline, overlay, expected, way):
    on, off = expected
    with velatura.attach(pipeline, overlay, STRENGTH):
        painted(pipeline)
        way(pipeline)
        torch.testing.assert_close(painted(pipeline), on, rtol=1e-4, atol=1e-4)
    assert torch.equal(painted(pipeline), off)
    remove_hook_from_module(pipeline.unet, recurse=True)
    assert torch.equal(painted(pipeline), off)


def test_a_unet_that_is_offloaded_by_hand(pipeline, overlay, expected):
    unet, hook = cpu_offload_with_hook(pipeline.unet, "cpu")
    with velatura.attach(unet, overlay, STRENGTH):
        on = painted(pipeline)
        hook.offload()
        assert torch.equal(painted(pipeline), on)
    torch.testing.assert_close(on, expected[0], rtol=1e-4, atol=1e-4)


def test_text_towers_that_are_offloaded(pipeline, lora):
    overlay = lora()
    with velatura.attach(pipeline, overlay, STRENGTH):
        on = painted(pipeline)
    offload_models(pipeline)
    with velatura.attach(pipeline, overlay, STRENGTH):
        torch.testing.assert_close(painted(pipeline), on, rtol=1e-4, atol=1e-4)


def test_changes_that_hang_on_weights_need_them_there(pipeline, lora):
    offload_layers(pipeline)
    with (
        pytest.raises(UnsupportedBase, match=r"call enable_model_cpu_offload\(\)"),
        velatura.attach(pipeline, lora(algorithm="dora")),
    ):
        painted(pipeline)


def test_an_overlay_goes_where_a_context_is(hyper):
    overlay = hyper(activation="relu")
    change = overlay.width_change(96, 0.5)
    change.move_to_device_of(torch.empty(2, 7, 96, device="meta"))
    pair = [*overlay.get_submodule("96_0").parameters(), *overlay.get_submodule("96_1").parameters()]
    assert all(tensor.is_meta for tensor in (*pair, change.strength.tensor))
    assert change.strength.number == 0.5
