"""Hostile hypernetworks and embeddings, in torch files and safetensors."""

import base64
import json

import torch
from PIL import Image, PngImagePlugin

from tests.hostile.cases import (
    FIELDS,
    LOAD,
    REFUSE,
    WARN,
    Case,
    embedding,
    hypernetwork,
    network,
    ramp,
    safetensors_file,
    torch_file,
)
from tests.hostile.lora_cases import INF, NAN, with_value

WEIGHT, BIAS, LAST, LAST_BIAS = "linear.0.weight", "linear.0.bias", "linear.1.weight", "linear.1.bias"


def with_fields(**fields):
    return hypernetwork(fields=fields)


HYPERNETWORKS = [
    ("ok", LOAD, "plain", hypernetwork()),
    ("ok_768", LOAD, "of SD1's text", hypernetwork(width=768, fields={"layer_structure": [1, 4 / 768, 1]})),
    ("ok_japanese", LOAD, "a Japanese name", with_fields(name="\u685c")),
    ("ok_no_step", LOAD, "no step", {key: value for key, value in hypernetwork().items() if key != "step"}),
    ("nan_bias", REFUSE, "NaN in a bias", hypernetwork({BIAS: with_value(ramp(4), NAN, 0)})),
    ("nan_last", REFUSE, "NaN in the last value", hypernetwork({LAST: with_value(ramp(320, 4), NAN, -1)})),
    ("minus_inf", REFUSE, "-inf", hypernetwork({WEIGHT: with_value(ramp(4, 320), -INF, 7)})),
    ("beyond_float32", REFUSE, "1e300", hypernetwork({WEIGHT: with_value(ramp(4, 320).double(), 1e300, 0)})),
    ("int32", REFUSE, "int32", hypernetwork({LAST: torch.ones(320, 4).int()})),
    ("uint8_bias", REFUSE, "a bias in uint8", hypernetwork({BIAS: torch.ones(4).byte()})),
    ("complex_bias", REFUSE, "a complex bias", hypernetwork({BIAS: torch.ones(4) + 0j})),
    ("sparse", REFUSE, "a sparse weight", hypernetwork({WEIGHT: torch.eye(4, 320).to_sparse()})),
    ("edge_f16", WARN, "the largest float16", hypernetwork({LAST: with_value(ramp(320, 4).half(), 65504.0, 0)})),
    ("large", WARN, "1e20", hypernetwork({LAST: with_value(ramp(320, 4), 1e20, 0)})),
    ("denormal", WARN, "denormal numbers only", hypernetwork({LAST: torch.full((320, 4), 1e-41)})),
    ("half_zero", WARN, "a weight of zeros", hypernetwork({LAST: torch.zeros(320, 4)})),
    ("mixed_bf16", WARN, "bfloat16 among float32", hypernetwork({LAST: ramp(320, 4).bfloat16()})),
    ("bias_matrix", REFUSE, "a bias of two dimensions", hypernetwork({BIAS: ramp(4, 1)})),
    ("bias_scalar", REFUSE, "a bias of no dimension", hypernetwork({BIAS: torch.tensor(1.0)})),
    ("last_bias_short", REFUSE, "a short last bias", hypernetwork({LAST_BIAS: ramp(319)})),
    ("last_bias_missing", REFUSE, "no last bias", hypernetwork({LAST_BIAS: None})),
    ("first_weight_missing", REFUSE, "no first weight", hypernetwork({WEIGHT: None})),
    ("third_layer", REFUSE, "a third layer", hypernetwork({"linear.2.weight": ramp(320, 320)})),
    ("unknown_tensor", REFUSE, "a tensor of no layer", hypernetwork({"foo": ramp(2)})),
    ("weight_none", REFUSE, "a weight that is None", {**hypernetwork(), 320: (network() | {WEIGHT: None}, network())}),
    ("weight_number", REFUSE, "a number for a weight", {**hypernetwork(), 320: (network() | {WEIGHT: 1.5}, network())}),
    ("pair_of_lists", REFUSE, "lists for the networks", {**hypernetwork(), 320: ([], [])}),
    ("pair_single", REFUSE, "one network", {**hypernetwork(), 320: (network(),)}),
    ("pair_text", REFUSE, "text for the networks", {**hypernetwork(), 320: "networks"}),
    ("empty_networks", REFUSE, "empty networks", {**hypernetwork(), 320: ({}, {})}),
    ("width_none", REFUSE, "None for a width", {**hypernetwork(), None: (network(), network())}),
    ("width_tuple", REFUSE, "a tuple for a width", {**hypernetwork(), (320,): (network(), network())}),
    ("width_negative_beside", REFUSE, "a second width of -768", {**hypernetwork(), -768: (network(), network())}),
    ("width_text_beside", WARN, "a second width in words", {**hypernetwork(), "768": (network(768), network(768))}),
    (
        "width_8_beside",
        REFUSE,
        "a second width whose weights are of the first",
        {**hypernetwork(), 8: (network(), network())},
    ),
    (
        "odd_width",
        WARN,
        "a width of no base",
        hypernetwork(width=322, fields={"layer_structure": [1, 4 / 322 + 1e-9, 1]}),
    ),
    ("structure_words", REFUSE, "words in the structure", with_fields(layer_structure=[1, "two", 1])),
    (
        "structure_bools",
        REFUSE,
        "True in the structure",
        hypernetwork(fields={"layer_structure": [True, 0.0125, True]}),
    ),
    ("structure_nested", REFUSE, "a nested structure", with_fields(layer_structure=[[1], [0.0125], [1]])),
    ("structure_zero", REFUSE, "0 in the structure", with_fields(layer_structure=[1, 0, 1])),
    ("structure_inf", REFUSE, "inf in the structure", with_fields(layer_structure=[1, INF, 1])),
    (
        "structure_last_2",
        REFUSE,
        "a structure that ends in 2",
        hypernetwork(fields={"layer_structure": [1, 0.0125, 2]}),
    ),
    ("structure_other", REFUSE, "a structure of other weights", with_fields(layer_structure=[1, 2, 1])),
    ("structure_number", REFUSE, "a number for the structure", with_fields(layer_structure=1)),
    ("activation_list", REFUSE, "a list for the activation", with_fields(activation_func=["relu"])),
    ("activation_path", REFUSE, "a path for the activation", with_fields(activation_func="os.system")),
    ("activation_softmax2", REFUSE, "an unknown activation", with_fields(activation_func="softmax9")),
    ("norm_claimed", REFUSE, "layer norms without weights", with_fields(is_layer_norm=True)),
    (
        "dropout_negative",
        REFUSE,
        "dropout -0.1",
        hypernetwork(fields={"dropout_structure": [0, -0.1, 0], "use_dropout": True}),
    ),
    (
        "dropout_nan",
        REFUSE,
        "dropout NaN",
        hypernetwork(fields={"dropout_structure": [0, NAN, 0], "use_dropout": True}),
    ),
    ("dropout_words", REFUSE, "words for dropout", with_fields(dropout_structure=["a", "b", "c"])),
    ("step_float", WARN, "step 1.5", with_fields(step=1.5)),
    ("step_true", WARN, "step True", with_fields(step=True)),
    ("step_list", WARN, "a list for step", with_fields(step=[1])),
    ("step_nan", WARN, "step NaN", with_fields(step=NAN)),
    ("name_number", WARN, "a number for the name", with_fields(name=5)),
    ("name_empty", LOAD, "an empty name, so the file's is used", with_fields(name="")),
    ("name_bidi", WARN, "a change of direction in the name", with_fields(name="a\u202eb")),
    ("name_zero_width", WARN, "a zero-width space in the name", with_fields(name="a\u200bb")),
    ("name_mixed", WARN, "a Cyrillic letter in a Latin name", with_fields(name="\u0430nime")),
    ("name_tag", WARN, "a tag of a prompt for the name", hypernetwork(fields={"name": "<lora:x:1>"})),
    ("name_windows", WARN, "a path of Windows for the name", hypernetwork(fields={"name": "C:\\x"})),
    ("name_newline", WARN, "a line break in the name", with_fields(name="a\nb")),
    ("base_list", WARN, "a list for the base", with_fields(sd_checkpoint_name=["v1-5"])),
    ("base_path", WARN, "a path for the base", with_fields(sd_checkpoint_name="/etc/passwd")),
    (
        "base_mixed",
        WARN,
        "a Cyrillic letter in the base's name",
        hypernetwork(fields={"sd_checkpoint_name": "\u0430nime"}),
    ),
    ("hash_word", WARN, "a hash that is none", with_fields(sd_checkpoint="a hash")),
    ("hash_number", WARN, "a number for the hash", with_fields(sd_checkpoint=5)),
    ("info_escape", WARN, "terminal codes in the note", with_fields(optional_info="a\x1b[31mb")),
    ("info_dict", WARN, "a dict for the note", hypernetwork(fields={"optional_info": {"a": 1}})),
    ("field_unknown", WARN, "an unknown field", with_fields(foo=1)),
    ("field_cyrillic", WARN, "a known field with a Cyrillic letter", hypernetwork(fields={"n\u0430me": "x"})),
    ("init_unknown", WARN, "an unknown initialisation", with_fields(weight_initialization="Magic")),
    ("flag_text", REFUSE, "text for a flag", with_fields(use_dropout="no")),
]

EMBEDDINGS = [
    ("ok", LOAD, "plain", embedding()),
    ("ok_f16", LOAD, "float16", embedding(ramp(2, 768).half())),
    ("ok_sd2", LOAD, "of SD2", embedding(ramp(3, 1024))),
    ("ok_one_dimension", LOAD, "one vector without a count", embedding(ramp(768))),
    ("ok_parameter", LOAD, "a Parameter", embedding(torch.nn.Parameter(ramp(2, 768)))),
    ("ok_japanese", LOAD, "a Japanese name", embedding(fields={"name": "\u685c"})),
    ("nan_last", REFUSE, "NaN in the last value", embedding(with_value(ramp(2, 768), NAN, -1))),
    ("inf", REFUSE, "inf", embedding(with_value(ramp(2, 768), INF, 0))),
    ("minus_inf_f16", REFUSE, "-inf in float16", embedding(with_value(ramp(2, 768).half(), -INF, 0))),
    ("beyond_float32", REFUSE, "1e300", embedding(with_value(ramp(2, 768).double(), 1e300, 0))),
    ("uint8", REFUSE, "uint8", embedding(torch.ones(2, 768).byte())),
    ("bool", REFUSE, "bool", embedding(torch.ones(2, 768).bool())),
    ("complex", REFUSE, "complex", embedding(torch.ones(2, 768) + 0j)),
    ("sparse", REFUSE, "sparse", embedding(torch.eye(2, 768).to_sparse())),
    ("four_dimensions", REFUSE, "four dimensions", embedding(ramp(1, 1, 2, 768))),
    ("scalar", REFUSE, "a number", embedding(torch.tensor(1.0))),
    ("no_width", REFUSE, "width 0", embedding(torch.empty(2, 0))),
    ("none", REFUSE, "None for vectors", {**embedding(), "string_to_param": {"*": None}}),
    ("params_list", REFUSE, "a list of terms", embedding(fields={"string_to_param": [ramp(2, 768)]})),
    ("params_none", REFUSE, "no terms", embedding(fields={"string_to_param": None})),
    ("params_text", REFUSE, "text for the terms", embedding(fields={"string_to_param": "x"})),
    ("width_769", WARN, "width 769", embedding(ramp(2, 769))),
    ("width_1", WARN, "width 1", embedding(ramp(2, 1))),
    ("vectors_76", WARN, "76 vectors, one more than a prompt holds", embedding(ramp(76, 768))),
    ("zeros", WARN, "zeros", embedding(torch.zeros(2, 768))),
    ("minus_zeros", WARN, "-0.0", embedding(-torch.zeros(2, 768))),
    ("denormal", WARN, "denormal numbers", embedding(torch.full((2, 768), 1e-41))),
    ("large", WARN, "1e10", embedding(with_value(ramp(2, 768), 1e10, 5))),
    ("edge_f16", WARN, "the largest float16", embedding(with_value(ramp(2, 768).half(), 65504.0, 5))),
    ("step_negative", WARN, "step -1", embedding(fields={"step": -1})),
    ("step_text", WARN, "text for step", embedding(fields={"step": "100"})),
    ("step_huge", WARN, "step 2 ** 200", embedding(fields={"step": 2**200})),
    ("step_float", WARN, "step 0.5", embedding(fields={"step": 0.5})),
    ("name_list", WARN, "a list for the name", embedding(fields={"name": ["a"]})),
    ("name_newline", WARN, "a line break in the name", embedding(fields={"name": "a\nb"})),
    ("name_escape", WARN, "terminal codes in the name", embedding(fields={"name": "a\x1b[31m"})),
    ("name_bidi", WARN, "a change of direction in the name", embedding(fields={"name": "a\u202eb"})),
    ("name_mixed", WARN, "a Cyrillic letter in a Latin name", embedding(fields={"name": "\u0430nime"})),
    ("name_windows", WARN, "a path of Windows for the name", embedding(fields={"name": "..\\..\\x"})),
    ("name_10k", WARN, "a name of 10,000 letters", embedding(fields={"name": "x" * 10_000})),
    ("name_emphasis", WARN, "emphasis in the name", embedding(fields={"name": "(a:1.5)"})),
    ("name_edit", WARN, "prompt editing in the name", embedding(fields={"name": "[a:b:0.5]"})),
    ("field_unknown", WARN, "an unknown field", embedding(fields={"foo": 1})),
    ("base_number", WARN, "a number for the base", embedding(fields={"sd_checkpoint_name": 5})),
    ("hash_word", WARN, "a hash that is none", embedding(fields={"sd_checkpoint": "no hash"})),
    ("base_path", WARN, "a path for the base", embedding(fields={"sd_checkpoint_name": "../x"})),
    ("base_escape", WARN, "terminal codes in the base's name", embedding(fields={"sd_checkpoint_name": "a\x1b[2J"})),
]

SDXL = {"clip_l": ramp(2, 768), "clip_g": ramp(2, 1280)}
SAFETENSORS = [
    ("ok_emb_params", LOAD, "of sd-scripts", {"emb_params": ramp(2, 768)}, {}),
    ("ok_sdxl", LOAD, "of SDXL", SDXL, {}),
    ("clip_l_only", REFUSE, "clip_l without clip_g", {"clip_l": ramp(2, 768)}, {}),
    ("clip_g_1024", REFUSE, "clip_g of another width", SDXL | {"clip_g": ramp(2, 1024)}, {}),
    ("clip_swapped", REFUSE, "clip_l and clip_g swapped", {"clip_l": ramp(2, 1280), "clip_g": ramp(2, 768)}, {}),
    ("clip_rows", REFUSE, "3 and 2 vectors", SDXL | {"clip_l": ramp(3, 768)}, {}),
    ("clip_g_nan", REFUSE, "NaN in clip_g", SDXL | {"clip_g": with_value(ramp(2, 1280), NAN, 0)}, {}),
    ("clip_g_int", REFUSE, "int64 in clip_g", SDXL | {"clip_g": torch.ones(2, 1280).long()}, {}),
    ("clip_g_zero", WARN, "clip_g of zeros", SDXL | {"clip_g": torch.zeros(2, 1280)}, {}),
    ("clip_l_zero", WARN, "clip_l of zeros", SDXL | {"clip_l": torch.zeros(2, 768)}, {}),
    ("clip_g_empty", REFUSE, "clip_g without vectors", SDXL | {"clip_g": torch.empty(0, 1280)}, {}),
    ("clip_mixed", WARN, "clip_g in float16", SDXL | {"clip_g": ramp(2, 1280).half()}, {}),
    ("clip_third", WARN, "a third encoder", SDXL | {"clip_t": ramp(2, 4096)}, {}),
    ("steps", WARN, "a step count that is none", {"emb_params": ramp(2, 768)}, {"ss_steps": "few"}),
    (
        "architecture",
        WARN,
        "a LoRA in the metadata",
        {"emb_params": ramp(2, 768)},
        {"modelspec.architecture": "stable-diffusion-v1/lora"},
    ),
    (
        "family",
        WARN,
        "SDXL in the metadata",
        {"emb_params": ramp(2, 768)},
        {"modelspec.architecture": "stable-diffusion-xl-v1-base/textual-inversion"},
    ),
]


def picture(name, text, key="sd-ti-embedding"):
    """Write a picture with an embedding in a text chunk, as A1111 does."""

    def write(folder):
        info = PngImagePlugin.PngInfo()
        info.add_text(key, text)
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png", pnginfo=info)
        return folder / f"{name}.png"

    return write


def encoded(fields):
    return base64.b64encode(json.dumps(fields).encode()).decode()


def png_fields(rows, **fields):
    return encoded(
        {"string_to_param": {"*": {"TORCHTENSOR": rows}}, "string_to_token": {"*": 265}, "name": "inca", **fields}
    )


ROWS = ramp(2, 768).tolist()
PICTURES = [
    ("png_ok", LOAD, "plain", png_fields(ROWS)),
    ("png_step_text", WARN, "text for step", png_fields(ROWS, step="x")),
    ("png_unknown", WARN, "an unknown field", png_fields(ROWS, foo=1)),
    ("png_zero", WARN, "zeros", png_fields([[0.0] * 768])),
    ("png_name_tag", WARN, "a tag for the name", png_fields(ROWS, name="<lora:x:1>")),
    ("png_infinity", REFUSE, "Infinity in the JSON", png_fields([[INF] * 768])),
    ("png_bools", REFUSE, "true for numbers", png_fields([[True] * 768])),
    ("png_nulls", REFUSE, "null for numbers", png_fields([[None] * 768])),
    ("png_nested", REFUSE, "rows of rows of rows", png_fields([[[[0.1] * 768]]])),
    ("png_rows_empty", REFUSE, "no rows", png_fields([])),
    ("png_row_empty", REFUSE, "an empty row", png_fields([[]])),
    ("png_float_overflow", REFUSE, "1e39, beyond float32", png_fields([[1e39] * 768])),
    ("png_list", REFUSE, "a list for the fields", encoded([1, 2])),
    ("png_no_param", REFUSE, "no vectors", encoded({"name": "inca"})),
    (
        "png_two_terms",
        REFUSE,
        "two terms",
        encoded({"string_to_param": {"a": {"TORCHTENSOR": ROWS}, "b": {"TORCHTENSOR": ROWS}}}),
    ),
    ("png_utf16", REFUSE, "UTF-16 in base64", base64.b64encode('{"name": "x"}'.encode("utf-16")).decode()),
]

FLAT = {f"320_{number}.{key}": tensor for number in (0, 1) for key, tensor in network().items()}
FLAT_FIELDS = {key: json.dumps(value) if not isinstance(value, str) else value for key, value in FIELDS.items()}
FLATS = [
    ("flat_ok", LOAD, "plain", FLAT, FLAT_FIELDS),
    ("flat_unknown_field", WARN, "an unknown field", FLAT, FLAT_FIELDS | {"foo": "1"}),
    ("flat_nan", REFUSE, "NaN", FLAT | {"320_1.linear.0.weight": with_value(ramp(4, 320), NAN, 3)}, FLAT_FIELDS),
    ("flat_half", REFUSE, "no V", {key: value for key, value in FLAT.items() if key.startswith("320_0")}, FLAT_FIELDS),
    ("flat_int", REFUSE, "int8", FLAT | {"320_1.linear.0.bias": torch.ones(4).char()}, FLAT_FIELDS),
    ("flat_extra", REFUSE, "a tensor of no network", FLAT | {"foo": ramp(2)}, FLAT_FIELDS),
    ("flat_structure", REFUSE, "another structure", FLAT, FLAT_FIELDS | {"layer_structure": "[1, 2, 1]"}),
    ("flat_step", WARN, "step -3", FLAT, FLAT_FIELDS | {"step": "-3"}),
    ("flat_name", WARN, "a path for the name", FLAT, FLAT_FIELDS | {"name": "../../x"}),
    ("flat_zero", WARN, "zeros", {key: torch.zeros_like(value) for key, value in FLAT.items()}, FLAT_FIELDS),
]

CASES = [
    *(
        Case(f"hn_{name}", "hypernetwork", must, why, torch_file(f"hn_{name}", payload))
        for name, must, why, payload in HYPERNETWORKS
    ),
    *(
        Case(f"ti_{name}", "embedding", must, why, torch_file(f"ti_{name}", payload))
        for name, must, why, payload in EMBEDDINGS
    ),
    *(
        Case(f"st_{name}", "embedding", must, why, safetensors_file(f"st_{name}", tensors, metadata or None))
        for name, must, why, tensors, metadata in SAFETENSORS
    ),
    *(Case(name, "embedding", must, why, picture(name, text)) for name, must, why, text in PICTURES),
    *(
        Case(name, "hypernetwork", must, why, safetensors_file(name, tensors, metadata))
        for name, must, why, tensors, metadata in FLATS
    ),
]
