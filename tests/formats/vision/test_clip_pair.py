"""Whole CLIPs of transformers and of open_clip: both encoders compute what transformers computes."""

import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from velatura.errors import BadFile
from velatura.formats.clip import open_clip_model
from velatura.formats.vision.clip_pair import find_clip_pair, open_clip_pair
from velatura.tensors import write_safetensors

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXTS = ["a red boat", "two cats in the snow at night, watercolor"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**SMALL, image_size=32, patch_size=8, hidden_act="gelu")
    text = CLIPTextConfig(**SMALL, hidden_act="gelu", eos_token_id=49407, bos_token_id=49406)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips") / "transformers"
    model.save_pretrained(folder)
    return folder


def fused(state, block):
    """Queries, keys and values in one tensor, as torch's MultiheadAttention has them, which open_clip is built of."""
    return {
        f"attn.in_proj_{part}": torch.cat([state[f"{block}.self_attn.{letter}_proj.{part}"] for letter in "qkv"])
        for part in ("weight", "bias")
    }


def blocks(state, ours, theirs):
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names["self_attn.out_proj"] = "attn.out_proj"
    tensors = {}
    for index in range(2):
        block = f"{ours}.encoder.layers.{index}"
        moved = {f"{b}.{p}": state[f"{block}.{a}.{p}"] for a, b in names.items() for p in ("weight", "bias")}
        tensors |= {f"{theirs}.{index}.{key}": tensor for key, tensor in (moved | fused(state, block)).items()}
    return tensors


def open_clip_state(state, text_prefix=""):
    """The tensors by the names of open_clip's VisionTransformer and TextTransformer, written down from its source."""
    vision = {
        "class_embedding": state["vision_model.embeddings.class_embedding"],
        "positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "proj": state["visual_projection.weight"].T.contiguous(),
        "conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
    }
    for theirs, ours in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        vision |= {f"{theirs}.{part}": state[f"vision_model.{ours}.{part}"] for part in ("weight", "bias")}
    vision |= blocks(state, "vision_model", "transformer.resblocks")
    text = {
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
        **{f"ln_final.{part}": state[f"text_model.final_layer_norm.{part}"] for part in ("weight", "bias")},
        **blocks(state, "text_model", "transformer.resblocks"),
    }
    both = {f"visual.{key}": tensor for key, tensor in vision.items()}
    both |= {text_prefix + key: tensor for key, tensor in text.items()}
    return both | {"logit_scale": torch.tensor(4.6)}


@pytest.fixture(params=["", "text."], ids=["CLIP", "CustomTextCLIP"])
def open_clip_folder(request, model, tmp_path):
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    write_safetensors(tmp_path / "open_clip_model.safetensors", open_clip_state(state, request.param), {})
    config = {
        "model_cfg": {
            "embed_dim": 12,
            "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "patch_size": 8, "head_width": 8},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    return tmp_path


def pictures():
    return [Image.new("RGB", (32, 32), colour) for colour in ("red", "navy")]


def their_texts(model, tokenizer):
    ids = tokenizer(TEXTS, padding=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        features = model.get_text_features(input_ids=ids)
    return F.normalize(getattr(features, "pooler_output", features), dim=-1)


def their_images(model, mean, std):
    colours = torch.tensor([[1.0, 0, 0], [0, 0, 128 / 255]])
    pixels = ((colours - torch.tensor(mean)) / torch.tensor(std))[:, :, None, None].expand(-1, -1, 32, 32)
    with torch.no_grad():
        features = model.get_image_features(pixel_values=pixels)
    return F.normalize(getattr(features, "pooler_output", features), dim=-1)


def test_a_folder_of_transformers_encodes_texts_and_pictures_as_transformers_does(folder, model):
    pair = open_clip_pair(folder)
    torch.testing.assert_close(pair.encode_texts(TEXTS), their_texts(model, pair.tokenizer))
    mean, std = pair.clip.normalization
    torch.testing.assert_close(pair.encode_images(pictures()), their_images(model, mean, std))


def test_a_folder_of_open_clip_does_too(open_clip_folder, model):
    pair = open_clip_pair(open_clip_folder)
    torch.testing.assert_close(pair.encode_texts(TEXTS), their_texts(model, pair.tokenizer))
    torch.testing.assert_close(pair.encode_images(pictures()), their_images(model, [0.5] * 3, [0.25] * 3))
    torch.testing.assert_close(pair.clip.text_projection, model.text_projection.weight.detach())


def test_patches_are_those_of_the_layer_after_two_thirds(folder, open_clip_folder, model):
    colours = torch.tensor([[1.0, 0, 0], [0, 0, 128 / 255]])
    for path, mean, std in ((folder, *open_clip_pair(folder).clip.normalization), (open_clip_folder, [0.5], [0.25])):
        pixels = ((colours - torch.tensor(mean)) / torch.tensor(std))[:, :, None, None].expand(-1, -1, 32, 32)
        with torch.no_grad():
            layers = model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
        found = open_clip_pair(path).clip.encode_patches(pictures())
        assert found.shape == (2, 16, 16)  # 32 / 8 squared
        torch.testing.assert_close(found, layers[1][:, 1:])  # of two layers the first, 2 / 3 of 2 being 1.3


def test_the_tiny_base_has_its_own_pair_and_an_unknown_base_none(tiny, xl):
    pair = find_clip_pair(tiny)
    house, near, far = pair.encode_texts(["a red house", "a red house by day", "a blue fish under the sea"])
    assert float(house @ near) > float(house @ far)
    assert find_clip_pair(xl) is None


def test_long_texts_are_cut_at_77_tokens(folder):
    pair = open_clip_pair(folder)
    long = "cat " * 100
    torch.testing.assert_close(pair.encode_texts([long]), pair.encode_texts(["cat " * 75]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_cfg": {"timm_model_name": "convnext_base"}}, "not a vision transformer"),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "not a vision transformer"),
        ({"vision_cfg": {"layers": 2}, "text_cfg": {"hf_model_name": "roberta-base"}}, "not CLIP's"),
        ({"vision_cfg": {"layers": 2}, "text_cfg": {}}, "holds neither"),
    ],
)
def test_other_models_of_open_clip_are_refused(tmp_path, change, message):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": change}))
    with pytest.raises(BadFile, match=message):
        open_clip_model(tmp_path)


def test_a_folder_without_a_text_encoder_is_refused(tiny):
    from velatura.formats.clip import TINY_CLIP

    with pytest.raises(BadFile, match="holds no text encoder"):
        open_clip_pair(TINY_CLIP)
