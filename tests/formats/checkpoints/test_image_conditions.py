"""Inpainting and pix2pix models as files and folders: they open, come back, and open in diffusers."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import (
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    UNet2DConditionModel,
)

import velatura
from tests.conftest import widen
from tests.formats.checkpoints.states import all_tensors, same, weights
from velatura.errors import BadFile
from velatura.formats.checkpoints import prediction, single_file, write_single_file
from velatura.library import Library

KINDS = pytest.mark.parametrize("kind", ["inpainting", "pix2pix"])
CHANNELS = {"inpainting": 9, "pix2pix": 8}


@pytest.fixture
def base(request, kind):
    return request.getfixturevalue(kind)


@KINDS
@pytest.mark.parametrize("place", ["one.safetensors", "folder/"])
def test_it_comes_back_bit_for_bit(base, kind, place, tmp_path):
    velatura.save(base, f"{tmp_path}/{place}")
    again = velatura.open_base(f"{tmp_path}/{place}", dtype="float32", device="cpu")
    assert same(weights(again), weights(base))
    assert again.image_condition == kind
    assert again.family == base.family


@KINDS
def test_show_names_it(base, kind, tmp_path):
    velatura.save(base, tmp_path / "one.safetensors")
    velatura.save(base, tmp_path / "folder")
    for name in ("one", "folder"):
        assert kind in Library(tmp_path).entry(name).info.card.outline


@KINDS
@pytest.mark.parametrize("plain", ["tiny", "xl"])
def test_diffusers_opens_its_folder_as_a_pipeline_for_the_same_purpose(request, plain, kind, tmp_path):
    base = widen(request.getfixturevalue(plain), CHANNELS[kind], name=kind)
    velatura.save(base, tmp_path / "folder")
    pipeline_class = {
        ("tiny", "inpainting"): StableDiffusionInpaintPipeline,
        ("tiny", "pix2pix"): StableDiffusionInstructPix2PixPipeline,
        ("xl", "inpainting"): StableDiffusionXLInpaintPipeline,
        ("xl", "pix2pix"): StableDiffusionXLInstructPix2PixPipeline,
    }[plain, kind]
    assert json.loads((tmp_path / "folder" / "model_index.json").read_text())["_class_name"] == pipeline_class.__name__
    pipeline = pipeline_class.from_pretrained(tmp_path / "folder")
    assert same(all_tensors({"unet": pipeline.unet}), all_tensors({"unet": base.unet}))
    again = velatura.open_base(tmp_path / "folder", dtype="float32", device="cpu")
    assert again.image_condition == kind


def test_a_folder_whose_channels_are_wrong_in_its_config_is_read_by_its_weights(inpainting, tmp_path):
    velatura.save(inpainting, tmp_path / "folder")
    path = tmp_path / "folder" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 4}))
    assert velatura.open_base(tmp_path / "folder").image_condition == "inpainting"


def test_a_truncated_inpainting_model_is_refused(inpainting, tmp_path):
    velatura.save(inpainting, tmp_path / "one.safetensors")
    whole = (tmp_path / "one.safetensors").read_bytes()
    (tmp_path / "one.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadFile):
        velatura.open_base(tmp_path / "one.safetensors")


SMALL_SD2 = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}


@pytest.mark.parametrize(
    ("channels", "shift", "expected"),
    [(9, -2.0, "epsilon"), (8, -2.0, "v_prediction"), (8, 0.0, "epsilon"), (4, -2.0, "v_prediction")],
)
def test_an_sd2_for_inpainting_predicts_noise_as_a1111_takes_it(channels, shift, expected):
    # a UNet that returns a constant 0.5 + shift: A1111 takes a mean difference below -1 for velocity
    unet = UNet2DConditionModel(in_channels=channels, **SMALL_SD2)
    with torch.no_grad():
        unet.conv_out.weight.zero_()
        unet.conv_out.bias.fill_(0.5 + shift)
    assert prediction.detect_prediction(unet) == expected


def test_an_inpainting_model_that_says_velocity_is_taken_at_its_word(inpainting):
    family = replace(inpainting.family, prediction="v_prediction")
    parts = {"unet": inpainting.unet, "vae": inpainting.vae, "text": inpainting.text, "schedule": inpainting.schedule}
    written = write_single_file.checkpoint_contents(velatura.Base("v", family, **parts))
    assert single_file.read(written).family.prediction == "v_prediction"


def test_a_merge_of_an_inpainting_model_and_a_plain_one_opens(inpainting, tiny, tmp_path):
    shifted = {key: tensor + 1 for key, tensor in tiny.unet.state_dict().items()}
    other = widen(tiny, 4, name="other")
    other.unet.load_state_dict(shifted)
    path, _ = velatura.merge(inpainting, other, strength=0.5, out=tmp_path / "merged.safetensors")
    weight, before = velatura.open_base(path, dtype="float32").unet.conv_in.weight, inpainting.unet.conv_in.weight
    torch.testing.assert_close(weight[:, :4], before[:, :4] + 0.5)  # A1111 mixes the latents' channels alone
    assert torch.equal(weight[:, 4:], before[:, 4:])
