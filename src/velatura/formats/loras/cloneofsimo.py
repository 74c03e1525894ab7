"""LoRAs as cloneofsimo's lora, the first for Stable Diffusion, numbered them: by the order of a model's layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import Tensor

from velatura.errors import BadFile
from velatura.formats.loras.keys import BUNDLE_PREFIX
from velatura.tensors import Contents, as_list

NUMBERED_KEY = re.compile(r"(?P<part>unet|text_encoder):(?P<number>\d{1,5}):(?P<way>up|down)")
EMBEDDING_MARK = "<embed>"  # what its header says of the name of a tensor that is an embedding

# the blocks of an SD1 or SD2 that attend, in the order of the model's modules, where the middle comes last
ATTENTION_BLOCKS = (
    *(f"down_blocks.{level}.attentions.{index}" for level in range(3) for index in range(2)),
    *(f"up_blocks.{level}.attentions.{index}" for level in range(1, 4) for index in range(3)),
    "mid_block.attentions.0",
)
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
ATTENTION_LAYERS = tuple(
    tuple(f"{attention}.{projection}" for projection in PROJECTIONS) for attention in ("attn1", "attn2")
)
GEGLU_LAYER = "ff.net.0.proj"
OLD_ORDER, NEW_ORDER = (
    (*ATTENTION_LAYERS[0], GEGLU_LAYER, *ATTENTION_LAYERS[1]),
    (*ATTENTION_LAYERS[0], *ATTENTION_LAYERS[1], GEGLU_LAYER),
)  # of diffusers
TEXT_PROJECTIONS = ("k_proj", "v_proj", "q_proj", "out_proj")
TEXT_LAYER_COUNTS = (12, 23)

NumberedPairs = Sequence[tuple[Tensor, Tensor]]


def to_diffusers_keys(contents: Contents) -> dict[str, Tensor] | None:
    """The tensors under diffusers' keys, None where the file is none of cloneofsimo's."""
    items = as_list(contents.payload)
    if items and all(isinstance(item, Tensor) for item in items):
        return dict(_read_list(contents.path.name, [item for item in items if isinstance(item, Tensor)]))
    if not any(NUMBERED_KEY.fullmatch(key) for key in contents.tensors):
        return None
    return dict(_read_safetensors(contents))


def _read_safetensors(contents: Contents) -> Iterator[tuple[str, Tensor]]:
    parts: dict[str, dict[int, dict[str, Tensor]]] = {}
    for key, tensor in contents.tensors.items():
        if match := NUMBERED_KEY.fullmatch(key):
            parts.setdefault(match["part"], {}).setdefault(int(match["number"]), {})[match["way"]] = tensor
        elif contents.metadata.get(key) == EMBEDDING_MARK:
            yield f"{BUNDLE_PREFIX}{key}.string_to_param.*", tensor
        else:
            yield key, tensor
    for part, layers in parts.items():
        numbers = range(len(layers))
        if layers.keys() != set(numbers) or any(len(halves) < 2 for halves in layers.values()):
            raise BadFile(f"{contents.path.name} lacks some of its numbered layers: download it again")
        yield from _name_layers(contents.path.name, part, [(layers[i]["up"], layers[i]["down"]) for i in numbers])


def _read_list(file_name: str, tensors: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    if len(tensors) % 2:
        raise BadFile(
            f"{file_name} is a list of {len(tensors)} tensors, and should hold pairs of them: it is cut short"
        )
    pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
    return _name_layers(file_name, "text_encoder" if _text_layer_count(pairs) else "unet", pairs)


def _name_layers(file_name: str, part: str, pairs: NumberedPairs) -> Iterator[tuple[str, Tensor]]:
    names = _unet_layer_names(pairs) if part == "unet" else _text_layer_names(pairs)
    if len(names) != len(pairs):
        raise BadFile(
            f"{file_name} numbers {len(pairs)} layers of its {part}, by an order that only a model of other layers tells: "
            "save it by names with the program that made it"
        )
    for name, (up, down) in zip(names, pairs, strict=True):
        yield f"{part}.{name}.lora_A.weight", down
        yield f"{part}.{name}.lora_B.weight", up


def _unet_layer_names(pairs: NumberedPairs) -> list[str]:
    """The names of all layers of an SD1's or SD2's UNet in their order, which has changed once in diffusers."""
    gate_index = len(ATTENTION_LAYERS[0])
    is_old_order = (
        len(pairs) > gate_index and pairs[gate_index][0].shape[:1] > pairs[0][0].shape[:1]
    )  # a gate has eight times the rows
    return [
        f"{block}.transformer_blocks.0.{name}"
        for block in ATTENTION_BLOCKS
        for name in (OLD_ORDER if is_old_order else NEW_ORDER)
    ]


def _text_layer_names(pairs: NumberedPairs) -> list[str]:
    layers = range(_text_layer_count(pairs))
    return [f"text_model.encoder.layers.{layer}.self_attn.{name}" for layer in layers for name in TEXT_PROJECTIONS]


def _text_layer_count(pairs: NumberedPairs) -> int:
    """How many layers the text tower has, 0 for what is none: all its layers are squares of one size."""
    sizes = {size for up, down in pairs for size in (*up.shape[:1], *down.shape[1:2])}
    return next(
        (count for count in TEXT_LAYER_COUNTS if len(pairs) == count * len(TEXT_PROJECTIONS) and len(sizes) == 1), 0
    )
