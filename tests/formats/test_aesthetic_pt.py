"""Aesthetic embeddings as A1111's extension keeps them, and the CLIP that they belong to."""

import json

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

import velatura
from velatura.errors import BadFile, UnsupportedBase, VelaturaWarning
from velatura.formats.clip import CLIP_MEAN, TINY_CLIP, find_clip_for, find_text_projection, open_clip_model
from velatura.formats.inspect.inspect import inspect_file
from velatura.library import Library
from velatura.tensors import write_torch

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


def test_a_clip_of_transformers_sees_what_transformers_sees(clip):
    folder, model = clip
    eye = open_clip_model(folder)
    assert eye.image_mean == CLIP_MEAN
    assert torch.equal(eye.text_projection, model.text_projection.weight)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model.get_image_features(pixel_values=pixels)
        found = eye.vision(pixel_values=pixels).image_embeds
    wanted = getattr(wanted, "pooler_output", wanted)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("shape", [(64,), (1, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_vector_is_read_as_it_is(tmp_path, shape, dtype):
    vector = torch.randn(shape).to(dtype)
    write_torch(tmp_path / "dusk.pt", vector)
    overlay = velatura.open_overlay(tmp_path / "dusk.pt")
    assert isinstance(overlay, velatura.Aesthetic)
    assert torch.equal(overlay.vector, vector.flatten().float())
    assert torch.equal(overlay.projection, find_text_projection(64))
    assert (overlay.card.name, overlay.card.family) == ("dusk", "tiny")
    assert inspect_file(tmp_path / "dusk.pt").card.family == "tiny"


def test_what_is_written_is_read_back(tmp_path, aesthetic):
    made = aesthetic(steps=5, rate=1e-4)
    velatura.save(made, tmp_path / "dusk.pt")
    velatura.save(made, tmp_path / "dusk.safetensors")
    for ending in ("pt", "safetensors"):
        again = velatura.open_overlay(tmp_path / f"dusk.{ending}")
        assert torch.equal(again.vector, made.vector)
        assert again.settings == made.settings
    assert torch.load(tmp_path / "dusk.pt", weights_only=True).shape == (1, 64)


def test_settings_that_a_pt_cannot_hold_are_warned_of(tmp_path, aesthetic):
    with pytest.warns(VelaturaWarning, match="holds the vector only"):
        velatura.save(aesthetic(steps=9), tmp_path / "dusk.pt")


@pytest.mark.parametrize("width", [768, 1024, 1280])
def test_vectors_of_other_clips_are_read_too(tmp_path, monkeypatch, width):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    write_torch(tmp_path / "dusk.pt", torch.randn(1, width))
    assert velatura.open_overlay(tmp_path / "dusk.pt").settings.width == width
    assert inspect_file(tmp_path / "dusk.pt").card.kind == "aesthetic"


@pytest.mark.parametrize("vector", [torch.full((64,), torch.nan), torch.arange(64), torch.zeros(64).to_sparse()])
def test_what_is_no_vector_of_numbers_is_refused(tmp_path, vector):
    write_torch(tmp_path / "dusk.pt", vector)
    with pytest.raises(BadFile, match="dusk"):
        velatura.open_overlay(tmp_path / "dusk.pt")


def test_the_library_finds_one(tmp_path, aesthetic):
    velatura.save(aesthetic(steps=5, rate=1e-4), tmp_path / "dusk.pt")
    library = Library(tmp_path)
    assert library.overlay("dusk", "aesthetic").kind == "aesthetic"


def test_colours_are_evened_out_as_the_folder_says(clip):
    folder, _ = clip
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}))
    assert open_clip_model(folder).image_mean == (0.0, 0.0, 0.0)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0, 0], "image_std": [1, 0, 1]}))
    with pytest.raises(BadFile, match="colours that cannot be"):
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


def test_a_clip_that_is_not_at_hand_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_clip_for(96) == TINY_CLIP
    with pytest.raises(UnsupportedBase, match="openai/clip-vit-large-patch14"):
        find_clip_for(768)
    with pytest.raises(UnsupportedBase, match="--clip"):
        find_clip_for(17)
