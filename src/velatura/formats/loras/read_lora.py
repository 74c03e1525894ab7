"""Reading of LoRAs and their relatives from files of any program; no tensor is left out without a word."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from velatura.card import Card, printable_text
from velatura.errors import BadFile, BadOverlay, warn
from velatura.formats.checkpoints.ldm_families import FOREIGN_BLOCKS
from velatura.formats.load_state import check_tensor, warn_of_suspicious_weights
from velatura.formats.loras import cloneofsimo
from velatura.formats.loras.detect import MAX_SHOWN_KEYS, detect_lora, find_state_dict, warn_of_other_entries
from velatura.formats.loras.keys import (
    HCP_SEPARATOR,
    MAX_SHOWN_KEY_LENGTH,
    PEFT_PREFIX,
    LoraFileKeys,
    layer_path,
    sort_keys,
)
from velatura.formats.loras.layer_bounds import check_layer_numbers, warn_of_unknown_layers
from velatura.formats.loras.lora_metadata import build_card, warn_of_alphas, warn_of_metadata, warn_of_zero_changes
from velatura.formats.loras.names import KOHYA_TEXT, KOHYA_TEXT_1, diffusers_part
from velatura.formats.loras.peft_config import HEADER_KEY, PeftConfig
from velatura.formats.loras.read_peft import apply_alpha, find_adapters, join_adapters, read_config_beside, to_lycoris
from velatura.formats.loras.uneven_layers import warn_of_uneven_layers
from velatura.formats.native import CARD_KEY, parse_card
from velatura.overlays.deltas import build_delta
from velatura.overlays.lora.lora import Lora
from velatura.tensors import Contents, StateDict, meta_tensors, open_tensors

DOWN_KEY = "lora_down.weight"
MAX_SHOWN_LAYER_LENGTH = 120  # characters of a layer's name in a message
MAX_DIMENSIONS = 4  # of a convolution's weight
BLOCK_SUFFIXES = {"oft_blocks", "oft_diag", "oft_R.weight", "rescale"}  # may have three dimensions, others never
# Settings, not weights; integers in some files
NUMBER_SUFFIXES = {"alpha", "on_input", "on_bias", "oft_terms", "scaled_oft"}
TRANSFORMER = "a transformer such as Flux or Stable Diffusion 3"
# of UNets, in whose attentions there are transformer_blocks too
UNET_BLOCKS = ("down_blocks", "mid_block", "up_blocks", "input_blocks", "middle_block", "output_blocks")
FOREIGN_LAYERS = {  # models that are not opened here, by a part of their layers' names
    **FOREIGN_BLOCKS,
    "single_transformer_blocks": "a Flux",
    "transformer_blocks": TRANSFORMER,
    "lora_transformer": TRANSFORMER,
    "lora_prior": "a Stable Cascade",
}

LayerTensors = dict[str, dict[str, Tensor]]
ConfigLookup = Callable[[str], PeftConfig | None]  # by the part of a pipeline


def sniff(contents: Contents) -> bool:
    """Return True if the names of the tensors are those of a LoRA or of one of its relatives."""
    return detect_lora(contents, meta_tensors(find_state_dict(contents))) is not None


def read(contents: Contents) -> Lora:
    """Build a LoRA from a file, in the file's precision.

    Raises:
        BadFile: Tensors are damaged or have wrong shapes, or most of them fit no layer of a base here.
    """
    state = find_state_dict(contents)
    warn_of_other_entries(contents)
    header_configs = PeftConfig.from_header(contents.path.name, contents.metadata)
    is_peft = any(key.startswith(PEFT_PREFIX) for key in state)
    folder_config = read_config_beside(contents.path) if is_peft else None
    if is_peft and folder_config is None:
        warn(f"{contents.path.name} has no adapter_config.json beside it: its alpha is assumed to equal its rank")
        folder_config = PeftConfig()
    lora = _build_lora(contents, state, lambda part: header_configs.get(part, header_configs.get("", folder_config)))
    _warn_of_unused_header(contents, header_configs.keys(), lora)
    return lora


def read_folder(folder: Path) -> Lora:
    """Build a LoRA from a folder of peft: one adapter, or one in a folder for every part of a pipeline.

    Raises:
        BadFile: The folder holds no adapter, or one is damaged.
    """
    adapters = find_adapters(folder)
    configs = {part: read_config_beside(path) for part, path in adapters.items()}
    state = join_adapters({part: find_state_dict(open_tensors(path)) for part, path in adapters.items()})
    return _build_lora(Contents(folder, state), state, lambda part: configs.get(part, configs.get("")))


@dataclass(frozen=True)
class _LoraFile:
    """Tensors of a file, and their shapes, which are known before any tensor is read."""

    name: str
    state: StateDict
    shapes: StateDict

    def read_layer(self, name: str, layer_keys: Mapping[str, str], config: PeftConfig | None) -> dict[str, Tensor]:
        """Read the tensors of one layer as LyCORIS has them; wrong shapes are refused before any tensor is read."""
        rank = self._rank(name, layer_keys, config)
        tensors = to_lycoris({suffix: self.read_tensor(key) for suffix, key in layer_keys.items()}, config)
        first_key = next(iter(layer_keys.values()))
        if HCP_SEPARATOR in first_key and "alpha" in tensors and rank:
            return {**tensors, "alpha": tensors["alpha"] * rank}  # HCP-Diffusion's alpha is the scale itself
        return tensors if config is None else apply_alpha(tensors, rank, config, layer_path(first_key))

    def read_tensor(self, key: str) -> Tensor:
        """Read a tensor; integers and floats of eight bits are converted to a precision for computing."""
        tensor = self.state[key]
        suffix = key.rpartition(".")[2]
        is_word = suffix == "alpha" and tensor.dtype == torch.bool  # True is not an alpha
        if suffix in NUMBER_SUFFIXES and not (tensor.is_floating_point() or tensor.is_complex() or is_word):
            tensor = tensor.float()
        if tensor.is_floating_point() and tensor.element_size() == 1:
            tensor = tensor.half()
        return check_tensor(self.name, key[:MAX_SHOWN_LAYER_LENGTH], tensor, tensor.shape)

    def _rank(self, layer: str, layer_keys: Mapping[str, str], config: PeftConfig | None) -> int | None:
        """Return the rank of a layer's change, told by its shapes alone."""
        shapes = {suffix: self.shapes[key] for suffix, key in layer_keys.items()}
        shown_layer = layer[:MAX_SHOWN_LAYER_LENGTH]
        for suffix, tensor in shapes.items():
            is_odd = tensor.ndim > MAX_DIMENSIONS or (tensor.ndim == 3 and suffix not in BLOCK_SUFFIXES)
            if not tensor.numel() or is_odd:
                raise BadFile(
                    f"{self.name} has {shown_layer}.{suffix} of shape {tuple(tensor.shape)}, which no layer's change "
                    "has: it is damaged"
                )
        try:
            return build_delta(to_lycoris(shapes, config)).rank
        except BadOverlay as error:
            raise BadFile(f"{self.name} has tensors for {shown_layer} that are not a change of it: {error}") from None


def _build_lora(contents: Contents, state: StateDict, find_config: ConfigLookup) -> Lora:
    state = cloneofsimo.to_diffusers_keys(contents) or state
    file = _LoraFile(contents.path.name, state, meta_tensors(state))
    keys = sort_keys(file.shapes, file.name)
    card = _build_card(contents, file.shapes, keys.layers)
    if CARD_KEY not in contents.metadata:  # velatura's own LoRAs may be for bases of any size
        check_layer_numbers(file.name, keys, file.shapes, card.family)
        warn_of_unknown_layers(file.name, keys.layers)
    _refuse_unmatched_keys(file.name, keys, len(file.shapes))
    layers: LayerTensors = {}
    for layer, layer_keys in keys.layers.items():
        layers[layer] = file.read_layer(layer, layer_keys, find_config(diffusers_part(layer)))
    _warn_of_other_ranks(file.name, layers, find_config)
    bundled_embeddings = {
        embedding: {name: file.read_tensor(key) for name, key in embedding_keys.items()}
        for embedding, embedding_keys in keys.bundled.items()
    }
    lora = Lora.from_tensors(
        _join_layers(layers, card.family),
        card,
        bundled_embeddings=bundled_embeddings,
        metadata=contents.metadata,
        unmatched_keys=keys.unmatched,
    )
    is_named_by_kohya = any(key.startswith("lora_") for key in file.shapes)
    _warn_of_suspicious_values(file.name, lora, is_named_by_kohya=is_named_by_kohya)
    return lora


def _warn_of_unused_header(contents: Contents, header_parts: Collection[str], lora: Lora) -> None:
    """Warn of settings in the header that belong to no layer of the file, so that its alphas are lost."""
    layer_parts = {diffusers_part(layer) for layer in lora.layers}
    stored_settings = contents.metadata.get(HEADER_KEY, "{}")
    if stored_settings.split() == ["{}"] or "" in header_parts or layer_parts & set(header_parts):
        return
    shown_parts = ", ".join(part[:MAX_SHOWN_KEY_LENGTH] for part in sorted(header_parts)[:MAX_SHOWN_KEYS])
    problem = f"settings of {shown_parts}" if shown_parts else "settings that are not an adapter's"
    warn(
        f"{contents.path.name} has {problem} in its header ({HEADER_KEY}) and layers of "
        f"{', '.join(sorted(layer_parts))}: "
        "the settings are ignored, so layers without an alpha of their own act without a scale"
    )


def _warn_of_other_ranks(file_name: str, layers: LayerTensors, find_config: ConfigLookup) -> None:
    """Warn of a rank in an adapter's configuration that no layer of its part has."""
    ranks: dict[str, set[int]] = {}
    for layer, tensors in layers.items():
        if DOWN_KEY in tensors:
            ranks.setdefault(diffusers_part(layer), set()).add(len(tensors[DOWN_KEY]))
    for part, found in ranks.items():
        config = find_config(part)
        if config is not None and "r" in config.model_fields_set and config.r not in found:
            shown = ", ".join(map(str, sorted(found)[:MAX_SHOWN_KEYS]))
            warn(
                f"{file_name} has the rank {config.r} in its configuration of the adapter (r) and {shown} in its "
                "tensors: the tensors count"
            )


def _build_card(contents: Contents, shapes: StateDict, layers: Iterable[str]) -> Card:
    """Return velatura's card from the file, or a card made from the tensors' names and the metadata."""
    if CARD_KEY in contents.metadata:
        return parse_card(contents)
    detected = detect_lora(contents, shapes)
    card = Card(kind=Lora.kind) if detected is None else detected[0]
    return build_card(contents.path, contents.metadata, card, layers)


def _refuse_unmatched_keys(file_name: str, keys: LoraFileKeys, count: int) -> None:
    """Refuse a file most of whose tensors fit no layer of a base here; warn if they are fewer."""
    if not keys.unmatched:
        return
    shown = ", ".join(printable_text(key)[:MAX_SHOWN_KEY_LENGTH] for key in keys.unmatched[:MAX_SHOWN_KEYS])
    if len(keys.unmatched) > MAX_SHOWN_KEYS:
        shown += ", ..."
    problem = f"{file_name} has {len(keys.unmatched)} of {count} tensors that fit no layer here ({shown})"
    if 2 * len(keys.unmatched) > count or not keys.layers:
        raise BadFile(f"{problem}: it was made for {_guess_model(keys.unmatched)}")
    warn(f"{problem}: they have no effect")


def _guess_model(keys: tuple[str, ...]) -> str:
    model = next((model for block, model in FOREIGN_LAYERS.items() if any(block in key for key in keys)), "")
    if model in {"", TRANSFORMER} and any(block in key for key in keys for block in UNET_BLOCKS):
        return "a UNet like a Stable Diffusion's, by a program whose names of layers velatura does not know"
    return model or "another kind of model"


def _warn_of_suspicious_values(file_name: str, lora: Lora, *, is_named_by_kohya: bool) -> None:
    deltas = list(lora.layers.values())
    weights = {
        key: tensor for key, tensor in lora.state_dict().items() if key.rpartition(".")[2] not in NUMBER_SUFFIXES
    }
    warn_of_suspicious_weights(file_name, weights)
    is_foreign = CARD_KEY not in lora.metadata  # velatura's own may be untrained: attaching them says so
    if is_foreign and any(bool(tensor.any()) for tensor in weights.values()):  # only zeros are warned of above
        warn_of_zero_changes(file_name, deltas)
    if is_foreign:
        warn_of_uneven_layers(file_name, lora.layers)
    warn_of_alphas(file_name, deltas, is_named_by_kohya=is_named_by_kohya)
    warn_of_metadata(file_name, lora.metadata, deltas)


def _join_layers(layers: LayerTensors, family: str) -> dict[str, Tensor]:
    """Return all tensors by layer and suffix, and number an SDXL's first text encoder, which diffusers does not."""
    prefix = KOHYA_TEXT_1 if family == "SDXL" else KOHYA_TEXT
    tensors: dict[str, Tensor] = {}
    for layer, layer_tensors in layers.items():
        name = layer.replace(KOHYA_TEXT, prefix, 1)
        tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in layer_tensors.items()}
    return tensors
