"""LoRAs with layers beyond every model: CLIP L has 12 layers, OpenCLIP H 24, bigG 32, and a UNet four levels."""

import pytest
import torch
from safetensors.torch import save_file

import velatura
from velatura.errors import BadFile

QUERY = "attentions_0_transformer_blocks_0_attn1_to_q"
UNET_LAYER = f"lora_unet_down_blocks_0_{QUERY}"


def write_lora(path, *layers, width=32, metadata=None):
    tensors = {}
    for layer in layers:
        tensors[f"{layer}.alpha"] = torch.tensor(1.0)
        tensors[f"{layer}.lora_down.weight"] = torch.full((2, width), 0.1)
        tensors[f"{layer}.lora_up.weight"] = torch.full((width, 2), 0.1)
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    "layer",
    [
        f"lora_unet_down_blocks_4_{QUERY}",
        f"lora_unet_up_blocks_9_{QUERY}",
        f"lora_unet_up_blocks_99999999999999999999_{QUERY}",
        "lora_unet_down_blocks_0_attentions_2_proj_in",
        "lora_unet_up_blocks_1_attentions_3_proj_in",
        "lora_unet_mid_block_attentions_1_proj_in",
        "lora_unet_mid_block_resnets_2_conv1",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_10_attn1_to_q",
        "lora_unet_down_blocks_0_downsamplers_1_conv",
        "lora_unet_input_blocks_99_1_proj_in",
        "lora_unet_output_blocks_12_1_proj_in",
        "lora_unet_middle_block_3_proj_in",
        "unet.down_blocks.9.attentions.0.proj_in",
        "lora_te1_text_model_encoder_layers_12_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_32_self_attn_q_proj",
    ],
)
def test_a_layer_beyond_every_model_is_refused_beside_a_layer_that_exists(tmp_path, layer):
    with pytest.raises(BadFile, match=r"lora\.safetensors changes .* goes up to"):
        velatura.open_overlay(write_lora(tmp_path / "lora.safetensors", UNET_LAYER, layer))


@pytest.mark.parametrize(("width", "count"), [(768, 12), (1024, 24)])
def test_the_width_of_a_text_encoder_tells_how_many_layers_it_has(tmp_path, width, count):
    last, beyond = (f"lora_te_text_model_encoder_layers_{index}_self_attn_q_proj" for index in (count - 1, count))
    velatura.open_overlay(write_lora(tmp_path / "whole.safetensors", last, width=width))
    with pytest.raises(BadFile, match=f"goes up to {count - 1} .* not to {count}"):
        velatura.open_overlay(write_lora(tmp_path / "beyond.safetensors", last, beyond, width=width))


def test_metadata_tell_the_text_encoder_where_widths_do_not(tmp_path):
    layer = "lora_te_text_model_encoder_layers_12_self_attn_q_proj"
    with pytest.raises(BadFile, match="goes up to 11"):
        velatura.open_overlay(
            write_lora(tmp_path / "lora.safetensors", layer, metadata={"ss_base_model_version": "sd_v1"})
        )
    velatura.open_overlay(write_lora(tmp_path / "unknown.safetensors", layer))


@pytest.mark.parametrize(
    "layer",
    [
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn1_to_q",
        "lora_unet_mid_block_resnets_1_conv1",
        "lora_unet_down_blocks_1_attentions_1_transformer_blocks_9_attn1_to_q",
        "lora_unet_input_blocks_8_1_transformer_blocks_9_attn1_to_q",
        "lora_unet_output_blocks_11_1_proj_in",
        "lora_te2_text_model_encoder_layers_31_self_attn_q_proj",
    ],
)
@pytest.mark.filterwarnings("error")
def test_the_last_layers_of_every_model_are_read(tmp_path, layer):
    assert len(velatura.open_overlay(write_lora(tmp_path / "lora.safetensors", layer)).layers) == 1


@pytest.mark.parametrize("suffix", ["lora_up.weight", "lora_down.weight"])
def test_a_factor_of_three_dimensions_is_refused(tmp_path, suffix):
    path = write_lora(tmp_path / "lora.safetensors", UNET_LAYER)
    tensors = {key: tensor.clone() for key, tensor in velatura.tensors.open_tensors(path).tensors.items()}
    tensors[f"{UNET_LAYER}.{suffix}"] = tensors[f"{UNET_LAYER}.{suffix}"][..., None]
    save_file(tensors, path)
    with pytest.raises(BadFile, match=r"shape \(.*, 1\), which no layer's change has"):
        velatura.open_overlay(path)
