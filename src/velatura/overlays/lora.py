"""LoRAs and what grew out of them: small changes of weights, laid behind the layers that have those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Self, cast

from torch import Tensor, nn

from velatura.errors import BadOverlay, WrongBase
from velatura.overlays.deltas import delta_of
from velatura.overlays.deltas.delta import Delta, Layer
from velatura.overlays.outputs import DeltaChange
from velatura.overlays.overlay import Card, Overlay, Part
from velatura.overlays.seams import Undo, on_outputs
from velatura.overlays.strength import LiveStrength
from velatura.overlays.target import Target

UNET, TEXT = "lora_unet_", "lora_te"


class Lora(Overlay):
    """Changes of weights, each a Delta under the name that kohya's files have for its layer, with diffusers' path.

    So lora_unet_mid_block_attentions_0_..., lora_te_text_model_encoder_layers_0_... and, of an SDXL's two towers,
    lora_te1_ and lora_te2_; state_dict() is what such a file holds. factors: by which a layer's strength is multiplied.
    """

    kind: ClassVar[str] = "lora"

    def __init__(self, card: Card, deltas: Mapping[str, Delta]) -> None:
        super().__init__()
        if not deltas:
            raise BadOverlay("a LoRA of no layers at all cannot be: give it at least one")
        self.card = card.but(kind=self.kind)
        self.factors: dict[str, float] = {}
        self.bundled: dict[str, dict[str, Tensor]] = {}  # embeddings in its file: vectors by name and text tower
        self.metadata: dict[str, str] = {}  # of its file, as trainers write it
        self.unmatched: tuple[str, ...] = ()  # keys of its file that are of no layer
        for name, delta in deltas.items():
            self.add_module(name, delta)
        self.eval()

    @classmethod
    def from_card(cls, card: Card) -> Self:
        """Refuse: what a LoRA is made of is told by its tensors; see from_tensors."""
        raise BadOverlay(f"{card} is built of its tensors, not of a card: use Lora.from_tensors")

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], card: Card | None = None) -> Self:
        """Build a LoRA of tensors under kohya's keys with diffusers' paths, each layer of whatever algorithm."""
        layers: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, suffix = key.partition(".")
            layers.setdefault(name, {})[suffix] = tensor
        return cls(card or Card(kind=cls.kind), {name: _delta(name, found) for name, found in layers.items()})

    @property
    def touches(self) -> frozenset[Part]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Which parts of a base it has layers of."""
        return frozenset("unet" if name.startswith(UNET) else "text" for name in self.layers)

    @property
    def layers(self) -> dict[str, Delta]:
        """Its deltas by the names of their layers in kohya's files."""
        return {name: each for name, each in self.named_children() if isinstance(each, Delta)}

    def part_of(self, parameter: str) -> Part:
        """The part of a base that one of its parameters acts in."""
        return "unet" if parameter.startswith(UNET) else "text"

    def deltas(self, target: Target) -> Mapping[str, Delta]:
        """Its deltas by the names that the target has for their layers, those that it lacks left out."""
        names = kohya_names(target)
        return {names[name]: delta for name, delta in self.layers.items() if name in names}

    def hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Hang each delta behind its layer."""
        names = kohya_names(target)
        if not self.layers.keys() & names.keys():
            raise WrongBase(f"{self.card} fits none of the layers of {target.name}: open a base it was made for")
        for name, delta in self.layers.items():
            if name not in names:
                continue
            own = strength if name.startswith(UNET) else strength.text
            told = target.listener.expect_output(names[name])
            change = DeltaChange(delta, own, self.factors.get(name, 1.0), told)
            yield from on_outputs(target.layer(names[name]), change)


def kohya_names(target: Target) -> dict[str, str]:
    """The names of a target's layers by those that kohya's files have for them; see Target.layer."""
    two = len(target.towers) > 1
    prefixes = dict(zip(target.parts, (UNET, *((f"{TEXT}1_", f"{TEXT}2_") if two else (f"{TEXT}_",))), strict=True))
    found: dict[str, str] = {}
    for part, model in target.parts.items():
        for path, module in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
            if isinstance(module, Layer):
                found[prefixes[part] + canonical(part, path).replace(".", "_")] = f"{part}.{path}"
    return found


def canonical(part: str, path: str) -> str:
    """A module's path as files have it: with the level text_model, which transformers 5 dropped from some towers."""
    path = path.replace(".base_layer", "")  # peft's, around a layer that it changes too
    return path if part == "unet" or path.startswith(("text_model.", "text_projection")) else f"text_model.{path}"


def _delta(name: str, tensors: Mapping[str, Tensor]) -> Delta:
    try:
        return delta_of(tensors)
    except BadOverlay as error:
        raise BadOverlay(f"{name[:120]}: {error}") from None
