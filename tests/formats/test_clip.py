"""CLIP's image encoder from a folder of transformers, and where the CLIP of a base is found."""

import json

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from velatura.errors import BadFile, UnsupportedBase
from velatura.formats.clip import CLIP_NORMALIZATION, TINY_CLIP, find_clip_for, open_clip_model

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def clip(tmp_path):
    """A whole CLIP as transformers writes one, tiny and of random weights."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**SMALL, image_size=32, patch_size=8)
    model = CLIPModel(
        CLIPConfig(text_config=CLIPTextConfig(**SMALL).to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    )
    model.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip", model.eval()


def test_pictures_are_encoded_as_transformers_does(clip):
    folder, model = clip
    opened = open_clip_model(folder)
    assert opened.normalization == CLIP_NORMALIZATION
    assert torch.equal(opened.text_projection, model.text_projection.weight)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.get_image_features(pixel_values=pixels)
        found = opened.vision(pixel_values=pixels).image_embeds
    expected = getattr(expected, "pooler_output", expected)
    torch.testing.assert_close(found, expected)


def test_colours_are_normalized_as_the_folder_says(clip):
    folder, _ = clip
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}))
    assert open_clip_model(folder).normalization == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_mean": [0, 0], "image_std": [1, 0, 1]}, "no image_mean and image_std of three numbers"),
        ({"image_mean": [0, 0, 0], "image_std": [1, 0, 1]}, "image_std of 0.0, which must be above 0"),
        ({"image_mean": [0, 0, 0]}, "no image_mean and image_std of three numbers"),
    ],
)
def test_colours_that_cannot_be_normalized_are_refused(clip, settings, message):
    folder, _ = clip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(BadFile, match=message):
        open_clip_model(folder)


@pytest.mark.parametrize(
    "config", ["{", "[]", '{"vision_config": {"num_hidden_layers": 1000000}}', '{"vision_config": 3}']
)
def test_a_folder_that_is_no_clip_is_refused_in_a_line(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(BadFile):
        open_clip_model(tmp_path)
    with pytest.raises(BadFile, match="no config"):
        open_clip_model(tmp_path / "nowhere")


def test_a_clip_that_is_not_here_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_clip_for(96) == TINY_CLIP
    with pytest.raises(UnsupportedBase, match="openai/clip-vit-large-patch14"):
        find_clip_for(768)
    with pytest.raises(UnsupportedBase, match="--clip"):
        find_clip_for(17)
