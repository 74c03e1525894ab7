"""Meaning of the tensor names in LoRA files: the layer, and what the tensor is of its change.

Every program has its own names. The tables here decide for reading and for inspecting alike.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from velatura.errors import BadFile
from velatura.formats.loras.names import KOHYA_TEXT, KOHYA_TEXT_1, KOHYA_TEXT_2, KOHYA_UNET, text_layer, unet_layer

MAX_KEY_LENGTH = 512  # characters; the longest name of a layer has about 100
MAX_SHOWN_KEY_LENGTH = 80  # characters of a key in a message

BUNDLE_PREFIX = "bundle_emb."  # of embeddings in a LoRA's file
BUNDLE_SEPARATOR = re.compile(r"\.string_to_param\.|\.(?=[^.]+$)")
PEFT_PREFIX = "base_model.model."
HCP_SEPARATOR = ".___."  # between the layer and the tensor in files of HCP-Diffusion

# Beginnings of keys that go on with "_" up to the tensor's own name, by kohya's prefix for the same part
FLAT_PREFIXES = {
    "lora_unet_": KOHYA_UNET,
    "oft_unet_": KOHYA_UNET,  # sd-scripts' networks.oft
    "lora_te_": KOHYA_TEXT,
    "lora_te1_": KOHYA_TEXT_1,
    "lora_te2_": KOHYA_TEXT_2,
    "lycoris_": KOHYA_UNET,  # LyCORIS without sd-scripts
}
# Beginnings of keys that go on with "."
LDM_PREFIXES = {
    "model.diffusion_model.": KOHYA_UNET,
    "diffusion_model.": KOHYA_UNET,
}
DIFFUSERS_PREFIXES = {
    "unet.": KOHYA_UNET,
    "text_encoder.": KOHYA_TEXT,
    "text_encoder_1.": KOHYA_TEXT_1,
    "text_encoder_2.": KOHYA_TEXT_2,
    "text_encoders.clip_l.": KOHYA_TEXT,
    "text_encoders.clip_g.": KOHYA_TEXT_2,
    "clip_l.": KOHYA_TEXT,
    "clip_g.": KOHYA_TEXT_2,
    "clip_B.": KOHYA_TEXT_1,
    "clip_bigG.": KOHYA_TEXT_2,
}
DOTTED_PREFIXES = {**LDM_PREFIXES, **DIFFUSERS_PREFIXES}
# The program that names tensors so, by how any key of a file begins; the first that fits. Some of these beginnings
# are of models that are not opened here, so that their LoRAs are recognised as LoRAs.
DIALECT_PREFIXES = {
    "kohya": (*FLAT_PREFIXES, "lora_", BUNDLE_PREFIX),
    "peft": (PEFT_PREFIX,),
    "ldm": (*LDM_PREFIXES, "input_blocks.", "middle_block.", "output_blocks."),
    "diffusers": (
        *DIFFUSERS_PREFIXES,
        "text_encoders.",
        "transformer.",
        "text_model.",
        "down_blocks.",
        "mid_block.",
        "up_blocks.",
    ),
}

# What an algorithm calls the tensors of a layer, in LyCORIS's words
ALGORITHM_SUFFIXES = {
    "LoRA": ("lora_down.weight", "lora_up.weight", "lora_mid.weight"),
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "IA3": ("on_input", "ia3_l"),
    "LoKr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    "full": ("diff", "diff_b"),
    "norm": ("w_norm", "b_norm"),
    "OFT": ("oft_blocks", "oft_diag", "oft_R.weight"),
    "GLoRA": ("a1.weight", "a2.weight", "b1.weight", "b2.weight"),
    "T-LoRA": ("lambda_layer",),
}
ALGORITHM_BY_SUFFIX = {suffix: name for name, suffixes in ALGORITHM_SUFFIXES.items() for suffix in suffixes}
# Tensors that several algorithms have beside their own
SHARED_SUFFIXES = (
    "alpha",
    "dora_scale",
    "lora_magnitude_vector",
    "rescale",
    "bm.weight",
    "q_layer.weight",
    "p_layer.weight",
    "on_bias",
    "oft_terms",
    "oft_R.scaled_oft",
    "initial_norm",
    "dora_multiplier",
)
# How programs spell LyCORIS's words where they differ; peft puts the name of an adapter in between
ADAPTER_PATTERN = r"(?:\.[\w-]+)?"
# of tensors whose names have nothing behind the adapter's, where the name of another tensor could stand
LAST_ADAPTER_PATTERN = r"(?:\.(?!(?:weight|bias|alpha)$)[\w-]+)?"
PEFT_TENSOR_STARTS = ("hada_", "lokr_", "ia3_l")
SPELLING_PATTERNS = {
    "lora_down.weight": rf"(?:lora_down|lora_A|lora\.down|lora_linear_layer\.down){ADAPTER_PATTERN}\.weight|W_down",
    "lora_up.weight": rf"(?:lora_up|lora_B|lora\.up|lora_linear_layer\.up){ADAPTER_PATTERN}\.weight|W_up",
    "lora_magnitude_vector": rf"lora_magnitude_vector{ADAPTER_PATTERN}(?:\.weight)?",
    "oft_R.weight": r"oft_R(?:\.(?!scaled_oft$)[\w-]+)?(?:\.weight)?",
}
SUFFIXES = (*ALGORITHM_BY_SUFFIX, *SHARED_SUFFIXES)
SUFFIX_PATTERNS = {
    suffix: SPELLING_PATTERNS.get(
        suffix,
        re.escape(suffix) + (LAST_ADAPTER_PATTERN if suffix.startswith(PEFT_TENSOR_STARTS) else r"(?:\.default)?"),
    )
    for suffix in SUFFIXES
}
NUMBERED_SUFFIXES = dict(enumerate(SUFFIXES))
ANY_SUFFIX = "|".join(f"(?P<s{number}>{SUFFIX_PATTERNS[suffix]})" for number, suffix in NUMBERED_SUFFIXES.items())
TENSOR_KEY = re.compile(rf"(?P<path>[^/]+?)\.(?:{ANY_SUFFIX})")
PROCESSOR_KEY = re.compile(r"(?P<path>.+)\.processor\.to_(?P<which>q|k|v|out)_lora\.(?P<way>down|up)\.weight")
IA3_WEIGHT, IA3_ON_INPUT = ".weight", ".on_input"  # the two of (IA)^3; many other tensors end in .weight


class LoraKey(NamedTuple):
    """Meaning of a key: kohya's name of the layer (lora_unet_...), and LyCORIS's name of the tensor in its change."""

    layer: str
    suffix: str


@dataclass(frozen=True)
class LoraFileKeys:
    """All keys of a file, sorted by what they are.

    Attributes:
        layers: Keys by kohya's name of the layer and LyCORIS's name of the tensor.
        bundled: Keys of embeddings in the file, by the embedding's name and the tensor's.
        unmatched: Keys that belong to neither.
    """

    layers: dict[str, dict[str, str]]
    bundled: dict[str, dict[str, str]]
    unmatched: tuple[str, ...]


def sort_keys(keys: Collection[str], file_name: str) -> LoraFileKeys:
    """Sort the keys of a file by layer, by embedding, and into those that fit no layer.

    Raises:
        BadFile: Two keys mean the same tensor of the same layer.
    """
    layers: dict[str, dict[str, str]] = {}
    bundled: dict[str, dict[str, str]] = {}
    unmatched: list[str] = []
    for key in keys:
        bundled_key = _parse_bundled_key(key)
        lora_key = None if bundled_key else parse_key(key, keys)
        if bundled_key:
            embedding, tensor_name = bundled_key
            bundled.setdefault(embedding, {})[tensor_name] = key
        elif lora_key is None:
            unmatched.append(key)
        else:
            _add_key(layers.setdefault(lora_key.layer, {}), lora_key.suffix, key, file_name)
    return LoraFileKeys(_number_text_encoders(layers, file_name), bundled, tuple(unmatched))


def parse_key(key: str, keys: Collection[str] = ()) -> LoraKey | None:
    """Return what a key means, or None if it fits no layer of a base here.

    Args:
        key: Name of a tensor in a LoRA's file, in the words of any program.
        keys: All names in the file, which tell whether a plain .weight is one of (IA)^3.
    """
    module, suffix = split_key(key, keys)
    layer = _kohya_layer(module) if suffix else None
    return None if layer is None else LoraKey(layer, suffix)


def split_key(key: str, keys: Collection[str] = ()) -> tuple[str, str]:
    """Split a key into the module, in the words of its program, and LyCORIS's name of the tensor.

    The layer may be of any model, also of one that is not opened here.

    Args:
        key: Name of a tensor in a LoRA's file.
        keys: All names in the file, which tell whether a plain .weight is one of (IA)^3.

    Returns:
        The module and the suffix, or the whole key and "" if no algorithm here has such a tensor.
    """
    if len(key) > MAX_KEY_LENGTH:
        return key, ""
    match = PROCESSOR_KEY.fullmatch(key)
    if match:
        projection = "to_out.0" if match["which"] == "out" else f"to_{match['which']}"
        return f"{match['path']}.{projection}", f"lora_{match['way']}.weight"
    ia3_module = key.removesuffix(IA3_WEIGHT)
    if ia3_module != key and ia3_module + IA3_ON_INPUT in keys:
        return ia3_module, "weight"
    path, _, rest = key.partition(HCP_SEPARATOR)
    match = TENSOR_KEY.fullmatch(f"{path}.{rest.removeprefix('layer.')}" if rest else key)
    if match is None:
        return key, ""
    number = next(int(name[1:]) for name, text in match.groupdict().items() if name != "path" and text is not None)
    return match["path"], NUMBERED_SUFFIXES[number]


def layer_path(key: str) -> str:
    """Return the path of the layer that a key names, in the words of its program and without a prefix of all keys."""
    module, _ = split_key(key)
    module = module.removeprefix(PEFT_PREFIX)
    prefix = next((candidate for candidate in (*FLAT_PREFIXES, *DOTTED_PREFIXES) if module.startswith(candidate)), "")
    return module.removeprefix(prefix)


def detect_key_dialect(keys: Iterable[str]) -> str:
    """Return which program names tensors like these ("kohya", "peft", "ldm", "diffusers", "hcp"), "" if none does."""
    all_keys = list(keys)
    if any(HCP_SEPARATOR in key for key in all_keys):
        return "hcp"
    for dialect, prefixes in DIALECT_PREFIXES.items():
        if any(key.startswith(prefixes) for key in all_keys):
            return dialect
    return ""


def _parse_bundled_key(key: str) -> tuple[str, str] | None:
    """Return the embedding and the tensor that a key of an embedding in a LoRA's file names."""
    if not key.startswith(BUNDLE_PREFIX):
        return None
    parts = BUNDLE_SEPARATOR.split(key.removeprefix(BUNDLE_PREFIX), maxsplit=1)
    return (parts[0], parts[1]) if len(parts) == 2 else None


def _add_key(layer_keys: dict[str, str], suffix: str, key: str, file_name: str) -> None:
    if suffix in layer_keys:
        duplicates = f"{layer_keys[suffix][:MAX_SHOWN_KEY_LENGTH]!r} and {key[:MAX_SHOWN_KEY_LENGTH]!r}"
        raise BadFile(f"{file_name} has two names for one tensor, {duplicates}: ask its author which of them counts")
    layer_keys[suffix] = key


def _kohya_layer(module: str) -> str | None:
    """Return kohya's name of a module, made from diffusers' path."""
    for prefix, root in FLAT_PREFIXES.items():
        if module.startswith(prefix):
            return _layer_below(root, module.removeprefix(prefix))
    module = module.removeprefix(PEFT_PREFIX)
    for prefix, root in DOTTED_PREFIXES.items():
        if module.startswith(prefix):
            return _layer_below(root, module.removeprefix(prefix))
    return unet_layer(module) or text_layer(module, KOHYA_TEXT)


def _layer_below(root: str, name: str) -> str | None:
    return unet_layer(name) if root == KOHYA_UNET else text_layer(name, root)


def _number_text_encoders(layers: dict[str, dict[str, str]], file_name: str) -> dict[str, dict[str, str]]:
    """Number the first text encoder where any name has a number; diffusers leaves its number out."""
    if not any(layer.startswith((KOHYA_TEXT_1, KOHYA_TEXT_2)) for layer in layers):
        return layers
    numbered: dict[str, dict[str, str]] = {}
    for layer, layer_keys in layers.items():
        is_unnumbered = layer.startswith(KOHYA_TEXT)
        name = KOHYA_TEXT_1 + layer.removeprefix(KOHYA_TEXT) if is_unnumbered else layer
        for suffix, key in layer_keys.items():
            _add_key(numbered.setdefault(name, {}), suffix, key, file_name)
    return numbered
