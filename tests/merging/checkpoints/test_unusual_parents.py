"""Parents of a merge in fp8, with broken position_ids, and with NaN."""

import pytest
import torch

import velatura
from velatura.errors import BadFile, UnsupportedBase, VelaturaWarning
from velatura.merging.checkpoints.merge import merge
from velatura.merging.lora.extract import extract
from velatura.tensors import open_tensors

WEIGHT = "model.diffusion_model.out.2.weight"
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


@pytest.mark.parametrize(
    "partner", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32]
)
@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_merges_with_any_partner(write, tmp_path, fp8, partner):
    """0.5 x 1.5 + 0.5 x 0.25 = 0.875, and 1.5, 0.25 and 0.875 are numbers that all these precisions hold exactly."""
    weight = open_tensors(write("plain")).tensors[WEIGHT]
    one = write("one", **{WEIGHT: torch.full(weight.shape, 1.5).to(fp8)})
    two = write("two", **{WEIGHT: torch.full(weight.shape, 0.25).to(partner)})
    for first, second in ((one, two), (two, one)):
        merge(first, second, 0.5, out=tmp_path / "out.safetensors")
        merged = open_tensors(tmp_path / "out.safetensors").tensors[WEIGHT]
        assert merged.dtype == {torch.bfloat16: torch.float32, torch.float32: torch.float32}.get(partner, torch.float16)
        assert torch.equal(merged.float(), torch.full(weight.shape, 0.875))


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
def test_scaled_fp8_is_refused_by_name(write, suffix):
    path = write("scaled", **{WEIGHT.replace("weight", suffix): torch.tensor(0.5)})
    for use in (velatura.open_base, lambda path: merge(path, write("plain"), 0.5)):
        with pytest.raises(UnsupportedBase, match=f"scaled fp8.*{suffix}"):
            use(path)


@pytest.mark.parametrize(
    "broken",
    [
        torch.arange(77)[None] % 61,
        torch.arange(77, dtype=torch.float16)[None] - 0.5,
        torch.arange(77).float()[None].to(torch.float8_e4m3fn),  # 17 becomes 16: three bits hold no more
    ],
)
def test_broken_positions_of_a_parent_are_mended(write, tmp_path, broken):
    with pytest.warns(VelaturaWarning, match="one has wrong numbers in .*position_ids.* numbered from 0 again"):
        merge(write("one", **{POSITIONS: broken}), write("two", 1.01), 0.5, out=tmp_path / "out.safetensors")
    found = open_tensors(tmp_path / "out.safetensors").tensors[POSITIONS]
    assert found.reshape(-1).tolist() == list(range(77))


def test_extract_names_the_file_and_the_tensor_with_nan(write):
    damaged = open_tensors(write("plain")).tensors[WEIGHT].clone()
    damaged.view(-1)[3] = float("nan")
    one, two = write("one"), write("two", 1.01, **{WEIGHT: damaged})
    for models in ((one, two), (two, one)):
        with pytest.raises(BadFile, match=rf"two\.safetensors has NaN or infinite values in {WEIGHT}"):
            extract(*models, 1)
    with pytest.raises(BadFile, match=f"{WEIGHT} gives NaN or infinite values: two is damaged there"):
        merge(one, two, 0.5)
