"""Hostile LoRAs, LoHas and LoKrs, and their metadata."""

import json

import torch
from safetensors.torch import save_file

from tests.hostile.cases import (
    DIFFUSERS,
    KOHYA,
    LOAD,
    PATH,
    REFUSE,
    UNKNOWN_LAYER,
    WARN,
    Case,
    loha,
    lokr,
    lora,
    ramp,
    safetensors_file,
    torch_file,
)

DOWN, UP, ALPHA = (f"{KOHYA}.{suffix}" for suffix in ("lora_down.weight", "lora_up.weight", "alpha"))
NAN, INF = float("nan"), float("inf")
CYRILLIC_A = "\u0430"


def changed(tensors, key, value):
    return {**tensors, key: value}


def with_value(tensor, value, position):
    flat = tensor.clone().flatten()
    flat[position] = value
    return flat.view(tensor.shape)


def without(tensors, *keys):
    return {key: tensor for key, tensor in tensors.items() if key not in keys}


TENSORS = [
    ("ok_bf16", LOAD, "bfloat16", lora(dtype=torch.bfloat16)),
    ("ok_f16", LOAD, "float16", lora(dtype=torch.float16)),
    ("ok_rank_16", LOAD, "rank 16", lora(rank=16)),
    ("ok_loha", LOAD, "a LoHa", loha()),
    ("ok_lokr", LOAD, "a LoKr", lokr()),
    ("ok_text", LOAD, "a layer of the text encoder", lora("lora_te_text_model_encoder_layers_0_self_attn_q_proj")),
    (
        "ok_conv",
        LOAD,
        "a convolution, 1 x 1",
        {
            DOWN.replace("attn1_to_q", "ff_net_2"): ramp(2, 32, 1, 1),
            UP.replace("attn1_to_q", "ff_net_2"): ramp(32, 2, 1, 1),
            ALPHA.replace("attn1_to_q", "ff_net_2"): torch.tensor(1.0),
        },
    ),
    ("nan_down_last", REFUSE, "NaN in the last value", changed(lora(), DOWN, with_value(ramp(2, 32), NAN, -1))),
    ("nan_up_first", REFUSE, "NaN in the first value", changed(lora(), UP, with_value(ramp(32, 2), NAN, 0))),
    ("minus_inf_down", REFUSE, "-inf", changed(lora(), DOWN, with_value(ramp(2, 32), -INF, 5))),
    (
        "inf_and_minus_inf",
        REFUSE,
        "inf and -inf, whose sum is NaN",
        changed(lora(), DOWN, with_value(with_value(ramp(2, 32), INF, 1), -INF, 2)),
    ),
    (
        "nan_bf16",
        REFUSE,
        "NaN in bfloat16",
        changed(lora(dtype=torch.bfloat16), DOWN, with_value(ramp(2, 32, dtype=torch.bfloat16), NAN, 3)),
    ),
    ("nan_loha", REFUSE, "NaN in a LoHa", changed(loha(), f"{KOHYA}.hada_w2_b", with_value(ramp(2, 32), NAN, 9))),
    ("inf_lokr", REFUSE, "inf in a LoKr", changed(lokr(), f"{KOHYA}.lokr_w1", with_value(ramp(4, 4), INF, 0))),
    (
        "beyond_float32",
        REFUSE,
        "1e300 in float64",
        changed(lora(), DOWN, with_value(ramp(2, 32, dtype=torch.float64), 1e300, 0)),
    ),
    ("uint8", REFUSE, "uint8 weights", changed(lora(), DOWN, torch.ones(2, 32, dtype=torch.uint8))),
    ("int64_up", REFUSE, "int64 weights", changed(lora(), UP, torch.ones(32, 2, dtype=torch.int64))),
    ("bool_up", REFUSE, "bool weights", changed(lora(), UP, torch.ones(32, 2, dtype=torch.bool))),
    ("complex_down", REFUSE, "complex weights", changed(lora(), DOWN, torch.ones(2, 32, dtype=torch.complex64))),
    ("int_loha", REFUSE, "int32 in a LoHa", changed(loha(), f"{KOHYA}.hada_w1_a", torch.ones(32, 2).int())),
    (
        "edge_of_f16",
        WARN,
        "the largest float16",
        changed(lora(dtype=torch.float16), UP, with_value(ramp(32, 2, dtype=torch.float16), 65504.0, 3)),
    ),
    (
        "edge_of_f16_negative",
        WARN,
        "the least float16",
        changed(lora(dtype=torch.float16), UP, with_value(ramp(32, 2, dtype=torch.float16), -65504.0, 3)),
    ),
    (
        "large_bf16",
        WARN,
        "1e20 in bfloat16",
        changed(lora(dtype=torch.bfloat16), UP, with_value(ramp(32, 2, dtype=torch.bfloat16), 1e20, 3)),
    ),
    ("large_f32", WARN, "1e30 in float32", changed(lora(), UP, with_value(ramp(32, 2), 1e30, 3))),
    ("denormal_down", WARN, "denormal numbers only", changed(lora(), DOWN, torch.full((2, 32), 1e-41))),
    (
        "denormal_f16",
        WARN,
        "denormal float16 only",
        changed(lora(dtype=torch.float16), DOWN, torch.full((2, 32), 6e-8, dtype=torch.float16)),
    ),
    ("up_zero", WARN, "the up factor is zero, as before training", changed(lora(), UP, torch.zeros(32, 2))),
    ("down_zero", WARN, "the down factor is zero", changed(lora(), DOWN, torch.zeros(2, 32))),
    (
        "all_minus_zero",
        WARN,
        "all weights -0.0",
        {DOWN: -torch.zeros(2, 32), UP: -torch.zeros(32, 2), ALPHA: torch.tensor(1.0)},
    ),
    ("loha_zero", WARN, "a factor of a LoHa is zero", changed(loha(), f"{KOHYA}.hada_w2_a", torch.zeros(32, 2))),
    ("mixed_dtypes", WARN, "float16 up among float32", changed(lora(), UP, ramp(32, 2, dtype=torch.float16))),
    (
        "mixed_bf16",
        WARN,
        "bfloat16 down among float16",
        changed(lora(dtype=torch.float16), DOWN, ramp(2, 32, dtype=torch.bfloat16)),
    ),
    ("alpha_minus_inf", REFUSE, "alpha -inf", changed(lora(), ALPHA, torch.tensor(-INF))),
    ("alpha_two_values", REFUSE, "alpha with two values", changed(lora(), ALPHA, torch.tensor([1.0, 1.0]))),
    ("alpha_empty", REFUSE, "alpha without a value", changed(lora(), ALPHA, torch.empty(0))),
    ("alpha_true", REFUSE, "True for alpha", changed(lora(), ALPHA, torch.tensor(True))),
    ("alpha_complex", REFUSE, "complex alpha", changed(lora(), ALPHA, torch.tensor(1 + 0j))),
    (
        "alpha_of_one_dimension",
        LOAD,
        "alpha of shape (1,), as some programs write it",
        changed(lora(), ALPHA, torch.tensor([1.0])),
    ),
    ("alpha_int", LOAD, "alpha in int64, as some programs write it", changed(lora(), ALPHA, torch.tensor(1))),
    ("alpha_tiny_negative", WARN, "alpha -1e-6", changed(lora(), ALPHA, torch.tensor(-1e-6))),
    ("alpha_zero_loha", WARN, "alpha 0 of a LoHa", changed(loha(), ALPHA, torch.tensor(0.0))),
    ("alpha_negative_loha", WARN, "alpha -4 of a LoHa", changed(loha(), ALPHA, torch.tensor(-4.0))),
    ("alpha_huge_loha", WARN, "alpha 1e6 of a LoHa", changed(loha(), ALPHA, torch.tensor(1e6))),
    ("alpha_nan_loha", REFUSE, "alpha NaN of a LoHa", changed(loha(), ALPHA, torch.tensor(NAN))),
    ("alpha_missing", WARN, "no alpha", lora(alpha=None)),
    (
        "alpha_missing_text",
        WARN,
        "no alpha in the text encoder",
        lora("lora_te_text_model_encoder_layers_0_self_attn_q_proj", alpha=None),
    ),
    ("rank_mismatch_wide", REFUSE, "down rank 2, up rank 1", changed(lora(), UP, ramp(32, 1))),
    ("rank_mismatch_loha", REFUSE, "w1_a rank 2, w1_b rank 3", changed(loha(), f"{KOHYA}.hada_w1_b", ramp(3, 32))),
    (
        "loha_shapes_differ",
        REFUSE,
        "the products of a LoHa have other shapes",
        changed(loha(), f"{KOHYA}.hada_w2_b", ramp(2, 16)),
    ),
    ("loha_without_w2", REFUSE, "no second product", without(loha(), f"{KOHYA}.hada_w2_a", f"{KOHYA}.hada_w2_b")),
    ("lokr_without_w2", REFUSE, "no second factor", without(lokr(), f"{KOHYA}.lokr_w2")),
    ("lokr_w1_vector", REFUSE, "a factor of one dimension", changed(lokr(), f"{KOHYA}.lokr_w1", ramp(4))),
    ("down_vector", REFUSE, "down of one dimension", changed(lora(), DOWN, ramp(32))),
    ("up_scalar", REFUSE, "up of no dimension", changed(lora(), UP, torch.tensor(1.0))),
    ("up_three_dimensions", REFUSE, "up of three dimensions", changed(lora(), UP, ramp(32, 2, 1))),
    ("down_empty", REFUSE, "down of width 0", changed(lora(), DOWN, torch.empty(2, 0))),
    ("up_empty", REFUSE, "up of no rows", changed(lora(), UP, torch.empty(0, 2))),
    ("lora_and_lokr", REFUSE, "one layer is a LoRA and a LoKr", lora() | lokr()),
    ("lora_and_diff", REFUSE, "one layer is a LoRA and a full change", lora() | {f"{KOHYA}.diff": ramp(32, 32)}),
    ("dora_empty", REFUSE, "dora_scale without a value", lora() | {f"{KOHYA}.dora_scale": torch.empty(0)}),
    ("dora_zero", WARN, "dora_scale of zeros", lora() | {f"{KOHYA}.dora_scale": torch.zeros(1, 32)}),
    ("dora_nan", REFUSE, "NaN in dora_scale", lora() | {f"{KOHYA}.dora_scale": torch.full((1, 32), NAN)}),
    (
        "unknown_suffix",
        REFUSE,
        "half of the tensors have a suffix that no program writes",
        {f"{KOHYA}.lora_left.weight": ramp(2, 32), f"{KOHYA}.lora_right.weight": ramp(32, 2)},
    ),
    ("unknown_tensor", WARN, "one tensor of no layer", lora() | {"foo": ramp(2)}),
    (
        "unknown_layer_beside",
        WARN,
        "one layer of two is unknown",
        lora() | lora(UNKNOWN_LAYER) | lora(f"{PATH}_attn1_to_k") | lora(f"{PATH}_attn1_to_v"),
    ),
    ("only_unknown", REFUSE, "no layer is known", lora("lora_unet_foo_bar")),
    ("block_9", REFUSE, "down block 9", lora(KOHYA.replace("down_blocks_0", "down_blocks_9"))),
    ("block_minus", REFUSE, "down block -1", lora(KOHYA.replace("down_blocks_0", "down_blocks_-1"))),
    ("block_arabic", REFUSE, "a block in Arabic digits", lora(KOHYA.replace("down_blocks_0", "down_blocks_\u0661"))),
    ("up_block_7", REFUSE, "up block 7", lora(KOHYA.replace("down_blocks_0", "up_blocks_7"))),
    (
        "text_layer_99",
        REFUSE,
        "layer 99 of the text encoder",
        lora("lora_te_text_model_encoder_layers_99_self_attn_q_proj"),
    ),
    (
        "attention_layer_500",
        REFUSE,
        "transformer block 500",
        lora(KOHYA.replace("transformer_blocks_0", "transformer_blocks_500")),
    ),
    ("key_absolute", REFUSE, "an absolute path for a layer", lora("/etc/passwd")),
    ("key_windows", REFUSE, "a path of Windows for a layer", lora("C:\\windows\\system32")),
    ("key_backslash_traversal", REFUSE, "..\\ in a layer", lora("..\\..\\x")),
    ("key_dunder", REFUSE, "a name of Python's", lora() | {f"{KOHYA}.__class__": ramp(2)}),
    ("key_newline", REFUSE, "a line break in a name", lora() | {"foo\nbar": ramp(2)}),
    ("key_escape", REFUSE, "a terminal code in a name", lora() | {"foo\x1b[31m": ramp(2)}),
    ("key_c1_control", REFUSE, "a C1 control in a name", lora() | {"foo\x9b31m": ramp(2)}),
    ("key_empty", REFUSE, "an empty name", lora() | {"": ramp(2)}),
    ("key_spaces", REFUSE, "a name of spaces", lora() | {"   ": ramp(2)}),
    ("key_zero_width", WARN, "a zero-width space in an unknown name", lora() | {"foo\u200bbar": ramp(2)}),
    ("key_bidi", WARN, "a change of direction in an unknown name", lora() | {"foo\u202ebar": ramp(2)}),
    ("key_byte_order_mark", WARN, "a byte-order mark in an unknown name", lora() | {"\ufefffoo": ramp(2)}),
    (
        "key_cyrillic",
        WARN,
        "a Cyrillic letter in a layer beside known ones",
        lora() | lora(f"{PATH}_attn1_to_k") | lora(f"{PATH}_{CYRILLIC_A}ttn1_to_v"),
    ),
    ("key_full_width", WARN, "full-width letters in an unknown name", lora() | {"\uff46\uff4f\uff4f": ramp(2)}),
    ("key_5k", REFUSE, "only a layer with a name of 5,000 letters", lora("lora_unet_" + "x" * 5000)),
    (
        "diffusers_alpha_vector",
        REFUSE,
        "alpha with 32 values under diffusers' names",
        {
            f"{DIFFUSERS}.lora_A.weight": ramp(2, 32),
            f"{DIFFUSERS}.lora_B.weight": ramp(32, 2),
            f"{DIFFUSERS}.alpha": ramp(32),
        },
    ),
    ("diffusers_half", REFUSE, "lora_A without lora_B", {f"{DIFFUSERS}.lora_A.weight": ramp(2, 32)}),
    (
        "diffusers_nan",
        REFUSE,
        "NaN under diffusers' names",
        {f"{DIFFUSERS}.lora_A.weight": with_value(ramp(2, 32), NAN, 7), f"{DIFFUSERS}.lora_B.weight": ramp(32, 2)},
    ),
    (
        "diffusers_int8",
        REFUSE,
        "int8 under diffusers' names",
        {f"{DIFFUSERS}.lora_A.weight": torch.ones(2, 32).char(), f"{DIFFUSERS}.lora_B.weight": ramp(32, 2)},
    ),
    (
        "diffusers_zero",
        WARN,
        "lora_B is zero, as before training",
        {f"{DIFFUSERS}.lora_A.weight": ramp(2, 32), f"{DIFFUSERS}.lora_B.weight": torch.zeros(32, 2)},
    ),
    (
        "diffusers_unknown",
        WARN,
        "an unknown tensor under diffusers' names",
        {f"{DIFFUSERS}.lora_A.weight": ramp(2, 32), f"{DIFFUSERS}.lora_B.weight": ramp(32, 2), "unet.foo": ramp(2)},
    ),
]

HASH = "71061a70c01ad01d27d075e662bc36e0d977e7dae76af38c2a215c83e815aaaa"
METADATA = [
    ("japanese", LOAD, "a Japanese name", {"ss_output_name": "\u685c\u306e\u7d75"}),
    ("arabic", LOAD, "an Arabic comment", {"ss_training_comment": "\u0628\u064a\u062a \u0623\u062d\u0645\u0631"}),
    ("cyrillic", LOAD, "a Russian name", {"ss_output_name": "\u0430\u043d\u0438\u043c\u0435"}),
    ("emoji", LOAD, "a joined emoji in a comment", {"ss_training_comment": "\U0001f469\u200d\U0001f3a8"}),
    ("ok_steps", LOAD, "step counts", {"ss_steps": "1600", "ss_epoch": "10", "ss_max_train_steps": "1600"}),
    ("ok_hashes", LOAD, "hashes", {"sshs_model_hash": HASH, "sshs_legacy_hash": "e3b0c442"}),
    ("ok_dim", LOAD, "the right rank and alpha", {"ss_network_dim": "2", "ss_network_alpha": "1.0"}),
    ("ok_date", LOAD, "a date with a time zone", {"modelspec.date": "2023-10-27T21:12:00Z"}),
    ("mixed_scripts", WARN, "a Cyrillic letter in a Latin name", {"ss_output_name": f"{CYRILLIC_A}nime"}),
    ("mixed_greek", WARN, "a Greek letter in a Latin name", {"ss_output_name": "an\u03bfmaly"}),
    ("mixed_base", WARN, "a Cyrillic letter in a base's name", {"ss_sd_model_name": f"v1-5-prun{CYRILLIC_A}d"}),
    ("title_html", WARN, "HTML in the title", {"modelspec.title": "<img src=x onerror=alert(1)>"}),
    ("title_tag", WARN, "a tag of a prompt in the title", {"modelspec.title": "<lora:evil:9>"}),
    ("output_name_quote", WARN, "quotes in the name", {"ss_output_name": 'a"b'}),
    ("output_name_backslash", WARN, "a backslash in the name", {"ss_output_name": "a\\b"}),
    ("output_name_absolute", WARN, "an absolute path for the name", {"ss_output_name": "/etc/passwd"}),
    ("title_home", WARN, "a path from the home folder for the title", {"modelspec.title": "~/x"}),
    ("output_name_escape", WARN, "terminal codes in the name", {"ss_output_name": "a\x1b[2Jb"}),
    ("output_name_nul", WARN, "NUL in the name", {"ss_output_name": "a\x00b"}),
    ("output_name_bidi", WARN, "a change of direction in the name", {"ss_output_name": "gpj\u202egnp.exe"}),
    ("output_name_isolate", WARN, "an isolate in the name", {"ss_output_name": "a\u2066b"}),
    ("output_name_zero_width", WARN, "a zero-width space in the name", {"ss_output_name": "a\u200bb"}),
    ("output_name_tag_letters", WARN, "letters of Unicode's tag block", {"ss_output_name": "a\U000e0041"}),
    ("output_name_10k", WARN, "a name of 10,000 letters", {"ss_output_name": "x" * 10_000}),
    ("title_10k", WARN, "a title of 10,000 letters", {"modelspec.title": "x" * 10_000}),
    ("private_use", WARN, "a letter of the private use area in the name", {"ss_output_name": "a\ue000b"}),
    ("bidi_in_key", WARN, "a change of direction in a key", {"ss_\u202efoo": "x"}),
    ("steps_negative", WARN, "-1 steps", {"ss_steps": "-1"}),
    ("steps_huge", WARN, "10 ** 40 steps", {"ss_steps": "1" + "0" * 40}),
    ("steps_fraction", WARN, "half a step", {"ss_steps": "0.5"}),
    ("steps_arabic", WARN, "a count in Arabic digits", {"ss_steps": "\u0661\u0662"}),
    ("epochs_word", WARN, "an epoch that is a word", {"ss_epoch": "many"}),
    ("steps_beyond_all", WARN, "more steps than the training has", {"ss_steps": "500", "ss_max_train_steps": "100"}),
    ("epoch_beyond_all", WARN, "a later epoch than the last", {"ss_epoch": "12", "ss_num_epochs": "10"}),
    (
        "ended_before_start",
        WARN,
        "a training that ends before it starts",
        {"ss_training_started_at": "1674000000.0", "ss_training_finished_at": "1573000000.0"},
    ),
    ("images_word", WARN, "a number of pictures that is a word", {"ss_num_train_images": "lots"}),
    ("rate_word", WARN, "a rate that is a word", {"ss_learning_rate": "fast"}),
    ("rate_inf", WARN, "an infinite rate", {"ss_unet_lr": "inf"}),
    ("rate_negative", WARN, "a negative rate", {"ss_learning_rate": "-0.001"}),
    ("dim_conflict", WARN, "rank 64 in the metadata", {"ss_network_dim": "64"}),
    ("dim_zero", WARN, "rank 0 in the metadata", {"ss_network_dim": "0"}),
    ("dim_negative", WARN, "rank -2 in the metadata", {"ss_network_dim": "-2"}),
    ("alpha_conflict", WARN, "alpha 16 in the metadata", {"ss_network_alpha": "16"}),
    ("alpha_nan", WARN, "alpha nan in the metadata", {"ss_network_alpha": "nan"}),
    ("date_word", WARN, "a date that is a word", {"modelspec.date": "yesterday"}),
    ("date_month_13", WARN, "month 13", {"modelspec.date": "2023-13-01"}),
    ("date_number", WARN, "a number for a date", {"modelspec.date": "1674000000"}),
    ("hash_short", WARN, "a hash of 12 digits", {"sshs_model_hash": HASH[:12]}),
    ("hash_word", WARN, "a hash that is none", {"ss_new_sd_model_hash": "not a hash"}),
    ("hash_html", WARN, "HTML for a hash", {"ss_sd_model_hash": "<b>cc6cb27103</b>"}),
    ("resolution_word", WARN, "a size that is a word", {"ss_resolution": "huge"}),
    ("resolution_negative", WARN, "a negative size", {"modelspec.resolution": "-512x512"}),
    ("clip_skip_negative", WARN, "clip skip -1", {"ss_clip_skip": "-1"}),
    ("json_cut", WARN, "ss_bucket_info cut short", {"ss_bucket_info": '{"buckets": '}),
    ("json_datasets", WARN, "ss_datasets is no JSON", {"ss_datasets": "[}"}),
    ("json_nested", WARN, "ss_dataset_dirs nested 9,000 deep", {"ss_dataset_dirs": "[" * 9000 + "]" * 9000}),
    (
        "json_nan",
        LOAD,
        "NaN in ss_bucket_info, which sd-scripts writes without pictures",
        {"ss_bucket_info": '{"mean_img_ar_error": NaN}'},
    ),
    ("json_twice", WARN, "a key twice in ss_tag_frequency", {"ss_tag_frequency": '{"a": {"b": 1}, "a": {"c": 1}}'}),
    ("json_list", WARN, "ss_tag_frequency is a list", {"ss_tag_frequency": "[1, 2]"}),
    ("json_negative", WARN, "a tag counted -5 times", {"ss_tag_frequency": json.dumps({"a": {"b": -5}})}),
    ("args_word", WARN, "ss_network_args is a word", {"ss_network_args": "conv_dim"}),
    (
        "base_sdxl",
        WARN,
        "SDXL in the metadata, SD1's width in the tensors",
        {"ss_base_model_version": "sdxl_base_v1-0"},
    ),
    ("base_flux", WARN, "Flux in the metadata", {"ss_base_model_version": "flux1"}),
    (
        "architecture_embedding",
        WARN,
        "an embedding in the metadata",
        {"modelspec.architecture": "stable-diffusion-v1/textual-inversion"},
    ),
    ("v2_conflict", WARN, "ss_v2 and sd_v1", {"ss_v2": "True", "ss_base_model_version": "sd_v1"}),
    ("v2_word", WARN, "ss_v2 is a word", {"ss_v2": "perhaps"}),
    ("format_tf", WARN, "tensors of TensorFlow", {"format": "tf"}),
    ("format_np", WARN, "tensors of NumPy", {"format": "np"}),
    ("model_name_traversal", WARN, "../ in the base's name", {"ss_sd_model_name": "../../../etc/passwd"}),
    ("vae_name_windows", WARN, "a path of Windows for the VAE", {"ss_vae_name": "C:\\secret\\vae.pt"}),
]


def adapter(name, settings, up=None):
    """Write a folder of peft."""

    def write(folder):
        path, layer = folder / name, f"base_model.model.{DIFFUSERS}"
        path.mkdir()
        up_factor = ramp(32, 2) if up is None else up
        tensors = {f"{layer}.lora_A.weight": ramp(2, 32), f"{layer}.lora_B.weight": up_factor}
        save_file(tensors, path / "adapter_model.safetensors")
        (path / "adapter_config.json").write_text(json.dumps(settings))
        return path

    return write


ADAPTERS = [
    ("ok", LOAD, "the right rank", {"r": 2, "lora_alpha": 2}, None),
    ("rank", WARN, "rank 64 in the settings", {"r": 64, "lora_alpha": 2}, None),
    ("zero", WARN, "lora_B is zero, as before training", {"r": 2, "lora_alpha": 2}, torch.zeros(32, 2)),
    ("nan", REFUSE, "NaN in lora_B", {"r": 2, "lora_alpha": 2}, with_value(ramp(32, 2), NAN, 0)),
]

WIDE = f"{PATH}_attn2_to_k"  # as wide as the context, which tells the family
CASES = [
    *(Case(name, "lora", must, why, safetensors_file(name, tensors)) for name, must, why, tensors in TENSORS),
    *(
        Case(f"meta_{name}", "lora", must, why, safetensors_file(f"meta_{name}", lora(WIDE, width=768), metadata))
        for name, must, why, metadata in METADATA
    ),
    *(
        Case(f"peft_{name}", "lora", must, why, adapter(f"peft_{name}", settings, up))
        for name, must, why, settings, up in ADAPTERS
    ),
    Case("pt", "lora", LOAD, "kohya's names in a torch file", torch_file("pt", lora())),
    Case(
        "pt_nan",
        "lora",
        REFUSE,
        "NaN in a torch file",
        torch_file("pt_nan", changed(lora(), DOWN, with_value(ramp(2, 32), NAN, 8))),
    ),
    Case(
        "pt_unknown",
        "lora",
        WARN,
        "an unknown tensor in a torch file",
        torch_file("pt_unknown", lora() | {"foo": ramp(2)}),
    ),
    Case("pt_list", "lora", REFUSE, "a list for a weight", torch_file("pt_list", changed(lora(), DOWN, [1.0, 2.0]))),
]
