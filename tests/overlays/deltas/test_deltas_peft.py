"""What peft alone has, against peft itself; and ComfyUI's biases, by hand."""

import peft
import pytest
import torch
from torch import nn

from velatura.formats.loras.peft_config import PeftConfig
from velatura.formats.loras.read_peft import to_lycoris
from velatura.overlays.deltas import build_delta


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, read):
        return self.layer(read)


def trained(layer, config):
    """What peft has for a layer after some training, and its tensors for that."""
    torch.manual_seed(0)
    model = peft.get_peft_model(Model(layer), config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    state = peft.get_peft_model_state_dict(model)
    return model, {key.removeprefix("base_model.model.layer."): tensor for key, tensor in state.items()}


@pytest.mark.parametrize("terms", [0, 1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("shared", [False, True])
def test_rotations_of_what_is_read_are_pefts(kind, terms, shared):
    series = {"use_cayley_neumann": bool(terms), "num_cayley_neumann_terms": max(1, terms)}
    config = peft.OFTConfig(target_modules=["layer"], oft_block_size=4, block_share=shared, **series)
    torch.manual_seed(1)
    layer = nn.Linear(12, 10) if kind == "linear" else nn.Conv2d(4, 6, 3, padding=1)
    weight = layer.weight.detach().clone()
    model, tensors = trained(layer, config)
    delta = build_delta(to_lycoris(tensors, PeftConfig.model_validate(series)))
    merged = model.merge_and_unload().layer.weight
    assert torch.allclose(weight + delta.weight_delta(weight), merged, atol=1e-5)


@pytest.mark.parametrize("of_columns", [False, True])
def test_factors_of_a_layer_with_a_bias_are_pefts(of_columns):
    torch.manual_seed(1)
    layer, read = nn.Linear(6, 5), torch.randn(3, 6)
    plain = nn.Linear(6, 5)
    plain.load_state_dict(layer.state_dict())
    config = peft.IA3Config(target_modules=["layer"], feedforward_modules=["layer"] if of_columns else [])
    model, tensors = trained(layer, config)
    delta = build_delta(to_lycoris(tensors, None))
    made = plain(read)
    expected = model(read)
    out = made + delta.output_delta(plain, read, made, torch.tensor(1.0), delta.prepare_operands(plain, read.dtype))
    assert torch.allclose(out, expected, atol=1e-5)
    bias = plain.bias + (0 if (change := delta.bias_delta(plain.bias)) is None else change)
    assert torch.allclose(
        nn.functional.linear(read, plain.weight + delta.weight_delta(plain.weight), bias), expected, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_lora_may_change_the_bias_too(kind):
    torch.manual_seed(0)
    layer = nn.Linear(6, 5) if kind == "linear" else nn.Conv2d(6, 5, 3, padding=1)
    read = torch.randn(2, 6) if kind == "linear" else torch.randn(2, 6, 4, 4)
    down = torch.randn(2, 6, *layer.weight.shape[2:])
    up = torch.randn(5, 2, *[1] * (layer.weight.ndim - 2))
    bias = torch.randn(5)
    delta = build_delta({"lora_down.weight": down, "lora_up.weight": up, "diff_b": bias})
    made = layer(read)
    out = made + delta.output_delta(layer, read, made, torch.tensor(0.5), delta.prepare_operands(layer, read.dtype))
    changed = type(layer)(*((6, 5) if kind == "linear" else (6, 5, 3)), **({} if kind == "linear" else {"padding": 1}))
    with torch.no_grad():
        changed.weight.copy_(layer.weight + 0.5 * (up.flatten(1) @ down.flatten(1)).view(layer.weight.shape))
        changed.bias.copy_(layer.bias + 0.5 * bias)
    assert torch.allclose(out, changed(read), atol=1e-5)
