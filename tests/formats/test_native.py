import json
import re
import time

import pytest
import safetensors
import torch

import velatura
from velatura.errors import BadFile
from velatura.formats.native import CARD_KEY
from velatura.tensors import open_tensors, write_safetensors, write_torch


@pytest.fixture
def saved(hyper, tmp_path):
    overlay = hyper(activation="mish", layer_norm=True, dropout=0.1, name="inca")
    overlay.card = overlay.card.replace(steps=1200, note="line work", trigger_words=("inca", "glyphs"), family="SD1")
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
    assert metadata["modelspec.implementation"] == "velatura"
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


def test_the_card_overrules_the_settings_beside_it(saved):
    assert velatura.open_overlay(saved).card.trigger_words == ("inca", "glyphs")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_safetensors_keep_the_precision_and_pt_files_are_float32(hyper, tmp_path, dtype):
    overlay = hyper(name="ink").to(dtype)
    for ending, expected in ((".safetensors", dtype), (".pt", torch.float32)):
        velatura.save(overlay, tmp_path / f"ink{ending}")
        again = velatura.open_overlay(tmp_path / f"ink{ending}").state_dict()
        assert {tensor.dtype for tensor in again.values()} == {expected}
        assert all(torch.equal(again[key], tensor.to(expected)) for key, tensor in overlay.state_dict().items())


def rewritten(path, tensors=None, **card):
    """A file of ours with other tensors, or a card that says other things."""
    contents = open_tensors(path)
    kept = json.loads(contents.metadata[CARD_KEY])
    kept["structure"] |= card
    write_safetensors(path, {**contents.tensors, **(tensors or {})}, {**contents.metadata, CARD_KEY: json.dumps(kept)})
    return path


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (torch.full((192, 96), torch.nan), "not finite"),
        (torch.full((192, 96), torch.inf), "not finite"),
        (torch.ones(192, 96, dtype=torch.int8), "floating-point"),
        (torch.ones(192, 96, dtype=torch.complex64), "floating-point"),
        (torch.ones(96, 192), "of shape"),
    ],
)
def test_weights_of_a_wrong_shape_or_type_are_refused(saved, spoilt, message):
    with pytest.raises(BadFile, match=rf"^inca\.safetensors has 96_0\.linear\.0\.weight .*{message}"):
        velatura.open_overlay(rewritten(saved, {"96_0.linear.0.weight": spoilt}))


@pytest.mark.parametrize(
    "card",
    [
        {"layers": [1, 3, 1]},
        {"layers": [1, 1e9, 1]},
        {"layers": [1, float("nan"), 1]},
        {"layers": [1] * 64, "widths": [8 * width for width in range(1, 65)], "dropout": []},
        {"widths": [64, 96]},
        {"widths": [2**62]},
        {"layer_norm": False},
        {"activation": "hardcore"},
        {"hats": 3},
    ],
)
def test_a_card_that_contradicts_the_weights_is_refused_before_much_is_built(saved, card):
    start = time.process_time()
    with pytest.raises(BadFile, match=r"^inca\.safetensors [^\n]+$"):
        velatura.open_overlay(rewritten(saved, **card))
    assert time.process_time() - start < 2


def test_a_pt_that_describes_many_layers_over_nothing_is_refused_at_once(tmp_path):
    widths = {8 * width: ({}, {}) for width in range(1, 65)}
    write_torch(tmp_path / "hollow.pt", {**widths, "layer_structure": [1] * 64, "is_layer_norm": True})
    start = time.process_time()
    with pytest.raises(BadFile, match="describes 64 layers for each of 64 widths and holds 0 tensors"):
        velatura.open_overlay(tmp_path / "hollow.pt")
    assert time.process_time() - start < 1
