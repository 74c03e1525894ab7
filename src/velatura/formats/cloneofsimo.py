"""LoRAs as cloneofsimo's lora, the first for Stable Diffusion, numbered them: by the order of a model's layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import Tensor

from velatura.errors import BadFile
from velatura.formats.lora_keys import BUNDLED
from velatura.tensors import Contents, as_list

KEY = re.compile(r"(?P<part>unet|text_encoder):(?P<number>\d{1,5}):(?P<way>up|down)")
EMBEDDING = "<embed>"  # what its header says of the name of a tensor that is an embedding

# the blocks of an SD1 or SD2 that attend, in the order of the model's modules, where the middle comes last
BLOCKS = (
    *(f"down_blocks.{level}.attentions.{index}" for level in range(3) for index in range(2)),
    *(f"up_blocks.{level}.attentions.{index}" for level in range(1, 4) for index in range(3)),
    "mid_block.attentions.0",
)
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
ATTENTIONS = tuple(tuple(f"{attention}.{each}" for each in PROJECTIONS) for attention in ("attn1", "attn2"))
GATE = "ff.net.0.proj"
OLD, NEW = (*ATTENTIONS[0], GATE, *ATTENTIONS[1]), (*ATTENTIONS[0], *ATTENTIONS[1], GATE)  # of diffusers
TEXT = ("k_proj", "v_proj", "q_proj", "out_proj")
TEXT_DEPTHS = (12, 23)

Pairs = Sequence[tuple[Tensor, Tensor]]


def named(contents: Contents) -> dict[str, Tensor] | None:
    """The tensors under diffusers' keys, None where the file is none of cloneofsimo's."""
    listed = as_list(contents.payload)
    if listed and all(isinstance(each, Tensor) for each in listed):
        return dict(_of_list(contents.path.name, [each for each in listed if isinstance(each, Tensor)]))
    if not any(KEY.fullmatch(key) for key in contents.tensors):
        return None
    return dict(_of_safetensors(contents))


def _of_safetensors(contents: Contents) -> Iterator[tuple[str, Tensor]]:
    parts: dict[str, dict[int, dict[str, Tensor]]] = {}
    for key, tensor in contents.tensors.items():
        if found := KEY.fullmatch(key):
            parts.setdefault(found["part"], {}).setdefault(int(found["number"]), {})[found["way"]] = tensor
        elif contents.metadata.get(key) == EMBEDDING:
            yield f"{BUNDLED}{key}.string_to_param.*", tensor
        else:
            yield key, tensor
    for part, layers in parts.items():
        numbers = range(len(layers))
        if layers.keys() != set(numbers) or any(len(each) < 2 for each in layers.values()):
            raise BadFile(f"{contents.path.name} lacks some of its numbered layers: download it again")
        yield from _under_names(contents.path.name, part, [(layers[i]["up"], layers[i]["down"]) for i in numbers])


def _of_list(file: str, tensors: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    if len(tensors) % 2:
        raise BadFile(f"{file} is a list of {len(tensors)} tensors, and should hold pairs of them: it is cut short")
    pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
    return _under_names(file, "text_encoder" if _text_depth(pairs) else "unet", pairs)


def _under_names(file: str, part: str, pairs: Pairs) -> Iterator[tuple[str, Tensor]]:
    names = _unet(pairs) if part == "unet" else _text(pairs)
    if len(names) != len(pairs):
        raise BadFile(
            f"{file} numbers {len(pairs)} layers of its {part}, by an order that only a model of other layers tells: "
            "save it by names with the program that made it"
        )
    for name, (up, down) in zip(names, pairs, strict=True):
        yield f"{part}.{name}.lora_A.weight", down
        yield f"{part}.{name}.lora_B.weight", up


def _unet(pairs: Pairs) -> list[str]:
    """The names of all layers of an SD1's or SD2's UNet in their order, which has changed once in diffusers."""
    gate = len(ATTENTIONS[0])
    old = len(pairs) > gate and pairs[gate][0].shape[:1] > pairs[0][0].shape[:1]  # a gate has eight times the rows
    return [f"{block}.transformer_blocks.0.{name}" for block in BLOCKS for name in (OLD if old else NEW)]


def _text(pairs: Pairs) -> list[str]:
    layers = range(_text_depth(pairs))
    return [f"text_model.encoder.layers.{layer}.self_attn.{name}" for layer in layers for name in TEXT]


def _text_depth(pairs: Pairs) -> int:
    """How many layers the text tower has, 0 for what is none: all its layers are squares of one size."""
    sizes = {size for up, down in pairs for size in (*up.shape[:1], *down.shape[1:2])}
    return next((depth for depth in TEXT_DEPTHS if len(pairs) == depth * len(TEXT) and len(sizes) == 1), 0)
