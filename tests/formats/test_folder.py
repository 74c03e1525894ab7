import hashlib
import json
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel

import velatura
from velatura.errors import BadFile, UnknownName, UnsupportedBase
from velatura.tensors import open_tensors
from velatura.tiny import DATA

TINY = DATA / "tiny"


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(TINY, tmp_path / "copy")


def hash_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:10]


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
        torch.testing.assert_close(tiny.text.towers[0].encode_ids(ids).hidden, theirs(ids).last_hidden_state)


def test_tensors_are_those_of_the_file(tiny):
    file = open_tensors(TINY / "unet" / "diffusion_pytorch_model.safetensors").tensors
    loaded = tiny.unet.state_dict()
    assert loaded.keys() == file.keys()
    assert all(torch.equal(loaded[key], each.float()) for key, each in file.items())


def test_the_hash_is_that_of_the_unets_file(tiny):
    assert tiny.hash == hash_of(TINY / "unet" / "diffusion_pytorch_model.safetensors")


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
    weights = weights_of(copy)
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadFile, match="cut short"):
        velatura.open_base(copy)
    weights.unlink()
    with pytest.raises(BadFile, match=r"holds neither diffusion_pytorch_model\.safetensors nor .* but no safetensors"):
        velatura.open_base(copy)


def weights_of(copy):
    return copy / "unet" / "diffusion_pytorch_model.safetensors"


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_weights_are_those_that_diffusers_takes(copy):
    weights = weights_of(copy)
    # diffusers' names of weights before averaging, and of half ones, which come first in the alphabet
    weights.with_suffix(".non_ema.safetensors").write_bytes(b"not read")
    weights.with_suffix(".fp16.safetensors").write_bytes(b"not read")
    assert velatura.open_base(copy).hash == hash_of(weights)
    weights.replace(weights.with_suffix(".fp16.safetensors"))
    assert velatura.open_base(copy).hash == hash_of(weights.with_suffix(".fp16.safetensors"))


def test_other_weights_are_not_taken_for_them(copy):
    weights_of(copy).rename(weights_of(copy).with_suffix(".non_ema.safetensors"))
    with pytest.raises(BadFile, match=r"but diffusion_pytorch_model\.non_ema\.safetensors"):
        velatura.open_base(copy)


def test_weights_in_shards_are_refused(copy):
    weights = weights_of(copy)
    weights.rename(weights.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    with pytest.raises(BadFile, match="in shards, not in one file"):
        velatura.open_base(copy)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"addition_embed_type": "text_time", "cross_attention_dim": 2048}, "is an SDXL"),
        ({"in_channels": 9}, "is a model for inpainting .9 channels, not 4."),
        ({"in_channels": 6}, "is a model for another purpose"),
        ({"class_embed_type": "projection"}, "reads more than a prompt"),
    ],
)
def test_models_of_other_kinds_are_refused_by_name(copy, changes, said):
    change(copy / "unet" / "config.json", **changes)
    with pytest.raises(UnsupportedBase, match=said):
        velatura.open_base(copy)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"beta_schedule": "linear"}, "schedule 'linear', not 'scaled_linear'"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"prediction_type": "sample"}, "predicts 'sample'"),
    ],
)
def test_noise_schedules_that_are_not_computed_are_refused(copy, changes, said):
    change(copy / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(UnsupportedBase, match=said):
        velatura.open_base(copy)


@pytest.mark.parametrize("key", ["beta_start", "beta_schedule", "num_train_timesteps"])
def test_a_scheduler_cut_short_is_refused(copy, key):
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({name: each for name, each in json.loads(path.read_text()).items() if name != key}))
    with pytest.raises(BadFile, match=f"without '{key}'"):
        velatura.open_base(copy)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_config_is_refused(copy, content):
    (copy / "unet" / "config.json").write_text(content)
    with pytest.raises(BadFile, match=r"config\.json|without 'block_out_channels'"):
        velatura.open_base(copy)


def test_a_config_of_another_model_is_refused(copy):
    change(copy / "unet" / "config.json", cross_attention_dim=48)
    with pytest.raises(BadFile, match="belongs to another model"):
        velatura.open_base(copy)
