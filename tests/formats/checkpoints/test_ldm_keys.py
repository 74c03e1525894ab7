"""The key table against diffusers' own conversion, and against full name lists made from the two programs' modules."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils

from tests.formats.checkpoints.states import same
from velatura.errors import BadFile
from velatura.formats.checkpoints.ldm_keys import (
    UNET_PREFIX,
    VAE_PREFIX,
    UNetLayout,
    rename_keys,
    unet_from_ldm,
    unet_to_ldm,
    vae_from_ldm,
    vae_to_ldm,
)
from velatura.formats.checkpoints.tensor_sources import apply_sources

NAMES = Path(__file__).parents[2] / "data" / "names"

CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")


def unet(attends: tuple[bool, ...], layers: int, **options: object) -> UNet2DConditionModel:
    """A UNet of a family's plan with few features, each tensor different."""
    torch.manual_seed(0)
    kinds = [CROSS if each else PLAIN for each in attends]
    return UNet2DConditionModel(
        block_out_channels=[8 * (1 + level) for level in range(len(attends))],
        down_block_types=[down for down, _ in kinds],
        up_block_types=[up for _, up in reversed(kinds)],
        layers_per_block=layers,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
        **options,
    )


UNETS = {
    "SD1": lambda: unet((True, True, True, False), 2),
    "SD2": lambda: unet((True, True, True, False), 2, use_linear_projection=True),
    "SDXL": lambda: unet(
        (False, True, True),
        2,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2, 3),
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32,
    ),
    "tiny": lambda: unet((True, True, False), 1),
}


def vae(levels: int, layers: int) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=[4 * (1 + level) for level in range(levels)],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        layers_per_block=layers,
        norm_num_groups=2,
    )


@pytest.mark.parametrize("family", UNETS)
def test_diffusers_reads_our_unet_names_back(family):
    model = UNETS[family]()
    state = model.state_dict()
    assert same(single_file_utils.convert_ldm_unet_checkpoint(unet_to_ldm(state), model.config), state)


@pytest.mark.parametrize("family", UNETS)
def test_unet_names_come_back(family):
    state = UNETS[family]().state_dict()
    written = unet_to_ldm(state)
    assert same(apply_sources(unet_from_ldm(written), written), state)


@pytest.mark.parametrize(("levels", "layers"), [(4, 2), (3, 1)])
def test_diffusers_reads_our_autoencoder_names_back(levels, layers):
    model = vae(levels, layers)
    state = model.state_dict()
    written = vae_to_ldm(state)
    assert same(single_file_utils.convert_ldm_vae_checkpoint(written, model.config), state)
    assert same(apply_sources(vae_from_ldm(written), written), state)


def test_attention_of_autoencoders_is_convolutions_in_checkpoints():
    written = vae_to_ldm(vae(3, 1).state_dict())
    assert written[f"{VAE_PREFIX}decoder.mid.attn_1.q.weight"].shape == (12, 12, 1, 1)


@pytest.mark.parametrize(("family", "attends"), [("sd1", (True, True, True, False)), ("sdxl", (False, True, True))])
def test_every_name_of_the_full_sized_models_is_known(family, attends):
    rows = [line.split() for line in (NAMES / f"{family}.txt").read_text().splitlines()]
    layout = UNetLayout(2, attends, tuple(reversed(attends)))
    assert rename_keys([ours for ours, _, _ in rows], layout.module_names()) == {
        ours: theirs for ours, theirs, _ in rows
    }


@pytest.mark.parametrize("family", UNETS)
def test_both_sides_show_the_same_layout(family):
    state = UNETS[family]().state_dict()
    there = [key.removeprefix(UNET_PREFIX) for key in unet_to_ldm(state)]
    assert UNetLayout.from_ldm(there) == UNetLayout.from_diffusers(state)


def test_a_tensor_of_another_model_is_refused():
    with pytest.raises(BadFile, match=r"double_blocks\.0\.img_attn"):
        unet_from_ldm([f"{UNET_PREFIX}double_blocks.0.img_attn"])
