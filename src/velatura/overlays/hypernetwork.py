"""Hypernetworks: small residual networks in front of to_k and to_v, chosen by the width of the context."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from velatura.arguments import check_arguments
from velatura.base.families import advise_base, check_family_name, guess_family_name
from velatura.base.pipeline import AnyBase, freeze_models, to_base
from velatura.errors import BadOverlay, UnsupportedBase, WrongBase, quantity, warn
from velatura.overlays.attention_layers import attention_layers, context_width
from velatura.overlays.hooks.seams import Undo, hook_contexts
from velatura.overlays.overlay import Card, Overlay, TargetPart, join_with_and
from velatura.overlays.strength import LiveStrength, disable_inference_mode
from velatura.overlays.structure import WEIGHT_INITS, HypernetworkStructure
from velatura.overlays.target import Target
from velatura.overlays.transform import HypernetworkModule, WidthChange


class Hypernetwork(Overlay):
    """Residual networks in front of to_k and to_v of all attention layers whose context has one of their widths.

    There is one pair of networks for each width, one for K and one for V; all layers of that width use it. In train
    mode the strength is ignored, as in A1111. A new hypernetwork is in eval mode.

    Attributes:
        structure: Widths, layers, activation and other parts of the structure.
        card: Name, family, base and what else is known of it.
    """

    kind: ClassVar[str] = "hypernet"
    kind_name: ClassVar[str] = "hypernetwork"
    target_parts: ClassVar[frozenset[TargetPart]] = frozenset({"unet"})

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.structure = HypernetworkStructure.from_fields(card.structure)
        self.card = card.replace(kind=self.kind, outline=self.structure.outline)
        for width in self.structure.widths:
            for part in (0, 1):
                self.add_module(f"{width}_{part}", HypernetworkModule(self.structure.build_network(width)))
        self.eval()

    @classmethod
    def from_card(cls, card: Card) -> Self:
        """Build a hypernetwork with the card's structure on the meta device: load its weights afterwards."""
        with torch.device("meta"), warnings.catch_warnings():
            # A1111 allows layers without features
            warnings.filterwarnings("ignore", "Initializing zero-element tensors", UserWarning)
            return cls(card)

    @classmethod
    @freeze_models
    @check_arguments()
    def for_base(
        cls,
        base: AnyBase,
        *,
        layers: Sequence[float] = (1, 2, 1),
        activation: str = "linear",
        layer_norm: bool = False,
        activate_output: bool = False,
        dropout: float | Sequence[float] = 0.0,
        last_layer_dropout: bool = True,
        init: str = "normal",
        widths: Iterable[int] | None = None,
        seed: int | None = None,
        name: str = "",
    ) -> Self:
        """Make an untrained hypernetwork for a base; with the default init it changes almost nothing yet.

        Args:
            base: The base whose contexts it changes.
            layers: Sizes of the layers as multiples of the context width; the first and the last are 1.
            activation: A1111's name of the activation; "linear" is none.
            layer_norm: Add a LayerNorm after each Linear layer.
            activate_output: Apply the activation after the last Linear layer too.
            dropout: One probability for all hidden layers (for layers 1,1: for the only one), or one probability for
                each entry of `layers`.
            last_layer_dropout: Apply the single probability to the last hidden layer too.
            init: A1111's name of the rule for new weights; "normal" starts close to the identity.
            widths: Widths of the contexts to change, in features; all of the base's by default.
            seed: Seed for the weights; torch's global generator by default.
            name: Name of the hypernetwork.

        Returns:
            The hypernetwork in eval mode, on the device of the base.

        Raises:
            BadOverlay: If this structure cannot be built, or the widths are those of another family.
            UnknownName: If the activation or the init is unknown.
        """
        base = to_base(base)
        fields: dict[str, object] = {
            "widths": tuple(_context_widths(base.unet) if widths is None else widths),
            "layers": tuple(layers),
            "activation": activation,
            "layer_norm": layer_norm,
            "activate_output": activate_output,
            "dropout": _layer_dropout(len(layers), dropout, last=last_layer_dropout),
            "init": init,
        }
        structure = HypernetworkStructure.from_fields(fields)
        if _belongs_to_another_family(base.unet, structure.widths):
            family = guess_family_name(structure.widths)
            whose = family and f", which are those of {family}"
            raise BadOverlay(
                f"{base.name} has contexts of {join_with_and(sorted(_context_widths(base.unet)))} features, not of "
                f"{join_with_and(sorted(structure.widths))}{whose}: give widths of its own, or none for all of them"
            )
        if min(structure.widths) * min(structure.layers) < 1:
            raise BadOverlay(
                f"layers {layers} leave no features of a context of {min(structure.widths)}: use larger multiples"
            )
        card = Card(
            kind=cls.kind,
            name=name,
            structure=structure.model_dump(mode="json"),
            family=check_family_name(base.family.name, structure.widths),
            base=base.name,
            base_hash=base.hash,
            prediction=base.family.unusual_prediction,
        )
        with disable_inference_mode():
            hypernetwork = cls.from_card(card).to_empty(device=base.device)
            hypernetwork.initialise(None if seed is None else torch.Generator(base.device).manual_seed(seed))
        return hypernetwork

    @property
    def is_batch_dependent(self) -> bool:
        """Return True if the change of one row of a batch depends on the other rows."""
        return self.structure.is_batch_dependent

    @property
    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained, by name, in the order of A1111's optimizer states."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights by the structure's init; layer norms always by "normal", as in A1111."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.LayerNorm):
                init_name = self.structure.init if isinstance(layer, nn.Linear) else "normal"
                WEIGHT_INITS[init_name](layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)
            if isinstance(layer, nn.PReLU):
                layer.reset_parameters()

    def transform(self, context: Tensor, strength: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """Change a context without any base.

        Args:
            context: (batch, tokens, width). If the hypernetwork lacks this width, the context is returned unchanged.
            strength: 0 is off, 1 is as trained; one number, or one for each row.

        Returns:
            What K and what V read in place of the context, both (batch, tokens, width).
        """
        change = self.width_change(context.shape[-1], LiveStrength(strength, context.device))
        return (change.k(context), change.v(context)) if change else (context, context)

    def width_change(self, width: int, strength: float | LiveStrength) -> WidthChange | None:
        """Return the change of contexts of a width, or None if the hypernetwork lacks this width."""
        if width not in self.structure.widths:
            return None
        k, v = (cast("HypernetworkModule", self.get_submodule(f"{width}_{part}")) for part in (0, 1))
        return WidthChange(k, v, strength if isinstance(strength, LiveStrength) else LiveStrength(strength))

    def install_hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Register the networks of all widths on the layers that read such contexts."""
        self.check_compatible(target)
        for width in self.structure.widths:
            if change := self.width_change(width, strength):
                yield from hook_contexts(target, width, change)

    def check_compatible(self, target: Target) -> None:
        """Refuse a base of another family; warn if the base lacks some of the widths."""
        ours, theirs = frozenset(self.structure.widths), frozenset(_context_widths(target.unet))
        if not theirs:
            raise UnsupportedBase(f"{target.name} has no attention with to_k and to_v: use a Stable Diffusion UNet")
        unused_widths = ours - theirs
        if not unused_widths:
            return
        comparison = (
            f"{self.display_name} changes contexts of {join_with_and(sorted(ours))} features, "
            f"{target.name} has {join_with_and(sorted(theirs))}"
        )
        if _belongs_to_another_family(target.unet, ours):
            raise WrongBase(f"{comparison}: {advise_base(check_family_name(self.card.family, ours))}")
        warn(f"{comparison}: its networks for {join_with_and(sorted(unused_widths))} have no effect here")


def _layer_dropout(count: int, dropout: float | Sequence[float], *, last: bool) -> tuple[float, ...]:
    """Return a dropout probability for each entry of `layers`, refusing a request that no layer can meet."""
    if isinstance(dropout, int | float):
        entries = _spread_dropout(count, dropout, last=last)
        is_impossible = bool(dropout) and not any(entries)
    else:
        entries = tuple(dropout)
        is_impossible = not last and any(entries[-2:-1])
    if is_impossible:
        raise BadOverlay(
            f"dropout {dropout} with last_layer_dropout={last} fits no hidden layer of {quantity(count, 'layer')}: "
            "give more layers, or one probability for each layer"
        )
    return entries


def _spread_dropout(count: int, dropout: float, *, last: bool) -> tuple[float, ...]:
    """Apply one probability to all hidden layers, as A1111 does; to the last of them only if `last`."""
    entries = [0.0, *[dropout] * (count - 3), dropout if last else 0.0, 0.0]
    return tuple(entries[:count])


def _context_widths(unet: nn.Module, *, cross_only: bool = False) -> dict[int, None]:
    """Return the context widths of a UNet, in order and without repeats; only of its cross-attention, if asked."""
    layers = [layer for _, layer in attention_layers(unet)]
    if cross_only:
        layers = [layer for layer in layers if getattr(layer, "is_cross_attention", True)]
    return dict.fromkeys(map(context_width, layers))


def _belongs_to_another_family(unet: nn.Module, widths: Iterable[int]) -> bool:
    """Return True if a UNet lacks some of the widths, and has the others in its self-attention only, if at all."""
    ours, theirs = frozenset(widths), _context_widths(unet)
    return bool(theirs) and not ours <= theirs.keys() and not ours & _context_widths(unet, cross_only=True).keys()
