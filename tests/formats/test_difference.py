"""Differences on disk."""

import pytest
import torch

import velatura
from velatura.errors import BadFile
from velatura.formats.native import CARD_KEY
from velatura.tensors import open_tensors, write_safetensors


def test_for_other_programs_it_is_a_lora_of_whole_differences(tiny, difference, tmp_path):
    made = difference()
    velatura.save(made, tmp_path / "odd.safetensors", dialect="kohya")
    contents = open_tensors(tmp_path / "odd.safetensors")
    assert "lora_unet_conv_in.diff" in contents.tensors
    again = velatura.open_overlay(tmp_path / "odd.safetensors")
    assert again.kind == "lora"
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))

    @torch.no_grad()
    def says(overlay):
        with velatura.attach(tiny, overlay, 0.8):
            return tiny.predict(latents, torch.tensor(500), tiny.text.encode(["a red house"]))

    torch.testing.assert_close(says(again), says(made), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "tensors",
    [
        {"lora_unet_conv_in.strange": torch.ones(2)},
        {"lora_unet_conv_in.diff": torch.ones(2, dtype=torch.int64)},
        {"lora_unet_conv_in.diff": torch.full((2, 2), torch.nan)},
        {"no_dots": torch.ones(2)},
        {},
    ],
    ids=["suffix", "whole numbers", "nan", "no suffix", "empty"],
)
def test_a_card_over_other_tensors_is_refused_in_a_line(tmp_path, tensors):
    card = velatura.Card(kind="difference")
    write_safetensors(tmp_path / "odd.safetensors", tensors, {CARD_KEY: card.model_dump_json()})
    with pytest.raises(BadFile, match="odd") as refused:
        velatura.open_overlay(tmp_path / "odd.safetensors")
    assert "\n" not in str(refused.value)
