"""Differences: all that one base has otherwise than another, or learns to have; what a DreamBooth training makes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.errors import BadOverlay, VelaturaWarning, WrongBase
from velatura.overlays.changed_weights import TableChange, WholeChange
from velatura.overlays.deltas.delta import Delta, Layer
from velatura.overlays.deltas.whole import Full, Norm
from velatura.overlays.kohya import UNET, canonical, kohya_names
from velatura.overlays.lora import Lora
from velatura.overlays.lora_fit import refuse_sides
from velatura.overlays.overlay import Card
from velatura.overlays.seams import Undo, on_outputs
from velatura.overlays.strength import LiveStrength, writable
from velatura.overlays.target import Target

NORMS = (nn.GroupNorm, nn.LayerNorm)
FIRST_LAYER = "layers.0.self_attn.k_proj"


class Difference(Lora):
    """Whole differences of weights and biases, under the names that kohya's files have for their layers.

    At a strength the base does what it would with so much of the differences added to its weights, beyond 1 too. It is
    as large as what it changes: in float32 3.4 GB for the UNet of an SD1.
    """

    kind: ClassVar[str] = "difference"

    @classmethod
    def for_base(cls, base: Base, *, text: bool = False, name: str = "") -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make one of nothing but zeros for all layers of a base's UNet, to be trained; text: of its text towers too.

        The tables of words and places are left out, as words are what a text tower is called by.
        """
        place = Target.of(base)
        wanted = {own: layer for own, layer in kohya_names(place).items() if text or own.startswith(UNET)}
        with writable(), torch.device(base.device):
            deltas = {own: _zeros(place.layer(layer)) for own, layer in wanted.items()}
        return cls(_card(base, name), deltas)

    @classmethod
    def between(cls, base: Base, other: Base, *, name: str = "", dtype: torch.dtype = torch.float32) -> Self:
        """What another base has otherwise than this one; layers that are alike are left out.

        dtype: what it is kept in; half of it rounds. Raises WrongBase for a base of another structure, BadOverlay for
        one that has all alike; warns where autoencoders differ, which no overlay changes.
        """
        ours, theirs = Target.of(base), Target.of(other)
        names = layer_names(ours)
        if names != layer_names(theirs):
            raise WrongBase(
                f"{other.name} and {base.name} have other layers: a difference is between bases of a family"
            )
        with writable():
            found = {own: _between(ours.layer(name), theirs.layer(name), name, dtype) for own, name in names.items()}
        deltas = {own: delta for own, delta in found.items() if delta is not None}
        if not deltas:
            raise BadOverlay(
                f"{other.name} has all weights of {base.name}: there is no difference to make an overlay of"
            )
        _warn_of_autoencoders(base, other)
        return cls(_card(base, name or other.name), deltas)

    def deltas(self, target: Target) -> Mapping[str, Delta]:
        """Its differences by the names that the target has for their layers, tables of words and places among them."""
        names = layer_names(target)
        return {names[own]: delta for own, delta in self.layers.items() if own in names}

    def hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Hang each difference behind its layer."""
        found = self.deltas(target)
        wanted = [own for own in self.layers if own.startswith(UNET) or target.towers]  # over a UNet alone, text idles
        if lacking := len(wanted) - len(found):
            raise WrongBase(
                f"{self.card} has {lacking} layers that {target.name} lacks, of {len(wanted)}: "
                "a difference lies over bases of the family that it was made for"
            )
        refuse_sides(target, found, strength)
        for name, delta in found.items():
            layer = target.layer(name)
            if not delta.fits(cast("Tensor", layer.weight)):
                raise WrongBase(f"{self.card} has another shape of {name} than {target.name}: it is of another family")
            if target.reaches(name):
                own = strength if name.startswith("unet.") else strength.text
                kind = TableChange if isinstance(layer, nn.Embedding) else WholeChange
                change = kind(delta, own, self.factor(target, name), target.listener.expect_output(name))
                target.changes.append(change)
                yield from on_outputs(layer, change)


def layer_names(target: Target) -> dict[str, str]:
    """The names of a target's layers, tables of words and places too, by those that kohya's files have for them."""
    names = kohya_names(target)
    for own, name in list(names.items()):
        part, _, path = name.partition(".")
        if path.endswith(FIRST_LAYER):  # the text towers' prefix stands before it
            prefix = own.removesuffix(canonical(part, path).replace(".", "_"))
            modules = cast("Iterator[tuple[str, nn.Module]]", target.parts[part].named_modules())
            tables = [each for each, module in modules if isinstance(module, nn.Embedding)]
            names |= {prefix + canonical(part, each).replace(".", "_"): f"{part}.{each}" for each in tables}
    return names


def _zeros(layer: nn.Module) -> Delta:
    assert isinstance(layer, Layer)
    return Norm.for_layer(layer) if isinstance(layer, NORMS) else Full.for_layer(layer)


def _between(ours: nn.Module, theirs: nn.Module, name: str, dtype: torch.dtype) -> Delta | None:
    """What one layer has otherwise than another, or None where it has nothing."""
    suffixes = (
        {"weight": "w_norm", "bias": "b_norm"} if isinstance(ours, NORMS) else {"weight": "diff", "bias": "diff_b"}
    )
    found: dict[str, Tensor] = {}
    for part, suffix in suffixes.items():
        before, after = (cast("Tensor | None", getattr(layer, part, None)) for layer in (ours, theirs))
        if before is None and after is None:
            continue
        if before is None or after is None or before.shape != after.shape:
            raise WrongBase(f"{name} has other shapes in the two bases: a difference is between bases of a family")
        found[suffix] = (after.detach().float().to(before.device) - before.detach().float()).to(dtype)
    if not any(bool(each.any()) for each in found.values()):
        return None
    return Norm.from_tensors(found) if isinstance(ours, NORMS) else Full.from_tensors(found)


def _card(base: Base, name: str) -> Card:
    return Card(kind=Difference.kind, name=name, family=base.family.name, base=base.name, base_hash=base.hash)


def _warn_of_autoencoders(base: Base, other: Base) -> None:
    ours, theirs = base.vae.state_dict(), other.vae.state_dict()
    alike = ours.keys() == theirs.keys() and all(
        torch.equal(each.float(), theirs[key].float().to(each.device)) for key, each in ours.items()
    )
    if not alike:
        said = f"{other.name} has another autoencoder than {base.name}, which no overlay changes: open it by vae="
        warnings.warn(said, VelaturaWarning, stacklevel=3)
