"""A copy of a model with an overlay on it is the plain model, as nothing could take the overlay off the copy."""

import io
import pickle
import warnings
from copy import copy, deepcopy
from types import SimpleNamespace

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

import velatura
from velatura.errors import VelaturaWarning

pytestmark = pytest.mark.filterwarnings("ignore:.*a copy of .* is made without it")


@pytest.fixture(params=["linear", "relu", "lora", "loha"])
def overlay(request, hyper, lora):
    if request.param in {"lora", "loha"}:
        return lora(algorithm=request.param, text=False)
    made = hyper(activation=request.param)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(1))
    return made


def predict(unet):
    generator = torch.Generator().manual_seed(3)
    latents, context = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 96, generator=generator)
    with torch.no_grad():
        return unet(latents, torch.tensor(500), context).sample


def pickled(unet):
    return pickle.loads(pickle.dumps(unet))


def saved(unet):
    file = io.BytesIO()
    torch.save(unet, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def names(model):
    """Every attribute of every part, and how many hooks hang there."""
    return {
        name: (sorted(vars(module)), len(module._forward_pre_hooks), len(module._forward_hooks))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("copied", [deepcopy, pickled, saved], ids=["deepcopy", "pickle", "torch.save"])
def test_a_copy_is_the_plain_model(tiny, overlay, copied):
    plain, off = names(tiny.unet), predict(tiny.unet)
    with velatura.attach(tiny, overlay, 0.7):
        on = predict(tiny.unet)
        copy = copied(tiny.unet)
        assert torch.equal(predict(copy), off)
        assert names(copy) == plain
        with velatura.attach(copy, overlay, 0.7):  # a model like any other
            torch.testing.assert_close(predict(copy), on)
        assert torch.equal(predict(copy), off)
        assert torch.equal(predict(tiny.unet), on)
    assert not torch.equal(on, off)
    assert names(tiny.unet) == plain
    assert torch.equal(predict(copied(tiny.unet)), off)


def test_a_copy_shares_no_weights(tiny, overlay):
    off = predict(tiny.unet)
    with velatura.attach(tiny, overlay, 0.7), torch.no_grad():
        for weight in deepcopy(tiny.unet).parameters():
            weight.zero_()
    assert torch.equal(predict(tiny.unet), off)


def test_what_others_hang_there_is_copied(tiny, overlay):
    projection = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    handle = projection.register_forward_pre_hook(torch.nn.Identity())
    with velatura.attach(tiny, overlay, 0.7):
        copy = deepcopy(tiny.unet)
    handle.remove()
    [theirs] = copy.mid_block.attentions[0].transformer_blocks[0].attn2.to_k._forward_pre_hooks.values()
    assert type(theirs) is torch.nn.Identity


def test_several_are_all_left_out(tiny, overlay):
    plain, off = names(tiny.unet), predict(tiny.unet)
    with velatura.attach(tiny, overlay, 0.7), velatura.attach(tiny, overlay, -0.2) as second:
        assert names(deepcopy(tiny.unet)) == plain
        second.detach()
        assert torch.equal(predict(deepcopy(tiny.unet)), off)


def test_a_forward_wrapped_around_ours_is_off_in_a_copy(tiny, overlay):
    """As accelerate wraps what it offloads."""
    unet = velatura.tiny().unet
    off = predict(unet)
    with velatura.attach(unet, overlay, 0.7):
        for module in unet.modules():
            if type(module) is nn.Linear:
                add_hook_to_module(module, ModelHook())
        assert torch.equal(predict(deepcopy(unet)), off)


@pytest.mark.parametrize("copied", [deepcopy, pickled, saved], ids=["deepcopy", "pickle", "torch.save"])
def test_a_copy_says_once_which_overlay_it_lacks_and_is_silent_after_detaching(tiny, hyper, copied):
    kept = hyper(name="inca", activation="relu")
    with velatura.attach(tiny, kept, 0.7), pytest.warns(VelaturaWarning) as warned:
        copied(tiny.unet)
    [warning] = warned
    assert "hypernetwork inca is attached to tiny, and a copy of its unet is made without it" in str(warning.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copied(tiny.unet)


def test_a_copy_of_a_base_or_a_pipeline_names_all_overlays_of_each_part(tiny, hyper, lora):
    pipeline = SimpleNamespace(unet=tiny.unet, text_encoder=tiny.text.encoders[0].model)
    parts = {name: set(vars(part)) for name, part in vars(pipeline).items()}
    for model, make_copy in ((tiny, deepcopy), (pipeline, deepcopy), (pipeline, pickled)):
        with (
            velatura.attach(model, hyper(name="inca"), 0.7),
            velatura.attach(model, lora(name="ink"), 0.7),
            pytest.warns(VelaturaWarning) as warned,
        ):
            make_copy(model)
        said = [str(warning.message) for warning in warned]
        assert [("inca" in line, "unet" in line) for line in said if "its unet" in line] == [
            (True, True),
            (False, True),
        ]
        assert ["ink" in line for line in said if "its text_encoder" in line] == [True]
    assert {name: set(vars(part)) for name, part in vars(pipeline).items()} == parts


def test_a_warning_of_a_copy_points_at_the_line_that_copies(tiny, hyper):
    with velatura.attach(tiny, hyper(name="inca"), 0.7), pytest.warns(VelaturaWarning) as warned:
        deepcopy(tiny.unet)
    assert [warning.filename for warning in warned] == [__file__]


@pytest.mark.parametrize("copied", [deepcopy, pickled, saved], ids=["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("part", ["mid_block", "mid_block.attentions.0.transformer_blocks.0.attn1", "down_blocks"])
def test_a_copy_of_a_part_alone_says_once_which_overlays_it_lacks(tiny, hyper, lora, copied, part):
    module = tiny.unet.get_submodule(part)
    before = {name: set(vars(inner)) for name, inner in tiny.unet.named_modules()}
    with velatura.attach(tiny, hyper(name="inca"), 0.7), velatura.attach(tiny, lora(name="ink"), 0.7):
        for _ in range(2):
            with pytest.warns(VelaturaWarning) as warned:
                copied(module)
            said = [str(warning.message) for warning in warned]
            assert ["inca" in line for line in said] == [True, False]
            assert all("a copy of a part of its unet is made without it" in line for line in said)
        with pytest.warns(VelaturaWarning) as warned:
            copied(tiny.unet)
        assert ["a copy of its unet" in str(warning.message) for warning in warned] == [True, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copied(module)
    assert {name: set(vars(inner)) for name, inner in tiny.unet.named_modules()} == before


def test_a_shallow_copy_of_a_layer_says_so_too(tiny, hyper):
    layer = next(layer for name, layer in tiny.unet.named_modules() if name.endswith("attn2.to_k"))
    with velatura.attach(tiny, hyper(name="inca"), 0.7), pytest.warns(VelaturaWarning, match="a part of its unet"):
        copy(layer)


def test_a_part_that_no_overlay_touches_is_copied_silently(tiny, hyper):
    with velatura.attach(tiny, hyper(name="inca"), 0.7), warnings.catch_warnings():
        warnings.simplefilter("error")
        deepcopy(tiny.unet.conv_in)
        deepcopy(tiny.unet.time_embedding)
