"""Changes of weights of random numbers, against LyCORIS' own functions and peft's layers."""

import pytest
import torch
from lycoris.functional import boft, diag_oft, locon, loha, lokr
from lycoris.functional.general import factorization
from peft import LoraConfig, get_peft_model
from torch import nn

from velatura.overlays.deltas import build_delta
from velatura.overlays.deltas.lokr import factor_dimension
from velatura.overlays.deltas.oft import BOFT

GAMMA = 0.25  # alpha 1 over rank 4
KERNELS = {"linear": (), "1x1": (1, 1), "3x3": (3, 3)}
ONE = {"alpha": torch.tensor(1.0)}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def close(found, wanted):
    torch.testing.assert_close(found, wanted.reshape(found.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_low_rank_changes_are_those_of_lycoris(kernel):
    down, up = torch.randn(4, 12, *kernel), torch.randn(20, 4, *[1] * len(kernel))
    delta = build_delta({"lora_down.weight": down, "lora_up.weight": up, **ONE})
    close(
        delta.weight_delta(torch.zeros(20, 12, *kernel)),
        locon.diff_weight(down, up, None, gamma=GAMMA, backend="torch"),
    )


def test_low_rank_cores_are_those_of_lycoris():
    down, up, core = torch.randn(4, 12, 1, 1), torch.randn(20, 4, 1, 1), torch.randn(4, 4, 3, 3)
    delta = build_delta({"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": core, **ONE})
    close(
        delta.weight_delta(torch.zeros(20, 12, 3, 3)), locon.diff_weight(down, up, core, gamma=GAMMA, backend="torch")
    )


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_hadamard_products_are_those_of_lycoris(kernel):
    weight = torch.zeros(20, 12, *kernel)
    a1, a2 = torch.randn(2, 20, 4)
    b1, b2 = torch.randn(2, 4, weight[0].numel())
    delta = build_delta({"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, **ONE})
    close(delta.weight_delta(weight), loha.diff_weight(b1, a1, b2, a2, None, None, gamma=GAMMA, backend="torch"))


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_kronecker_products_are_those_of_lycoris(kernel):
    weight = torch.zeros(20, 12, *kernel)
    w1, a, b = torch.randn(4, 3), torch.randn(5, 4), torch.randn(4, weight[0].numel() // 3)
    delta = build_delta({"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, **ONE})
    # what LyCORIS calls gamma here it divides by the rank itself
    wanted = lokr.diff_weight(w1, None, None, None, a, b, None, gamma=1.0, backend="torch")
    close(delta.weight_delta(weight), wanted)


@pytest.mark.parametrize("bound", [0.0, 0.001])
@pytest.mark.parametrize("rescaled", [False, True])
def test_rotations_are_those_of_lycoris(bound, rescaled):
    weight, blocks = torch.randn(20, 12, 3, 3), torch.randn(5, 4, 4)
    rescale = 1 + 0.1 * torch.randn(20, 1, 1, 1) if rescaled else None
    tensors = {"oft_blocks": blocks, "alpha": torch.tensor(bound)} | ({"rescale": rescale} if rescaled else {})
    wanted = diag_oft.diff_weight(weight, blocks, rescale, constraint=bound * 20, backend="torch")
    close(build_delta(tensors).weight_delta(weight), wanted)


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_butterflies_are_those_of_lycoris(size, strength):
    layer = nn.Linear(12, 32)
    shape = BOFT.for_layer(layer, rank=size).state_dict()["oft_blocks"].shape
    blocks = torch.randn(shape)
    delta = build_delta({"oft_blocks": blocks, "alpha": torch.tensor(0.0)})
    weight = layer.weight.detach()
    wanted = boft.diff_weight(weight, blocks, None, constraint=0, scale=strength, backend="torch")
    close(delta.weight_delta(weight, strength), wanted)


def test_all_sizes_factorise_as_in_lycoris():
    sizes, factors = [*range(1, 130), 320, 640, 768, 1024, 1280, 2048], (-1, 1, 2, 3, 4, 6, 8, 10, 16, 32)
    for size in sizes:
        for factor in factors:
            assert factor_dimension(size, factor) == factorization(size, factor)


@torch.no_grad()
@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize("with_magnitudes", [False, True])
@pytest.mark.parametrize("is_conv", [False, True])
def test_layers_compute_what_pefts_do(stabilised, with_magnitudes, is_conv):
    plain = nn.Conv2d(8, 12, 3, stride=2, padding=1) if is_conv else nn.Linear(8, 12)
    read = torch.randn(2, 8, 6, 6) if is_conv else torch.randn(2, 5, 8)
    made = plain(read)
    config = {"r": 4, "lora_alpha": 8, "use_rslora": stabilised, "use_dora": with_magnitudes}
    model = get_peft_model(nn.Sequential(plain), LoraConfig(target_modules=["0"], init_lora_weights=False, **config))
    layer = model.base_model.model[0]
    tensors = {
        "lora_down.weight": layer.lora_A["default"].weight,
        "lora_up.weight": layer.lora_B["default"].weight,
        "alpha": torch.tensor(16.0 if stabilised else 8.0),  # 8 over the root of 4 is 16 over 4
    }
    if with_magnitudes:
        wanted = layer.lora_magnitude_vector["default"].weight
        tensors["dora_scale"] = 1.3 * wanted.reshape(12, *[1] * (plain.weight.ndim - 1))
        wanted.mul_(1.3)
    delta = build_delta({name: tensor.detach().clone() for name, tensor in tensors.items()})
    added = delta.output_delta(plain, read, made, torch.tensor(1.0), delta.prepare_operands(plain, read.dtype))
    torch.testing.assert_close(made + added, model(read), rtol=1e-4, atol=1e-5)
