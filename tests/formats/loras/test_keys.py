"""Keys of LoRA files, against the names of all modules of SD1's and SDXL's UNets (tests/data/names)."""

from pathlib import Path

import pytest

from velatura.errors import BadFile
from velatura.formats.loras.keys import parse_key, sort_keys
from velatura.formats.loras.names import ldm_layer

NAMES = Path(__file__).parents[2] / "data" / "names"
UNET, TE = "lora_unet_", "lora_te_text_model_encoder_layers_3_"
QUERY = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
LAYER = UNET + QUERY.replace(".", "_")


def rows(family):
    return [line.split() for line in (NAMES / f"{family}.txt").read_text().splitlines()]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize(
    "pattern",
    [
        "{kohya}.lora_down.weight",
        "unet.{diffusers}.lora_A.weight",
        "{diffusers}.lora.down.weight",
        "base_model.model.{diffusers}.lora_A.default.weight",
        "diffusion_model.{ldm}.lora_A.weight",
        "{ldm}.lora_down.weight",
        "unet.{diffusers}.___.layer.W_down",
    ],
)
def test_every_module_of_a_unet_is_known_in_every_dialect(family, pattern):
    for diffusers, ldm, kohya in rows(family):
        key = pattern.format(diffusers=diffusers, ldm=ldm, kohya=kohya)
        assert parse_key(key) == (UNET + diffusers.replace(".", "_"), "lora_down.weight"), key


def test_the_unet_layers_of_an_sdxl_get_ldms_names_back():
    for diffusers, _, kohya in rows("sdxl"):
        assert ldm_layer(UNET + diffusers.replace(".", "_")) == kohya


@pytest.mark.parametrize(
    ("key", "layer", "suffix"),
    [
        ("lora_te_text_model_encoder_layers_3_mlp_fc1.alpha", f"{TE}mlp_fc1", "alpha"),
        ("lora_te2_text_model_encoder_layers_3_mlp_fc1.alpha", f"{TE}mlp_fc1".replace("te_", "te2_", 1), "alpha"),
        (
            "text_encoder.text_model.encoder.layers.3.mlp.fc2.lora_linear_layer.up.weight",
            f"{TE}mlp_fc2",
            "lora_up.weight",
        ),
        # CLIPTextModel lost the level text_model in transformers 5, and so did files that peft makes with it
        ("base_model.model.encoder.layers.3.mlp.fc2.lora_B.weight", f"{TE}mlp_fc2", "lora_up.weight"),
        ("base_model.model.text_model.encoder.layers.3.mlp.fc2.lora_B.weight", f"{TE}mlp_fc2", "lora_up.weight"),
        (f"{QUERY.rpartition('.')[0]}.processor.to_q_lora.up.weight", LAYER, "lora_up.weight"),
        (f"unet.{QUERY.rpartition('.')[0]}.processor.to_out_lora.up.weight", LAYER[:-1] + "out_0", "lora_up.weight"),
        (f"unet.{QUERY}.lora_magnitude_vector", LAYER, "lora_magnitude_vector"),
        (f"unet.{QUERY}.lora_magnitude_vector.default.weight", LAYER, "lora_magnitude_vector"),
        (f"base_model.model.{QUERY}.ia3_l", LAYER, "ia3_l"),
        (f"base_model.model.{QUERY}.oft_R.default.weight", LAYER, "oft_R.weight"),
        (f"base_model.model.{QUERY}.hada_w1_a.default", LAYER, "hada_w1_a"),
        # peft puts any name of an adapter behind the module that holds its tensors
        (f"base_model.model.{QUERY}.lora_A.my-style.weight", LAYER, "lora_down.weight"),
        (f"base_model.model.{QUERY}.hada_w2_b.style_2", LAYER, "hada_w2_b"),
        (f"base_model.model.{QUERY}.lokr_w1.my-style", LAYER, "lokr_w1"),
        (f"base_model.model.{QUERY}.ia3_l.style", LAYER, "ia3_l"),
        (f"base_model.model.{QUERY}.oft_R.my-style.weight", LAYER, "oft_R.weight"),
        (f"{LAYER}.oft_R.scaled_oft", LAYER, "oft_R.scaled_oft"),
        (f"unet.{QUERY}.oft_R.scaled_oft", LAYER, "oft_R.scaled_oft"),
        (f"base_model.model.{QUERY}.lora_magnitude_vector.my-style.weight", LAYER, "lora_magnitude_vector"),
        (f"unet.{QUERY}.___.alpha", LAYER, "alpha"),
        (f"oft_unet_{LAYER.removeprefix(UNET)}.oft_blocks", LAYER, "oft_blocks"),
        (f"{LAYER}.a1.weight", LAYER, "a1.weight"),
    ],
)
def test_a_key_names_a_layer_and_a_tensor(key, layer, suffix):
    assert parse_key(key) == (layer, suffix)


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight",  # of a Flux
        "unet.nowhere.to_q.lora_A.weight",
        f"unet.{QUERY}.weight",
        f"unet.{QUERY}.lora_A.bias",
        "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight",
        "lora_unet_" + "x" * 10_000 + ".alpha",
        "",
    ],
)
def test_keys_of_other_models_fit_no_layer(key):
    assert parse_key(key) is None


def test_a_plain_weight_counts_only_for_ia3():
    keys = [f"{LAYER}.weight", f"{LAYER}.on_input", f"{UNET}conv_in.weight"]
    sorted_keys = sort_keys(keys, "x")
    assert sorted_keys.layers == {LAYER: {"weight": keys[0], "on_input": keys[1]}}
    assert sorted_keys.unmatched == (keys[2],)


def test_the_first_of_two_text_encoders_is_numbered():
    keys = [
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.alpha",
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.alpha",
    ]
    layers = sort_keys(keys, "x").layers
    assert list(layers) == [f"lora_te{number}_text_model_encoder_layers_0_mlp_fc1" for number in (1, 2)]
    assert list(sort_keys(keys[:1], "x").layers) == ["lora_te_text_model_encoder_layers_0_mlp_fc1"]


def test_embeddings_in_a_lora_are_kept_apart():
    keys = ["bundle_emb.my.style.string_to_param.*", "bundle_emb.other.clip_l", "bundle_emb.other.clip_g"]
    sorted_keys = sort_keys(keys, "x")
    assert sorted_keys.bundled == {"my.style": {"*": keys[0]}, "other": {"clip_l": keys[1], "clip_g": keys[2]}}
    assert not sorted_keys.layers
    assert not sorted_keys.unmatched


def test_two_names_for_one_tensor_are_refused():
    with pytest.raises(BadFile, match="ink has two names for one tensor"):
        sort_keys([f"{LAYER}.lora_down.weight", f"unet.{QUERY}.lora_A.weight"], "ink")
