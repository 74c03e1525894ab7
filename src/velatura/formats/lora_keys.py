"""Which layer, and what part of its change, each tensor of a LoRA's file is, whichever program has named it."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from velatura.errors import BadFile
from velatura.formats.lora_names import TEXT, TEXT_1, TEXT_2, UNET, text_layer, unet_layer

BUNDLED = "bundle_emb."
LONGEST = 512  # letters of a name: no layer has so many

# how keys begin; those with _ go on with _ up to the tensor's own name
FLAT = {
    "lora_unet_": UNET,
    "oft_unet_": UNET,  # networks.oft
    "lora_te_": TEXT,
    "lora_te1_": TEXT_1,
    "lora_te2_": TEXT_2,
    "lycoris_": UNET,  # LyCORIS outside kohya's scripts
}
DOTTED = {
    "unet.": UNET,
    "model.diffusion_model.": UNET,
    "diffusion_model.": UNET,
    "text_encoder.": TEXT,
    "text_encoder_1.": TEXT_1,
    "text_encoder_2.": TEXT_2,
    "text_encoders.clip_l.": TEXT,
    "text_encoders.clip_g.": TEXT_2,
    "clip_l.": TEXT,
    "clip_g.": TEXT_2,
    "clip_B.": TEXT_1,
    "clip_bigG.": TEXT_2,
}
PEFT = "base_model.model."
HCP = ".___."

# how a tensor is called behind its layer, by LyCORIS's word for it; the name of an adapter may stand in between
ADAPTER = r"(?:\.\w+)?"
PLAIN = (
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
    *(f"{each}_{side}" for each in ("hada_w1", "hada_w2", "lokr_w1", "lokr_w2") for side in "ab"),
)
SUFFIXES = {
    "lora_down.weight": rf"(?:lora_down|lora_A|lora\.down|lora_linear_layer\.down){ADAPTER}\.weight|W_down",
    "lora_up.weight": rf"(?:lora_up|lora_B|lora\.up|lora_linear_layer\.up){ADAPTER}\.weight|W_up",
    "lora_magnitude_vector": rf"lora_magnitude_vector{ADAPTER}(?:\.weight)?",
    **{each: re.escape(each) + r"(?:\.default)?" for each in PLAIN},
    "oft_R.weight": rf"oft_R{ADAPTER}(?:\.weight)?",
}
NUMBERED = dict(enumerate(SUFFIXES))
ENDS = "|".join(f"(?P<s{number}>{SUFFIXES[suffix]})" for number, suffix in NUMBERED.items())
LAST = re.compile(rf"(?P<path>[^/]+?)\.(?:{ENDS})")
PROCESSOR = re.compile(r"(?P<path>.+)\.processor\.to_(?P<which>q|k|v|out)_lora\.(?P<way>down|up)\.weight")
TENSOR = re.compile(r"\.string_to_param\.|\.(?=[^.]+$)")
SCALED = ".weight", ".on_input"  # (IA)^3's two; many another tensor ends in .weight


class Place(NamedTuple):
    """Where a tensor belongs: to which layer, lora_unet_..., and what it is of its change, lora_down.weight."""

    layer: str
    suffix: str


@dataclass(frozen=True)
class Keys:
    """The keys of a file: those of layers by name and suffix, those of embeddings in it, and what nobody knows."""

    layers: dict[str, dict[str, str]]
    bundled: dict[str, dict[str, str]]
    unmatched: tuple[str, ...]


def sorted_keys(keys: Collection[str], file: str) -> Keys:
    """Sort the keys of a file by what they are; two tensors for one place are refused."""
    layers, bundled, unmatched = dict[str, dict[str, str]](), dict[str, dict[str, str]](), list[str]()
    for key in keys:
        if key.startswith(BUNDLED) and len(found := TENSOR.split(key.removeprefix(BUNDLED), maxsplit=1)) == 2:
            bundled.setdefault(found[0], {})[found[1]] = key
            continue
        place = place_of(key, keys)
        if place is None:
            unmatched.append(key)
            continue
        suffixes = layers.setdefault(place.layer, {})
        if place.suffix in suffixes:
            rivals = f"{suffixes[place.suffix][:80]!r} and {key[:80]!r}"
            raise BadFile(f"{file} holds one thing twice, as {rivals}: ask who made it which one counts")
        suffixes[place.suffix] = key
    return Keys(_told_apart(layers), bundled, tuple(unmatched))


def place_of(key: str, keys: Collection[str] = ()) -> Place | None:
    """Where a tensor belongs, None where its key is nobody's; keys: all that its file has."""
    if len(key) > LONGEST:
        return None
    module, suffix = _parted(key, keys)
    layer = _layer(module) if suffix else None
    return None if layer is None else Place(layer, suffix)


def path_of(key: str) -> str:
    """The path of the layer that a tensor is of, as its program has it, without what all its keys begin with."""
    module, _ = _parted(key, ())
    module = module.removeprefix(PEFT)
    prefix = next((each for each in (*FLAT, *DOTTED) if module.startswith(each)), "")
    return module.removeprefix(prefix)


def _parted(key: str, keys: Collection[str]) -> tuple[str, str]:
    """The module and the tensor that a key names, the tensor as LyCORIS calls it, "" for none that is known."""
    if found := PROCESSOR.fullmatch(key):
        projection = "to_out.0" if found["which"] == "out" else f"to_{found['which']}"
        return f"{found['path']}.{projection}", f"lora_{found['way']}.weight"
    if key.endswith(SCALED[0]) and key.removesuffix(SCALED[0]) + SCALED[1] in keys:
        return key.removesuffix(SCALED[0]), "weight"
    path, _, rest = key.partition(HCP)
    found = LAST.fullmatch(f"{path}.{rest.removeprefix('layer.')}" if rest else key)
    if found is None:
        return key, ""
    number = next(int(name[1:]) for name, each in found.groupdict().items() if name != "path" and each is not None)
    return found["path"], NUMBERED[number]


def _layer(module: str) -> str | None:
    """A module's name in kohya's files, by diffusers' path."""
    for prefix, root in FLAT.items():
        if module.startswith(prefix):
            return _below(root, module.removeprefix(prefix))
    module = module.removeprefix(PEFT)
    for prefix, root in DOTTED.items():
        if module.startswith(prefix):
            return _below(root, module.removeprefix(prefix))
    return unet_layer(module) or text_layer(module, TEXT)


def _below(root: str, name: str) -> str | None:
    return unet_layer(name) if root == UNET else text_layer(name, root)


def _told_apart(layers: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The layers, the first of two text towers by its number, which diffusers leaves out."""
    if not any(layer.startswith(TEXT_2) for layer in layers):
        return layers
    return {
        TEXT_1 + layer.removeprefix(TEXT) if layer.startswith(TEXT) else layer: each for layer, each in layers.items()
    }
