"""Which layer, and what part of its change, each tensor of a LoRA's file is, whichever program has named it."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from velatura.errors import BadFile
from velatura.formats.loras.names import KOHYA_TEXT, KOHYA_TEXT_1, KOHYA_TEXT_2, KOHYA_UNET, text_layer, unet_layer

BUNDLE_PREFIX = "bundle_emb."
MAX_KEY_LENGTH = 512  # letters of a name: no layer has so many

# how keys begin; those with _ go on with _ up to the tensor's own name
FLAT_PREFIXES = {
    "lora_unet_": KOHYA_UNET,
    "oft_unet_": KOHYA_UNET,  # networks.oft
    "lora_te_": KOHYA_TEXT,
    "lora_te1_": KOHYA_TEXT_1,
    "lora_te2_": KOHYA_TEXT_2,
    "lycoris_": KOHYA_UNET,  # LyCORIS outside kohya's scripts
}
DOTTED_PREFIXES = {
    "unet.": KOHYA_UNET,
    "model.diffusion_model.": KOHYA_UNET,
    "diffusion_model.": KOHYA_UNET,
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
PEFT_PREFIX = "base_model.model."
HCP_SEPARATOR = ".___."

# how a tensor is called behind its layer, by LyCORIS's word for it; the name of an adapter may stand in between
ADAPTER_PATTERN = r"(?:\.\w+)?"
PLAIN_SUFFIXES = (
    *(
        "dora_scale",
        "lora_mid.weight",
        "alpha",
        "a1.weight",
        "a2.weight",
        "b1.weight",
        "b2.weight",
        "bm.weight",
        *("lambda_layer", "on_bias", "oft_terms"),
    ),
    *("on_input", "diff", "diff_b", "w_norm", "b_norm", "oft_blocks", "oft_diag", "rescale", "oft_R.weight"),
    *("q_layer.weight", "p_layer.weight", "ia3_l", "hada_t1", "hada_t2", "lokr_w1", "lokr_w2", "lokr_t2"),
    *(f"{factor}_{side}" for factor in ("hada_w1", "hada_w2", "lokr_w1", "lokr_w2") for side in "ab"),
)
SUFFIX_PATTERNS = {
    "lora_down.weight": rf"(?:lora_down|lora_A|lora\.down|lora_linear_layer\.down){ADAPTER_PATTERN}\.weight|W_down",
    "lora_up.weight": rf"(?:lora_up|lora_B|lora\.up|lora_linear_layer\.up){ADAPTER_PATTERN}\.weight|W_up",
    "lora_magnitude_vector": rf"lora_magnitude_vector{ADAPTER_PATTERN}(?:\.weight)?",
    **{suffix: re.escape(suffix) + r"(?:\.default)?" for suffix in PLAIN_SUFFIXES},
    "oft_R.weight": rf"oft_R{ADAPTER_PATTERN}(?:\.weight)?",
}
NUMBERED_SUFFIXES = dict(enumerate(SUFFIX_PATTERNS))
ANY_SUFFIX = "|".join(f"(?P<s{number}>{SUFFIX_PATTERNS[suffix]})" for number, suffix in NUMBERED_SUFFIXES.items())
TENSOR_KEY = re.compile(rf"(?P<path>[^/]+?)\.(?:{ANY_SUFFIX})")
PROCESSOR_KEY = re.compile(r"(?P<path>.+)\.processor\.to_(?P<which>q|k|v|out)_lora\.(?P<way>down|up)\.weight")
BUNDLE_SEPARATOR = re.compile(r"\.string_to_param\.|\.(?=[^.]+$)")
IA3_SUFFIXES = ".weight", ".on_input"  # (IA)^3's two; many another tensor ends in .weight


class LoraKey(NamedTuple):
    """Where a tensor belongs: to which layer, lora_unet_..., and what it is of its change, lora_down.weight."""

    layer: str
    suffix: str


@dataclass(frozen=True)
class LoraFileKeys:
    """The keys of a file: those of layers by name and suffix, those of embeddings in it, and what nobody knows."""

    layers: dict[str, dict[str, str]]
    bundled: dict[str, dict[str, str]]
    unmatched: tuple[str, ...]


def sort_keys(keys: Collection[str], file_name: str) -> LoraFileKeys:
    """Sort the keys of a file by what they are; two tensors for one place are refused."""
    layers, bundled, unmatched = dict[str, dict[str, str]](), dict[str, dict[str, str]](), list[str]()
    for key in keys:
        if (
            key.startswith(BUNDLE_PREFIX)
            and len(parts := BUNDLE_SEPARATOR.split(key.removeprefix(BUNDLE_PREFIX), maxsplit=1)) == 2
        ):
            bundled.setdefault(parts[0], {})[parts[1]] = key
            continue
        lora_key = parse_key(key, keys)
        if lora_key is None:
            unmatched.append(key)
            continue
        suffixes = layers.setdefault(lora_key.layer, {})
        if lora_key.suffix in suffixes:
            duplicates = f"{suffixes[lora_key.suffix][:80]!r} and {key[:80]!r}"
            raise BadFile(f"{file_name} holds one thing twice, as {duplicates}: ask who made it which one counts")
        suffixes[lora_key.suffix] = key
    return LoraFileKeys(_number_text_encoders(layers), bundled, tuple(unmatched))


def parse_key(key: str, keys: Collection[str] = ()) -> LoraKey | None:
    """Where a tensor belongs, None where its key is nobody's; keys: all that its file has."""
    if len(key) > MAX_KEY_LENGTH:
        return None
    module, suffix = _split_key(key, keys)
    layer = _kohya_layer(module) if suffix else None
    return None if layer is None else LoraKey(layer, suffix)


def layer_path(key: str) -> str:
    """The path of the layer that a tensor is of, as its program has it, without what all its keys begin with."""
    module, _ = _split_key(key, ())
    module = module.removeprefix(PEFT_PREFIX)
    prefix = next((candidate for candidate in (*FLAT_PREFIXES, *DOTTED_PREFIXES) if module.startswith(candidate)), "")
    return module.removeprefix(prefix)


def _split_key(key: str, keys: Collection[str]) -> tuple[str, str]:
    """The module and the tensor that a key names, the tensor as LyCORIS calls it, "" for none that is known."""
    if match := PROCESSOR_KEY.fullmatch(key):
        projection = "to_out.0" if match["which"] == "out" else f"to_{match['which']}"
        return f"{match['path']}.{projection}", f"lora_{match['way']}.weight"
    if key.endswith(IA3_SUFFIXES[0]) and key.removesuffix(IA3_SUFFIXES[0]) + IA3_SUFFIXES[1] in keys:
        return key.removesuffix(IA3_SUFFIXES[0]), "weight"
    path, _, rest = key.partition(HCP_SEPARATOR)
    match = TENSOR_KEY.fullmatch(f"{path}.{rest.removeprefix('layer.')}" if rest else key)
    if match is None:
        return key, ""
    number = next(int(name[1:]) for name, text in match.groupdict().items() if name != "path" and text is not None)
    return match["path"], NUMBERED_SUFFIXES[number]


def _kohya_layer(module: str) -> str | None:
    """A module's name in kohya's files, by diffusers' path."""
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


def _number_text_encoders(layers: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The layers, the first of two text towers by its number, which diffusers leaves out."""
    if not any(layer.startswith(KOHYA_TEXT_2) for layer in layers):
        return layers
    return {
        KOHYA_TEXT_1 + layer.removeprefix(KOHYA_TEXT) if layer.startswith(KOHYA_TEXT) else layer: keys
        for layer, keys in layers.items()
    }
