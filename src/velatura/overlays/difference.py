"""Differences: full-rank changes of weights, from DreamBooth training or by subtracting one base from another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from velatura.arguments import check_arguments
from velatura.base.base import Base
from velatura.base.families import Prediction
from velatura.base.image_condition import LATENT_CHANNELS
from velatura.base.pipeline import AnyBase, freeze_models, to_base
from velatura.errors import BadOverlay, WrongBase, quantity, warn
from velatura.overlays.deltas.delta import Delta, Layer
from velatura.overlays.deltas.first_channels import (
    FIRST_CONVOLUTION,
    check_input_channels,
    fit_input_channels,
    has_extra_channels,
)
from velatura.overlays.deltas.full import FullDelta, NormDelta
from velatura.overlays.hooks.full_weight_hooks import FullWeightChange, TokenTableChange
from velatura.overlays.hooks.seams import Undo, hook_outputs
from velatura.overlays.lora.compatibility import check_side, describe_input_channels
from velatura.overlays.lora.kohya_names import UNET_PREFIX, canonical_path, kohya_names
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Card
from velatura.overlays.strength import LiveStrength, disable_inference_mode
from velatura.overlays.target import Target

NORM_LAYERS = (nn.GroupNorm, nn.LayerNorm)
FIRST_TEXT_LAYER = "layers.0.self_attn.k_proj"


class Difference(Lora):
    """Full differences of weights and biases, under kohya's names of their layers.

    While it is attached, the base computes as with weight + strength * difference, also for strengths above 1. It is as
    large as the layers that it changes: 3.4 GB in float32 for the UNet of an SD1.

    Attributes:
        card: Name, family, base and what else is known of it.
        layers: The deltas, by kohya's names of their layers.
    """

    kind: ClassVar[str] = "difference"
    kind_name: ClassVar[str] = "difference"

    @classmethod
    @freeze_models
    @check_arguments()
    def for_base(cls, base: AnyBase, *, text: bool = False, name: str = "") -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make a difference of zeros for a base, to be trained.

        Args:
            base: The base whose UNet layers it changes.
            text: Change the layers of the text encoders too. Token and position embeddings are left out, so that words
                keep their meaning.
            name: Name of the difference.

        Returns:
            The difference in eval mode, on the device of the base.
        """
        base = to_base(base)
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
    @freeze_models
    @check_arguments()
    def from_bases(cls, base: AnyBase, other: AnyBase, *, name: str = "", dtype: torch.dtype = torch.float32) -> Self:
        """Subtract the weights of one base from those of another.

        Warns if the bases have different VAEs, which no overlay changes, or if only one predicts velocity. If `base` is
        an inpainting or pix2pix model and `other` is not, the further input channels of `base` stay as they are, as in
        A1111's checkpoint merger, and a warning says so.

        Args:
            base: The base to which the difference will be attached.
            other: The base that it then computes like.
            name: Name of the difference; that of `other` by default.
            dtype: Precision of the difference; in half precision it is rounded.

        Returns:
            The difference. Layers with equal weights are left out.

        Raises:
            BadOverlay: If all weights are equal.
            WrongBase: If the two have different layers, or only `other` is an inpainting or pix2pix model.
        """
        base, other = to_base(base), to_base(other, "other")
        ours, theirs = Target.from_model(base), Target.from_model(other)
        names = layer_names(ours)
        if names != layer_names(theirs):
            raise WrongBase(
                f"{other.name} and {base.name} have different layers: a difference is between bases of a family"
            )
        check_input_channels(base.name, base.unet.conv_in.weight.shape, other.name, other.unet.conv_in.weight.shape)
        with disable_inference_mode():
            differences = {
                kohya_name: _layer_difference(ours.layer(name), theirs.layer(name), name, dtype)
                for kohya_name, name in names.items()
            }
        deltas = {kohya_name: delta for kohya_name, delta in differences.items() if delta is not None}
        if not deltas:
            raise BadOverlay(f"{other.name} has the same weights as {base.name}: give a base that differs")
        _warn_if_vae_differs(base, other)
        warn_of_other_prediction((base.name, base.family.prediction), (other.name, other.family.prediction))
        return cls(_make_card(base, name or other.name), deltas)

    def deltas(self, target: Target) -> Mapping[str, Delta]:
        """Return its deltas by the target's names of their layers, with token and position embeddings."""
        names = layer_names(target)
        return {
            names[kohya_name]: fit_input_channels(delta, target.layer(names[kohya_name]), names[kohya_name])
            for kohya_name, delta in self.layers.items()
            if kohya_name in names
        }

    def install_hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Register a hook on all layers that it changes."""
        deltas = self.deltas(target)
        self._check_layers(target, deltas)
        check_side(target, deltas, strength)
        for name, delta in deltas.items():
            layer = target.layer(name)
            if target.is_reachable(name):
                part_strength = strength if name.startswith("unet.") else strength.text
                change_class = TokenTableChange if isinstance(layer, nn.Embedding) else FullWeightChange
                change = change_class(
                    delta, part_strength, self.strength_factor(target, name), target.meter.add_output_layer(name)
                )
                target.changes.append(change)
                yield from hook_outputs(layer, change)

    def _check_layers(self, target: Target, deltas: Mapping[str, Delta]) -> None:
        """Refuse a target that lacks layers of this difference, or has them in other shapes."""
        # on a UNet alone, the layers of text encoders have no effect
        expected = [name for name in self.layers if name.startswith(UNET_PREFIX) or target.text_encoders]
        if missing_count := len(expected) - len(deltas):
            raise WrongBase(
                f"{self.card} has {quantity(missing_count, 'layer')} that {target.name} lacks, of {len(expected)}: "
                "attach a difference to bases of the family that it was made for"
            )
        for name, delta in deltas.items():
            if not delta.is_compatible(cast("Tensor", target.layer(name).weight)):
                purpose = describe_input_channels(delta) if name == FIRST_CONVOLUTION else ""
                raise WrongBase(
                    f"{self.card} has another shape of {name} than {target.name}: open a base of the family that it "
                    f"was made for{purpose}"
                )


def layer_names(target: Target) -> dict[str, str]:
    """Map kohya's names to the target's names of its layers, with token and position embeddings."""
    names = kohya_names(target)
    for kohya_name, name in list(names.items()):
        part, _, path = name.partition(".")
        if path.endswith(FIRST_TEXT_LAYER):  # its kohya name holds the prefix of its text encoder
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
    """Subtract the weight and bias of one layer from those of another; None if they are equal."""
    suffixes = (
        {"weight": "w_norm", "bias": "b_norm"}
        if isinstance(ours, NORM_LAYERS)
        else {"weight": "diff", "bias": "diff_b"}
    )
    tensors: dict[str, Tensor] = {}
    for part, suffix in suffixes.items():
        before, after = (cast("Tensor | None", getattr(layer, part, None)) for layer in (ours, theirs))
        if before is not None and after is not None and has_extra_channels(before.shape, after.shape):
            before = before[:, :LATENT_CHANNELS]
        if before is None and after is None:
            continue
        if before is None or after is None or before.shape != after.shape:
            raise WrongBase(f"{name} has different shapes in the two bases: a difference is between bases of a family")
        tensors[suffix] = (after.detach().float().to(before.device) - before.detach().float()).to(dtype)
    if not any(bool(tensor.any()) for tensor in tensors.values()):
        return None
    return NormDelta.from_tensors(tensors) if isinstance(ours, NORM_LAYERS) else FullDelta.from_tensors(tensors)


def warn_of_other_prediction(base: tuple[str, Prediction | None], other: tuple[str, Prediction | None]) -> None:
    """Warn if a difference turns a base that predicts noise into one that predicts velocity, or the other way round.

    Args:
        base, other: The names of the models, whose difference is other - base, and what they predict; None if it is
            not known.
    """
    (base_name, of_base), (other_name, of_other) = base, other
    if of_base is not None and of_other is not None and of_base != of_other:
        word = "v" if of_other == "v_prediction" else "epsilon"
        warn(
            f"{base_name} predicts {of_base} and {other_name} {of_other}: with their difference attached, {base_name} "
            f"paints garbage unless it is opened with prediction={word!r} (--prediction {word})"
        )


def _make_card(base: Base, name: str) -> Card:
    return Card(
        kind=Difference.kind,
        name=name,
        family=base.family.name,
        base=base.name,
        base_hash=base.hash,
        prediction=base.family.unusual_prediction,
    )


def _warn_if_vae_differs(base: Base, other: Base) -> None:
    ours, theirs = base.vae.state_dict(), other.vae.state_dict()
    is_same = ours.keys() == theirs.keys() and all(
        torch.equal(tensor.float(), theirs[key].float().to(tensor.device)) for key, tensor in ours.items()
    )
    if not is_same:
        warn(f"{other.name} has another VAE than {base.name}, and no overlay changes a VAE: open the base with vae=")
