"""Offloading, on a CPU that stands for the GPU as well: what comes to it when, and that nothing else changes."""

from copy import deepcopy

import pytest
import torch

import velatura
from velatura.errors import VelaturaWarning


@pytest.fixture
def made(xl):
    parts = {"unet": deepcopy(xl.unet), "vae": deepcopy(xl.vae), "text": xl.text.deep_copy()}
    return velatura.Base("copy", xl.family, schedule=xl.schedule, **parts)


@pytest.fixture
def offloaded(made):
    with pytest.warns(VelaturaWarning, match="offload saves nothing on a CPU"):
        return made.offload("cpu")


def paint(base, **fields):
    return velatura.generate(base, "a house", seed=1, steps=2, **fields).image.tobytes()


def test_an_offloaded_base_paints_the_same(xl, offloaded):
    assert offloaded.device == torch.device("cpu")
    assert paint(offloaded) == paint(xl) == paint(offloaded)


def test_only_the_part_that_computes_is_there(offloaded):
    stage, there = offloaded._offloader, []
    tower = offloaded.text.encoders[1].model.text_model
    models = {"unet": offloaded.unet.conv_in, "vae": offloaded.vae.decoder, "text": tower.final_layer_norm}
    hooks = [
        model.register_forward_pre_hook(lambda *_, name=name: there.append((name, stage.loaded_group)))
        for name, model in models.items()
    ]
    paint(offloaded)
    for hook in hooks:
        hook.remove()
    text, unet, vae = stage.groups
    present = {name: {id(part) for said, part in there if said == name} for name in models}
    assert present == {"text": {id(text)}, "unet": {id(unet)}, "vae": {id(vae)}}
    assert [name for name, _ in there] == ["text", "text", "unet", "unet", "vae"]


def test_nothing_but_the_models_forward_changes(xl, offloaded):
    assert offloaded.unet.state_dict().keys() == xl.unet.state_dict().keys()
    assert all(torch.equal(weight, xl.unet.state_dict()[key]) for key, weight in offloaded.unet.state_dict().items())


@pytest.mark.parametrize("guidance", [1, 5])
def test_overlays_lie_over_an_offloaded_base(xl, offloaded, guidance):
    overlay = velatura.Hypernetwork.for_base(xl, widths=[40, 64], init="xavier_normal", seed=1)
    plain = paint(offloaded, guidance=guidance)
    with velatura.attach(xl, overlay, 0.8):
        expected = paint(xl, guidance=guidance)
    with velatura.attach(offloaded, overlay, 0.8):
        assert paint(offloaded, guidance=guidance) == expected != plain
    assert paint(offloaded, guidance=guidance) == plain


def test_a_copy_of_a_model_is_a_plain_one(offloaded):
    before = offloaded._offloader.loaded_group
    copied = deepcopy(offloaded.unet)
    said = offloaded.text.conditioning(["a house"])
    offloaded._offloader.unload()
    told = {"text_embeds": said.pooled, "time_ids": torch.ones(1, 6)}
    copied(torch.ones(1, 4, 8, 8), torch.tensor(3), said.context, added_cond_kwargs=told)
    assert before is offloaded._offloader.loaded_group is None
    assert not offloaded._offloader.has_model(copied)


def test_moving_it_to_a_device_ends_it(xl, offloaded):
    offloaded.to("cpu")
    assert offloaded._offloader is None
    assert not hasattr(offloaded.unet, "_hf_hook")
    assert paint(offloaded) == paint(xl)
