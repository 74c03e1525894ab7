"""Layers that no base here can have: blocks and layers whose number lies beyond every Stable Diffusion.

A name of unknown words may be of a part that velatura does not know, and is warned of. A known name with an impossible
number contradicts itself: the file is damaged, or was made for a larger model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from velatura.card import printable_text
from velatura.errors import BadFile, choose_number, quantity, warn
from velatura.formats.loras.keys import FLAT_PREFIXES, MAX_SHOWN_KEY_LENGTH, LoraFileKeys
from velatura.formats.loras.names import (
    KOHYA_TEXT,
    KOHYA_TEXT_1,
    KOHYA_TEXT_2,
    KOHYA_UNET,
    MODULE_WORDS,
    flatten_path,
)

# The largest number behind each word in the layers of SD1, SD2 and SDXL: (word, number) by a pattern for both
LARGEST_UNET_NUMBERS = {
    r"(down_blocks)_(-?\d+)": 3,
    r"(up_blocks)_(-?\d+)": 3,
    r"down_blocks_\d+_(attentions|resnets)_(-?\d+)": 1,
    r"up_blocks_\d+_(attentions|resnets)_(-?\d+)": 2,
    r"mid_block_(attentions)_(-?\d+)": 0,
    r"mid_block_(resnets)_(-?\d+)": 1,
    r"(transformer_blocks)_(-?\d+)": 9,
    r"(downsamplers|upsamplers)_(-?\d+)": 0,
}
LARGEST_LDM_NUMBERS = {r"(input_blocks|output_blocks)_(-?\d+)": 11, r"(middle_block)_(-?\d+)": 2}
# Layers that only an SDXL has, and that only an SD1 or SD2 has: which levels of the UNet have attentions differs
SDXL_LAYER = re.compile(
    r"lora_te[12]_|lora_unet_(add_embedding|up_blocks_0_attentions|.*_transformer_blocks_[1-9]_)", re.DOTALL
)
SD_LAYER = re.compile(r"lora_unet_(down_blocks_0_attentions|down_blocks_3|up_blocks_3)")
EMBEDDING_WORDS = ("embeddings", "token_embedding", "position_embedding")  # which few programs train
# A layer's name without kohya's prefix: words of diffusers and transformers, and numbers
KNOWN_LAYER = re.compile(
    rf"(?:(?:{'|'.join(sorted((*MODULE_WORDS, *EMBEDDING_WORDS), key=len, reverse=True))}|[0-9]+)(?:_|$))+"
)
TEXT_LAYER = re.compile(r"(layers)_(-?\d+)")
TEXT_LAYER_COUNTS = {768: 12, 1024: 24, 1280: 32}  # CLIP L, OpenCLIP H and bigG, by their width
WIDTH_BY_FAMILY = {"SD1": 768, "SD2": 1024}  # of the only text encoder
WIDTH_BY_PREFIX = {KOHYA_TEXT_1: 768, KOHYA_TEXT_2: 1280}  # of SDXL's two
TEXT_INPUT_LAYERS = ("q_proj", "k_proj", "v_proj", "fc1")  # that read the tower's width
DOWN_SUFFIXES = ("lora_down.weight", "hada_w1_b")  # (rank, width)


def check_layer_numbers(file_name: str, keys: LoraFileKeys, shapes: Mapping[str, Tensor], family: str) -> None:
    """Refuse a LoRA that names a block or a layer beyond the models that are opened here.

    Args:
        file_name: Name of the file, for messages.
        keys: The file's keys by layer.
        shapes: The file's tensors, whose shapes tell the width of a text encoder.
        family: Family of bases that the file says it is for, "" if it does not say.

    Raises:
        BadFile: Such a layer is there.
    """
    for layer, word, number, largest in _find_impossible(keys, shapes, family):
        raise BadFile(
            f"{file_name} changes {layer[:MAX_SHOWN_KEY_LENGTH]!r}, but {word} goes up to {largest} in a Stable "
            f"Diffusion of its kind, not to {number}: it is damaged, or made for another model"
        )


def warn_of_unknown_layers(file_name: str, layers: Iterable[str]) -> None:
    """Warn of layers that begin as those of a base, and go on with words that stand in no base.

    Args:
        file_name: Name of the file, for messages.
        layers: kohya's names of the layers.
    """
    prefixes = (KOHYA_UNET, KOHYA_TEXT_1, KOHYA_TEXT_2, KOHYA_TEXT)
    paths = {layer: layer.removeprefix(next(filter(layer.startswith, prefixes), "")) for layer in layers}
    unknown = [layer for layer, path in paths.items() if not KNOWN_LAYER.fullmatch(path)]
    if unknown:
        warn(
            f"{file_name} has {quantity(len(unknown), 'layer')} that no base has, such as "
            f"{printable_text(min(unknown))[:MAX_SHOWN_KEY_LENGTH]!r}: "
            f"{choose_number(len(unknown), 'it has', 'they have')} no effect there"
        )


def families_of_layers(layers: Iterable[str]) -> set[str]:
    """Return the families in whose UNets and text encoders layers of these names are, empty if they do not tell.

    Args:
        layers: kohya's names. SD1 and SD2 have the same.
    """
    names = list(layers)
    if any(SDXL_LAYER.match(name) for name in names):
        return {"SDXL"}
    return {"SD1", "SD2"} if any(SD_LAYER.match(name) for name in names) else set()


def choose_family(detected: str, layers: Iterable[str], stated: str) -> str:
    """Return the family of a LoRA: what shapes tell counts most, then what names of layers tell, then metadata.

    Args:
        detected: The family by the shapes of the tensors, "" if they do not tell.
        layers: kohya's names of the layers.
        stated: The family that the metadata name, or "".
    """
    possible = families_of_layers(layers)
    if detected or not possible or stated in possible:
        return detected or stated
    return min(possible) if len(possible) == 1 else ""


def _find_impossible(
    keys: LoraFileKeys, shapes: Mapping[str, Tensor], family: str
) -> Iterator[tuple[str, str, int, int]]:
    """Yield a layer, the word before its number, the number, and the largest that is possible."""
    for layer in keys.layers:
        if layer.startswith(KOHYA_UNET):
            yield from _exceeding(layer, LARGEST_UNET_NUMBERS)
    for key in keys.unmatched:  # LDM's names of impossible layers have no name in diffusers' words
        name = flatten_path(key)
        prefix = next((prefix for prefix in FLAT_PREFIXES if name.startswith(prefix)), "")
        if (
            name.removeprefix(prefix)
            .removeprefix("model_")
            .removeprefix("diffusion_model_")
            .startswith(("input_blocks_", "output_blocks_", "middle_block_"))
        ):
            yield from _exceeding(name, LARGEST_LDM_NUMBERS)
    for prefix in (KOHYA_TEXT, KOHYA_TEXT_1, KOHYA_TEXT_2):
        layers = [layer for layer in keys.layers if layer.startswith(prefix)]
        count = _text_layer_count(prefix, layers, keys, shapes, family)
        for layer in layers:
            yield from _exceeding(layer, {TEXT_LAYER.pattern: count - 1})


def _exceeding(layer: str, largest_numbers: Mapping[str, int]) -> Iterator[tuple[str, str, int, int]]:
    for pattern, largest in largest_numbers.items():
        match = re.search(pattern, layer)
        if match and not _is_possible(match[2], largest):
            yield layer, match[1], int(match[2][:9]), largest


def _is_possible(number: str, largest: int) -> bool:
    """Return True for a number that a layer can have; digits of other scripts than Latin stand in no name."""
    return number.isascii() and len(number) <= len(str(largest)) and 0 <= int(number) <= largest


def _text_layer_count(
    prefix: str, layers: Iterable[str], keys: LoraFileKeys, shapes: Mapping[str, Tensor], family: str
) -> int:
    """Return how many layers a text encoder has: by the width of its tensors, else by its prefix or family."""
    widths = {
        shapes[key].shape[1]
        for layer in layers
        if layer.endswith(TEXT_INPUT_LAYERS)
        for suffix, key in keys.layers[layer].items()
        if suffix in DOWN_SUFFIXES and shapes[key].ndim > 1
    }
    known_widths = widths & TEXT_LAYER_COUNTS.keys()
    stated_width = WIDTH_BY_PREFIX.get(prefix, WIDTH_BY_FAMILY.get(family, 0))
    width = max(known_widths) if known_widths else stated_width
    return TEXT_LAYER_COUNTS.get(width, max(TEXT_LAYER_COUNTS.values()))
