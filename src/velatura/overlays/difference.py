"""Differences: all that one base has otherwise than another, or learns to have; what a DreamBooth training makes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.errors import BadOverlay, VelaturaWarning, WrongBase
from velatura.overlays.deltas.delta import Delta, Layer
from velatura.overlays.deltas.full import FullDelta, NormDelta
from velatura.overlays.hooks.full_weight_hooks import FullWeightChange, TokenTableChange
from velatura.overlays.hooks.seams import Undo, hook_outputs
from velatura.overlays.lora.compatibility import check_side
from velatura.overlays.lora.kohya_names import UNET_PREFIX, canonical_path, kohya_names
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Card
from velatura.overlays.strength import LiveStrength, disable_inference_mode
from velatura.overlays.target import Target

NORM_LAYERS = (nn.GroupNorm, nn.LayerNorm)
FIRST_TEXT_LAYER = "layers.0.self_attn.k_proj"


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
        target = Target.from_model(base)
        names = {
            kohya_name: layer_name
            for kohya_name, layer_name in kohya_names(target).items()
            if text or kohya_name.startswith(UNET_PREFIX)
        }
        with disable_inference_mode(), torch.device(base.device):
            deltas = {kohya_name: _zero_delta(target.layer(layer_name)) for kohya_name, layer_name in names.items()}
        return cls(_make_card(base, name), deltas)

    @classmethod
    def from_bases(cls, base: Base, other: Base, *, name: str = "", dtype: torch.dtype = torch.float32) -> Self:
        """What another base has otherwise than this one; layers that are alike are left out.

        dtype: what it is kept in; half of it rounds. Raises WrongBase for a base of another structure, BadOverlay for
        one that has all alike; warns where autoencoders differ, which no overlay changes.
        """
        ours, theirs = Target.from_model(base), Target.from_model(other)
        names = layer_names(ours)
        if names != layer_names(theirs):
            raise WrongBase(
                f"{other.name} and {base.name} have other layers: a difference is between bases of a family"
            )
        with disable_inference_mode():
            differences = {
                kohya_name: _layer_difference(ours.layer(name), theirs.layer(name), name, dtype)
                for kohya_name, name in names.items()
            }
        deltas = {kohya_name: delta for kohya_name, delta in differences.items() if delta is not None}
        if not deltas:
            raise BadOverlay(
                f"{other.name} has all weights of {base.name}: there is no difference to make an overlay of"
            )
        _warn_if_vae_differs(base, other)
        return cls(_make_card(base, name or other.name), deltas)

    def deltas(self, target: Target) -> Mapping[str, Delta]:
        """Its differences by the names that the target has for their layers, tables of words and places among them."""
        names = layer_names(target)
        return {names[kohya_name]: delta for kohya_name, delta in self.layers.items() if kohya_name in names}

    def install_hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Hang each difference behind its layer."""
        deltas = self.deltas(target)
        expected = [
            kohya_name for kohya_name in self.layers if kohya_name.startswith(UNET_PREFIX) or target.text_encoders
        ]  # over a UNet alone, text idles
        if missing_count := len(expected) - len(deltas):
            raise WrongBase(
                f"{self.card} has {missing_count} layers that {target.name} lacks, of {len(expected)}: "
                "a difference lies over bases of the family that it was made for"
            )
        check_side(target, deltas, strength)
        for name, delta in deltas.items():
            layer = target.layer(name)
            if not delta.is_compatible(cast("Tensor", layer.weight)):
                raise WrongBase(f"{self.card} has another shape of {name} than {target.name}: it is of another family")
            if target.is_reachable(name):
                part_strength = strength if name.startswith("unet.") else strength.text
                change_class = TokenTableChange if isinstance(layer, nn.Embedding) else FullWeightChange
                change = change_class(
                    delta, part_strength, self.strength_factor(target, name), target.meter.add_output_layer(name)
                )
                target.changes.append(change)
                yield from hook_outputs(layer, change)


def layer_names(target: Target) -> dict[str, str]:
    """The names of a target's layers, tables of words and places too, by those that kohya's files have for them."""
    names = kohya_names(target)
    for kohya_name, name in list(names.items()):
        part, _, path = name.partition(".")
        if path.endswith(FIRST_TEXT_LAYER):  # the text towers' prefix stands before it
            prefix = kohya_name.removesuffix(canonical_path(part, path).replace(".", "_"))
            modules = cast("Iterator[tuple[str, nn.Module]]", target.parts[part].named_modules())
            tables = [table_path for table_path, module in modules if isinstance(module, nn.Embedding)]
            names |= {
                prefix + canonical_path(part, table_path).replace(".", "_"): f"{part}.{table_path}"
                for table_path in tables
            }
    return names


def _zero_delta(layer: nn.Module) -> Delta:
    assert isinstance(layer, Layer)
    return NormDelta.for_layer(layer) if isinstance(layer, NORM_LAYERS) else FullDelta.for_layer(layer)


def _layer_difference(ours: nn.Module, theirs: nn.Module, name: str, dtype: torch.dtype) -> Delta | None:
    """What one layer has otherwise than another, or None where it has nothing."""
    suffixes = (
        {"weight": "w_norm", "bias": "b_norm"}
        if isinstance(ours, NORM_LAYERS)
        else {"weight": "diff", "bias": "diff_b"}
    )
    tensors: dict[str, Tensor] = {}
    for part, suffix in suffixes.items():
        before, after = (cast("Tensor | None", getattr(layer, part, None)) for layer in (ours, theirs))
        if before is None and after is None:
            continue
        if before is None or after is None or before.shape != after.shape:
            raise WrongBase(f"{name} has other shapes in the two bases: a difference is between bases of a family")
        tensors[suffix] = (after.detach().float().to(before.device) - before.detach().float()).to(dtype)
    if not any(bool(tensor.any()) for tensor in tensors.values()):
        return None
    return NormDelta.from_tensors(tensors) if isinstance(ours, NORM_LAYERS) else FullDelta.from_tensors(tensors)


def _make_card(base: Base, name: str) -> Card:
    return Card(kind=Difference.kind, name=name, family=base.family.name, base=base.name, base_hash=base.hash)


def _warn_if_vae_differs(base: Base, other: Base) -> None:
    ours, theirs = base.vae.state_dict(), other.vae.state_dict()
    is_same = ours.keys() == theirs.keys() and all(
        torch.equal(tensor.float(), theirs[key].float().to(tensor.device)) for key, tensor in ours.items()
    )
    if not is_same:
        message = f"{other.name} has another autoencoder than {base.name}, which no overlay changes: open it by vae="
        warnings.warn(message, VelaturaWarning, stacklevel=3)
