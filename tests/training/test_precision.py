"""The base that is trained on is converted beside the one that was given, never in its place."""

import torch

import velatura
from velatura.training.precision import base_autocast, frozen_base, training_dtype


def looks(base):
    return [(weight.dtype, weight.stride(), weight.data_ptr()) for weight in base.unet.parameters()]


def test_another_precision_is_a_frozen_copy_with_channels_last(tiny):
    before = looks(tiny)
    frozen = frozen_base(tiny, "bfloat16")
    assert looks(tiny) == before
    assert (frozen.dtype, tiny.dtype) == (torch.bfloat16, torch.float32)
    assert frozen.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(weight.requires_grad for weight in frozen.unet.parameters())


def test_a_copy_predicts_what_the_base_does_but_for_rounding(tiny):
    chance = torch.Generator().manual_seed(4)
    latents, contexts = torch.randn(2, 4, 16, 16, generator=chance), torch.randn(2, 77, 96, generator=chance)
    timesteps, frozen = torch.tensor([5, 900]), frozen_base(tiny, "bfloat16")
    exact, rounded = (each.predict(latents, timesteps, contexts) for each in (tiny, frozen))
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.05)


def test_a_base_in_the_right_precision_is_trained_on_as_it_is(tiny):
    assert frozen_base(tiny, "float32") is tiny


def test_an_overlay_is_multiplied_in_half_and_kept_whole(tiny, hyper):
    overlay, context = hyper(activation="relu").train(), torch.randn(2, 5, 96, dtype=torch.bfloat16)
    with base_autocast(frozen_base(tiny, "bfloat16")):
        assert overlay.get_submodule("96_0.linear.0")(context).dtype == torch.bfloat16
    with base_autocast(tiny):
        assert overlay.get_submodule("96_0.linear.0")(context.float()).dtype == torch.float32
    assert next(overlay.parameters()).dtype == torch.float32


def test_auto_is_a_precision_that_the_machine_has(tiny):
    assert training_dtype(tiny.device) in {torch.float32, torch.bfloat16}
    assert frozen_base(tiny, "auto").dtype == training_dtype(tiny.device)


def test_a_base_and_an_overlay_made_in_inference_mode_learn_all_the_same(photos, tmp_path):
    plan = velatura.Plan(steps=2, batch_size=1, pixels=16, precision="float32", validation_pictures=0)
    with torch.inference_mode():
        base = velatura.tiny()
        overlay = velatura.Hypernetwork.for_base(base, seed=1, name="inca")
        velatura.save(overlay, tmp_path / "inca.safetensors")
        opened = velatura.open_overlay(tmp_path / "inca.safetensors")
        before = [weight.clone() for weight in opened.parameters()]
        run = velatura.train(base, opened, photos, plan, out=tmp_path / "run")
    assert run.overlay is opened
    assert not all(map(torch.equal, before, opened.parameters()))
