"""LoRAs of two matrices for every layer, as sd-scripts write them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from velatura.base.families import FAMILIES
from velatura.errors import BadFile
from velatura.formats.checkpoints.ldm_keys import SD_LAYOUT, SDXL_LAYOUT
from velatura.formats.loras import write_kohya
from velatura.tensors import open_tensors

NAMES = Path(__file__).parents[2] / "data" / "names"
LAYOUTS = {"sd1": SD_LAYOUT, "sdxl": SDXL_LAYOUT}
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"


def pair(rank: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, rank, generator=generator), torch.randn(rank, 4, generator=generator)


@pytest.mark.parametrize("family", LAYOUTS)
def test_modules_have_the_names_of_kohyas_files(family):
    rows = [line.split() for line in (NAMES / f"{family}.txt").read_text().splitlines()]
    keys = write_kohya.module_keys(
        {diffusers: 0 for diffusers, _, _ in rows}, FAMILIES[family.upper()], LAYOUTS[family]
    )
    assert keys == {diffusers: kohya for diffusers, _, kohya in rows}


def test_the_file_adds_up_times_down(tmp_path):
    up, down = pair()
    write_kohya.write_low_rank(tmp_path / "one.safetensors", {LAYER: (up, down)}, FAMILIES["SD1"])
    tensors = load_file(tmp_path / "one.safetensors")
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k"
    assert tensors.keys() == {f"{key}.lora_up.weight", f"{key}.lora_down.weight", f"{key}.alpha"}
    scale = tensors[f"{key}.alpha"].item() / tensors[f"{key}.lora_down.weight"].shape[0]  # kohya's rule: alpha / rank
    product = scale * tensors[f"{key}.lora_up.weight"].float() @ tensors[f"{key}.lora_down.weight"].float()
    assert torch.allclose(product, up @ down, atol=2e-3)


def test_the_header_names_the_family(tmp_path):
    write_kohya.write_low_rank(tmp_path / "one.safetensors", {LAYER: pair(3)}, FAMILIES["SD2"], name="inca")
    metadata = open_tensors(tmp_path / "one.safetensors").metadata
    assert metadata["ss_network_module"] == "networks.lora"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("3", "3")
    assert (metadata["ss_v2"], metadata["ss_base_model_version"]) == ("True", "sd_v2_v")
    assert metadata["ss_output_name"] == "inca"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"


def test_layers_of_several_ranks_are_called_dynamic(tmp_path):
    pairs = {LAYER: pair(2), LAYER.replace("to_k", "to_v"): pair(3)}
    write_kohya.write_low_rank(tmp_path / "one.safetensors", pairs, FAMILIES["SD1"])
    assert open_tensors(tmp_path / "one.safetensors").metadata["ss_network_dim"] == "Dynamic"


def test_values_beyond_half_precision_are_refused(tmp_path):
    up, down = pair()
    with pytest.raises(BadFile, match="half precision"):
        write_kohya.write_low_rank(tmp_path / "one.safetensors", {LAYER: (up * 1e6, down)}, FAMILIES["SD1"])
    assert not list(tmp_path.iterdir())


def test_a_lora_of_no_layers_is_refused(tmp_path):
    with pytest.raises(BadFile, match="no layers"):
        write_kohya.write_low_rank(tmp_path / "one.safetensors", {}, FAMILIES["SD1"])
