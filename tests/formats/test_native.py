import json
import re

import pytest
import safetensors
import torch

import velatura
from velatura.tensors import open_tensors


@pytest.fixture
def saved(hyper, tmp_path):
    overlay = hyper(activation="mish", layer_norm=True, dropout=0.1, name="inca")
    overlay.card = overlay.card.but(steps=1200, note="line work", trigger_words=("inca", "glyphs"), family="SD1")
    velatura.save(overlay, tmp_path / "inca.safetensors")
    return tmp_path / "inca.safetensors"


def test_keys_are_flat_and_start_with_the_width(saved):
    names = set(open_tensors(saved).tensors)
    assert "96_0.linear.0.weight" in names
    assert all(re.fullmatch(r"(64|96|128|192)_[01]\.linear\.\d+\.(weight|bias)", name) for name in names)


def test_other_programs_find_model_spec_fields(saved):
    with safetensors.safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/hypernetwork"
    assert metadata["modelspec.title"] == "inca"
    assert metadata["modelspec.resolution"] == "512x512"
    assert metadata["modelspec.description"] == "line work"
    assert metadata["modelspec.trigger_phrase"] == "inca, glyphs"


def test_settings_stand_beside_the_card_under_a1111s_names_as_json(saved):
    metadata = open_tensors(saved).metadata
    settings = {key: json.loads(text) for key, text in metadata.items() if "." not in key}
    assert settings["layer_structure"] == [1, 2, 1]
    assert settings["activation_func"] == "mish"
    assert settings["is_layer_norm"] is True
    assert settings["activate_output"] is False
    assert settings["dropout_structure"] == [0, 0.1, 0]
    assert settings["step"] == 1200
    assert settings["sd_checkpoint"] is None or isinstance(settings["sd_checkpoint"], str)


def test_a_card_is_believed_before_the_settings_beside_it(saved):
    assert velatura.open_overlay(saved).card.trigger_words == ("inca", "glyphs")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_is_kept_here_and_widened_in_pt(hyper, tmp_path, dtype):
    overlay = hyper(name="ink").to(dtype)
    for ending, expected in ((".safetensors", dtype), (".pt", torch.float32)):
        velatura.save(overlay, tmp_path / f"ink{ending}")
        again = velatura.open_overlay(tmp_path / f"ink{ending}").state_dict()
        assert {each.dtype for each in again.values()} == {expected}
        assert all(torch.equal(again[key], each.to(expected)) for key, each in overlay.state_dict().items())
