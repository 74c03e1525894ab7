"""Changes of weights into a copy of a base: of LoRAs, of all that grew out of them, and of differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.errors import BadOverlay, UnsupportedBase, WrongBase
from velatura.merging.report import LayersBaked
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import Strength, strength_tensor
from velatura.overlays.target import Target

# why other kinds stay beside a base, and what is to be done
APART = {
    "embedding": "is a word, not a change of weights: keep its file beside the base, and call it in prompts",
    "aesthetic": "turns the text towers anew for each prompt: keep its file beside the base",
}


@dataclass(frozen=True, eq=False)
class LaidDeltas:
    """An overlay that changes weights, by the names that a base has for its layers, and how strongly."""

    overlay: Overlay
    strength: float | Strength
    deltas: Mapping[str, Delta]
    factors: Mapping[str, float]

    @classmethod
    def of(cls, base: Base, overlay: Overlay, strength: float | Strength) -> LaidDeltas:
        """See what an overlay changes in a base, and refuse what cannot go into its weights."""
        own = str(overlay.card)
        if type(overlay).deltas is Overlay.deltas:
            why = APART.get(overlay.kind, "is no change of weights: keep its file beside the base")
            raise BadOverlay(f"{own} cannot be baked: it {why}")
        place = Target.of(base)
        deltas = overlay.deltas(place)
        if not deltas:
            raise WrongBase(f"{own} fits none of the layers of {base.name}: open a base it was made for")
        for name, delta in deltas.items():
            weight = cast("Tensor", place.layer(name).weight)
            if not delta.fits(weight):
                raise WrongBase(
                    f"{own} has a change of {name} that fits no weight of {tuple(weight.shape)}: "
                    "open a base it was made for"
                )
        return cls(overlay, strength, deltas, {name: overlay.factor(place, name) for name in deltas})

    @property
    def unet_strength(self) -> float:
        """How strongly it acts in the UNet."""
        return number(self.strength.unet if isinstance(self.strength, Strength) else self.strength)

    @property
    def text_strength(self) -> float:
        """How strongly it acts in the text towers."""
        return number(self.strength.text if isinstance(self.strength, Strength) else self.strength)

    @property
    def acts(self) -> bool:
        """Whether it changes anything at all."""
        return any(self.at(name) for name in self.deltas)

    def at(self, name: str) -> float:
        """How strongly it acts in a layer."""
        return (self.unet_strength if name.startswith("unet.") else self.text_strength) * self.factors[name]

    def row(self) -> LayersBaked:
        """What of it goes into weights."""
        return LayersBaked(
            overlay=self.overlay.card.name or self.overlay.kind,
            algorithms=tuple(sorted({each.algorithm for each in self.deltas.values()})),
            layers=len(self.deltas),
            unet=self.unet_strength,
            text=self.text_strength,
        )


def number(strength: float | Tensor) -> float:
    """A strength as one number; BadOverlay where it is several."""
    if strength_tensor(strength).ndim:
        raise BadOverlay("several strengths do not go into one set of weights: give one number")
    return float(strength)


@torch.no_grad()
def add_deltas(base: Base, made: Base, laid: Sequence[LaidDeltas]) -> None:
    """Add what overlays change in a base to the weights of a copy of it.

    Each reads the base's own weights, as it does laid over it; all are summed in float32, and rounded once.
    """
    ours, theirs = Target.of(base), Target.of(made)
    for name in dict.fromkeys(name for each in laid for name in each.deltas if each.at(name)):
        acting = [(each.deltas[name], strength) for each in laid if name in each.deltas and (strength := each.at(name))]
        before, after = ours.layer(name), theirs.layer(name)
        place = acting[0][0].tensors[0].device
        weight, bias = (cast("Tensor | None", getattr(before, each, None)) for each in ("weight", "bias"))
        weight, bias = cast("Tensor", weight).to(place), None if bias is None else bias.to(place)
        _add(cast("Tensor", after.weight), (delta.change(weight, s) for delta, s in acting))
        changes = [each for delta, s in acting if (each := delta.bias_change(bias, s)) is not None]
        if changes:
            _add(_bias(after, name), iter(changes))


def _add(parameter: Tensor, changes: Iterator[Tensor]) -> None:
    whole = parameter.float()
    for each in changes:
        whole = whole + each.to(whole.device).view(whole.shape)
    parameter.copy_(whole)


def _bias(layer: nn.Module, name: str) -> Tensor:
    if isinstance(layer.bias, Tensor):
        return layer.bias
    raise UnsupportedBase(f"{name} has no bias, which an overlay changes: keep that beside the base")
