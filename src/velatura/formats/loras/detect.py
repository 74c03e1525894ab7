"""Detection of LoRAs and their relatives by the names and shapes of their tensors; no weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from velatura.base.families import FAMILY_BY_CROSS_WIDTH
from velatura.card import Card, printable_text
from velatura.errors import BadFile, choose_number, quantity, warn
from velatura.formats.check_texts import shorten_keys
from velatura.formats.loras import cloneofsimo
from velatura.formats.loras.keys import (
    ALGORITHM_BY_SUFFIX,
    MAX_KEY_LENGTH,
    MAX_SHOWN_KEY_LENGTH,
    detect_key_dialect,
    sort_keys,
    split_key,
)
from velatura.formats.loras.names import KOHYA_TEXT_2, KOHYA_UNET
from velatura.tensors import Contents, StateDict, as_dict, is_training_entry

MAX_SHOWN_KEYS = 3  # keys that are named of those that fit no layer
PLAIN_SUFFIXES = (".weight", ".bias")  # of LoRAs of some layers; but also of all tensors of a whole model
DORA_SUFFIXES = {"dora_scale", "lora_magnitude_vector"}
DOWN_SUFFIX = "lora_down.weight"  # (rank, in features)
# Tensors of (rank, in features) by which cross-attention's keys and values tell the width of the context
WIDTH_SUFFIXES = {DOWN_SUFFIX, "hada_w1_b"}
CROSS_PROJECTIONS = ("attn2.to_k", "attn2.to_v", "attn2_to_k", "attn2_to_v")
SECOND_TEXT_ENCODER_PREFIXES = (KOHYA_TEXT_2, "text_encoder_2.")
WRAPPER_KEYS = ("state_dict", "lora", "plugin", "model", "module")  # dicts that programs put all tensors into
MAX_WRAPPER_DEPTH = 4


@dataclass(frozen=True)
class _NamedTensor:
    """Tensor with the meaning of its key: the module in its program's words, and LyCORIS's suffix or ""."""

    key: str
    module: str
    suffix: str
    tensor: Tensor


def find_state_dict(contents: Contents) -> StateDict:
    """Return the tensors of a file by their keys: of a torch file those at its top and in dicts known as wrappers."""
    if contents.container == "safetensors":
        return contents.tensors
    return _collect_tensors(contents.payload, MAX_WRAPPER_DEPTH)


def warn_of_other_entries(contents: Contents) -> None:
    """Warn of entries in a torch file that are neither tensors nor what trainings leave: they are not read."""
    entries = list(_collect_others(contents.payload, MAX_WRAPPER_DEPTH))
    if entries:
        warn(
            f"{contents.path.name} has {quantity(len(entries), 'entry', 'entries')} beside its weights that "
            "trainings do not leave "
            f"({shorten_keys(entries)}): {choose_number(len(entries), 'it is', 'they are')} ignored"
        )


def detect_lora(contents: Contents, state: StateDict) -> tuple[Card, str] | None:
    """Describe a file if it is a LoRA or one of its relatives, also one for a model that is not opened here.

    Args:
        contents: The file.
        state: Its tensors by their keys; their shapes are enough.

    Returns:
        A card with kind, outline and family, and the program that names tensors so; or None for another file.
    """
    layer_count = cloneofsimo.count_layers(contents, state)
    if layer_count:
        return Card(kind="lora", outline=f"LoRA, {quantity(layer_count, 'layer')}"), "cloneofsimo"
    tensors = _name_tensors(state)
    changes = [tensor for tensor in tensors if tensor.suffix in ALGORITHM_BY_SUFFIX]
    known_count = sum(bool(tensor.suffix) or tensor.key.endswith(PLAIN_SUFFIXES) for tensor in tensors)
    dialect = detect_key_dialect(tensor.key for tensor in tensors)
    if not changes or known_count < len(tensors) / 2 or not dialect:
        return None
    return Card(kind="lora", outline=_describe(tensors, changes), family=_guess_family(tensors)), dialect


def lora_details(keys: Collection[str]) -> dict[str, str]:
    """Return facts about a LoRA that its card leaves out.

    Returns:
        By label: the layers that it changes, counted by their place in the model; the tensors that fit no layer; the
        embeddings in the file. Empty for a file that cannot be opened: opening it says why.
    """
    try:
        sorted_keys = sort_keys(keys, "it")
    except BadFile:
        return {}
    counts = Counter(_layer_label(layer) for layer in sorted_keys.layers)
    unmatched = ", ".join(printable_text(key)[:MAX_SHOWN_KEY_LENGTH] for key in sorted_keys.unmatched[:MAX_SHOWN_KEYS])
    details = {
        "changes": ", ".join(f"{count} {label}" for label, count in counts.items()),
        "of no layer": f"{quantity(len(sorted_keys.unmatched), 'tensor')} ({unmatched})" if unmatched else "",
        "embeddings": ", ".join(sorted_keys.bundled),
    }
    return {label: text for label, text in details.items() if text}


def _collect_tensors(payload: object, depth: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for key, value in (as_dict(payload) or {}).items():
        if isinstance(value, Tensor) and isinstance(key, str):
            tensors[key] = value
        elif key in WRAPPER_KEYS and depth:
            tensors |= _collect_tensors(value, depth - 1)
    return tensors


def _collect_others(payload: object, depth: int) -> Iterator[str]:
    """Yield the names of what `_collect_tensors` leaves out."""
    for key, value in (as_dict(payload) or {}).items():
        if key in WRAPPER_KEYS and depth and not isinstance(value, Tensor):
            yield from _collect_others(value, depth - 1)
        elif not (isinstance(value, Tensor) and isinstance(key, str)) and not is_training_entry(key):
            yield str(key)


def _name_tensors(state: StateDict) -> list[_NamedTensor]:
    """Read the keys of a file, except those that are too long for any layer."""
    tensors: list[_NamedTensor] = []
    for key, tensor in state.items():
        if len(key) <= MAX_KEY_LENGTH:
            module, suffix = split_key(key, state)
            tensors.append(_NamedTensor(key, module, suffix, tensor))
    return tensors


def _describe(tensors: Iterable[_NamedTensor], changes: Iterable[_NamedTensor]) -> str:
    """Name the algorithms, the ranks and the number of layers, as "LoRA with DoRA, rank 4, 60 layers"."""
    algorithms = sorted({_algorithm_name(tensor) for tensor in changes})
    has_dora = any(tensor.suffix in DORA_SUFFIXES for tensor in tensors)
    layer_count = len({tensor.module for tensor in changes})
    facts = (
        " and ".join(algorithms) + (" with DoRA" if has_dora else ""),
        _describe_ranks(tensors),
        quantity(layer_count, "layer"),
    )
    return ", ".join(filter(None, facts))


def _algorithm_name(named: _NamedTensor) -> str:
    """Name the algorithm of a tensor; BOFT's have the names of OFT's and one dimension more."""
    is_boft = named.suffix == "oft_blocks" and named.tensor.ndim == 4
    return "BOFT" if is_boft else ALGORITHM_BY_SUFFIX[named.suffix]


def _describe_ranks(tensors: Iterable[_NamedTensor]) -> str:
    ranks = sorted({named.tensor.shape[0] for named in tensors if named.suffix == DOWN_SUFFIX and named.tensor.ndim})
    if not ranks:
        return ""
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"


def _guess_family(tensors: Iterable[_NamedTensor]) -> str:
    """Return the family whose text contexts the cross-attentions read, or "" if the shapes leave it open."""
    widths: set[int] = set()
    for named in tensors:
        if named.key.startswith(SECOND_TEXT_ENCODER_PREFIXES):
            return "SDXL"
        if named.suffix in WIDTH_SUFFIXES and named.module.endswith(CROSS_PROJECTIONS) and named.tensor.ndim > 1:
            widths.add(named.tensor.shape[1])
    return FAMILY_BY_CROSS_WIDTH.get(widths.pop(), "") if len(widths) == 1 else ""


def _layer_label(layer: str) -> str:
    """Say in which part of a model a layer is: a text encoder, or in the UNet an attention, a residual block, ..."""
    if not layer.startswith(KOHYA_UNET):
        return f"in text encoder {2 if layer.startswith(KOHYA_TEXT_2) else 1}"
    labels = {"_attn": "in attentions", "_ff_": "in feed-forwards", "_resnets_": "in residual blocks"}
    return next((label for mark, label in labels.items() if mark in layer), "elsewhere in the UNet")
