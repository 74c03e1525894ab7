"""What is laid over a base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

from torch import nn

from velatura.card import Card
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.hooks.seams import Undo
from velatura.overlays.strength import LiveStrength
from velatura.overlays.target import Target

TargetPart = Literal["unet", "text"]


class Overlay(nn.Module):
    """A small network laid over a frozen base: it changes what flows through the base, never the base.

    A new overlay is in eval mode; whoever trains it calls train(), in which some kinds ignore their strength.
    """

    kind: ClassVar[str]
    target_parts: ClassVar[frozenset[TargetPart]]
    card: Card
    source: Path | None = None  # the file it was read from

    @classmethod
    def from_card(cls, card: Card) -> Self:
        """Build an overlay of the structure that a card describes, on the meta device: its weights come after."""
        raise NotImplementedError

    @property
    def is_batch_dependent(self) -> bool:
        """Whether what it makes of one row of a batch depends on what else is in the batch."""
        return False

    @property
    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Its parameters that learn, by name, in an order that does not depend on whether it was made or read."""
        return {name: parameter for name, parameter in sorted(self.named_parameters()) if parameter.requires_grad}

    def part_of(self, parameter: str) -> TargetPart | Literal["words"]:  # noqa: ARG002
        """The part of a base that one of its parameters acts in, or "words": each may learn at a rate of its own."""
        return "unet" if "unet" in self.target_parts else "text"

    def after_step(self) -> None:
        """Put its parameters in order after an optimizer moved them, where a kind has bounds for them."""

    def deltas(self, target: Target) -> Mapping[str, Delta]:  # noqa: ARG002
        """What it adds to weights, by the names that the target has for their layers; {} where nothing can be baked so.

        The names are those of Target.layer: "unet.", "text_encoder." or "text_encoder_2.", then the path of the module.
        """
        return {}

    def strength_factor(self, target: Target, name: str) -> float:  # noqa: ARG002
        """By what its strength is multiplied in a layer, by the name that the target has for it."""
        return 1.0

    def install_hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Hang on the target and yield an undo for each thing done; strength is read whenever a hook runs."""
        raise NotImplementedError
