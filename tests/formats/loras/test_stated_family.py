"""Metadata that name another family than the layers are of: the tensors count where a LoRA is read, shown or saved."""

import pytest
import torch
from safetensors.torch import save_file

import velatura
from velatura.errors import VelaturaWarning
from velatura.formats.inspect.inspect import inspect_file
from velatura.tensors import open_tensors

SDXL_CLAIMS = [
    {"ss_base_model_version": "sdxl_base_v1-0"},
    {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
]
# Layers that an SDXL does not have: its first level has no attentions, its fourth level does not exist
SD_LAYERS = [
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q",
    "lora_unet_up_blocks_3_resnets_0_conv1",
]
TEXT_LAYER = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def pair(layer, rows=5, columns=6):
    return {
        f"{layer}.lora_down.weight": torch.randn(2, columns),
        f"{layer}.lora_up.weight": torch.randn(rows, 2),
        f"{layer}.alpha": torch.tensor(2.0),
    }


@pytest.mark.parametrize("claim", SDXL_CLAIMS)
@pytest.mark.parametrize("layer", SD_LAYERS)
def test_layers_of_an_sd1_are_not_for_sdxl_whatever_the_metadata_say(tmp_path, layer, claim):
    path = tmp_path / "x.safetensors"
    save_file(pair(layer) | pair(TEXT_LAYER), path, claim)
    with pytest.warns(VelaturaWarning, match=r"names another base in its metadata .* the tensors count"):
        lora = velatura.open_overlay(path)
    assert lora.card.family != "SDXL"
    assert TEXT_LAYER in lora.layers  # and not the first of two text encoders
    assert inspect_file(path).card.family != "SDXL"


def test_layers_of_an_sdxl_are_not_for_sd1_whatever_the_metadata_say(tmp_path):
    path = tmp_path / "x.safetensors"
    layer = "lora_unet_input_blocks_7_1_transformer_blocks_9_attn1_to_q"
    save_file(pair(layer), path, {"ss_base_model_version": "sd_v1"})
    with pytest.warns(VelaturaWarning, match="the tensors count"):
        lora = velatura.open_overlay(path)
    assert lora.card.family == inspect_file(path).card.family == "SDXL"


def test_a_family_that_the_layers_allow_is_that_of_the_metadata(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(pair(SD_LAYERS[0]), path, {"ss_v2": "True", "ss_base_model_version": "sd_v2"})
    assert velatura.open_overlay(path).card.family == inspect_file(path).card.family == "SD2"


@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")
def test_a_false_family_is_not_written_again(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(pair(SD_LAYERS[0]), path, {**SDXL_CLAIMS[0], **SDXL_CLAIMS[1], "ss_seed": "7"})
    velatura.save(velatura.open_overlay(path), tmp_path / "again.safetensors")
    metadata = open_tensors(tmp_path / "again.safetensors").metadata
    assert "sdxl" not in metadata.get("ss_base_model_version", "")
    assert "xl" not in metadata.get("modelspec.architecture", "")
    assert metadata["ss_seed"] == "7"
