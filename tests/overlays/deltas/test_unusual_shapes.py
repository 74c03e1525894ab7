"""Tensors in shapes that only some programs write: the same numbers give the same change of the weight."""

import itertools

import pytest
import torch
from torch import nn

from velatura.errors import BadOverlay
from velatura.overlays.deltas import build_delta

KERNELS = {"linear": (), "1x1": (1, 1), "3x3": (3, 3)}
RANK = 2


def draw(*shape):
    return 0.3 * torch.randn(*shape)


def flat(tensor):
    return tensor.reshape(len(tensor), -1)


def make_layer(kernel):
    layer = nn.Conv2d(6, 8, kernel, padding=kernel[0] // 2) if kernel else nn.Linear(6, 8)
    return layer, draw(2, 6, 5, 5) if kernel else draw(3, 6)


def loha(kernel):
    """OneTrainer's factors of a convolution are weights of convolutions: (out, rank, 1, 1) and (rank, in, h, w)."""
    a = [draw(8, RANK, *[1] * len(kernel)) for _ in range(2)]
    b = [draw(RANK, 6, *kernel) for _ in range(2)]
    tensors = {"hada_w1_a": a[0], "hada_w1_b": b[0], "hada_w2_a": a[1], "hada_w2_b": b[1]}
    return tensors, (flat(a[0]) @ flat(b[0])) * (flat(a[1]) @ flat(b[1]))


def loha_with_cores(kernel):
    a, b, cores = ([draw(RANK, 8, 1, 1) for _ in "12"], [draw(RANK, 6, 1, 1) for _ in "12"], [])
    sides = []
    for side in range(2):
        core = draw(RANK, RANK, *kernel or (1, 1))
        cores.append(core)
        whole = torch.zeros(8, 6, *core.shape[2:])
        for first in range(RANK):
            for second in range(RANK):
                outer = torch.outer(a[side][first].flatten(), b[side][second].flatten())
                whole += outer[..., None, None] * core[first, second]
        sides.append(whole)
    tensors = {"hada_t1": cores[0], "hada_t2": cores[1], "hada_w1_a": a[0], "hada_w2_a": a[1]}
    return {**tensors, "hada_w1_b": b[0], "hada_w2_b": b[1]}, flat(sides[0] * sides[1])


def lokr(kernel):
    """w1 as the weight of a 1x1 convolution; the factors of w2 as weights of convolutions."""
    w1, a, b = draw(2, 3, 1, 1), draw(4, RANK, 1, 1), draw(RANK, 2, *kernel)
    w2 = (flat(a) @ flat(b)).view(4, 2, *kernel)
    whole = torch.zeros(8, 6, *kernel)
    for row in range(2):
        for column in range(3):
            whole[4 * row : 4 * row + 4, 2 * column : 2 * column + 2] = w1[row, column].item() * w2
    return {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b}, flat(whole)


def tucker_lora(kernel):
    up, down, core = draw(8, RANK), draw(RANK, 6), draw(RANK, RANK, *kernel or (1, 1))
    whole = torch.zeros(8, 6, *core.shape[2:])
    for first in range(RANK):
        for second in range(RANK):
            whole += torch.outer(up[:, first], down[second])[..., None, None] * core[first, second]
    return {"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": core}, flat(whole)


def matrix_tucker_lora(kernel):
    """The core of a 1x1 kernel as a plain matrix."""
    up, down, core = draw(8, RANK), draw(RANK, 6), draw(RANK, RANK)
    return {"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": core}, up @ core @ down


def flat_lora(kernel):
    """A convolution's matrices without the dimensions of the kernel."""
    up, down = draw(8, RANK), draw(RANK, 6, *kernel).flatten(1)
    return {"lora_up.weight": up, "lora_down.weight": down}, up @ down


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "kernel"),
    [
        *itertools.product([loha, loha_with_cores, lokr, tucker_lora, flat_lora], KERNELS),
        *itertools.product([matrix_tucker_lora], ["linear", "1x1"]),
    ],
)
def test_unusual_shapes_change_a_layer_as_their_formula_says(make, kernel):
    torch.manual_seed(3)
    kernel = KERNELS[kernel]
    layer, inputs = make_layer(kernel)
    tensors, change = make(kernel)
    delta = build_delta({**tensors, "alpha": torch.tensor(1.0)})
    change = change.view(layer.weight.shape) / RANK
    assert torch.allclose(delta.weight_delta(layer.weight), change, atol=1e-6)
    output = layer(inputs)
    computed = delta.output_delta(
        layer, inputs, output, torch.tensor(1.0), delta.prepare_operands(layer, torch.float32)
    )
    expected = nn.functional.conv2d(inputs, change, padding=layer.padding) if kernel else inputs @ change.T
    assert torch.allclose(computed, expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("shape", ["rows", "flat rows", "rows behind a 1", "columns", "flat columns"])
def test_magnitudes_are_of_rows_or_columns_by_their_shape(shape, kernel):
    torch.manual_seed(4)
    layer, inputs = make_layer(kernel)
    up, down, ones = draw(8, RANK), draw(RANK, 6, *kernel), [1] * len(kernel)
    tensors, change = {"lora_up.weight": up, "lora_down.weight": down}, up @ flat(down)
    changed = layer.weight + change.view(layer.weight.shape)
    rows = "rows" in shape
    magnitude = 1 + torch.rand(8 if rows else 6)
    forms = {
        "rows": (8, 1, *ones),
        "flat rows": (8,),
        "rows behind a 1": (1, 8, *ones),
        "columns": (1, 6, *ones),
        "flat columns": (6,),
    }
    wanted = torch.empty_like(changed)
    for index in range(len(magnitude)):
        part = changed[index] if rows else changed[:, index]
        target = wanted[index] if rows else wanted[:, index]
        target.copy_(part * magnitude[index] / part.square().sum().sqrt())
    delta = build_delta({**tensors, "dora_scale": magnitude.view(forms[shape])})
    assert torch.allclose(layer.weight + delta.weight_delta(layer.weight), wanted, atol=1e-5)
    operands = delta.prepare_operands(layer, torch.float32)
    output = layer(inputs)
    result = output + delta.output_delta(layer, inputs, output, torch.tensor(1.0), operands)
    layer.weight.copy_(wanted)
    assert torch.allclose(result, layer(inputs), atol=1e-4)


@pytest.mark.parametrize(("out", "width", "rank"), [(8, 6, 2), (6, 6, 2), (8, 3, 4), (3, 8, 4), (4, 8, 8)])
@pytest.mark.parametrize("is_old", [False, True])
def test_both_layouts_of_glora_are_known_by_their_shapes(out, width, rank, is_old):
    torch.manual_seed(5)
    head, tail, left, right = draw(width, rank), draw(rank, width), draw(out, rank), draw(rank, width)
    names = ("a2", "a1", "b2", "b1") if is_old else ("a1", "a2", "b1", "b2")
    delta = build_delta(
        {f"{name}.weight": factor for name, factor in zip(names, (head, tail, left, right), strict=True)}
    )
    weight = draw(out, width)
    assert torch.allclose(delta.weight_delta(weight), left @ right + weight @ head @ tail, atol=1e-5)


@pytest.mark.parametrize(
    "shapes",
    [
        {"diff": (8, 6), "diff_b": (6,)},
        {"lora_up.weight": (8, 2), "lora_down.weight": (2, 6), "diff_b": (6,)},
        {"w_norm": (8,), "b_norm": (6,)},
    ],
)
def test_a_bias_of_another_length_is_refused(shapes):
    with pytest.raises(BadOverlay, match="do not fit each other"):
        build_delta({name: torch.ones(shape) for name, shape in shapes.items()})


def test_factors_of_the_wrong_side_do_not_fit():
    factors = {"weight": torch.ones(8), "on_input": torch.tensor(1.0)}
    assert not build_delta(factors).is_compatible(torch.ones(8, 6))
    assert build_delta(factors).is_compatible(torch.ones(6, 8))
