"""A checkpoint of SD1.5's full size, with random weights: opened, used, saved and opened again."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import velatura
from velatura.base.families import FAMILIES
from velatura.formats.checkpoints.ldm_keys import unet_to_ldm, vae_to_ldm
from velatura.formats.checkpoints.ldm_text import clip_to_ldm
from velatura.tensors import open_tensors, write_safetensors

SD15_TENSORS = 686 + 248 + 196  # of UNet, autoencoder and text tower, as the published file has them without buffers


def random_state(model):
    """Values of a trained model's size, in bfloat16."""
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    return {key: torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02) for key, shape in shapes.items()}


def write_sd15(path):
    torch.manual_seed(0)
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=[128, 256, 512, 512],
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
        )
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    states = unet_to_ldm(random_state(unet)), vae_to_ldm(random_state(vae)), clip_to_ldm(random_state(text))
    write_safetensors(path, {key: tensor for state in states for key, tensor in state.items()})


@pytest.mark.slow
def test_an_sd15_of_full_size_opens_generates_and_is_saved_bit_for_bit(tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    write_sd15(first)
    base = velatura.open_base(first, dtype="bfloat16", device="cpu")
    assert base.family == FAMILIES["SD1"]
    assert sum(tensor.numel() for tensor in base.unet.parameters()) == 859_520_964  # the published count
    picture = velatura.generate(base, "a lighthouse", steps=1, width=64, height=64, seed=1)
    assert picture.image.size == (64, 64)
    velatura.save(base, second)
    before, after = open_tensors(first).tensors, open_tensors(second).tensors
    assert len(after) == SD15_TENSORS
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert "velatura.base" not in open_tensors(second).metadata
