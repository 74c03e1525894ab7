"""LoRA files of OneTrainer: its own names and shapes, under kohya's and under diffusers' names of layers."""

import pytest
import torch
from safetensors.torch import save_file

import velatura
from velatura.errors import BadFile, VelaturaWarning

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
PROJECTION = "down_blocks.0.attentions.0.proj_in"
SMALL = 0.001  # so that the powers of Q beside the first do not matter


def layer_key(path, naming):
    return f"unet.{path}" if naming == "diffusers" else "lora_unet_" + path.replace(".", "_")


def open_file(folder, tensors):
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "style.safetensors")
    return velatura.open_overlay(folder / "style.safetensors")


@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
@pytest.mark.parametrize("flag", [None, torch.tensor(1), torch.tensor(True), torch.tensor(1.0)])
def test_rotations_turn_a_linear_layer_and_a_convolution_in_opposite_directions(tmp_path, naming, flag):
    """A block of two features has one number q: R = I + 2Q for small q, and Q = (0, q; -q, 0)."""
    tensors = {}
    for path in (QUERY, PROJECTION):
        key = layer_key(path, naming)
        tensors[f"{key}.oft_R.weight"] = torch.full((1, 3), SMALL) * torch.tensor([1.0, 0, 0])  # q between 1 and 2
        if flag is not None:
            tensors[f"{key}.oft_R.scaled_oft"] = flag.clone()
    linear, conv = (open_file(tmp_path, tensors).layers[layer_key(path, "kohya")] for path in (QUERY, PROJECTION))
    turn = 2 * SMALL / (1 if flag is None else 3**0.5)  # 3 numbers lie above the diagonal of a block of 3
    weight = torch.tensor([[1.0, 0, 0]])
    # x R with x = (1, 0, 0) is (1, 2q, 0), so the weight W R^T is (1, -2q, 0) and W R is (1, 2q, 0)
    assert torch.allclose(linear.weight_delta(weight), torch.tensor([[0.0, -turn, 0]]), atol=1e-5)
    assert torch.allclose(conv.weight_delta(weight.view(1, 3, 1, 1)).flatten(), torch.tensor([0.0, turn, 0]), atol=1e-5)


def test_rotations_are_the_same_after_they_are_saved(tmp_path):
    upper = 0.1 * torch.randn(2, 6)
    tensors = {"oft_R.weight": upper, "oft_R.scaled_oft": torch.tensor(1), "dora_scale": torch.rand(5, 1)}
    key = layer_key(QUERY, "kohya")
    lora = open_file(tmp_path, {f"{key}.{suffix}": tensor for suffix, tensor in tensors.items()})
    velatura.save(lora, tmp_path / "again.safetensors")
    again = velatura.open_overlay(tmp_path / "again.safetensors")
    weight = torch.randn(5, 8)
    assert torch.allclose(again.layers[key].weight_delta(weight), lora.layers[key].weight_delta(weight), atol=1e-6)


def test_a_convolution_of_a_loha_has_factors_of_four_dimensions(tmp_path):
    """OneTrainer's factors are weights of convolutions: up (out, rank, 1, 1) and down (rank, in, height, width)."""
    a, b = torch.randn(2, 8, 2, 1, 1), torch.randn(2, 2, 6, 3, 3)
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    key = "lora_unet_down_blocks_0_resnets_0_conv1"
    tensors = dict(zip((f"{key}.{name}" for name in names), (a[0], b[0], a[1], b[1]), strict=True))
    delta = open_file(tmp_path, {**tensors, f"{key}.alpha": torch.tensor(1.0)}).layers[key]
    products = [torch.einsum("or,riyx->oiyx", a[side].flatten(1), b[side]) for side in range(2)]
    assert torch.allclose(delta.weight_delta(torch.zeros(8, 6, 3, 3)), products[0] * products[1] / 2, atol=1e-5)


def test_rotations_under_pefts_names_are_pefts(tmp_path):
    """peft multiplies every weight by R^T, also a convolution's."""
    upper = torch.tensor([[SMALL, 0, 0]])
    with pytest.warns(VelaturaWarning, match=r"no adapter_config\.json"):
        lora = open_file(tmp_path, {f"base_model.model.{PROJECTION}.oft_R.weight": upper})
    delta = lora.layers[layer_key(PROJECTION, "kohya")]
    change = delta.weight_delta(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))
    assert torch.allclose(change.flatten(), torch.tensor([0.0, -2 * SMALL, 0]), atol=1e-5)


def test_a_scale_without_rotations_is_refused(tmp_path):
    tensors = {f"{layer_key(QUERY, 'kohya')}.oft_R.scaled_oft": torch.tensor(1)}
    with pytest.raises(BadFile):
        open_file(tmp_path, tensors)
