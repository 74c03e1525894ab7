"""Hypernetworks: a small residual network in front of every K and V, chosen by the width of what they read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.base.families import guess_family_name
from velatura.errors import BadOverlay, UnsupportedBase, VelaturaWarning, WrongBase
from velatura.overlays.attention_layers import attention_layers, context_width
from velatura.overlays.hooks.seams import Undo, hook_contexts
from velatura.overlays.overlay import Card, Overlay, TargetPart
from velatura.overlays.strength import LiveStrength, disable_inference_mode
from velatura.overlays.structure import WEIGHT_INITS, HypernetworkStructure
from velatura.overlays.target import Target
from velatura.overlays.transform import HypernetworkModule, WidthChange


class Hypernetwork(Overlay):
    """Residual networks laid before to_k and to_v of every attention layer whose context has one of their widths.

    Each width has a pair, one for K and one for V, used by all layers of that width. In train mode the strength is
    ignored, as A1111 does; a new hypernetwork is in eval mode.
    """

    kind: ClassVar[str] = "hypernet"
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
        """Build a hypernetwork of the card's structure on the meta device: its weights come after."""
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Initializing zero-element tensors", UserWarning
            )  # A1111 allows such layers
            return cls(card)

    @classmethod
    def for_base(
        cls,
        base: Base,
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
        """Make an untrained hypernetwork for a base, close to doing nothing.

        layers: multiples of the context width; dropout: one probability after every hidden layer (of 1,1 after the only
        one), or one for each entry of layers; last_layer_dropout: whether the last of them has it too; widths: which
        contexts to change, all of the base's by default; seed: torch's own if none.
        """
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
        if min(structure.widths) * min(structure.layers) < 1:
            raise BadOverlay(
                f"layers {layers} leave nothing of a context of {min(structure.widths)}: use larger multiples"
            )
        card = Card(
            kind=cls.kind,
            name=name,
            structure=structure.model_dump(mode="json"),
            family=base.family.name,
            base=base.name,
            base_hash=base.hash,
        )
        with disable_inference_mode():
            hypernetwork = cls.from_card(card).to_empty(device=base.device)
            hypernetwork.initialise(None if seed is None else torch.Generator(base.device).manual_seed(seed))
        return hypernetwork

    @property
    def is_batch_dependent(self) -> bool:
        """Whether what it makes of one row of a batch depends on the others."""
        return self.structure.is_batch_dependent

    @property
    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Its parameters that learn, by name, in the order in which A1111 counts them in an optimizer's state."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights by the structure's rule; layer norms by the normal one whatever the rule, as in A1111."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.LayerNorm):
                init = WEIGHT_INITS[self.structure.init if isinstance(layer, nn.Linear) else "normal"]
                init(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)
            if isinstance(layer, nn.PReLU):
                layer.reset_parameters()

    def transform(self, context: Tensor, strength: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """What K and V read in place of a context (batch, tokens, width).

        A width that this hypernetwork lacks comes back as it is.
        """
        change = self.width_change(context.shape[-1], LiveStrength(strength, context.device))
        return (change.k(context), change.v(context)) if change else (context, context)

    def width_change(self, width: int, strength: float | LiveStrength) -> WidthChange | None:
        """What becomes of contexts of a width, or None where this hypernetwork lacks it."""
        if width not in self.structure.widths:
            return None
        k, v = (cast("HypernetworkModule", self.get_submodule(f"{width}_{part}")) for part in (0, 1))
        return WidthChange(k, v, strength if isinstance(strength, LiveStrength) else LiveStrength(strength))

    def install_hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Hang the pair of each width on the layers that read such contexts."""
        self.check_compatible(target)
        for width in self.structure.widths:
            if change := self.width_change(width, strength):
                yield from hook_contexts(target, width, change)

    def check_compatible(self, target: Target) -> None:
        """Refuse a base of another family; warn of widths that idle in a net made for several."""
        ours, theirs = frozenset(self.structure.widths), frozenset(_context_widths(target.unet))
        if not theirs:
            raise UnsupportedBase(f"{target.name} has no attention with to_k and to_v: use a Stable Diffusion UNet")
        unused_widths = ours - theirs
        if not unused_widths:
            return
        comparison = f"changes contexts of {_join_numbers(ours)} features, {target.name} has {_join_numbers(theirs)}"
        if not ours & theirs or not ours & _context_widths(target.unet, cross_only=True).keys():
            raise WrongBase(
                f"{self._display_name} {comparison}: it was made for {guess_family_name(ours)}, so open a base of that family"
            )
        warnings.warn(
            f"{self._display_name} {comparison}: its part for {_join_numbers(unused_widths)} idles",
            VelaturaWarning,
            stacklevel=2,
        )

    @property
    def _display_name(self) -> str:
        return f"hypernetwork {self.card.name}" if self.card.name else "the hypernetwork"


def _layer_dropout(count: int, dropout: float | Sequence[float], *, last: bool) -> tuple[float, ...]:
    """The dropout for each entry of layers, as A1111 lays out a single probability."""
    is_single = isinstance(dropout, int | float)
    entries = [0.0, *[dropout] * (count - 3), dropout if last else 0.0, 0.0][:count] if is_single else dropout
    if (is_single and dropout and not any(entries)) or (not is_single and not last and any(entries[-2:-1])):
        message = f"dropout {dropout} with last_layer_dropout={last} and {count} layers"
        raise BadOverlay(f"{message} asks for what cannot be: give more layers, or one probability for each of them")
    return tuple(entries)


def _context_widths(unet: nn.Module, *, cross_only: bool = False) -> dict[int, None]:
    """The context widths of a UNet, in order and each once; of its cross-attention only, if asked."""
    layers = [layer for _, layer in attention_layers(unet)]
    selected_layers = (
        [layer for layer in layers if getattr(layer, "is_cross_attention", True)] if cross_only else layers
    )
    return dict.fromkeys(map(context_width, selected_layers))


def _join_numbers(numbers: Iterable[int]) -> str:
    texts = [str(number) for number in sorted(numbers)]
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))
