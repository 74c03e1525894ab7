"""T-LoRA against LyCORIS, which defines the format."""

from copy import deepcopy

import lycoris.modules.tlora as theirs
import pytest
import torch
from torch import nn

import velatura
from velatura.base.base import Base
from velatura.errors import BadOverlay, VelaturaWarning
from velatura.overlays.deltas import build_delta
from velatura.overlays.deltas.tlora import TLora, rank_mask
from velatura.overlays.hooks.output_hooks import DeltaChange, TimestepRecorder
from velatura.overlays.strength import LiveStrength
from velatura.overlays.target import Target
from velatura.tensors import write_safetensors

TIMESTEPS = (0, 1, 250, 500, 751, 999)
LAYERS = {"linear": lambda: nn.Linear(12, 16), "conv": lambda: nn.Conv2d(8, 16, 1)}
INPUTS = {"linear": (len(TIMESTEPS), 3, 12), "conv": (len(TIMESTEPS), 8, 4, 4)}


@pytest.fixture(autouse=True)
def without_mask():
    yield
    theirs.clear_timestep_mask()


def trained_module(layer, sig_type="principal", use_data_init=True):
    """LyCORIS' module for a layer, with weights as after a training."""
    module = theirs.TLoraModule(
        "lora", layer, lora_dim=4, alpha=2, sig_type=sig_type, use_data_init=use_data_init, bypass_mode=True
    )
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    return module


def delta_of(module):
    return build_delta({name: tensor.detach().clone() for name, tensor in module.custom_state_dict().items()})


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_ranks_act_by_the_same_schedule(rank):
    expected = torch.cat([theirs.compute_timestep_mask(timestep, 1000, rank) for timestep in TIMESTEPS])
    assert torch.equal(rank_mask(torch.tensor(TIMESTEPS), rank), expected)


@torch.no_grad()
@pytest.mark.parametrize("sig_type", ["principal", "last", "middle"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_changes_at_each_timestep_as_in_lycoris(kind, sig_type):
    torch.manual_seed(0)
    layer, inputs = LAYERS[kind](), torch.randn(INPUTS[kind])
    module = trained_module(layer, sig_type)
    delta, recorder = delta_of(module), TimestepRecorder()
    change = DeltaChange(delta, LiveStrength(0.7), 1.0, lambda _before, _after: None, recorder)
    base_output = layer(inputs)
    recorder.pre_hook(layer, (inputs, torch.tensor(TIMESTEPS)), {})
    found = change.add(layer, inputs, base_output, base_output) - base_output
    for row, timestep in enumerate(TIMESTEPS):
        theirs.set_timestep_mask(theirs.compute_timestep_mask(timestep, 1000, 4))
        expected = module.bypass_forward_diff(inputs[row : row + 1], scale=0.7)
        torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_weights_get_all_ranks():
    torch.manual_seed(0)
    layer = LAYERS["linear"]()
    module = trained_module(layer)
    expected, _ = module.get_diff_weight(0.5)
    delta = delta_of(module)
    torch.testing.assert_close(delta.weight_delta(layer.weight, 0.5), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deepcopy(delta).weight_delta(layer.weight, 0.5), expected, rtol=1e-4, atol=1e-5)


def test_a_file_that_began_with_random_vectors_is_refused():
    torch.manual_seed(0)
    layer = nn.Linear(128, 128)
    delta = delta_of(trained_module(layer, use_data_init=False))
    with pytest.raises(BadOverlay, match="trained on another base, or from random vectors"):
        delta.weight_delta(layer.weight)


def test_larger_convolutions_do_not_fit():
    delta = delta_of(trained_module(LAYERS["conv"]()))
    assert delta.is_compatible(torch.empty(16, 8, 1, 1))
    assert not delta.is_compatible(torch.empty(16, 8, 3, 3))


@pytest.fixture(scope="module")
def file(tiny, tmp_path_factory):
    """A file as LyCORIS writes it, for two layers of the tiny base."""
    target, tensors = Target.from_model(tiny), {}
    torch.manual_seed(0)
    for path in ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "up_blocks.1.attentions.0.proj_in"):
        module = trained_module(target.layer(f"unet.{path}"))
        for suffix, tensor in module.custom_state_dict().items():
            tensors[f"lora_unet_{path.replace('.', '_')}.{suffix}"] = tensor.detach().contiguous()
    path = tmp_path_factory.mktemp("tlora") / "robot.safetensors"
    write_safetensors(path, tensors, {})
    return path


@torch.no_grad()
def predict(base: Base, timestep: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    context = torch.randn(2, 77, base.text.width, generator=generator)
    return base.predict(latents, torch.tensor(timestep), context)


def test_a_file_opens_and_acts_by_the_timestep(tiny, file):
    lora = velatura.open_overlay(file)
    assert lora.card.outline == "tlora rank 4, 2 layers"
    assert all(isinstance(delta, TLora) for delta in lora.layers.values())
    plain = {timestep: predict(tiny, timestep) for timestep in (0, 999)}
    with velatura.attach(tiny, lora):
        changed = {timestep: predict(tiny, timestep) for timestep in (0, 999)}
    assert all(not torch.equal(plain[timestep], changed[timestep]) for timestep in plain)
    assert all(torch.equal(plain[timestep], predict(tiny, timestep)) for timestep in plain)
    baked, _ = bake(tiny, lora)
    torch.testing.assert_close(predict(baked, 0), changed[0], rtol=1e-3, atol=1e-4)  # where all ranks act
    assert not torch.allclose(predict(baked, 999), changed[999], rtol=1e-3, atol=1e-4)


def bake(base, lora):
    with pytest.warns(VelaturaWarning, match="baked weights have all ranks at all timesteps"):
        return velatura.bake(base, [(lora, 1.0)])
