"""OneTrainer's OFT_2, against its formula computed row by row.

OneTrainer rotates the input x of a Linear layer block by block, x R, with R = I + 2Q + 2Q^2 + 2Q^3 + Q^4. For a
convolution it multiplies each block of the flat weight by R. "Scaled" divides Q by the root of its number of elements.
"""

import math

import pytest
import torch
from torch import nn

from velatura.errors import BadOverlay
from velatura.formats.loras.read_peft import to_lycoris
from velatura.overlays.deltas import build_delta

BLOCK = 4
ELEMENTS = BLOCK * (BLOCK - 1) // 2


def rotation(numbers):
    """Build R from the numbers above the diagonal of Q, row by row."""
    q = torch.zeros(BLOCK, BLOCK)
    position = 0
    for row in range(BLOCK):
        for column in range(row + 1, BLOCK):
            q[row, column], q[column, row] = numbers[position], -numbers[position]
            position += 1
    q2 = q @ q
    return torch.eye(BLOCK) + 2 * q + 2 * q2 + 2 * q2 @ q + q2 @ q2


def expected_output(layer, inputs, upper, scaled):
    """Compute the output of a trained layer as OneTrainer's trainer does."""
    numbers = upper / math.sqrt(ELEMENTS) if scaled else upper
    width = layer.weight[0].numel()
    blocks = [rotation(numbers[index if len(numbers) > 1 else 0]) for index in range(width // BLOCK)]
    whole = torch.block_diag(*blocks)
    if isinstance(layer, nn.Linear):
        return layer(inputs @ whole)
    weight = (layer.weight.flatten(1) @ whole).view(layer.weight.shape)
    return nn.functional.conv2d(inputs, weight, layer.bias, layer.stride, layer.padding)


def make_layer(kind):
    torch.manual_seed(2)
    if kind == "linear":
        return nn.Linear(12, 10), torch.randn(3, 12)
    kernel = 1 if kind == "conv 1x1" else 3
    return nn.Conv2d(8, 6, kernel, stride=2, padding=1), torch.randn(2, 8, 5, 5)


def apply(delta, layer, inputs, strength=1.0):
    output = layer(inputs)
    operands = delta.prepare_operands(layer, inputs.dtype)
    return output + delta.output_delta(layer, inputs, output, torch.tensor(strength), operands)


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv 1x1", "conv 3x3"])
def test_a_layer_computes_what_onetrainer_does(kind, scaled, shared):
    layer, inputs = make_layer(kind)
    upper = 0.2 * torch.randn(1 if shared else layer.weight[0].numel() // BLOCK, ELEMENTS)
    tensors = {"oft_R.weight": upper} | ({"oft_R.scaled_oft": torch.tensor(1)} if scaled else {})
    delta = build_delta(to_lycoris(tensors, None))
    assert torch.allclose(apply(delta, layer, inputs), expected_output(layer, inputs, upper, scaled), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "conv 3x3"])
def test_magnitudes_multiply_rows_by_their_share_of_the_first_norms(kind):
    layer, inputs = make_layer(kind)
    bias = layer.bias if kind == "linear" else layer.bias.view(-1, 1, 1)
    rows = (-1, *[1] * (layer.weight.ndim - 1))
    upper = 0.2 * torch.randn(layer.weight[0].numel() // BLOCK, ELEMENTS)
    share = torch.linspace(0.5, 2, len(layer.weight))
    norms = torch.linspace(1, 3, len(layer.weight))
    forms = (
        {"dora_scale": (share * norms).view(rows), "initial_norm": norms.view(rows)},
        {"dora_scale": (share * layer.weight.flatten(1).norm(dim=1)).view(rows)},
        {"dora_multiplier": share},
    )
    rotated = expected_output(layer, inputs, upper, scaled=False) - bias
    wanted = rotated * (share if kind == "linear" else share.view(-1, 1, 1)) + bias
    for form in forms:
        delta = build_delta({"oft_R.weight": upper, **form})
        assert torch.allclose(apply(delta, layer, inputs), wanted, atol=1e-4)


@torch.no_grad()
def test_half_a_strength_is_half_of_the_change():
    layer, inputs = make_layer("conv 3x3")
    upper = 0.2 * torch.randn(18, ELEMENTS)
    delta = build_delta({"oft_R.weight": upper})
    whole = expected_output(layer, inputs, upper, scaled=False) - layer(inputs)
    assert torch.allclose(apply(delta, layer, inputs, 0.5) - layer(inputs), whole / 2, atol=1e-5)


@pytest.mark.parametrize(
    "tensors",
    [
        {"oft_R.weight": (3, 5)},  # 5 is not n (n - 1) / 2
        {"oft_R.weight": (3, 6), "rescale": (10, 1)},
        {"oft_R.weight": (3, 6), "initial_norm": (9, 1), "dora_scale": (10, 1)},
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(tensors):
    with pytest.raises(BadOverlay):
        build_delta({name: torch.ones(shape) for name, shape in tensors.items()})
