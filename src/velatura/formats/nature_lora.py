"""What is told of a LoRA or one of its relatives by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from torch import Tensor

from velatura.base.families import FAMILIES
from velatura.card import Card
from velatura.errors import BadFile
from velatura.formats.lora_keys import sorted_keys
from velatura.formats.lora_names import TEXT_2, UNET
from velatura.tensors import Contents, as_list

State = Mapping[str, Tensor]

# how the names of tensors end, by the algorithm: the first that any ends in is a file's, as A1111 looks for them
ENDS = {
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
LAST = re.compile(r"(?P<module>.+)\.(?:" + "|".join(f"(?P<{name}>{end})" for name, end in ENDS.items()) + ")")
OTHERS = re.compile(
    r"(.+)\.(alpha|dora_scale|weight|rescale|bias|lora_magnitude_vector(\.\w+)?(\.weight)?|[qp]_layer\.\w+)"
)
PREFIXES = {
    "kohya": ("lora_", "oft_unet_", "lycoris_", "bundle_emb."),
    "peft": ("base_model.model.",),
    "ldm": ("diffusion_model.", "model.diffusion_model.", "input_blocks.", "middle_block.", "output_blocks."),
    "diffusers": (
        *("unet.", "text_encoder.", "text_encoder_1.", "text_encoder_2.", "transformer.", "text_model."),
        *("down_blocks.", "mid_block.", "up_blocks.", "clip_l.", "clip_g.", "text_encoders."),
    ),
}
FEW, LONGEST_SHOWN = 3, 80  # of keys that are named, and their letters
LONGEST = 512  # letters of a name: no layer has so many
SIMO = re.compile(r"(unet|text_encoder):\d+:(up|down)")
RANKED = re.compile(
    r"(lora_down|lora_A|lora\.down|lora_linear_layer\.down|to_\w+_lora\.down|W_down)(\.default)?(\.weight)?$"
)
INWARD = re.compile(
    r"(attn2[._]|attn2\.processor\.)to_[kv].*\.(lora_down|lora_A|down|hada_w1_b)(\.default)?(\.weight)?$"
)
WIDTHS = {each.cross_width: each.name for each in FAMILIES.values()}


def lora(contents: Contents, state: State) -> tuple[Card, str] | None:
    """The card of a LoRA or LyCORIS, and who names tensors so; None for anything else."""
    if (pairs := as_list(contents.payload)) and len(pairs) % 2 == 0 and all(isinstance(each, Tensor) for each in pairs):
        return Card(kind="lora", outline=f"LoRA, {len(pairs) // 2} layers"), "cloneofsimo"
    state = {key: each for key, each in state.items() if len(key) <= LONGEST}
    if any(map(SIMO.fullmatch, state)):
        return Card(kind="lora", outline=f"LoRA, {sum(key.endswith(':up') for key in state)} layers"), "cloneofsimo"
    found = [match for key in state if (match := LAST.fullmatch(key))]
    # tensors of whole models end in .weight, of which these few may as well
    known = len(found) + sum(bool(OTHERS.fullmatch(key)) for key in state.keys() - {each[0] for each in found})
    if not found or known < len(state) / 2 or _dialect(state) == "":
        return None
    algorithms = {_algorithm(each.lastgroup or "", state) for each in found}
    modules = {each["module"] for each in found}
    dora = any(key.endswith("dora_scale") or "lora_magnitude_vector" in key for key in state)
    facts = (
        " and ".join(sorted(algorithms)) + " with DoRA" * dora,
        *_ranks(state),
        f"{len(modules)} layer{'s' * (len(modules) != 1)}",
    )
    return Card(kind="lora", outline=", ".join(facts), family=_family(state)), _dialect(state)


def told_more(shapes: State) -> dict[str, str]:
    """What people ask of a LoRA beside its card: which layers it changes, the tensors of none, and embeddings in it."""
    try:
        keys = sorted_keys(shapes, "it")
    except BadFile:  # said when it is opened
        return {}
    parts = Counter(_part_of(layer) for layer in keys.layers)
    changed = ", ".join(f"{count} {part}" for part, count in parts.items())
    unmatched = ", ".join(each[:LONGEST_SHOWN] for each in keys.unmatched[:FEW])
    found = {
        "changes": changed,
        "of no layer": f"{len(keys.unmatched)} tensors ({unmatched})" if keys.unmatched else "",
        "embeddings": ", ".join(keys.bundled),
    }
    return {label: each for label, each in found.items() if each}


def _part_of(layer: str) -> str:
    """What a layer is part of: the text encoder, or in the UNet an attention, a residual block or anything else."""
    if not layer.startswith(UNET):
        return f"in text encoder {2 if layer.startswith(TEXT_2) else 1}"
    signs = {"_attn": "in attentions", "_ff_": "in feed-forwards", "_resnets_": "in residual blocks"}
    return next((part for sign, part in signs.items() if sign in layer), "elsewhere in the UNet")


def _dialect(state: State) -> str:
    if any(".___." in key for key in state):
        return "hcp"
    return next((name for name, each in PREFIXES.items() if any(key.startswith(each) for key in state)), "")


def _algorithm(name: str, state: State) -> str:
    """What an algorithm is called; BOFT has OFT's names, and one dimension more."""
    butterflies = (each.ndim == 4 for key, each in state.items() if key.endswith("oft_blocks"))
    return "BOFT" if name == "OFT" and any(butterflies) else name.replace("_", "-")


def _ranks(state: State) -> Iterator[str]:
    ranks = sorted({each.shape[0] for key, each in state.items() if RANKED.search(key) and each.ndim})
    if ranks:
        yield f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"


def _family(state: State) -> str:
    """The family whose words cross-attention reads in these layers, "" where they do not tell."""
    if any(key.startswith(("lora_te2_", "text_encoder_2.")) for key in state):
        return "SDXL"
    widths = {each.shape[1] for key, each in state.items() if INWARD.search(key) and each.ndim > 1}
    return WIDTHS.get(widths.pop(), "") if len(widths) == 1 else ""
