"""Attention of autoencoders, which the tiny base's lacks, is read under the names of every program."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from velatura.errors import BadFile
from velatura.formats.checkpoints import vae_file
from velatura.formats.checkpoints.ldm_keys import vae_to_ldm
from velatura.formats.checkpoints.tensor_sources import apply_sources
from velatura.tensors import Contents

# LDM's names of the projections, and those of diffusers since 0.15 and before (its AttentionBlock)
DIFFUSERS_PROJECTIONS = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OLD_DIFFUSERS_PROJECTIONS = {"norm": "norm", "q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}


@pytest.fixture(scope="module")
def state():
    """The weights of a small VAE with attention, under diffusers' names."""
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, up_block_types=("UpDecoderBlock2D",) * 2,
                         down_block_types=("DownEncoderBlock2D",) * 2).state_dict()  # fmt: skip


def rename_attention(tensors, projections, *, as_matrices):
    """Give the attention of LDM's tensors other names, as matrices or as 1 x 1 convolutions."""
    renamed = {}
    for key, tensor in tensors.items():
        start, mark, rest = key.partition(".attn_1.")
        name, _, ending = rest.rpartition(".")
        is_convolution = mark and tensor.ndim == 4
        renamed[f"{start}{mark}{projections[name]}.{ending}" if mark else key] = (
            tensor[:, :, 0, 0] if is_convolution and as_matrices else tensor
        )
    return renamed


@pytest.mark.parametrize("as_matrices", [True, False])
@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae.", "module.", ""])
@pytest.mark.parametrize("projections", [DIFFUSERS_PROJECTIONS, OLD_DIFFUSERS_PROJECTIONS])
def test_attention_is_read_under_every_programs_names(state, projections, prefix, as_matrices):
    bare = {key.removeprefix("first_stage_model."): tensor for key, tensor in vae_to_ldm(state).items()}
    assert sum(".attn_1." in key for key in bare) == 20  # encoder and decoder: norm, q, k, v, proj_out; weight and bias
    tensors = {
        prefix + key: value for key, value in rename_attention(bare, projections, as_matrices=as_matrices).items()
    }
    found = apply_sources(vae_file.sources(Contents(Path("forge.safetensors"), tensors)), tensors)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_one_tensor_under_two_names_is_refused(state):
    tensors = vae_to_ldm(state)
    place = "first_stage_model.encoder.mid.attn_1."
    tensors[f"{place}to_q.weight"] = tensors[f"{place}q.weight"]
    with pytest.raises(BadFile, match="name one tensor of a VAE twice"):
        vae_file.sources(Contents(Path("twice.safetensors"), tensors))
