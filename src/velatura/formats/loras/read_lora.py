"""LoRAs and their relatives from any program's files: every tensor is of a layer, or is named as one that is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from velatura.card import Card
from velatura.errors import BadFile, BadOverlay, VelaturaWarning
from velatura.formats.load_state import check_tensor, warn_of_suspicious_weights
from velatura.formats.loras import cloneofsimo
from velatura.formats.loras.detect import detect_lora
from velatura.formats.loras.keys import HCP_SEPARATOR, PEFT_PREFIX, LoraFileKeys, layer_path, sort_keys
from velatura.formats.loras.lora_metadata import build_card, warn_of_alphas, warn_of_metadata
from velatura.formats.loras.names import KOHYA_TEXT, KOHYA_TEXT_1, PIPELINE_PARTS
from velatura.formats.loras.peft_config import PeftConfig
from velatura.formats.loras.read_peft import apply_alpha, find_adapters, join_adapters, read_config_beside, to_lycoris
from velatura.formats.native import CARD_KEY
from velatura.overlays.deltas import build_delta
from velatura.overlays.lora.lora import Lora
from velatura.tensors import Contents, as_dict, meta_tensors, open_tensors

MAX_SHOWN_LENGTH = 120  # letters of a name that are shown
MAX_SHOWN_KEYS = 3  # keys that are named of many
MAX_DIMENSIONS = 4
NUMBER_SUFFIXES = {"alpha", "on_input", "on_bias", "oft_terms"}  # which are no weights, and whole numbers in some files
FOREIGN_MODELS = {
    "double_blocks": "a Flux",
    "single_transformer_blocks": "a Flux",
    "joint_blocks": "a Stable Diffusion 3",
    "transformer_blocks": "a transformer such as Flux or Stable Diffusion 3",
    "lora_transformer": "a transformer such as Flux or Stable Diffusion 3",
    "lora_prior": "a Stable Cascade",
}

LoraStateDict = Mapping[str, Tensor]
LayerTensors = dict[str, dict[str, Tensor]]
ConfigLookup = Callable[[str], PeftConfig | None]  # by the part of a pipeline


def sniff(contents: Contents) -> bool:
    """Whether the names of the tensors are those of a LoRA or a relative of it."""
    return detect_lora(contents, meta_tensors(find_state_dict(contents))) is not None


def read(contents: Contents) -> Lora:
    """Build the LoRA of a file, in the precision of that."""
    state = find_state_dict(contents)
    header_configs = PeftConfig.from_header(contents.path.name, contents.metadata)
    is_peft = any(key.startswith(PEFT_PREFIX) for key in state)
    folder_config = read_config_beside(contents.path) if is_peft else None
    if is_peft and folder_config is None:
        _warn(contents.path.name, "has no adapter_config.json beside it: its alpha is taken for its rank")
    return _build_lora(contents, state, lambda part: header_configs.get(part, folder_config))


def read_folder(folder: Path) -> Lora:
    """Build the LoRA of an adapter in peft's layout, or of several for the parts of one pipeline."""
    adapters = find_adapters(folder)
    configs = {part: read_config_beside(path) for part, path in adapters.items()}
    state = join_adapters({part: find_state_dict(open_tensors(path)) for part, path in adapters.items()})
    return _build_lora(Contents(folder, state), state, lambda part: configs.get(part, configs.get("")))


@dataclass(frozen=True)
class _LoraFile:
    """A file's tensors, and their shapes, which are known before any is read."""

    name: str
    state: LoraStateDict
    shapes: Mapping[str, Tensor]

    def layer_tensors(self, name: str, layer_keys: Mapping[str, str], config: PeftConfig | None) -> dict[str, Tensor]:
        """One layer's tensors as LyCORIS has them; what they cannot be is refused before any is read."""
        rank = self._rank(name, layer_keys, config)
        tensors = to_lycoris({suffix: self.read_tensor(key) for suffix, key in layer_keys.items()}, config)
        first_key = next(iter(layer_keys.values()))
        if HCP_SEPARATOR in first_key and "alpha" in tensors and rank:
            return {**tensors, "alpha": tensors["alpha"] * rank}  # its alpha is the scale itself
        return tensors if config is None else apply_alpha(tensors, rank, config, layer_path(first_key))

    def read_tensor(self, key: str) -> Tensor:
        """A tensor, whole numbers and those of eight bits in a precision that can be computed with."""
        tensor = self.state[key]
        if key.rpartition(".")[2] in NUMBER_SUFFIXES and not tensor.is_floating_point() and not tensor.is_complex():
            tensor = tensor.float()
        if tensor.is_floating_point() and tensor.element_size() == 1:
            tensor = tensor.half()
        return check_tensor(self.name, key[:MAX_SHOWN_LENGTH], tensor, tensor.shape)

    def _rank(self, layer: str, layer_keys: Mapping[str, str], config: PeftConfig | None) -> int | None:
        shapes = {suffix: self.shapes[key] for suffix, key in layer_keys.items()}
        for suffix, shape in shapes.items():
            if not shape.numel() or shape.ndim > MAX_DIMENSIONS:
                problem = f"{layer[:MAX_SHOWN_LENGTH]}.{suffix} of shape {tuple(shape.shape)}"
                raise BadFile(f"{self.name} has {problem}, which no change of a layer has: it is damaged")
        try:
            return build_delta(to_lycoris(shapes, config)).rank
        except BadOverlay as error:
            raise BadFile(f"{self.name} has for {layer[:MAX_SHOWN_LENGTH]} what is no change of it: {error}") from None


def _build_lora(contents: Contents, state: LoraStateDict, configs: ConfigLookup) -> Lora:
    state = cloneofsimo.to_diffusers_keys(contents) or state
    file = _LoraFile(contents.path.name, state, meta_tensors(state))
    keys = sort_keys(file.shapes, file.name)
    _refuse_unmatched_keys(file.name, keys, len(file.shapes))
    layers: LayerTensors = {}
    for layer, layer_keys in keys.layers.items():
        part = next(part for root, part in PIPELINE_PARTS.items() if layer.startswith(root))
        layers[layer] = file.layer_tensors(layer, layer_keys, configs(part))
    card = _build_card(contents, file.shapes)
    lora = Lora.from_tensors(_join_layers(layers, card.family), card)
    lora.bundled_embeddings = {
        embedding: {name: file.read_tensor(key) for name, key in embedding_keys.items()}
        for embedding, embedding_keys in keys.bundled.items()
    }
    lora.metadata, lora.unmatched_keys = dict(contents.metadata), keys.unmatched
    _warn_of_suspicious_values(file.name, lora, named_by_kohya=any(key.startswith("lora_") for key in file.shapes))
    return lora


def _build_card(contents: Contents, shapes: LoraStateDict) -> Card:
    """The card that the file has of ours, or what its tensors and its metadata tell."""
    if CARD_KEY in contents.metadata:
        try:
            return Card.model_validate_json(contents.metadata[CARD_KEY])
        except ValidationError as error:
            reason = error.errors()[0]["msg"].lower()
            raise BadFile(f"{contents.path.name} has a damaged card ({reason}): save the overlay again") from None
    detected = detect_lora(contents, shapes)
    return build_card(contents.path, contents.metadata, Card(kind=Lora.kind) if detected is None else detected[0])


def _refuse_unmatched_keys(file_name: str, keys: LoraFileKeys, count: int) -> None:
    """Refuse a file of which most is of no layer that a base here has, and warn of less."""
    if not keys.unmatched:
        return
    shown = ", ".join(key[:80] for key in keys.unmatched[:MAX_SHOWN_KEYS]) + (
        ", ..." if len(keys.unmatched) > MAX_SHOWN_KEYS else ""
    )
    if 2 * len(keys.unmatched) > count or not keys.layers:
        guess = next(
            (model for mark, model in FOREIGN_MODELS.items() if any(mark in key for key in keys.unmatched)), ""
        )
        origin = f"it was made for {guess}" if guess else "it was made for another kind of model"
        raise BadFile(f"{file_name} has {len(keys.unmatched)} of {count} tensors of no layer here ({shown}): {origin}")
    _warn(
        file_name, f"has {len(keys.unmatched)} of {count} tensors that are of no layer here ({shown}): they do nothing"
    )


def _warn_of_suspicious_values(file_name: str, lora: Lora, *, named_by_kohya: bool) -> None:
    deltas = list(lora.layers.values())
    weights = {
        key: tensor for key, tensor in lora.state_dict().items() if key.rpartition(".")[2] not in NUMBER_SUFFIXES
    }
    warn_of_suspicious_weights(file_name, weights)
    warn_of_alphas(file_name, deltas, named_by_kohya=named_by_kohya)
    warn_of_metadata(file_name, lora.metadata, deltas)


def _warn(file_name: str, problem: str) -> None:
    warnings.warn(f"{file_name} {problem}", VelaturaWarning, 3)


def _join_layers(layers: LayerTensors, family: str) -> dict[str, Tensor]:
    """All tensors by the names of their layers; diffusers does not say that a text tower is the first of an SDXL's."""
    root = KOHYA_TEXT_1 if family == "SDXL" else KOHYA_TEXT
    named = {layer.replace(KOHYA_TEXT, root, 1): tensors for layer, tensors in layers.items()}
    return {f"{layer}.{suffix}": tensor for layer, tensors in named.items() for suffix, tensor in tensors.items()}


WRAPPER_KEYS = ("state_dict", "lora", "plugin", "model", "module")  # what programs put a file's tensors into
MAX_WRAPPER_DEPTH = 4


def find_state_dict(contents: Contents) -> Mapping[str, Tensor]:
    """The tensors by their keys, of a torch file those at its top and in the dicts that programs put them into."""
    if contents.container == "safetensors":
        return contents.tensors
    return _collect_tensors(contents.payload, MAX_WRAPPER_DEPTH)


def _collect_tensors(payload: object, depth: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for key, value in (as_dict(payload) or {}).items():
        if isinstance(value, Tensor) and isinstance(key, str):
            tensors[key] = value
        elif key in WRAPPER_KEYS and depth:
            tensors |= _collect_tensors(value, depth - 1)
    return tensors
