"""Layers of zeros: usual where training does not reach them or weights leave them out, named where most are empty."""

import warnings

import pytest
import torch
from safetensors.torch import save_file

import velatura
from velatura.errors import VelaturaWarning

TEXT = "lora_te_text_model_encoder_layers_{}_self_attn_q_proj"
UNET = "lora_unet_down_blocks_{}_attentions_0_transformer_blocks_0_attn1_to_q"


def messages(path, layers, zeros, **others):
    """Write a LoRA whose up factors are zero in some layers, and return what opening it warns of."""
    tensors = {}
    for layer in layers:
        up = torch.zeros(8, 2) if layer in zeros else torch.full((8, 2), 0.1)
        tensors |= {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": torch.full((2, 8), 0.1)}
        tensors[f"{layer}.alpha"] = torch.tensor(2.0)
    save_file(tensors | others, path / "x.safetensors")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VelaturaWarning)
        velatura.open_overlay(path / "x.safetensors")
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("skipped_count", [1, 2, 12])
def test_text_layers_that_clip_skip_leaves_out_are_not_warned_of(tmp_path, skipped_count):
    text_layers = [TEXT.format(number) for number in range(12)]  # of CLIP ViT-L, whose last layers are skipped
    zeros = text_layers[len(text_layers) - skipped_count :]
    assert messages(tmp_path, [UNET.format(0), *text_layers], zeros) == []


def test_a_last_layer_of_each_text_encoder_may_be_empty(tmp_path):
    names = "lora_te{}_text_model_encoder_layers_{}_self_attn_q_proj"  # SDXL: towers of 12 and 32 layers
    layers = [names.format(*tower) for tower in ((1, 0), (1, 11), (2, 0), (2, 31))]
    assert messages(tmp_path, layers, [layers[1], layers[3]]) == []


def test_a_few_layers_of_zeros_are_not_warned_of(tmp_path):
    layers = [UNET.format(number) for number in range(3)]
    assert messages(tmp_path, layers, layers[:1]) == []


def test_layers_of_zeros_are_named_where_most_are_empty(tmp_path):
    layers = [UNET.format(number) for number in range(3)]
    [message] = messages(tmp_path, layers, layers[:2])
    assert "only zeros in lora_up.weight of 2 of 3 layers" in message
    assert message.endswith("these layers have no effect")


def test_a_magnitude_of_zeros_is_named_in_a_single_layer_too(tmp_path):
    layers = [UNET.format(number) for number in range(3)]
    scales = {f"{layer}.dora_scale": torch.ones(8, 1) * (layer != layers[0]) for layer in layers}
    [message] = messages(tmp_path, layers, [], **scales)
    assert "only zeros in dora_scale of 1 of 3 layers" in message


def test_layers_without_the_alpha_of_others_say_what_it_means(tmp_path):
    layers = [UNET.format(number) for number in range(3)]
    scales = {f"{layers[0]}.dora_scale": torch.ones(8, 1)}
    assert any("not changed in the same way as the others" in text for text in messages(tmp_path, layers, [], **scales))
