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
from velatura.formats import cloneofsimo
from velatura.formats.fill import checked, warn_of_oddities
from velatura.formats.lora_keys import HCP, PEFT, Keys, path_of, sorted_keys
from velatura.formats.lora_metadata import card_of, warn_of_alphas, warn_of_metadata
from velatura.formats.lora_names import PARTS, TEXT, TEXT_1
from velatura.formats.lora_state import state_of
from velatura.formats.native import CARD
from velatura.formats.nature_lora import lora
from velatura.formats.peft_config import PeftConfig
from velatura.formats.peft_lora import adapters_in, as_lycoris, config_beside, joined, scaled
from velatura.overlays.deltas import delta_of
from velatura.overlays.lora import Lora
from velatura.tensors import Contents, open_tensors, sketches

LONGEST = 120  # letters of a name that are shown
FEW = 3  # keys that are named of many
MOST_DIMENSIONS = 4
NUMBERS = {"alpha", "on_input", "on_bias", "oft_terms"}  # which are no weights, and whole numbers in some files
STRANGERS = {
    "double_blocks": "a Flux",
    "single_transformer_blocks": "a Flux",
    "joint_blocks": "a Stable Diffusion 3",
    "transformer_blocks": "a transformer such as Flux or Stable Diffusion 3",
    "lora_transformer": "a transformer such as Flux or Stable Diffusion 3",
    "lora_prior": "a Stable Cascade",
}

State = Mapping[str, Tensor]
Layers = dict[str, dict[str, Tensor]]
Configs = Callable[[str], PeftConfig | None]  # by the part of a pipeline


def sniff(contents: Contents) -> bool:
    """Whether the names of the tensors are those of a LoRA or a relative of it."""
    return lora(contents, sketches(state_of(contents))) is not None


def read(contents: Contents) -> Lora:
    """Build the LoRA of a file, in the precision of that."""
    state = state_of(contents)
    parts = PeftConfig.of_header(contents.path.name, contents.metadata)
    by_peft = any(key.startswith(PEFT) for key in state)
    beside = config_beside(contents.path) if by_peft else None
    if by_peft and beside is None:
        _warn(contents.path.name, "has no adapter_config.json beside it: its alpha is taken for its rank")
    return _built(contents, state, lambda part: parts.get(part, beside))


def read_folder(folder: Path) -> Lora:
    """Build the LoRA of an adapter in peft's layout, or of several for the parts of one pipeline."""
    adapters = adapters_in(folder)
    configs = {part: config_beside(path) for part, path in adapters.items()}
    state = joined({part: state_of(open_tensors(path)) for part, path in adapters.items()})
    return _built(Contents(folder, state), state, lambda part: configs.get(part, configs.get("")))


@dataclass(frozen=True)
class _File:
    """A file's tensors, and their shapes, which are known before any is read."""

    name: str
    state: State
    shapes: Mapping[str, Tensor]

    def layer(self, name: str, own: Mapping[str, str], config: PeftConfig | None) -> dict[str, Tensor]:
        """One layer's tensors as LyCORIS has them; what they cannot be is refused before any is read."""
        rank = self._rank(name, own, config)
        found = as_lycoris({suffix: self.value(key) for suffix, key in own.items()}, config)
        some = next(iter(own.values()))
        if HCP in some and "alpha" in found and rank:
            return {**found, "alpha": found["alpha"] * rank}  # its alpha is the scale itself
        return found if config is None else scaled(found, rank, config, path_of(some))

    def value(self, key: str) -> Tensor:
        """A tensor, whole numbers and those of eight bits in a precision that can be computed with."""
        tensor = self.state[key]
        if key.rpartition(".")[2] in NUMBERS and not tensor.is_floating_point() and not tensor.is_complex():
            tensor = tensor.float()
        if tensor.is_floating_point() and tensor.element_size() == 1:
            tensor = tensor.half()
        return checked(self.name, key[:LONGEST], tensor, tensor.shape)

    def _rank(self, layer: str, own: Mapping[str, str], config: PeftConfig | None) -> int | None:
        shapes = {suffix: self.shapes[key] for suffix, key in own.items()}
        for suffix, each in shapes.items():
            if not each.numel() or each.ndim > MOST_DIMENSIONS:
                said = f"{layer[:LONGEST]}.{suffix} of shape {tuple(each.shape)}"
                raise BadFile(f"{self.name} has {said}, which no change of a layer has: it is damaged")
        try:
            return delta_of(as_lycoris(shapes, config)).rank
        except BadOverlay as error:
            raise BadFile(f"{self.name} has for {layer[:LONGEST]} what is no change of it: {error}") from None


def _built(contents: Contents, state: State, configs: Configs) -> Lora:
    state = cloneofsimo.named(contents) or state
    file = _File(contents.path.name, state, sketches(state))
    keys = sorted_keys(file.shapes, file.name)
    _refuse_strangers(file.name, keys, len(file.shapes))
    layers: Layers = {}
    for layer, own in keys.layers.items():
        part = next(part for root, part in PARTS.items() if layer.startswith(root))
        layers[layer] = file.layer(layer, own, configs(part))
    card = _card(contents, file.shapes)
    made = Lora.from_tensors(_joined(layers, card.family), card)
    made.bundled = {word: {name: file.value(key) for name, key in own.items()} for word, own in keys.bundled.items()}
    made.metadata, made.unmatched = dict(contents.metadata), keys.unmatched
    _warn_of_oddities(file.name, made, named_by_kohya=any(key.startswith("lora_") for key in file.shapes))
    return made


def _card(contents: Contents, shapes: State) -> Card:
    """The card that the file has of ours, or what its tensors and its metadata tell."""
    if CARD in contents.metadata:
        try:
            return Card.model_validate_json(contents.metadata[CARD])
        except ValidationError as error:
            said = error.errors()[0]["msg"].lower()
            raise BadFile(f"{contents.path.name} has a damaged card ({said}): save the overlay again") from None
    told = lora(contents, shapes)
    return card_of(contents.path, contents.metadata, Card(kind=Lora.kind) if told is None else told[0])


def _refuse_strangers(file: str, keys: Keys, count: int) -> None:
    """Refuse a file of which most is of no layer that a base here has, and warn of less."""
    if not keys.unmatched:
        return
    named = ", ".join(each[:80] for each in keys.unmatched[:FEW]) + (", ..." if len(keys.unmatched) > FEW else "")
    if 2 * len(keys.unmatched) > count or not keys.layers:
        guess = next((what for sign, what in STRANGERS.items() if any(sign in each for each in keys.unmatched)), "")
        made = f"it was made for {guess}" if guess else "it was made for another kind of model"
        raise BadFile(f"{file} has {len(keys.unmatched)} of {count} tensors of no layer here ({named}): {made}")
    _warn(file, f"has {len(keys.unmatched)} of {count} tensors that are of no layer here ({named}): they do nothing")


def _warn_of_oddities(file: str, made: Lora, *, named_by_kohya: bool) -> None:
    deltas = list(made.layers.values())
    weights = {key: each for key, each in made.state_dict().items() if key.rpartition(".")[2] not in NUMBERS}
    warn_of_oddities(file, weights)
    warn_of_alphas(file, deltas, named_by_kohya=named_by_kohya)
    warn_of_metadata(file, made.metadata, deltas)


def _warn(file: str, said: str) -> None:
    warnings.warn(f"{file} {said}", VelaturaWarning, 3)


def _joined(layers: Layers, family: str) -> dict[str, Tensor]:
    """All tensors by the names of their layers; diffusers does not say that a text tower is the first of an SDXL's."""
    root = TEXT_1 if family == "SDXL" else TEXT
    named = {layer.replace(TEXT, root, 1): own for layer, own in layers.items()}
    return {f"{layer}.{suffix}": each for layer, own in named.items() for suffix, each in own.items()}
