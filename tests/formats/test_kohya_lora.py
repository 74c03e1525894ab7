from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from velatura.base.families import FAMILIES
from velatura.errors import BadFile
from velatura.formats.checkpoints.ldm_keys import SD_LAYOUT, SDXL_LAYOUT
from velatura.formats.loras import write_kohya as kohya_lora
from velatura.tensors import open_tensors

NAMES = Path(__file__).parents[1] / "data" / "names"
LAYOUTS = {"sd1": SD_LAYOUT, "sdxl": SDXL_LAYOUT}
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"


def pair(rank: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, rank, generator=generator), torch.randn(rank, 4, generator=generator)


@pytest.mark.parametrize("family", LAYOUTS)
def test_modules_are_called_as_in_kohyas_files(family):
    rows = [line.split() for line in (NAMES / f"{family}.txt").read_text().splitlines()]
    keys = kohya_lora.module_keys({ours: 0 for ours, _, _ in rows}, FAMILIES[family.upper()], LAYOUTS[family])
    assert keys == {ours: theirs for ours, _, theirs in rows}


def test_the_file_adds_up_times_down(tmp_path):
    up, down = pair()
    kohya_lora.write_low_rank(tmp_path / "one.safetensors", {LAYER: (up, down)}, FAMILIES["SD1"])
    held = load_file(tmp_path / "one.safetensors")
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k"
    assert held.keys() == {f"{key}.lora_up.weight", f"{key}.lora_down.weight", f"{key}.alpha"}
    scale = held[f"{key}.alpha"].item() / held[f"{key}.lora_down.weight"].shape[0]  # kohya's rule: alpha / rank
    product = scale * held[f"{key}.lora_up.weight"].float() @ held[f"{key}.lora_down.weight"].float()
    assert torch.allclose(product, up @ down, atol=2e-3)


def test_the_header_says_what_it_was_made_for(tmp_path):
    kohya_lora.write_low_rank(tmp_path / "one.safetensors", {LAYER: pair(3)}, FAMILIES["SD2"], name="inca")
    found = open_tensors(tmp_path / "one.safetensors").metadata
    assert found["ss_network_module"] == "networks.lora"
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("3", "3")
    assert (found["ss_v2"], found["ss_base_model_version"]) == ("True", "sd_v2_v")
    assert found["ss_output_name"] == "inca"
    assert found["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"


def test_layers_of_several_ranks_are_called_dynamic(tmp_path):
    pairs = {LAYER: pair(2), LAYER.replace("to_k", "to_v"): pair(3)}
    kohya_lora.write_low_rank(tmp_path / "one.safetensors", pairs, FAMILIES["SD1"])
    assert open_tensors(tmp_path / "one.safetensors").metadata["ss_network_dim"] == "Dynamic"


def test_what_half_precision_cannot_hold_is_refused(tmp_path):
    up, down = pair()
    with pytest.raises(BadFile, match="half precision"):
        kohya_lora.write_low_rank(tmp_path / "one.safetensors", {LAYER: (up * 1e6, down)}, FAMILIES["SD1"])
    assert not list(tmp_path.iterdir())


def test_a_lora_of_nothing_is_refused(tmp_path):
    with pytest.raises(BadFile, match="no layers"):
        kohya_lora.write_low_rank(tmp_path / "one.safetensors", {}, FAMILIES["SD1"])
