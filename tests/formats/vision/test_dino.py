"""DINO and DINOv2 from folders of transformers: the vector is the model's first token."""

import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from velatura.errors import BadFile
from velatura.formats.vision.dino import open_dino
from velatura.tensors import open_state_dict, write_safetensors

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 224, "patch_size": 32}


@pytest.fixture(params=["vit", "dinov2"])
def saved(request, tmp_path):
    torch.manual_seed(0)
    if request.param == "vit":
        model = ViTModel(ViTConfig(**SMALL, intermediate_size=32))
    else:
        model = Dinov2Model(Dinov2Config(**SMALL, mlp_ratio=2))
    model.save_pretrained(tmp_path)
    return tmp_path, model.eval()


def red_pixels():
    # red, by ImageNet's mean and deviation
    colour = (torch.tensor([1.0, 0, 0]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    return colour[None, :, None, None].expand(1, 3, 224, 224)


def their_vector(model):
    with torch.no_grad():
        hidden = model(pixel_values=red_pixels()).last_hidden_state
    return F.normalize(hidden[:, 0], dim=-1)


def test_a_picture_is_encoded_as_transformers_does(saved):
    folder, model = saved
    found = open_dino(folder).encode_images([Image.new("RGB", (50, 80), "red")])
    torch.testing.assert_close(found, their_vector(model), atol=1e-4, rtol=1e-4)


def test_patches_are_the_other_tokens(saved):
    folder, model = saved
    with torch.no_grad():
        hidden = model(pixel_values=red_pixels()).last_hidden_state
    found = open_dino(folder).encode_patches([Image.new("RGB", (50, 80), "red")] * 2)
    assert found.shape == (2, 49, 16)  # 224 / 32 squared
    torch.testing.assert_close(found[1:], hidden[:, 1:], atol=1e-4, rtol=1e-4)


def test_registers_are_not_patches(tmp_path):
    torch.manual_seed(0)
    model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SMALL, mlp_ratio=2, num_register_tokens=4))
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        hidden = model.eval()(pixel_values=red_pixels()).last_hidden_state
    found = open_dino(tmp_path).encode_patches([Image.new("RGB", (50, 80), "red")])
    torch.testing.assert_close(found, hidden[:, 5:], atol=1e-4, rtol=1e-4)


# what the files of DINO and DINOv2 on the hub call these modules
PUBLISHED_NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
PUBLISHED_VIT_NAMES = {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}


def test_files_with_the_names_of_older_versions_are_read(saved):
    folder, model = saved
    is_vit = isinstance(model, ViTModel)
    published = {}
    for key, tensor in open_state_dict(folder / "model.safetensors").tensors.items():
        name = key
        for new, old in (PUBLISHED_NAMES | (PUBLISHED_VIT_NAMES if is_vit else {})).items():
            name = name.replace(new, old)
        if is_vit and name.startswith("layers."):
            name = name.replace("layers.", "encoder.layer.", 1)
        published[name] = tensor.clone()
    assert any("attention.attention.query" in name for name in published)
    write_safetensors(folder / "model.safetensors", published, {})
    found = open_dino(folder).encode_images([Image.new("RGB", (50, 80), "red")])
    torch.testing.assert_close(found, their_vector(model), atol=1e-4, rtol=1e-4)


def test_other_models_and_damaged_folders_are_refused(tmp_path, saved):
    folder, _ = saved
    state = dict(open_state_dict(folder / "model.safetensors").tensors)
    del state["embeddings.cls_token"]
    write_safetensors(folder / "model.safetensors", {key: tensor.clone() for key, tensor in state.items()}, {})
    with pytest.raises(BadFile, match="cls_token"):
        open_dino(folder)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(BadFile, match="'resnet', not a DINO"):
        open_dino(tmp_path)
