"""Offloading, with a CPU in place of the GPU: which group is on the device when, and that nothing else changes."""

from copy import deepcopy

import pytest
import torch

import velatura
from velatura.errors import VelaturaWarning


@pytest.fixture
def copied_base(xl):
    parts = {"unet": deepcopy(xl.unet), "vae": deepcopy(xl.vae), "text": xl.text.deep_copy()}
    return velatura.Base("copy", xl.family, schedule=xl.schedule, **parts)


@pytest.fixture
def offloaded(copied_base):
    with pytest.warns(VelaturaWarning, match="offload saves nothing on a CPU"):
        return copied_base.offload("cpu")


def generate(base, **fields):
    return velatura.generate(base, "a house", seed=1, steps=2, **fields).image.tobytes()


def test_an_offloaded_base_makes_the_same_picture(xl, offloaded):
    assert offloaded.device == torch.device("cpu")
    assert generate(offloaded) == generate(xl) == generate(offloaded)


def test_only_the_part_that_computes_is_on_the_device(offloaded):
    offloader, calls = offloaded._offloader, []
    text_model = offloaded.text.encoders[1].model.text_model
    models = {"unet": offloaded.unet.conv_in, "vae": offloaded.vae.decoder, "text": text_model.final_layer_norm}
    hooks = [
        model.register_forward_pre_hook(lambda *_, name=name: calls.append((name, offloader.loaded_group)))
        for name, model in models.items()
    ]
    generate(offloaded)
    for hook in hooks:
        hook.remove()
    text, unet, vae = offloader.groups
    present = {name: {id(group) for called, group in calls if called == name} for name in models}
    assert present == {"text": {id(text)}, "unet": {id(unet)}, "vae": {id(vae)}}
    assert [name for name, _ in calls] == ["text", "text", "unet", "unet", "vae"]


def test_nothing_but_the_models_forward_changes(xl, offloaded):
    assert offloaded.unet.state_dict().keys() == xl.unet.state_dict().keys()
    assert all(torch.equal(weight, xl.unet.state_dict()[key]) for key, weight in offloaded.unet.state_dict().items())


@pytest.mark.parametrize("guidance", [1, 5])
def test_overlays_act_on_an_offloaded_base(xl, offloaded, guidance):
    overlay = velatura.Hypernetwork.for_base(xl, widths=[40, 64], init="xavier_normal", seed=1)
    plain = generate(offloaded, guidance=guidance)
    with velatura.attach(xl, overlay, 0.8):
        expected = generate(xl, guidance=guidance)
    with velatura.attach(offloaded, overlay, 0.8):
        assert generate(offloaded, guidance=guidance) == expected != plain
    assert generate(offloaded, guidance=guidance) == plain


def test_a_copy_of_a_model_is_a_plain_one(offloaded):
    before = offloaded._offloader.loaded_group
    copied = deepcopy(offloaded.unet)
    cond = offloaded.text.conditioning(["a house"])
    offloaded._offloader.unload()
    added_cond = {"text_embeds": cond.pooled, "time_ids": torch.ones(1, 6)}
    copied(torch.ones(1, 4, 8, 8), torch.tensor(3), cond.context, added_cond_kwargs=added_cond)
    assert before is offloaded._offloader.loaded_group is None
    assert not offloaded._offloader.has_model(copied)


def test_moving_the_base_to_a_device_ends_offloading(xl, offloaded):
    offloaded.to("cpu")
    assert offloaded._offloader is None
    assert not hasattr(offloaded.unet, "_hf_hook")
    assert generate(offloaded) == generate(xl)
