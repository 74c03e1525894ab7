"""LoRAs of cloneofsimo's lora, the first trainer for Stable Diffusion, which numbers layers in the model's order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from velatura.errors import BadFile, quantity
from velatura.formats.loras.keys import BUNDLE_PREFIX
from velatura.tensors import Contents, as_list

NUMBERED_KEY = re.compile(r"(?P<part>unet|text_encoder):(?P<number>\d{1,5}):(?P<way>up|down)")
EMBEDDING_MARK = "<embed>"  # the metadata's value for the name of a tensor that is an embedding

# Blocks of an SD1's or SD2's UNet with attentions, in the order of diffusers' modules, where the middle is last
ATTENTION_BLOCKS = (
    *(f"down_blocks.{level}.attentions.{index}" for level in range(3) for index in range(2)),
    *(f"up_blocks.{level}.attentions.{index}" for level in range(1, 4) for index in range(3)),
    "mid_block.attentions.0",
)
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
SELF_ATTENTION_LAYERS = tuple(f"attn1.{projection}" for projection in PROJECTIONS)
CROSS_ATTENTION_LAYERS = tuple(f"attn2.{projection}" for projection in PROJECTIONS)
GEGLU_LAYER = "ff.net.0.proj"
OLD_ORDER = (*SELF_ATTENTION_LAYERS, GEGLU_LAYER, *CROSS_ATTENTION_LAYERS)  # of diffusers up to 0.14
NEW_ORDER = (*SELF_ATTENTION_LAYERS, *CROSS_ATTENTION_LAYERS, GEGLU_LAYER)
TEXT_PROJECTIONS = ("k_proj", "v_proj", "q_proj", "out_proj")
TEXT_LAYER_COUNTS = (12, 23)  # of the text encoders of SD1 and SD2

NumberedPairs = Sequence[tuple[Tensor, Tensor]]


def count_layers(contents: Contents, keys: Iterable[str]) -> int:
    """Return how many layers a file of this trainer changes, or 0 for a file of another program.

    Args:
        contents: The file.
        keys: Names of its tensors.
    """
    tensors = _listed_tensors(contents)
    if tensors and len(tensors) % 2 == 0:
        return len(tensors) // 2
    matches = [NUMBERED_KEY.fullmatch(key) for key in keys]
    return len([match for match in matches if match and match["way"] == "up"])


def to_diffusers_keys(contents: Contents) -> dict[str, Tensor] | None:
    """Return the tensors under diffusers' keys, or None for a file of another program.

    Raises:
        BadFile: A layer is missing, or the model is neither an SD1 nor an SD2, so that numbers name no layers.
    """
    tensors = _listed_tensors(contents)
    if tensors:
        return dict(_name_listed_tensors(contents.path.name, tensors))
    if not any(NUMBERED_KEY.fullmatch(key) for key in contents.tensors):
        return None
    return dict(_name_numbered_tensors(contents))


def _listed_tensors(contents: Contents) -> list[Tensor]:
    """Return the tensors of a torch file that holds only a list of them."""
    items = as_list(contents.payload) or []
    tensors = [item for item in items if isinstance(item, Tensor)]
    return tensors if len(tensors) == len(items) else []


def _name_numbered_tensors(contents: Contents) -> Iterator[tuple[str, Tensor]]:
    parts: dict[str, dict[int, dict[str, Tensor]]] = {}
    for key, tensor in contents.tensors.items():
        match = NUMBERED_KEY.fullmatch(key)
        if match:
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


def _name_listed_tensors(file_name: str, tensors: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    if len(tensors) % 2:
        raise BadFile(
            f"{file_name} is a list of {quantity(len(tensors), 'tensor')}, but pairs are expected: download it again"
        )
    pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
    return _name_layers(file_name, "text_encoder" if _text_layer_count(pairs) else "unet", pairs)


def _name_layers(file_name: str, part: str, pairs: NumberedPairs) -> Iterator[tuple[str, Tensor]]:
    names = _unet_layer_names(pairs) if part == "unet" else _text_layer_names(pairs)
    if len(names) != len(pairs):
        raise BadFile(
            f"{file_name} numbers {quantity(len(pairs), 'layer')} of its {part}, and no known model has as many: "
            "save it with names of layers in the program that made it"
        )
    for name, (up, down) in zip(names, pairs, strict=True):
        yield f"{part}.{name}.lora_A.weight", down
        yield f"{part}.{name}.lora_B.weight", up


def _unet_layer_names(pairs: NumberedPairs) -> list[str]:
    """Return the names of all layers of an SD1's or SD2's UNet in the file's order, which diffusers changed once."""
    geglu_index = len(SELF_ATTENTION_LAYERS)
    # GEGLU has eight times the rows of a projection
    is_old_order = len(pairs) > geglu_index and pairs[geglu_index][0].shape[:1] > pairs[0][0].shape[:1]
    order = OLD_ORDER if is_old_order else NEW_ORDER
    return [f"{block}.transformer_blocks.0.{name}" for block in ATTENTION_BLOCKS for name in order]


def _text_layer_names(pairs: NumberedPairs) -> list[str]:
    layers = range(_text_layer_count(pairs))
    return [f"text_model.encoder.layers.{layer}.self_attn.{name}" for layer in layers for name in TEXT_PROJECTIONS]


def _text_layer_count(pairs: NumberedPairs) -> int:
    """Return how many layers the text encoder has, or 0 for a UNet: a text encoder's matrices all have one size."""
    sizes = {size for up, down in pairs for size in (*up.shape[:1], *down.shape[1:2])}
    if len(sizes) != 1:
        return 0
    return next((count for count in TEXT_LAYER_COUNTS if len(pairs) == count * len(TEXT_PROJECTIONS)), 0)
