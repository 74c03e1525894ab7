"""The base class of all overlays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
    """Small network attached to a frozen base. It changes the activations of the base, never the base's weights.

    A new overlay is in eval mode. A trainer calls train(); some kinds ignore their strength in train mode.
    """

    kind: ClassVar[str]
    kind_name: ClassVar[str]  # in messages
    target_parts: ClassVar[frozenset[TargetPart]]
    card: Card
    source: Path | None = None  # the file it was read from

    @classmethod
    def from_card(cls, card: Card) -> Self:
        """Build an overlay with a card's structure on the meta device: load its weights afterwards."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.card})"

    def name_after_file(self) -> None:
        """Give an overlay without a name that of the file from which it was read."""
        if not self.card.name and self.source is not None:
            self.card = self.card.replace(name=self.source.stem)

    @property
    def display_name(self) -> str:
        """Return the kind and the name, for messages."""
        return f"{self.kind_name} {self.card.name}" if self.card.name else f"the {self.kind_name}"

    @property
    def is_batch_dependent(self) -> bool:
        """Return True if the result for one row of a batch depends on the other rows."""
        return False

    @property
    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained, by name. The order is the same for new overlays and read ones."""
        return {name: parameter for name, parameter in sorted(self.named_parameters()) if parameter.requires_grad}

    def part_of(self, parameter: str) -> TargetPart | Literal["words"]:  # noqa: ARG002
        """Return the part of the base in which a parameter acts, or "words": each part may have its learning rate."""
        return "unet" if "unet" in self.target_parts else "text"

    def after_step(self) -> None:
        """Bring the parameters back within the bounds of this kind, if it has any, after an optimizer step."""

    def deltas(self, target: Target) -> Mapping[str, Delta]:  # noqa: ARG002
        """Return the changes of weights, by layer; an empty mapping if the overlay is not a change of weights.

        The names are those of Target.layer: "unet.", "text_encoder." or "text_encoder_2.", then the path of the module.
        """
        return {}

    def strength_factor(self, target: Target, name: str) -> float:  # noqa: ARG002
        """Return the factor by which the strength is multiplied in the target's layer of this name."""
        return 1.0

    def install_hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Register hooks on the target, and yield one undo after each. Hooks read the strength whenever they run."""
        raise NotImplementedError


def join_with_and(numbers: Iterable[int]) -> str:
    """Write numbers in a row for a message: 64, 96 and 128."""
    texts = [str(number) for number in numbers]
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))
