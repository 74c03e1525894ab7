import json
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel

import velatura
from velatura.errors import BadFile, UnknownName
from velatura.tensors import open_tensors, sha256
from velatura.tiny import DATA

TINY = DATA / "tiny"


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(TINY, tmp_path / "copy")


def test_the_unet_says_what_diffusers_own_loading_says(tiny):
    theirs = UNet2DConditionModel.from_pretrained(TINY / "unet", torch_dtype=torch.float32)
    latents, context = torch.randn(2, 4, 16, 16), torch.randn(2, 77, 96)
    with torch.no_grad():
        ours = tiny.predict(latents, torch.tensor([3, 900]), context)
        torch.testing.assert_close(ours, theirs(latents, torch.tensor([3, 900]), context).sample, rtol=1e-4, atol=1e-4)


def test_the_text_tower_says_what_transformers_own_loading_says(tiny):
    theirs = CLIPTextModel.from_pretrained(TINY / "text_encoder", dtype=torch.float32)
    ids = torch.randint(0, 500, (2, 77))
    with torch.no_grad():
        torch.testing.assert_close(tiny.text.encode_ids(ids), theirs(ids).last_hidden_state)


def test_tensors_are_those_of_the_file(tiny):
    file = open_tensors(TINY / "unet" / "diffusion_pytorch_model.safetensors").tensors
    loaded = tiny.unet.state_dict()
    assert loaded.keys() == file.keys()
    assert all(torch.equal(loaded[key], each.float()) for key, each in file.items())


def test_the_hash_is_that_of_the_unets_file(tiny):
    assert tiny.hash == sha256(TINY / "unet" / "diffusion_pytorch_model.safetensors")[:10]


def test_precision_can_be_chosen():
    base = velatura.open_base(TINY, dtype="bfloat16", device="cpu")
    assert base.dtype == torch.bfloat16
    latents = torch.randn(1, 4, 16, 16)
    assert base.predict(latents, torch.tensor(5), base.text.encode(["a tree"])).dtype == torch.float32
    with pytest.raises(UnknownName, match="did you mean 'float16'"):
        velatura.open_base(TINY, dtype="floot16")
    with pytest.raises(UnknownName, match="device"):
        velatura.open_base(TINY, device="gpu")


def test_a_folder_cut_short_names_what_is_wrong(copy):
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadFile, match="damaged safetensors file"):
        velatura.open_base(copy)
    weights.unlink()
    with pytest.raises(BadFile, match=r"holds no \.safetensors"):
        velatura.open_base(copy)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_config_is_refused(copy, content):
    (copy / "unet" / "config.json").write_text(content)
    with pytest.raises(BadFile, match=r"config\.json|without 'block_out_channels'"):
        velatura.open_base(copy)


def test_a_config_of_another_model_is_refused(copy):
    path = copy / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cross_attention_dim": 48}))
    with pytest.raises(BadFile, match="belongs to another model"):
        velatura.open_base(copy)
