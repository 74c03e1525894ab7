"""What is told of a LoRA or one of its relatives by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from torch import Tensor

from velatura.base.families import FAMILIES
from velatura.card import Card
from velatura.errors import BadFile
from velatura.formats.loras.keys import sort_keys
from velatura.formats.loras.names import KOHYA_TEXT_2, KOHYA_UNET
from velatura.tensors import Contents, as_list

LoraFileTensors = Mapping[str, Tensor]

# how the names of tensors end, by the algorithm: the first that any ends in is a file's, as A1111 looks for them
ALGORITHM_SUFFIXES = {
    "LoRA": r"lora_(?:down|up|mid|A|B)(?:\.default)?(?:\.weight)?|lora\.(?:down|up)\.weight|W_(?:down|up)"
    r"|lora_linear_layer\.(?:down|up)\.weight|to_\w+_lora\.(?:down|up)\.weight",
    "LoHa": r"hada_(?:w[12]_[ab]|t[12])",
    "IA3": r"on_input|ia3_l(?:\.\w+)?",
    "LoKr": r"lokr_(?:w[12](?:_[ab])?|t2)",
    "full": r"diff|diff_b",
    "norm": r"[wb]_norm",
    "OFT": r"oft_(?:blocks|diag)|oft_R(?:\.\w+)?(?:\.weight)?",
    "GLoRA": r"[ab][12]\.weight",
    "T_LoRA": r"lambda_layer",
}
ALGORITHM_KEY = re.compile(
    r"(?P<module>.+)\.(?:" + "|".join(f"(?P<{name}>{pattern})" for name, pattern in ALGORITHM_SUFFIXES.items()) + ")"
)
OTHER_KEY = re.compile(
    r"(.+)\.(alpha|dora_scale|weight|rescale|bias|lora_magnitude_vector(\.\w+)?(\.weight)?|[qp]_layer\.\w+)"
)
DIALECT_PREFIXES = {
    "kohya": ("lora_", "oft_unet_", "lycoris_", "bundle_emb."),
    "peft": ("base_model.model.",),
    "ldm": ("diffusion_model.", "model.diffusion_model.", "input_blocks.", "middle_block.", "output_blocks."),
    "diffusers": (
        *("unet.", "text_encoder.", "text_encoder_1.", "text_encoder_2.", "transformer.", "text_model."),
        *("down_blocks.", "mid_block.", "up_blocks.", "clip_l.", "clip_g.", "text_encoders."),
    ),
}
MAX_SHOWN_KEYS, MAX_SHOWN_LENGTH = 3, 80  # of keys that are named, and their letters
MAX_KEY_LENGTH = 512  # letters of a name: no layer has so many
CLONEOFSIMO_KEY = re.compile(r"(unet|text_encoder):\d+:(up|down)")
DOWN_KEY = re.compile(
    r"(lora_down|lora_A|lora\.down|lora_linear_layer\.down|to_\w+_lora\.down|W_down)(\.default)?(\.weight)?$"
)
CROSS_ATTENTION_KEY = re.compile(
    r"(attn2[._]|attn2\.processor\.)to_[kv].*\.(lora_down|lora_A|down|hada_w1_b)(\.default)?(\.weight)?$"
)
FAMILY_BY_CROSS_WIDTH = {family.cross_width: family.name for family in FAMILIES.values()}


def detect_lora(contents: Contents, state: LoraFileTensors) -> tuple[Card, str] | None:
    """The card of a LoRA or LyCORIS, and who names tensors so; None for anything else."""
    if (pairs := as_list(contents.payload)) and len(pairs) % 2 == 0 and all(isinstance(item, Tensor) for item in pairs):
        return Card(kind="lora", outline=f"LoRA, {len(pairs) // 2} layers"), "cloneofsimo"
    state = {key: tensor for key, tensor in state.items() if len(key) <= MAX_KEY_LENGTH}
    if any(map(CLONEOFSIMO_KEY.fullmatch, state)):
        return Card(kind="lora", outline=f"LoRA, {sum(key.endswith(':up') for key in state)} layers"), "cloneofsimo"
    matches = [match for key in state if (match := ALGORITHM_KEY.fullmatch(key))]
    # tensors of whole models end in .weight, of which these few may as well
    known_count = len(matches) + sum(
        bool(OTHER_KEY.fullmatch(key)) for key in state.keys() - {key_match[0] for key_match in matches}
    )
    if not matches or known_count < len(state) / 2 or _find_dialect(state) == "":
        return None
    algorithms = {_algorithm_name(key_match.lastgroup or "", state) for key_match in matches}
    modules = {key_match["module"] for key_match in matches}
    has_dora = any(key.endswith("dora_scale") or "lora_magnitude_vector" in key for key in state)
    facts = (
        " and ".join(sorted(algorithms)) + " with DoRA" * has_dora,
        *_describe_ranks(state),
        f"{len(modules)} layer{'s' * (len(modules) != 1)}",
    )
    return Card(kind="lora", outline=", ".join(facts), family=_guess_family(state)), _find_dialect(state)


def lora_details(shapes: LoraFileTensors) -> dict[str, str]:
    """What people ask of a LoRA beside its card: which layers it changes, the tensors of none, and embeddings in it."""
    try:
        keys = sort_keys(shapes, "it")
    except BadFile:  # said when it is opened
        return {}
    parts = Counter(_layer_label(layer) for layer in keys.layers)
    changed = ", ".join(f"{count} {part}" for part, count in parts.items())
    unmatched = ", ".join(key[:MAX_SHOWN_LENGTH] for key in keys.unmatched[:MAX_SHOWN_KEYS])
    details = {
        "changes": changed,
        "of no layer": f"{len(keys.unmatched)} tensors ({unmatched})" if keys.unmatched else "",
        "embeddings": ", ".join(keys.bundled),
    }
    return {label: text for label, text in details.items() if text}


def _layer_label(layer: str) -> str:
    """What a layer is part of: the text encoder, or in the UNet an attention, a residual block or anything else."""
    if not layer.startswith(KOHYA_UNET):
        return f"in text encoder {2 if layer.startswith(KOHYA_TEXT_2) else 1}"
    labels = {"_attn": "in attentions", "_ff_": "in feed-forwards", "_resnets_": "in residual blocks"}
    return next((label for mark, label in labels.items() if mark in layer), "elsewhere in the UNet")


def _find_dialect(state: LoraFileTensors) -> str:
    if any(".___." in key for key in state):
        return "hcp"
    return next(
        (name for name, prefixes in DIALECT_PREFIXES.items() if any(key.startswith(prefixes) for key in state)), ""
    )


def _algorithm_name(name: str, state: LoraFileTensors) -> str:
    """What an algorithm is called; BOFT has OFT's names, and one dimension more."""
    is_boft = (tensor.ndim == 4 for key, tensor in state.items() if key.endswith("oft_blocks"))
    return "BOFT" if name == "OFT" and any(is_boft) else name.replace("_", "-")


def _describe_ranks(state: LoraFileTensors) -> Iterator[str]:
    ranks = sorted({tensor.shape[0] for key, tensor in state.items() if DOWN_KEY.search(key) and tensor.ndim})
    if ranks:
        yield f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"


def _guess_family(state: LoraFileTensors) -> str:
    """The family whose words cross-attention reads in these layers, "" where they do not tell."""
    if any(key.startswith(("lora_te2_", "text_encoder_2.")) for key in state):
        return "SDXL"
    widths = {tensor.shape[1] for key, tensor in state.items() if CROSS_ATTENTION_KEY.search(key) and tensor.ndim > 1}
    return FAMILY_BY_CROSS_WIDTH.get(widths.pop(), "") if len(widths) == 1 else ""
